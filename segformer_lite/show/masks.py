"""Pictures of label maps: fills with contours, a legend with class names, rows that compare."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

IGNORED = (255, 255, 255)  # white: pixels that count nowhere


def colourise(labels, palette: np.ndarray) -> np.ndarray:
    """A label map (H, W) as a picture (H, W, 3) uint8; pixels labelled 255 are white."""
    table = np.full((256, 3), IGNORED, np.uint8)
    table[: len(palette)] = palette
    return table[np.asarray(labels).astype(np.uint8)]


def contours(labels) -> np.ndarray:
    """Where the label changes: bool (H, W), true on both sides of every border."""
    labels = np.asarray(labels)
    edge = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def overlay(image, labels, palette: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """The label map laid over its image: foreground filled, every border drawn; (H, W, 3) uint8.

    image: uint8 (3, H, W) or (H, W, 3). labels: (H, W). strength: 0 shows the image only, 1 the labels only.
    """
    image, labels = as_picture(image), np.asarray(labels)
    colours = colourise(labels, palette).astype(float)
    fill = np.where((labels > 0)[..., None], image * (1 - strength) + colours * strength, image)
    return np.where((contours(labels) & (labels > 0))[..., None], colours, fill).astype(np.uint8)


def as_picture(image) -> np.ndarray:
    """uint8 (3, H, W) or (H, W, 3), tensor or array -> (H, W, 3) array."""
    image = np.asarray(image)
    return image.transpose(1, 2, 0) if image.ndim == 3 and image.shape[0] == 3 else image


def legend(fig: Figure, labels: Sequence, classes: Sequence[str], palette: np.ndarray, most: int = 12) -> None:
    """Name under the figure the classes that occur in `labels`, the most frequent first, at most `most`."""
    counts = np.bincount(np.concatenate([np.asarray(m).ravel() for m in labels]), minlength=256)
    shown = [c for c in np.argsort(-counts[: len(classes)], kind="stable") if counts[c]][:most]
    handles = [Patch(color=palette[c] / 255, label=classes[c]) for c in shown]
    if counts[255]:
        handles.append(Patch(facecolor="white", edgecolor="black", label="not labelled"))
    fig.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=8)


def comparison(images: Sequence, predictions: Sequence, labels: Sequence, classes: Sequence[str],
               palette: np.ndarray, fields: Sequence | None = None, width: float = 1.75) -> Figure:
    """One row per picture: input | prediction | label, and | receptive field where `fields` are given.

    images: uint8 (3, H, W). predictions, labels: (H, W). fields: maps (H, W), drawn as log share of the maximum.
    width: inches per column.
    """
    titles = ["input", "prediction", "label", *(["receptive field"] if fields is not None else [])]
    heights = [np.asarray(m).shape[0] / np.asarray(m).shape[1] for m in labels]
    fig, axes = plt.subplots(len(images), len(titles), squeeze=False, layout="constrained", height_ratios=heights,
                             figsize=(width * len(titles), width * sum(heights) + 0.6))
    for row, (image, prediction, label) in enumerate(zip(images, predictions, labels, strict=True)):
        panels = [as_picture(image), overlay(image, prediction, palette), overlay(image, label, palette)]
        for ax, panel in zip(axes[row], panels, strict=False):
            ax.imshow(panel)
        if fields is not None:
            draw_field(axes[row][3], fields[row])
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10)
    legend(fig, [*predictions, *labels], classes, palette)
    return fig


def draw_field(ax, field, decades: float = 3.0) -> None:
    """A receptive field on `ax`: its values as powers of ten below the largest, the weakest `decades` of them dark."""
    field = np.asarray(field, dtype=float)
    ax.imshow(np.log10(np.maximum(field / field.max(), 10**-decades)), cmap="cividis", vmin=-decades, vmax=0)
