"""Pictures of label maps, of what differs between two, of how unsure they are, and of receptive fields."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

IGNORED = (255, 255, 255)  # white: pixels that count nowhere
DIFFERENCES = ("as labelled", "missed", "invented", "another class")
DIFFERENCE_PALETTE = np.array([(119, 119, 119), (0, 114, 178), (230, 159, 0), (0, 0, 0)], np.uint8)  # Okabe, Ito


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


def difference(prediction, label) -> np.ndarray:
    """What a prediction got wrong, as a label map (H, W) uint8 of the classes `DIFFERENCES`.

    1, missed: labelled foreground predicted as background; 2, invented: the reverse; 3: another foreground class
    than the labelled one; 255 where the label is 255. Background is class 0. Draw it as any label map:
    `overlay(grey(image), difference(...), DIFFERENCE_PALETTE)`. Raises ValueError for maps of two sizes.
    """
    prediction, label = np.asarray(prediction), np.asarray(label)
    if prediction.shape != label.shape:
        raise ValueError(f"the prediction is {prediction.shape} and the label {label.shape}: resize one to the other")
    wrong = prediction != label
    kinds = np.select([label == 255, wrong & (prediction == 0), wrong & (label == 0), wrong], [255, 1, 2, 3], 0)
    return kinds.astype(np.uint8)


def grey(image) -> np.ndarray:
    """The image (H, W, 3) uint8 without colour, pale: ground on which black and colours that mean something stand out.

    Black and white keep 0.6 of their distance.
    """
    luminance = as_picture(image) @ np.array([0.299, 0.587, 0.114])
    return np.repeat((255 - (255 - luminance) * 0.6).round()[..., None], 3, axis=2).astype(np.uint8)


def heat(values, lowest: float = 0.0, highest: float = 1.0) -> np.ndarray:
    """A map (H, W) of numbers as a picture (H, W, 3) uint8, dark blue to yellow, told apart with any colour vision."""
    shares = np.clip((np.asarray(values, dtype=float) - lowest) / (highest - lowest), 0, 1)
    return plt.get_cmap("cividis")(shares, bytes=True)[..., :3]


def legend(fig: Figure, labels: Sequence, classes: Sequence[str], palette: np.ndarray, most: int = 12) -> None:
    """Name under the figure the classes that occur in `labels`, the most frequent first, at most `most`."""
    counts = np.bincount(np.concatenate([np.asarray(m).ravel() for m in labels]), minlength=256)
    shown = [c for c in np.argsort(-counts[: len(classes)], kind="stable") if counts[c]][:most]
    handles = [Patch(color=palette[c] / 255, label=classes[c]) for c in shown]
    if counts[255]:
        handles.append(Patch(facecolor="white", edgecolor="black", label="not labelled"))
    fig.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=8)


def comparison(images: Sequence, predictions: Sequence, labels: Sequence, classes: Sequence[str],
               palette: np.ndarray, fields: Sequence | None = None, width: float = 1.75,
               path: str | Path | None = None) -> Figure:
    """One row per picture: input | prediction | label, and | receptive field where `fields` are given.

    images: uint8 (3, H, W). predictions, labels: (H, W). fields: maps (H, W), drawn as log share of the maximum.
    width: inches per column. path: also write a PNG there.
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
    return _written(fig, path)


