"""Figures of the course: one style, one way to put a figure into a notebook, and the map of the network.

Nothing here computes results; it draws what it is given.
"""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.rcsetup import cycler
from PIL import Image

from .masks import as_picture

# Okabe and Ito's palette: told apart with any kind of colour vision.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "sky": "#56B4E9",
    "pink": "#CC79A7",
    "yellow": "#F0E442",
    "grey": "#777777",
}
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 90,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=list(COLOURS.values())),
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
DPI, LARGEST = 90, (7.0, 5.0)  # dots per inch; inches wide and high


def use_style() -> None:
    """Give every figure made from here on the course's style."""
    matplotlib.rcParams.update(STYLE)


def figure(fig: Figure, alt: str, colours: int = 256) -> None:
    """Put a figure into the notebook as PNG with its description and close it; elsewhere only close it.

    alt: one or more full sentences saying what the figure shows, kept in the output's metadata. colours: how many
    the PNG may have, at most 256; pictures in grey do with fewer, which makes a smaller file.
    A figure larger than 7 x 5 inches is made smaller. Raises ValueError when `alt` is no sentence.
    """
    if len(alt.split()) < 4:
        raise ValueError(f"alt={alt!r}: describe the figure in a full sentence, for readers who cannot see it")
    drawn, stored = io.BytesIO(), io.BytesIO()
    scale = min(1.0, *(most / inches for most, inches in zip(LARGEST, fig.get_size_inches(), strict=True)))
    fig.savefig(drawn, format="png", dpi=DPI * scale)
    plt.close(fig)
    # 256 colours are enough to the eye and make the notebook less than half as large.
    fewer_colours(Image.open(drawn).convert("RGB"), colours).save(stored, format="png", optimize=True)
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return
    if get_ipython() is None:
        return
    data = {"image/png": base64.b64encode(stored.getvalue()).decode(), "text/plain": alt}
    display(data, metadata={"image/png": {"alt": alt}}, raw=True)


def fewer_colours(picture: Image.Image, colours: int) -> Image.Image:
    """An RGB picture with at most `colours` colours, as one with a palette.

    The most frequent colours, up to half of all, stay exactly as they are: plain areas such as those of classes and
    their legend. The others are merged to the nearest of the rest (median cut).
    """
    codes = np.asarray(picture).astype(int) @ (65536, 256, 1)
    found, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
    plain = np.argsort(-counts, kind="stable")[: colours // 2]
    merged = colours - len(plain)
    new = np.full(len(found), -1)
    new[plain] = range(merged, colours)
    new = new[place.reshape(codes.shape)]
    rest = picture.quantize(merged, dither=Image.Dither.NONE)
    result = Image.fromarray(np.where(new < 0, np.asarray(rest), new).astype(np.uint8))
    palette = [*(rest.getpalette() or []), *[0] * 3 * merged][: 3 * merged]
    result.putpalette(palette + [int(c) for code in found[plain] for c in (code >> 16, code >> 8 & 255, code & 255)])
    return result


def grid(pictures: Sequence, titles: Sequence[str] = (), columns: int = 4, cell: float = 1.7, **imshow) -> Figure:
    """Small pictures side by side, each (H, W), (H, W, 3) or a tensor (3, H, W); returns the figure.

    columns: pictures in a row. cell: inches per picture. Further arguments go to `imshow`.
    """
    arrays = [as_picture(p) for p in pictures]
    columns = min(columns, len(arrays))
    rows = math.ceil(len(arrays) / columns)
    aspect = arrays[0].shape[0] / arrays[0].shape[1]
    title = 0.25 if titles else 0.0
    fig, axes = plt.subplots(rows, columns, figsize=(cell * columns, (cell * aspect + title) * rows), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(arrays):
            ax.imshow(arrays[i], **imshow)
            ax.set_title(titles[i] if i < len(titles) else "")
    return fig


PARTS = {
    "image": "the image",
    "patch_embed": "patch embedding",
    "attention": "efficient self-attention",
    "mix_ffn": "Mix-FFN",
    "decoder": "the MLP decoder",
    "mask": "the predicted mask",
}


def network(lit: str | Sequence[str] = ()) -> None:
    """Show the map of SegFormer with one part, or several, lit: "you are here".

    lit: from "image", "patch_embed", "attention", "mix_ffn", "decoder", "mask". Raises ValueError for others.
    """
    lit = (lit,) if isinstance(lit, str) else tuple(lit)
    if unknown := [name for name in lit if name not in PARTS]:
        raise ValueError(f"no part {unknown[0]!r} in the map; there are {', '.join(PARTS)}")
    fig = plt.figure(figsize=(7, 2.9), layout="none")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 140), ylim=(0, 58))
    ax.axis("off")

    scene = _scene()
    _picture(ax, scene["image"], (2, 3.7), "image", lit)
    _arrow(ax, (18.2, 10.2), (28.2, 10.2))
    for i in range(4):
        _stage(ax, 27 + 24 * i, i, lit)
    _box(ax, (27, 46), (91, 8), "MLP decoder", "decoder" in lit)
    _arrow(ax, (118.5, 50), (122.5, 50))
    _picture(ax, scene["mask"], (123, 42), "mask", lit)

    here = " and ".join(PARTS[name] for name in lit)
    alt = (
        "Map of SegFormer. The image passes through four stages at 1/4, 1/8, 1/16 and 1/32 of its size; "
        "each is a patch embedding followed by blocks of efficient self-attention and Mix-FFN. The feature "
        "maps F1 to F4 of all four stages go up into one MLP decoder, which gives the mask."
    )
    figure(fig, alt=alt + (f" Lit: {here}." if here else ""))


