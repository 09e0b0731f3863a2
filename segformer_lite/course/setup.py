"""The first cell of every chapter."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data import runs_folder
from ..show import use_style
from ..training.device import cuda_computes


@dataclass(frozen=True)
class Session:
    """What a chapter needs to know: `mode` ("fast" or "full"), `device`, `seed`."""

    mode: str
    device: torch.device
    seed: int

    @property
    def full(self) -> bool:
        return self.mode == "full"

    @property
    def quick(self) -> bool:
        """Whether the tests run this chapter: its own training is then cut short (SEGFORMER_QUICK)."""
        return bool(os.environ.get("SEGFORMER_QUICK"))

    def newest_run(self, preset: str) -> Path | None:
        """The folder of a preset's newest finished run; None where there is none yet, and always in fast mode."""
        if not self.full:
            return None
        folders = [path.parent for path in runs_folder().glob("*/config.json")
                   if json.loads(path.read_text(encoding="utf-8")).get("name") == preset]
        finished = [folder / "report.json" for folder in folders if (folder / "report.json").is_file()]
        return max(finished, key=lambda path: path.stat().st_mtime).parent if finished else None


def setup(mode: str | None = None, seed: int = 0, mps: bool = False) -> Session:
    """Seed everything, set how numbers print and figures look, choose mode and device; say so in one line.

    mode: "fast" (small pictures, short runs, any machine) or "full" (real data, a CUDA GPU); taken from the
        environment variable SEGFORMER_LITE_MODE when not given, and "fast" when that is not set either.
    mps: use an Apple GPU. Opt-in, because its numbers differ more from those printed here.

    When SEGFORMER_TEST is set (the tests set it): one thread and the CPU, so that machines print the same.
    """
    mode = mode or os.environ.get("SEGFORMER_LITE_MODE") or "fast"
    if mode not in ("fast", "full"):
        raise ValueError(f'mode is {mode!r}: it must be "fast" or "full" (argument mode or SEGFORMER_LITE_MODE)')
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_printoptions(precision=3, sci_mode=False, linewidth=110)
    np.set_printoptions(precision=3, suppress=True, linewidth=110)
    use_style()

    testing = bool(os.environ.get("SEGFORMER_TEST"))
    if testing:
        torch.set_num_threads(1)
    if not testing and cuda_computes():
        device = torch.device("cuda")
    elif mps and torch.backends.mps.is_available():
        device = torch.device("mps")
    else:
        device = torch.device("cpu")
    print(f"{mode} mode, seed {seed}, on {device.type}")
    return Session(mode, device, seed)