def mask_figure(image, prediction, classes: Sequence[str], palette: np.ndarray, label=None, uncertainty=None,
                width: float = 2.2, path: str | Path | None = None) -> Figure:
    """One picture looked at closely: input | prediction | label | what differs | how unsure, as far as given.

    image: uint8 (3, H, W) or (H, W, 3). prediction, label: (H, W). uncertainty: (H, W) from 0, sure, to 1. width:
    inches per panel. path: also write a PNG there.
    """
    panels = {"input": as_picture(image), "prediction": overlay(image, prediction, palette)}
    if label is not None:
        kinds = difference(prediction, label)
        panels |= {"label": overlay(image, label, palette),
                   "difference": overlay(grey(image), kinds, DIFFERENCE_PALETTE, strength=0.9)}
    if uncertainty is not None:
        panels["uncertainty"] = heat(uncertainty)
    height = width * panels["input"].shape[0] / panels["input"].shape[1]
    fig, row = plt.subplots(1, len(panels), squeeze=False, layout="compressed",
                            figsize=(width * len(panels), height + 1.3))
    axes = dict(zip(panels, row[0], strict=True))
    for title, ax in axes.items():
        ax.imshow(panels[title], cmap="cividis", vmin=0, vmax=1)
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
    if label is not None:
        handles = [Patch(color=DIFFERENCE_PALETTE[k] / 255, label=DIFFERENCES[k]) for k in (1, 2, 3)]
        axes["difference"].legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False,
                                  fontsize=8)
    if uncertainty is not None:
        below = axes["uncertainty"].inset_axes((0.1, -0.1, 0.8, 0.05))  # takes no room from its panel
        bar = fig.colorbar(axes["uncertainty"].images[0], cax=below, orientation="horizontal")
        bar.set_ticks([0, 1], labels=["sure", "cannot tell"], fontsize=8)
    legend(fig, [prediction] if label is None else [prediction, label], classes, palette)
    return _written(fig, path)


def draw_field(ax, field, decades: float = 3.0) -> None:
    """A receptive field on `ax`: its values as powers of ten below the largest, the weakest `decades` of them dark."""
    ax.imshow(decades_below(field, decades), cmap="cividis", vmin=-decades, vmax=0)


def decades_below(field, decades: float = 3.0) -> np.ndarray:
    """log10 of a field's values as shares of the largest, from -decades to 0: (H, W) -> same."""
    field = np.asarray(field, dtype=float)
    return np.log10(np.maximum(field / field.max(), 10**-decades))


def field_figure(image, field, pixel: tuple[int, int], sides: Mapping[str, int], title: str = "",
                 width: float = 3.2, path: str | Path | None = None) -> Figure:
    """A receptive field beside its picture, a cross on the pixel and squares of known sides around it on both.

    image: uint8 (3, H, W) or (H, W, 3). field: (H, W), drawn as powers of ten below its largest value. pixel: (row,
    column). sides: px of each square by what it holds, e.g. {"50 %": 49}. path: also write a PNG there.
    """
    picture = as_picture(image)
    height = width * picture.shape[0] / picture.shape[1]
    fig, (left, right) = plt.subplots(1, 2, layout="constrained", figsize=(2 * width + 0.7, height + 1))
    left.imshow(picture)
    draw_field(right, field)
    limits = left.get_xlim(), left.get_ylim()
    seen_on_all, styles = [withStroke(linewidth=3, foreground="black")], ("-", "--", ":", "-.")
    for ax in (left, right):
        ax.plot(pixel[1], pixel[0], "+", color="white", markersize=9, path_effects=seen_on_all)
        for (share, side), style in zip(sides.items(), styles, strict=False):
            corner = (pixel[1] - side / 2, pixel[0] - side / 2)
            ax.add_patch(Rectangle(corner, side, side, fill=False, ec="white", ls=style, lw=1.3, label=share,
                                   path_effects=seen_on_all))
        ax.set(xlim=limits[0], ylim=limits[1])  # a square may reach over the border; the picture stays
        ax.set_axis_off()
    left.set_title("picture", fontsize=10)
    right.set_title(title or "receptive field", fontsize=10)
    bar = fig.colorbar(right.images[0], ax=right, shrink=0.8)
    bar.set_label("powers of ten below the largest", fontsize=8)
    handles, labels = left.get_legend_handles_labels()
    fig.legend(handles, [f"{share} of the mass: {sides[share]} px" for share in labels], loc="outside lower center",
               ncols=2, fontsize=8, facecolor="#999999")
    return _written(fig, path)


def _written(fig: Figure, path: str | Path | None) -> Figure:
    if path:
        fig.savefig(path, dpi=120, format="png")
        plt.close(fig)
    return fig