def _stage(ax, x: float, i: int, lit: Sequence[str]) -> None:
    width = 19
    ax.add_patch(
        FancyBboxPatch(
            (x, 4), width, 31, boxstyle="round,pad=0,rounding_size=1.5", fc="#F6F6F4", ec="#CCCCCC"
        )
    )
    ax.text(x + width / 2, 1.2, f"stage {i + 1}: 1/{4 * 2**i}", ha="center", va="center", fontsize=8, color="#444444")
    # The blocks that repeat stand in a frame of their own.
    ax.add_patch(FancyBboxPatch((x + 1, 17.4), width - 2, 16.6, boxstyle="round,pad=0,rounding_size=1",
                                fc="none", ec="#AAAAAA", ls=(0, (2, 2)), lw=0.8))
    for y, name, label in ((7, "patch_embed", "patch embed"), (18.6, "attention", "attention"),
                           (26.6, "mix_ffn", "Mix-FFN")):
        _box(ax, (x + 1.4, y), (width - 2.8, 6.4), label, name in lit)
    _arrow(ax, (x + width / 2, 13.4), (x + width / 2, 17.6))
    _arrow(ax, (x + width / 2, 34.2), (x + width / 2, 45.6))
    ax.text(x + width / 2 + 1.2, 40.6, f"F{i + 1}", fontsize=8, va="center", color="#444444")
    ax.text(x + width - 1.4, 15.4, "× L", ha="right", fontsize=7, va="center", color="#777777")
    if i < 3:  # on to the next, smaller stage: right, down the gap, into its patch embedding
        ax.plot([x + width / 2, x + 21.5, x + 21.5], [37.6, 37.6, 10.2], color="#888888", lw=1.1,
                solid_joinstyle="round")
        _arrow(ax, (x + 21.4, 10.2), (x + 25.3, 10.2))


def _box(ax, corner: tuple[float, float], size: tuple[float, float], label: str, lit: bool) -> None:
    ax.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=1.2", lw=1.6 if lit else 0.9,
                                fc=COLOURS["orange"] if lit else "white", ec="#8A5A00" if lit else "#999999"))
    ax.text(corner[0] + size[0] / 2, corner[1] + size[1] / 2, label, ha="center", va="center", fontsize=7.2,
            color="black" if lit else "#555555", fontweight="bold" if lit else "normal")


def _arrow(ax, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color="#888888", lw=1.1,
                                 shrinkA=0, shrinkB=0, zorder=4))


def _picture(ax, pixels: np.ndarray, corner: tuple[float, float], name: str, lit: Sequence[str]) -> None:
    x, y = corner
    ax.imshow(pixels, extent=(x, x + 16, y, y + 13), aspect="auto", zorder=2)
    edge = (COLOURS["orange"], 3) if name in lit else ("#999999", 0.9)
    ax.add_patch(plt.Rectangle((x, y), 16, 13, fc="none", ec=edge[0], lw=edge[1], zorder=3))
    ax.text(x + 8, y - 2.5, name, ha="center", va="center", fontsize=8, color="#444444")
    ax.set_xlim(0, 140), ax.set_ylim(0, 58)


def _scene() -> dict[str, np.ndarray]:
    """A little landscape and its mask, drawn for the map."""
    y, x = np.mgrid[0:52, 0:64]
    labels = np.zeros(y.shape, int)  # sky
    labels[y > 34 + 4 * np.sin(x / 9)] = 1  # meadow
    labels[(abs(x - 18) < 2.5) & (y > 24) & (y < 42)] = 2  # tree: trunk, then crown
    labels[(x - 18) ** 2 + (y - 19) ** 2 < 90] = 2
    labels[(abs(x - 46) < 9) & (y > 25) & (y < 41)] = 3  # house: walls, then roof
    labels[(y > 15) & (y <= 25) & (abs(x - 46) < (y - 13))] = 3
    natural = np.array([[0.66, 0.80, 0.92], [0.56, 0.68, 0.38], [0.24, 0.42, 0.25], [0.72, 0.47, 0.36]])
    shade = 1 + 0.16 * np.sin(x / 2.3 + np.cos(y / 3.1) * 2)[..., None] * (labels > 0)[..., None]
    classes = np.array([[86, 180, 233], [240, 228, 66], [0, 158, 115], [204, 121, 167]]) / 255
    return {"image": np.clip(natural[labels] * shade, 0, 1), "mask": classes[labels]}
