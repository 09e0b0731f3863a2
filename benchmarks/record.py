"""What the scripts here share: where runs and results lie, the versions behind a figure, and its file of JSON."""

import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
import torchvision

import segformer_lite as sl
from segformer_lite.files import beside

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"


def runs_folder() -> Path:
    """SEGFORMER_LITE_RUNS, else runs/ of the course."""
    return Path(os.environ.get("SEGFORMER_LITE_RUNS") or ROOT / "runs")


def versions() -> dict[str, str]:
    """Of everything that a figure may depend on; without the build's name, which says where it was fetched."""
    return {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__.split("+")[0],
            "torchvision": torchvision.__version__.split("+")[0], "segformer_lite": sl.__version__}


def write(path: Path, content: dict | str) -> None:
    """A result as JSON, or a page as it is, in a folder made if need be; whole or not there."""
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
    with beside(path) as part:
        part.write_text(text, encoding="utf-8")
