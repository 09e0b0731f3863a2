"""Receptive fields on networks whose field is known, and what the measures say of it."""

import json
import math
import sys

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import segformer_lite as sl
from segformer_lite.analysis import Probe, ReceptiveField, receptive_field


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


def test_a_linear_net_has_the_field_of_its_weights():
    """Stride 4, kernel 4: each place sees one square; summed over channels first, made absolute after."""
    net = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.Conv2d(5, 6, 1)).double()
    whole = torch.einsum("kc,cdyx->kdyx", net[1].weight[:, :, 0, 0], net[0].weight).detach()  # (6, 3, 4, 4)
    images = torch.rand(3, 3, 16, 24, dtype=torch.float64)
    for scalar, weight in (("sum", whole.sum(0)), ("logit 4", whole[4])):
        field = receptive_field(net, images, "1", pixel=(9, 14), scalar=scalar)
        expected = np.zeros((16, 24))
        expected[8:12, 12:16] = (weight.abs().sum(0) / weight.abs().sum()).numpy()
        np.testing.assert_allclose(field.map, expected, atol=1e-12)
        assert field.mass == pytest.approx(weight.abs().sum().item()) and field.scalar == scalar
        assert field.support() == pytest.approx(16 / (16 * 24))


def test_relu_silences_negative_channels_and_the_largest_logit_is_one():
    net = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.Identity())
    net[0].weight.data[:] = torch.tensor([1.0, -2.0, 4.0]).view(3, 1, 1, 1)
    images = torch.ones(1, 3, 5, 5)  # the channels are 1, -2, 4

    def mass(scalar):
        return receptive_field(net, images, "1", scalar=scalar).mass

    assert [mass(s) for s in ("sum", "sum of ReLU", "largest logit", "logit 1")] == [7, 5, 4, 2]
    with pytest.raises(ValueError, match="no gradient"):
        mass("logit 1 of ReLU")


def test_every_image_counts_the_same_and_the_average_does_not_depend_on_the_batches(monkeypatch):
    """A net whose gradient is its input: the loud image must not drown the quiet ones."""
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.AvgPool2d(4)

        def forward(self, x):
            return self.out(x**2)

    images = torch.zeros(3, 3, 4, 4)
    for i, loud in enumerate((1, 100, 1)):
        images[i, :, i, 0] = loud
    field = receptive_field(Square(), images, "out", scalar="sum")
    np.testing.assert_allclose(field.map[:3, 0], 1 / 3, atol=1e-12)
    monkeypatch.setattr(sys.modules[Probe.__module__], "AT_ONCE", 2)
    batches = receptive_field(Square(), images, "out", scalar="sum")
    np.testing.assert_allclose(batches.map, field.map, atol=1e-12)
    assert batches.mass == pytest.approx(field.mass)


@pytest.fixture(scope="module")
def random_b0():
    torch.manual_seed(0)
    model = sl.create_model("segformer_b0", 150)
    return model, Probe(model, torch.randn(4, 3, 256, 256), ["stage1", "stage2", "stage3", "stage4"])


def test_random_b0_sees_far_but_weighs_near(random_b0):
    """Raw-mass areas at 256 px for 20, 30 and 50 % of the mass, as an independent run gave them."""
    expected = {"stage1": (0.000, 0.000, 0.001), "stage2": (0.001, 0.001, 0.002), "stage3": (0.003, 0.004, 0.008),
                "stage4": (0.013, 0.021, 0.037)}
    for layer, areas in expected.items():
        field = random_b0[1](layer)
        assert [field.area(q) for q in (0.2, 0.3, 0.5)] == pytest.approx(areas, rel=0.15, abs=0.0006)
        assert field.support() == 1 and 0.7 < field.anisotropy() < 1.4
    assert random_b0[1]("stage1").centre_share() > 0.8 > 0.4 > random_b0[1]("stage4").centre_share()


def test_log_area_depends_on_the_scale_as_its_docstring_says(random_b0):
    first, last = random_b0[1]("stage1"), random_b0[1]("stage4")
    for scale, areas in ((1, (0.001, 0.040)), (100, (0.001, 0.086)), (1e4, (0.467, 0.303))):
        assert (first.log_area(0.5, scale), last.log_area(0.5, scale)) == pytest.approx(areas, rel=0.1, abs=0.0006)
    assert last.log_area(0.5, 1e-6) == last.area(0.5)  # far below 1 the logarithm is a straight line


