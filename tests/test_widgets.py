"""Widgets: moving a control changes the picture, the words say what it shows, and an update is fast."""

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

import segformer_lite as sl
from segformer_lite.analysis import Probe, ReceptiveField
from segformer_lite.show import widgets

pytest.importorskip("ipywidgets")
PALETTE = np.array([(60, 60, 60), (230, 159, 0)], np.uint8)


@pytest.fixture(scope="module")
def image():
    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def probes(image):
    torch.manual_seed(0)
    segformer, unet = sl.create_model("segformer_b0", 2), sl.create_model("unet", 2)
    return {"SegFormer": Probe(segformer, image[None], ["stage1", "stage4", "decoder"]),
            "U-Net": Probe(unet, image[None], ["stage1", "decoder"])}


def shown(picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.value)).convert("RGB"))


def test_view_marks_the_pixel_and_shows_the_field():
    field = np.full((70, 50), 1e-12)
    field[20, 30] = 1
    view = widgets.erf_view(np.full((70, 50, 3), 100, np.uint8), ReceptiveField(field, "x", "y", (20, 30)),
                            np.ones((70, 50), int), PALETTE)
    assert view.shape == (280, 3 * 200, 3) and view.dtype == np.uint8  # 4 times as large
    for left in (0, 200, 400):  # the cross, on all three
        assert (view[20 * 4 + 2, left + 30 * 4 + 2] == 255).all()
    assert (view[150, 50] == 100).all()
    dark = widgets.heat(np.zeros((1, 1)))[0, 0]
    assert (view[150, 250] == dark).all()  # more than three powers of ten below
    assert (view[150, 450] == (100 * 0.35 + PALETTE[1] * 0.65).astype(np.uint8)).all()
    with pytest.raises(ValueError, match="its palette: give that as well"):
        widgets.erf_view(view, ReceptiveField(field, "x", "y", (20, 30)), np.ones((70, 50), int))


def test_a_square_shows_the_side():
    field = np.zeros((70, 70))
    field[30:41, 30:41] = 1 / 121
    view = widgets.erf_view(np.zeros((70, 70, 3), np.uint8), ReceptiveField(field, "x", "y", (35, 35)), share=1.0)
    white = np.argwhere((view[:, :280] == 255).all(-1))
    assert abs(white.min(0) - 30 * 4).max() <= 2 and abs(white.max(0) - 41 * 4).max() <= 2


def test_split_view_is_left_one_and_right_the_other():
    before, after = np.full((4, 10, 3), 10, np.uint8), np.full((4, 10, 3), 200, np.uint8)
    view = widgets.split_view(before, after, 0.3)
    assert (view[:, :2] == 10).all() and (view[:, 4:] == 200).all()
    assert (view[:, 2] == 0).all() and (view[:, 3] == 255).all()
    assert (widgets.split_view(before, after, 1) == 10).all() and (widgets.split_view(before, after, 0) == 200).all()
    assert (after == 200).all()
    with pytest.raises(ValueError, match="one size"):
        widgets.split_view(before, after[:, :9], 0.5)


def test_explorer_follows_every_control(image, probes):
    box = widgets.erf_explorer(probes, image, {name: np.ones((64, 96), int) for name in probes}, PALETTE,
                                ["background", "<thing>"])
    (network, layer), (row, column) = (b.children for b in box.children[:2])
    picture, key, words = box.children[2:]
    assert (row.value, column.value) == (32, 48) and layer.options == ("stage1", "stage4", "decoder")
    for control, value, says in ((layer, "stage4", "stage4"), (row, 4, "(4, 48)"), (column, 90, "(4, 90)"),
                                 (network, "U-Net", "U-Net, decoder"), (layer, "stage1", "stage1"),
                                 (network, "SegFormer", "SegFormer, stage1")):
        before = picture.value
        control.value = value
        assert picture.value != before and says in words.value, f"{control.description} to {value}"
    expected = widgets.erf_view(image, probes["SegFormer"]("stage1", (4, 90)), np.ones((64, 96), int), PALETTE)
    assert np.array_equal(shown(picture), expected)
    assert "background" not in key.value and "&lt;thing&gt;" in key.value
    assert f"rgb({', '.join(map(str, PALETTE[1]))})" in key.value
    assert all(control.description and not control.disabled for control in (network, layer, row, column))


def test_explorer_says_what_went_wrong(image):
    def silent(layer, pixel):
        raise ValueError("no <gradient>")

    silent.layers = ["stage1"]
    words = widgets.erf_explorer({"silent": silent}, image).children[-1]
    assert words.value == "no &lt;gradient&gt;"


def test_slider_follows_the_line(image):
    other = 255 - image
    slider, picture, words = widgets.mask_slider(image, other, ("trained", "<untrained>")).children
    seen = []
    for value in (0, 50, 100):
        slider.value = value
        seen.append(shown(picture))
        assert f"left {value} %: trained; right {100 - value} %: &lt;untrained&gt;" == words.value
    zoom = seen[0].shape[0] // 64
    assert np.array_equal(seen[0][::zoom, ::zoom], other.permute(1, 2, 0).numpy())
    assert np.array_equal(seen[2][::zoom, ::zoom], image.permute(1, 2, 0).numpy())
    assert not np.array_equal(seen[1], seen[0]) and not np.array_equal(seen[1], seen[2])


def test_an_update_needs_no_forward_pass(image):
    """The speed of the widget: the network is not run again, only one gradient is taken."""
    model = sl.create_model("segformer_b0", 2)
    probe = Probe(model, image[None], ["stage4", "decoder"])
    model.forward = None  # a forward pass would fail
    box = widgets.erf_explorer({"SegFormer": probe}, image)
    row = box.children[1].children[0]
    row.value = 8
    start = time.perf_counter()
    row.value = 20
    assert time.perf_counter() - start < 3, "an update at 64 x 96 px takes tens of milliseconds on a free machine"
