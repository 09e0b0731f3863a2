"""What the daily commands of CONTRIBUTING.md look at."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tool(*arguments: str) -> str:
    """What a tool prints; it must find nothing wrong."""
    answer = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_ruff_finds_nothing_in_code_and_masters():
    tool("ruff", "check", "--no-cache")
    looked_at = tool("ruff", "check", "--show-files").splitlines()
    for path in ("segformer_lite/files.py", "tests/test_style.py", "course.py", "notebooks/masters/00_start_here.py"):
        assert str(ROOT / path) in looked_at


def test_the_types_of_the_package_fit():
    """From nothing, about 40 seconds of a core, nearly all of it for reading torch; afterwards a few."""
    assert tool("mypy").startswith("Success")