def test_torchvision_models_are_read_by_path_and_in_place_relus_do_no_harm():
    torch.manual_seed(0)
    model = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=4)
    images = torch.randn(1, 3, 64, 64)
    probe = Probe(model, images, ["backbone.bn1", "backbone.layer1", "backbone.layer4", "classifier"])
    assert probe("classifier").scalar == "largest logit" and probe("classifier").support() == 1  # it pools globally
    # A 7x7 convolution of stride 2 over pixel 32: rows 29 to 35, whatever the ReLU behind it does in place.
    seen = probe("backbone.bn1", scalar="sum").map > 0
    assert seen[29:36, 29:36].all() and seen.sum() == 49
    assert probe("backbone.layer1").side(1.0) < probe("backbone.layer4").side(1.0)
    with pytest.raises(ValueError, match="OrderedDict, not one map"):
        Probe(model, images, ["backbone"])


def test_layers_with_channels_last_are_read_as_grids():
    torch.manual_seed(0)
    model = sl.create_model("segformer_b0", 4)
    layer = "encoder.stages.0.patch_embed"
    for height, width in ((128, 128), (96, 160)):  # of 128 px it gives 32 x 32 x 32, which has no telling shape
        probe = Probe(model, torch.randn(1, 3, height, width), [layer, "encoder.stages.0.norm"])
        seen = np.argwhere(probe(layer, pixel=(40, 61)).map > 0)
        assert seen.min(0).tolist() == [37, 57] and seen.max(0).tolist() == [43, 63]  # 7x7, stride 4, padding 3
    with pytest.raises(ValueError, match="not one map"):
        Probe(model, torch.randn(1, 3, 64, 64), ["encoder"])


def test_a_probe_answers_many_pixels_from_one_pass_and_leaves_no_trace():
    torch.manual_seed(0)
    model = sl.create_model("segformer_b0", 4).train()
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():  # a notebook cell may stand in one
        probe = Probe(model, image, ["stage2", "decoder"])
        for layer, pixel in (("decoder", (3, 90)), ("stage2", (60, 1)), ("decoder", (3, 90))):
            once = receptive_field(model, image, layer, pixel)
            np.testing.assert_allclose(probe(layer, pixel).map, once.map, atol=1e-9)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="was not kept"):
        probe("stage4")


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
    for scalar in ("median", "logit", "logit x", "logit -1", "of ReLU"):
        with pytest.raises(ValueError, match="no scalar"):
            receptive_field(model, images, scalar=scalar)
    with pytest.raises(ValueError, match="no class 4 in 'logit 4'"):
        receptive_field(model, images, "decoder", scalar="logit 4")
    with pytest.raises(ValueError, match="no images"):
        receptive_field(model, images[:0])
    with pytest.raises(ValueError, match="share=50"):
        receptive_field(model, images).area(50)
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="'unused' is not used"):
        receptive_field(model, images, "unused")


def test_area_does_not_depend_on_scale():
    bump = np.outer(np.hanning(33), np.hanning(33))
    a = ReceptiveField(bump / bump.sum(), "x", "y", (16, 16))
    assert 0 < a.area(0.2) < a.area(0.5) < a.area(0.95) <= 1 and a.anisotropy() == 1


def test_measures_of_a_known_map():
    """All mass on a horizontal line of 9 px in a picture of 20 x 30, off centre: every figure by hand."""
    line = np.zeros((20, 30))
    line[4, 6:15] = 1 / 9
    field = ReceptiveField(line, "x", "y", (4, 10))
    assert [field.side(q) for q in (0.3, 0.5, 0.95)] == [3, 5, 9] and field.extent(0.95) == (1, 9)
    assert field.area(0.95) == pytest.approx(9 * 9 / 600)
    assert field.centre_share(2) == pytest.approx(5 / 9) and field.support() == pytest.approx(9 / 600)
    at_the_border = ReceptiveField(np.eye(20)[::-1], "x", "y", (19, 0))
    assert at_the_border.side(1.0) == 39 and at_the_border.area(1.0) == 1  # the side in full, the area of the picture
    told = json.loads(json.dumps(field.measures()))
    assert told["side"]["0.5"] == 5 and told["pixel"] == [4, 10] and told["extent"]["0.95"] == [1, 9]
    assert set(told["area"]) == {"0.2", "0.3", "0.5", "0.95"} and all(map(math.isfinite, told["log_area"].values()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_and_cpu_agree():
    torch.manual_seed(0)
    model, images = sl.create_model("segformer_b0", 4), torch.randn(2, 3, 128, 128)
    cpu = {layer: receptive_field(model, images, layer) for layer in ("stage1", "stage4", "decoder")}
    model.cuda()
    for layer, field in cpu.items():
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # else convolutions round to 10 bits
            gpu = receptive_field(model, images, layer)
        np.testing.assert_allclose(gpu.map, field.map, atol=1e-4 * field.map.max())
        assert gpu.area(0.5) == pytest.approx(field.area(0.5), abs=1e-3)
