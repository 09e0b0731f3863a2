"""What the scripts here share: where runs and results lie, the versions behind a figure, its file of JSON, a search."""

import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchvision
from matplotlib.figure import Figure

import segformer_lite as sl
from segformer_lite.files import beside, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SEARCH_SEED = 100  # of runs that look for a learning rate, and no other's


def runs_folder() -> Path:
    """SEGFORMER_LITE_RUNS, else runs/ of the course."""
    return Path(os.environ.get("SEGFORMER_LITE_RUNS") or ROOT / "runs")


def versions() -> dict[str, str]:
    """Of everything that a figure may depend on; without the build's name, which says where it was fetched."""
    return {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__.split("+")[0],
            "torchvision": torchvision.__version__.split("+")[0], "segformer_lite": sl.__version__}


def write(path: Path, content: dict | str) -> None:
    """A result as JSON, or a page as it is, in a folder made if need be; whole or not there."""
    write_text(path, content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")


def save(figure: Figure, path: Path) -> None:
    """A figure as PNG; whole or not there. Closes it."""
    with beside(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def best_rate(config: sl.TrainConfig, rates: tuple[tuple[float, float], ...], folder: Path) -> dict[str, float]:
    """lr and head_lr_mult, the pair of `rates` with the best mIoU after a quarter of the steps; runs go to `folder`."""
    scores = {}
    for lr, times in rates:
        place = folder / f"{lr}x{times:g}"
        if not (place / "report.json").exists():
            trial = replace(config, lr=lr, head_lr_mult=times, steps=max(1, config.steps // 4), seed=SEARCH_SEED,
                            folder=str(place))
            sl.train(trial, place if (place / "checkpoint.pt").exists() else None, sys.stderr.isatty())
        scores[lr, times] = json.loads((place / "report.json").read_text())["miou"]
    print(folder.name, {f"{lr} x{times:g}": round(score, 3) for (lr, times), score in scores.items()}, flush=True)
    return dict(zip(("lr", "head_lr_mult"), max(scores, key=scores.get), strict=True))
