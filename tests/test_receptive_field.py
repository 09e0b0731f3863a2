"""Receptive fields on networks whose field is known, and what the measures say of it."""

import numpy as np
import pytest
import torch
from torch import nn

import segformer_lite as sl
from segformer_lite.analysis import ReceptiveField, receptive_field


class Blur(nn.Module):
    """Positive box filters: the field is known in closed form."""

    def __init__(self, *kernels: tuple[int, int]):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, k, padding=(k[0] // 2, k[1] // 2), bias=False) for k in kernels))
        for layer in self.layers:
            nn.init.ones_(layer.weight)

    def forward(self, x):
        return self.layers(x)


def test_box_filter_has_a_box_field():
    field = receptive_field(Blur((3, 5)), torch.rand(2, 3, 17, 19), "layers")
    expected = np.zeros((17, 19))
    expected[7:10, 7:12] = 1 / 15
    np.testing.assert_allclose(np.asarray(field), expected, atol=1e-12)
    assert field.extent(0.99) == (3, 5) and field.anisotropy(0.99) == pytest.approx(5 / 3)
    assert field.area(0.99) == pytest.approx(25 / (17 * 19))  # the square that holds a 3 x 5 box is 5 x 5


def test_two_filters_convolve_and_another_pixel_moves_the_field():
    field = receptive_field(Blur((3, 3), (3, 3)), torch.rand(1, 3, 16, 16), "layers", pixel=(5, 9))
    line = np.array([1, 2, 3, 2, 1]) / 9
    np.testing.assert_allclose(field.map[3:8, 7:12], np.outer(line, line), atol=1e-12)
    assert field.map.sum() == pytest.approx(1) and field.pixel == (5, 9)


def test_segformer_fields_grow_with_depth_and_leave_the_model_as_it_was():
    torch.manual_seed(0)
    model = sl.create_model("segformer_b0", 4).train()
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    areas = [receptive_field(model, images, f"stage{i}").area(0.5) for i in (1, 2, 3, 4)]
    assert areas == sorted(areas) and areas[0] < areas[3]
    assert (np.asarray(receptive_field(model, images, "stage1")) > 0).all()  # keys reach everywhere: non-local support
    assert receptive_field(model, images, "decoder").scalar == "largest logit"
    assert model.training and all(p.grad is None for p in model.parameters())


def test_wrong_requests_are_refused_in_words():
    model = sl.create_model("segformer_b0", 4)
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="no layer 'stage9'"):
        receptive_field(model, images, "stage9")
    with pytest.raises(ValueError, match="outside the picture"):
        receptive_field(model, images, pixel=(64, 0))
    with pytest.raises(ValueError, match="no scalar"):
        receptive_field(model, images, scalar="median")


def test_area_does_not_depend_on_scale():
    bump = np.outer(np.hanning(33), np.hanning(33))
    a = ReceptiveField(bump / bump.sum(), "x", "y", (16, 16))
    assert 0 < a.area(0.2) < a.area(0.5) < a.area(0.95) <= 1 and a.anisotropy() == 1
