"""Pictures of masks say what they claim, and say it in colours that everybody can tell apart."""

import io
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from segformer_lite.analysis import uncertainty
from segformer_lite.show import masks

PALETTE = np.array([(60, 60, 60), (230, 159, 0), (86, 180, 233)], np.uint8)
CLASSES = ["background", "cat", "dog"]
LABEL = np.array([[0, 0, 1, 1, 2, 255], [0, 0, 1, 1, 2, 255]], np.uint8)
PREDICTION = np.array([[0, 1, 1, 0, 1, 0], [2, 0, 1, 2, 2, 1]], np.uint8)


def test_what_is_missed_invented_and_mistaken():
    kinds = masks.difference(PREDICTION, torch.from_numpy(LABEL))
    assert kinds.dtype == np.uint8
    assert kinds.tolist() == [[0, 2, 0, 1, 3, 255], [2, 0, 0, 3, 0, 255]]
    assert not masks.difference(LABEL, LABEL)[:, :5].any()
    with pytest.raises(ValueError, match=r"the prediction is \(2, 5\) and the label \(2, 6\)"):
        masks.difference(PREDICTION[:, :5], LABEL)


# Machado, Oliveira and Fernandes 2009: linear RGB as seen without red, green, blue cones.
BLIND = {
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}


@pytest.mark.parametrize("missing", BLIND)
@pytest.mark.parametrize("brightness", [0, 60, 128, 200, 255])
def test_kinds_of_errors_are_told_apart_with_any_colour_vision(missing, brightness):
    """CIELAB distance, of which 2 can just be told apart side by side; also from a picture of any brightness."""
    ground = masks.grey(np.full((1, 1, 3), brightness, np.uint8))[0, 0]
    colours = np.array([ground, *masks.DIFFERENCE_PALETTE[1:]]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(BLIND[missing]).T, 0, 1)
    xyz = seen @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = np.cbrt(xyz / np.array([0.9505, 1, 1.089]))
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 25


def test_grey_has_no_colour_and_less_contrast():
    image = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = masks.grey(image)
    assert drawn.shape == (8, 9, 3) and drawn.dtype == np.uint8 and (drawn == drawn[..., :1]).all()
    assert masks.grey(np.zeros((1, 1, 3), np.uint8))[0, 0, 0] == 102  # black, at 0.6 of its distance from white
    assert masks.grey(np.full((1, 1, 3), 255, np.uint8))[0, 0, 0] == 255


def test_heat_rises_in_brightness_and_keeps_to_its_scale():
    drawn = masks.heat(np.array([[-1.0, 0, 0.25, 0.5, 0.75, 1, 7]]))
    brightness = (drawn[0] @ np.array([0.299, 0.587, 0.114])).tolist()
    assert brightness[1:6] == sorted(brightness[1:6]) and len(set(brightness[1:6])) == 5
    assert (drawn[0, 0] == drawn[0, 1]).all() and (drawn[0, 5] == drawn[0, 6]).all()


def test_overlay_fills_foreground_and_keeps_the_image_elsewhere():
    image = np.full((2, 6, 3), 100, np.uint8)
    drawn = masks.overlay(image, np.array([[0, 0, 1, 1, 1, 1]] * 2), PALETTE, strength=0.5)
    assert (drawn[:, :2] == 100).all() and (drawn[:, 2] == PALETTE[1]).all()  # its outline, in full colour
    assert (drawn[:, 4] == (100 + PALETTE[1].astype(int)) // 2).all()


def test_uncertainty_of_known_probabilities():
    p = torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.6, 0.3, 0.1]])  # pixels x classes
    logits = (p + 1e-12).log().T.reshape(1, 3, 1, 4)
    entropy = [np.log(2) / np.log(3), 1, 0, -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1)) / np.log(3)]
    for shift in (0, 50):  # logits say the same after a shift
        torch.testing.assert_close(uncertainty(logits + shift)[0, 0], torch.tensor(entropy, dtype=torch.float32),
                                   atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(uncertainty(logits + shift, "margin")[0, 0], torch.tensor([1, 1, 0, 0.7]),
                                   atol=1e-4, rtol=1e-4)
    assert uncertainty(torch.zeros(2, 150, 3, 4).half()).shape == (2, 3, 4)
    assert torch.isfinite(uncertainty(torch.tensor([1e4, -1e4]).view(1, 2, 1, 1))).all()
    with pytest.raises(ValueError, match="no measure 'doubt'"):
        uncertainty(logits, "doubt")
    with pytest.raises(ValueError, match="at least 2 classes"):
        uncertainty(logits[:, :1])


def drawn(fig) -> np.ndarray:
    fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[..., :3]


def test_a_picture_looked_at_closely_names_all_it_shows(tmp_path):
    image = np.full((2, 6, 3), 100, np.uint8)
    unsure = np.linspace(0, 1, 12).reshape(2, 6)
    fig = masks.mask_figure(image, PREDICTION, CLASSES, PALETTE, LABEL, unsure)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert titles == ["input", "prediction", "label", "difference", "uncertainty"]
    texts = {t.get_text() for legend in [*fig.legends, *filter(None, (ax.get_legend() for ax in fig.axes))]
             for t in legend.get_texts()}
    assert {"cat", "dog", "background", "not labelled", "missed", "invented", "another class"} == texts
    pixels = {tuple(c) for c in drawn(fig).reshape(-1, 3)}
    assert {tuple(c) for c in masks.DIFFERENCE_PALETTE[1:]} <= pixels
    plt.close(fig)

    fig = masks.mask_figure(image, PREDICTION, CLASSES, PALETTE, path=tmp_path / "figure.part")
    assert [ax.get_title() for ax in fig.axes] == ["input", "prediction"] and not plt.fignum_exists(fig.number)
    with Image.open(tmp_path / "figure.part") as written:
        assert written.format == "PNG" and written.width > 300


def test_field_figure_draws_squares_where_they_are():
    field = np.full((40, 60), 1e-9)
    field[30, 10] = 1
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8)
    fig = masks.field_figure(image, field, (30, 10), {"50%": 9, "95%": 31})
    left, right, *_ = fig.axes
    for ax in (left, right):
        assert [(p.get_x(), p.get_y(), p.get_width()) for p in ax.patches] == [(5.5, 25.5, 9), (-5.5, 14.5, 31)]
        assert ax.get_xlim() == (-0.5, 59.5) and ax.get_ylim() == (39.5, -0.5)  # a square over the border moves nothing
    texts = [t.get_text() for t in fig.legends[0].get_texts()]
    assert texts == ["50% of the mass: 9 px", "95% of the mass: 31 px"]
    values = right.images[0].get_array()
    assert values[30, 10] == 0 and values.min() == -3
    fig.savefig(io.BytesIO())
    plt.close(fig)
