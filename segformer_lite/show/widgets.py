"""Widgets for notebooks: each is a pure function that gives a picture, and sliders and lists around it.

Every control is reached with Tab; the arrow keys move sliders, the space bar presses buttons. (No drop-down lists: in
JupyterLab the arrow keys leave them for the next cell.) What the picture shows is said in words below it.
"""

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .masks import as_picture, decades_below, heat, overlay

HEIGHT = 280  # px on the screen, about: small pictures are enlarged by a whole number


def erf_view(image, field, mask=None, palette: np.ndarray | None = None, share: float = 0.5) -> np.ndarray:
    """Picture | receptive field, and | mask if given, side by side: (H', W', 3) uint8, enlarged to about 280 px.

    A cross stands on the field's pixel, a square around it holds `share` of the mass; the field is drawn as powers of
    ten below its largest value, three of them. image: uint8 (3, H, W) or (H, W, 3); field: a `ReceptiveField`; mask:
    label map (H, W) with its palette. Raises ValueError for a mask without one.
    """
    picture = as_picture(image)
    panels = [picture, heat(decades_below(field), -3, 0)]
    if mask is not None:
        if palette is None:
            raise ValueError("a mask is drawn in the colours of its palette: give that as well")
        panels.append(overlay(picture, mask, palette))
    zoom = max(1, round(HEIGHT / picture.shape[0]))
    return np.hstack([_marked(panel, field.pixel, field.side(share), zoom) for panel in panels])


def _marked(panel: np.ndarray, pixel: tuple[int, int], side: int, zoom: int) -> np.ndarray:
    """The panel enlarged, with a cross on a pixel and a square around it, white on black."""
    drawing = Image.fromarray(panel.repeat(zoom, 0).repeat(zoom, 1))
    draw = ImageDraw.Draw(drawing)
    y, x = (round((p + 0.5) * zoom) for p in pixel)
    half = side * zoom / 2
    for colour, width in (("black", 4), ("white", 2)):
        draw.rectangle((x - half, y - half, x + half, y + half), outline=colour, width=width)
        draw.line((x - 7, y, x + 7, y), fill=colour, width=width)
        draw.line((x, y - 7, x, y + 7), fill=colour, width=width)
    return np.asarray(drawing)


def split_view(before, after, share: float) -> np.ndarray:
    """Two pictures (H, W, 3) uint8 of one size in one: `before` left of a line at `share` of the width, `after` right.

    Raises ValueError for two sizes.
    """
    before, after = as_picture(before), as_picture(after)
    if before.shape != after.shape:
        raise ValueError(f"before is {before.shape} and after is {after.shape}: two pictures of one size are wanted")
    line = round(share * before.shape[1])
    view = after.copy()
    view[:, :line] = before[:, :line]
    if 0 < line < view.shape[1]:
        view[:, line - 1], view[:, line] = 0, 255
    return view


def erf_explorer(probes: Mapping[str, Any], image, masks: Mapping | None = None,
                 palette: np.ndarray | None = None, classes: Sequence[str] = ()):
    """Choose pixel, layer and network; see the receptive field of that place, and the network's mask if given.

    probes: by the network's name an `analysis.Probe` of the picture, whose one forward pass serves every update.
    image: uint8 (3, H, W) or (H, W, 3), of the probes' size. masks: by name a label map (H, W); palette: their
    colours; classes: their names, for a key of the mask that is shown. Returns an ipywidgets box to display. Raises
    ImportError without ipywidgets.
    """
    import ipywidgets as w

    height, width = as_picture(image).shape[:2]
    network, layer = (w.ToggleButtons(options=options, description=text, style={"button_width": "auto"})
                      for options, text in ((list(probes), "network"), (next(iter(probes.values())).layers, "layer")))
    row, column = (w.IntSlider(n // 2, 0, n - 1, max(1, n // 32), description=text, continuous_update=False)
                   for n, text in ((height, "row"), (width, "column")))
    picture, words, key = _picture(), w.HTML(), w.HTML()

    def update(_=None) -> None:
        probe = probes[network.value]
        if layer.value not in probe.layers:
            return  # between two networks: the list of layers is about to change
        try:
            field = probe(layer.value, (row.value, column.value))
        except ValueError as error:
            words.value = escape(str(error))
            return
        mask = (masks or {}).get(network.value)
        picture.value = png(erf_view(image, field, mask, palette))
        if mask is not None and palette is not None and classes:
            key.value = colour_key(mask, classes, palette)
        words.value = escape(f"{network.value}, {field.layer}, {field.scalar}, pixel {field.pixel}: half of the mass "
                             f"in a square of {field.side(0.5)} px, 95 % in one of {field.side(0.95)} px; "
                             f"{field.support():.1%} of the pixels have any gradient")

    def other_layers(_) -> None:
        kept, layers = layer.value, probes[network.value].layers
        layer.options = layers
        layer.value = kept if kept in layers else layers[-1]
        update()

    network.observe(other_layers, "value")
    for control in (layer, row, column):
        control.observe(update, "value")
    update()
    return w.VBox([w.VBox([network, layer]), w.HBox([row, column]), picture, key, words])


def mask_slider(before, after, names: tuple[str, str] = ("before", "after")):
    """A line moved over two pictures of one size: the first is seen left of it, the second right.

    before, after: uint8 (H, W, 3) or (3, H, W), such as overlays of two masks. Returns an ipywidgets box to display.
    Raises ValueError for two sizes, ImportError without ipywidgets.
    """
    import ipywidgets as w

    zoom = max(1, round(HEIGHT / as_picture(before).shape[0]))
    slider = w.IntSlider(50, 0, 100, 5, description="line (%)", continuous_update=False)
    picture, words = _picture(), w.HTML()

    def update(_=None) -> None:
        view = split_view(before, after, slider.value / 100)
        picture.value = png(view.repeat(zoom, 0).repeat(zoom, 1))
        words.value = escape(f"left {slider.value} %: {names[0]}; right {100 - slider.value} %: {names[1]}")

    slider.observe(update, "value")
    update()
    return w.VBox([slider, picture, words])


def colour_key(mask, classes: Sequence[str], palette: np.ndarray) -> str:
    """HTML that names the classes of a label map (H, W), each behind a square of its colour."""
    square = '<span style="color: rgb({}, {}, {})">\u25a0</span> {}'
    return " &nbsp; ".join(square.format(*palette[c], escape(classes[c])) for c in np.unique(mask) if c < len(classes))


def _picture():
    """An empty picture that is shown in its own size, not drawn out to the width of the page."""
    import ipywidgets as w

    return w.Image(format="png", layout=w.Layout(align_self="flex-start", max_width="100%"))


def png(pixels: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as the bytes of a PNG; fast rather than small."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", compress_level=1)
    return file.getvalue()
