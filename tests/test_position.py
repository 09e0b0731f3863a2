"""What leaks position and what does not, on networks where the answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

import segformer_lite as sl
from segformer_lite.analysis import (
    iou_by_border_distance,
    position_maps,
    position_spread,
    readout_r2,
    split_padding,
    train_readout,
)
from segformer_lite.analysis.position import border_distance, coordinates
from segformer_lite.models import MixTransformer


def encoder(patch_embed="zeros", ffn="zeros", dims=(32, 64, 160, 256), depths=(2, 2, 2, 2)):
    torch.manual_seed(0)
    return split_padding(MixTransformer(dims, depths), patch_embed, ffn)


class Ramp(nn.Module):
    """One stage whose first channel is the row; the second is 1 everywhere."""

    def forward(self, x):
        rows = coordinates(*x.shape[-2:])[:1].expand(len(x), -1, -1, -1)
        return [torch.cat([rows, torch.ones_like(rows)], dim=1)]


def test_split_padding_reaches_every_padded_convolution_of_its_kind_and_no_other():
    modes = {name: part.padding_mode for name, part in encoder("reflect", "circular").named_modules()
             if isinstance(part, nn.Conv2d)}
    assert {m for n, m in modes.items() if "patch_embed" in n} == {"reflect"}
    assert {m for n, m in modes.items() if "dwconv" in n} == {"circular"}
    assert {m for n, m in modes.items() if "reduce" in n} == {"zeros"}


def test_zeros_leak_and_the_other_paddings_do_not_on_a_constant_picture():
    leak = position_spread(encoder("zeros", "zeros"), 64)
    assert all(0.05 < share < 1 for share in leak) and leak == sorted(leak)
    for mode in ("circular", "reflect", "replicate"):
        assert max(position_spread(encoder(mode, mode), 64)) < 1e-3


def test_at_the_start_patch_embeddings_leak_more_than_mix_ffn():
    embeds, ffns = (position_spread(encoder(*modes), 64) for modes in (("zeros", "circular"), ("circular", "zeros")))
    assert all(a > 2 * b > 0 for a, b in zip(embeds, ffns, strict=True))


def test_spread_and_maps_of_a_known_network():
    ramp = Ramp()
    spread, field = position_spread(ramp, 4)[0], position_maps(ramp, 4)[0]
    rows = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    both = torch.cat([rows, torch.ones(4)])
    assert spread == pytest.approx((rows.square().mean() / 2 / both.var(correction=0)).sqrt().item())
    length = (rows.square().mean() + 1).sqrt()
    torch.testing.assert_close(field, ((rows - 0.25).abs() / length)[:, None].expand(4, 4))


def test_the_model_is_left_in_its_mode():
    net = encoder().train()
    position_spread(net, 64)
    assert net.training


def test_readout_learns_place_from_zeros_and_nothing_from_circular_padding():
    scores = {}
    for mode in ("zeros", "circular"):
        tiny = encoder(mode, mode, dims=(16, 32, 40, 64), depths=(1, 1, 1, 1))
        scores[mode] = readout_r2(train_readout(tiny, size=64, steps=40, batch_size=4), size=64, images=4)
    assert scores["zeros"][3] > 0.5 and scores["zeros"][3] > scores["zeros"][0]
    assert max(scores["circular"]) < 0.1


def test_readout_is_repeatable_whatever_was_drawn_before():
    def run(draws):
        tiny = encoder(dims=(16, 32, 40, 64), depths=(1, 1, 1, 1))
        torch.rand(draws)
        return readout_r2(train_readout(tiny, size=32, steps=2, batch_size=2, seed=3), size=32, images=2)

    assert run(1) == run(2)


def test_r2_is_one_for_the_truth_and_zero_for_the_middle():
    class Right(torch.nn.Module):
        def forward(self, x):
            return [coordinates(*x.shape[-2:]).expand(len(x), -1, -1, -1)]

    class Middle(Right):
        def forward(self, x):
            return [0 * place for place in super().forward(x)]

    assert readout_r2(Right(), size=32) == [1.0] and readout_r2(Middle(), size=32) == [0.0]


def test_border_distance_of_a_small_picture():
    assert border_distance(3, 5).tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert border_distance(4, 4).max() == 1


class Rings:
    """Two pictures of 8 x 8 px, half class 1, with one pixel that counts nowhere."""

    classes, ignore_index = ["background", "thing"], 255

    def __len__(self):
        return 2

    def __getitem__(self, i):
        label = torch.zeros(8, 8, dtype=torch.int64)
        label[:, 4:] = 1
        label[0, 0] = 255
        return torch.full((3, 8, 8), i, dtype=torch.uint8), label


class WrongAtTheBorder(nn.Module):
    """Right inside, class 0 on the outermost ring; 255 of the label it calls class 1."""

    def predict(self, images):
        labels = Rings()[0][1].clamp(max=1)
        labels[border_distance(8, 8) == 0] = 0
        labels[0, 0] = 1
        return labels.expand(len(images), -1, -1)


def test_iou_by_border_distance_finds_errors_where_they_are():
    bands = iou_by_border_distance(WrongAtTheBorder(), Rings(), edges=(0, 1, 4))
    # Ring: 28 px, one ignored; 14 of class 1 are called 0. So IoU is 13 / 27 for class 0 and 0 for class 1.
    np.testing.assert_allclose(bands, [(13 / 27 + 0) / 2, 1.0])


def test_iou_by_border_distance_takes_a_real_network():
    bands = iou_by_border_distance(sl.create_model("segformer_b0", 2), Big(), edges=(0, 8, 16))
    assert bands.shape == (2,) and (bands >= 0).all() and (bands <= 1).all()


class Big(Rings):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image.repeat(1, 4, 4), label.repeat(4, 4)
