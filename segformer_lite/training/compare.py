"""Every ablation of the course is one call: the same settings but for one thing, several seeds, a table."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ..data import runs_folder
from ..show.curves import bars
from .checkpoint import CHECKPOINT
from .config import TrainConfig
from .loop import train


@dataclass
class Comparison:
    """`results`: name -> the figures of each seed's run: `Report.summary()`, the recall of the pixels of small, medium
    and large regions ("recall_small", ...; NaN where there are none), and the network's "parameters"."""

    results: dict[str, list[dict[str, float]]]

    def values(self, metric: str = "miou") -> dict[str, list[float]]:
        """name -> the metric of each seed."""
        return {name: [run[metric] for run in runs] for name, runs in self.results.items()}

    def mean_sd(self, metric: str = "miou") -> dict[str, tuple[float, float]]:
        """name -> mean and sample standard deviation over seeds (NaN with one seed)."""
        return {name: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else float("nan"))
                for name, v in self.values(metric).items()}

    def figure(self, metric: str = "miou") -> Figure:
        """Bars of the mean, a dot per seed."""
        seeds = max(map(len, self.results.values()))
        return bars(self.values(metric), f"{metric} (bar: mean, line: sd, dots: {seeds} seeds)")

    def __str__(self) -> str:
        columns = ("miou", "miou_foreground", "boundary_iou", "pixel_accuracy")
        width = max(map(len, self.results)) + 2
        lines = [f"{'':<{width}}{'parameters':>12}" + "".join(f"{c:>18}" for c in columns)]
        for name, runs in self.results.items():
            cells = [self.mean_sd(c)[name] for c in columns]
            lines.append(f"{name:<{width}}{runs[0]['parameters']:>12,}"
                         + "".join(f"{f'{m:.3f} ± {s:.3f}':>18}" for m, s in cells))
        return "\n".join(lines)


def compare(configs: dict[str, TrainConfig], seeds: int = 3, folder: str | Path | None = None,
            progress: bool = True) -> Comparison:
    """Train every config with seeds 0 to `seeds` - 1 and set the validation results side by side.

    Arguments: `configs`: name -> settings (their `seed` and `folder` are replaced); `folder` (default: compare/ beside
    other runs) gets one run each under name/seed; a finished run of the same settings there is not trained again.
    Raises ValueError under torchrun.
    """
    if torch.distributed.is_torchelastic_launched():
        raise ValueError("compare trains one run after the other in one process: start it without torchrun")
    folder = Path(folder or runs_folder() / "compare")
    results: dict[str, list[dict[str, float]]] = {}
    for name, config in configs.items():
        results[name] = []
        for seed in range(seeds):
            place = folder / name / str(seed)
            resume = place if (place / CHECKPOINT).exists() else None
            run = train(replace(config, seed=seed, folder=str(place)), resume, progress)
            assert run.report is not None  # it is the only process
            parameters = sum(p.numel() for p in run.model.parameters())
            recalls = {f"recall_{size}": bin["recall"] for size, bin in run.report.per_size.items()}
            results[name].append({**run.report.summary(), **recalls, "parameters": parameters})
    return Comparison(results)
