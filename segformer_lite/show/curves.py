"""Curves of numbers over training steps, and bars of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plots import COLOURS


def loss_curve(history: list[dict], path: str | Path | None = None) -> Figure:
    """Loss over steps: each logged value thin, their running mean thick; validation mIoU where it was measured.

    history: dicts with "step", "loss" and sometimes "miou". path: also write a PNG there.
    """
    steps, losses = np.array([e["step"] for e in history]), np.array([e["loss"] for e in history])
    fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    ax.plot(steps, losses, color=COLOURS["sky"], linewidth=0.8, label="loss of one batch")
    window = max(5, len(losses) // 10)
    if len(losses) > window:
        mean = np.convolve(losses, np.ones(window) / window, "valid")
        ax.plot(steps[window - 1:], mean, color=COLOURS["blue"], linewidth=2, label=f"mean of {window}")
    ax.set(xlabel="step", ylabel="cross-entropy", ylim=(0, None))
    points = [(e["step"], e["miou"]) for e in history if "miou" in e]
    if points:
        right = ax.twinx()
        right.plot(*zip(*points, strict=True), "o-", color=COLOURS["red"], label="validation mIoU")
        right.set(ylabel="mIoU", ylim=(0, 1))
    fig.legend(loc="outside lower center", ncols=3, frameon=False)
    if path:
        fig.savefig(path, dpi=110, format="png")
        plt.close(fig)
    return fig


def bars(table: Mapping[str, Sequence[float]], label: str) -> Figure:
    """Horizontal bars of the mean of each row, a dot for each value in it, with its standard deviation as a line.

    table: name -> values, one per seed. label: what the values are.
    """
    fig, ax = plt.subplots(figsize=(6, 0.9 + 0.4 * len(table)), layout="constrained")
    draw_bars(ax, table)
    ax.invert_yaxis()
    ax.set(xlabel=label, xlim=(0, None))
    return fig


def bar_panels(tables: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> Figure:
    """Bars of ratios, several tables with the same rows side by side, from 0, with a dashed line at 1.

    A bar goes to the median of its row, with the quartiles as a line and a dot for each value.
    tables: title -> a table as `bars` takes it. label: what the values are.
    """
    rows = max(map(len, tables.values()))
    fig, axes = plt.subplots(1, len(tables), figsize=(2.2 + 2.2 * len(tables), 0.9 + 0.25 * rows), squeeze=False,
                             sharex=True, sharey=True, layout="constrained")
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        draw_bars(ax, table, medians=True)
        ax.axvline(1, color="#333333", linestyle="--", linewidth=1)
        ax.set_title(title, fontsize=9)
    axes[0][0].invert_yaxis()
    axes[0][0].set_xlim(0, None)
    fig.supxlabel(label, fontsize=10)
    return fig


def draw_bars(ax: Axes, table: Mapping[str, Sequence[float]], medians: bool = False) -> None:
    """Draw a bar for each row of a table, from top to bottom once the axis is turned over.

    It goes to the mean of its values, with their standard deviation; `medians`: to the median, with the quartiles.
    """
    for row, values in enumerate(table.values()):
        if medians:
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        else:
            middle, spread = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
            low, high = middle - spread, middle + spread
        ax.barh(row, middle, xerr=[[middle - low], [high - middle]], color=COLOURS["sky"], height=0.6,
                error_kw={"elinewidth": 1.5})
        ax.plot(values, [row] * len(values), "o", color=COLOURS["blue"], markersize=4)
    ax.set_yticks(range(len(table)), list(table))
