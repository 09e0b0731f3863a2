"""Which exercises have been solved on this machine: every check that passes notes its name in the learner's folder."""

import functools
import inspect
import json
import os
import sys
from datetime import date
from pathlib import Path

from ...data import course_folder
from ...files import beside

TESTS = ("SEGFORMER_TEST", "PYTEST_CURRENT_TEST")  # set while the course tests itself: nothing is remembered then


def progress_file() -> Path | None:
    """work/.progress.json in the course's folder; None outside of it and in the course's own tests."""
    folder = course_folder()
    testing = any(os.environ.get(variable) for variable in TESTS)
    return folder / "work" / ".progress.json" if (folder / "course.py").is_file() and not testing else None


def remembered(check):
    """The check, which now also notes that it passed, and says what is wrong without showing its own lines."""

    @functools.wraps(check)
    def checked(*args, **kwargs) -> None:
        __tracebackhide__ = True  # IPython leaves this frame out: it tells a learner nothing
        try:
            check(*args, **kwargs)
        except Exception as error:
            place = error.__traceback__.tb_next
            while place and Path(place.tb_frame.f_code.co_filename).parent == Path(__file__).parent:
                place = place.tb_next  # a check's own lines would give the answer away: show the learner's alone
            error.with_traceback(place)
            raise
        note(check.__name__)

    return checked


def note(name: str) -> None:
    """Write a check's name and today's date, unless it is there."""
    path = progress_file()
    if path is None or name in (solved := read(path)):
        return
    try:
        with beside(path, shared=True) as part:  # two chapters may be open
            part.write_text(json.dumps({**solved, name: date.today().isoformat()}, indent=1), encoding="utf-8")
    except OSError as error:
        print(f"(not remembered: {error})")  # a right answer stays right in a folder that cannot be written


def read(path: Path) -> dict[str, str]:
    """Name -> date of every check that has passed; empty where there is no such file, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def progress() -> None:
    """List every exercise of the course by chapter, [x] where its check has passed on this machine."""
    checks = sys.modules[__package__]
    path = progress_file()
    solved = read(path) if path else {}
    chapters: dict[str, list[str]] = {}
    for name in checks.__all__:
        if name != "progress":
            chapters.setdefault(getattr(checks, name).__module__, []).append(name)
    for module in sorted(chapters):
        names = sorted(chapters[module], key=lambda n: inspect.unwrap(getattr(checks, n)).__code__.co_firstlineno)
        title = sys.modules[module].__doc__.split("\n")[0].removeprefix("Checks of ").rstrip(".")
        print(f"{title}: {sum(name in solved for name in names)} of {len(names)}")
        print("  " + "  ".join(f"[{'x' if name in solved else ' '}] {name}" for name in names))
    everything = [name for names in chapters.values() for name in names]
    print(f"{sum(name in solved for name in everything)} of {len(everything)} exercises solved")
