"""Costs: the paper's numbers met by our count, parts that add up, and a model left as it was."""

import pytest
import torch
from torch import nn

import segformer_lite as sl
from segformer_lite.analysis import macs, parameters


class Unfolded(sl.models.MLPDecoder):
    """Equation 4 as printed: what the paper's numbers count."""

    forward = sl.models.MLPDecoder.forward_unfolded


def meta(variant, classes, **options):
    with torch.device("meta"):
        return sl.create_model(f"segformer_{variant}", classes, **options)


# Billions of MACs at 512 px, 150 classes: counted, and as Table 1a prints them (B5: its COCO-Stuff column).
ADE = {"b0": (8.39, 8.4), "b1": (15.88, 15.9), "b2": (62.34, 62.4), "b3": (78.96, 79.0),
       "b4": (95.57, 95.7), "b5": (111.51, 111.6)}
CITYSCAPES = {"b0": 121.0, "b1": 239.1, "b2": 703.5, "b3": 949.2, "b4": 1226.8, "b5": 1446.4}  # 19 classes


@pytest.mark.parametrize("variant", ADE)
def test_the_papers_flops_are_macs_of_the_decoder_as_printed(variant):
    counted, printed = ADE[variant]
    giga = macs(meta(variant, 150, decoder=Unfolded), 512) / 1e9
    assert giga == pytest.approx(counted, abs=0.005) and giga == pytest.approx(printed, rel=0.002)


@pytest.mark.parametrize("variant", CITYSCAPES)
def test_a_street_of_two_million_pixels_costs_nothing_to_count(variant):
    giga = macs(meta(variant, 19, decoder=Unfolded), (1024, 2048)) / 1e9
    assert giga == pytest.approx(CITYSCAPES[variant], abs=0.051)


def test_folding_halves_b0():
    assert macs(meta("b0", 150), 512) / 1e9 == pytest.approx(4.126, abs=0.001)


def test_parts_add_up_and_a_part_is_what_it_is_alone():
    model = meta("b0", 150)
    encoder = macs(model, 256, part="encoder")
    assert encoder + macs(model, 256, part="decoder") == macs(model, 256)
    assert sum(macs(model, 256, part=f"encoder.stages.{i}") for i in range(4)) == encoder
    assert macs(model.encoder, 256) == encoder
    with pytest.raises(ValueError, match="no part 'head'.*encoder, decoder"):
        macs(model, 256, part="head")


def test_counts_done_with_a_pencil():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.Conv2d(8, 8, 3, padding=1, groups=8),
                           nn.ConvTranspose2d(8, 4, 2, stride=2))
    pixels = 6 * 10
    by_hand = [pixels * 8 * 3 * 9, pixels * 8 * 9, pixels * 8 * 4 * 4]
    assert [macs(layers, (6, 10), part=str(i)) for i in range(3)] == by_hand
    assert macs(layers, (6, 10)) == sum(by_hand)
    assert parameters(layers) == (8 * 27 + 8) + (8 * 9 + 8) + (8 * 4 * 4 + 4)


def test_attention_counts_both_products():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = sl.EfficientSelfAttention(8, 2, 2)

        def forward(self, x):
            return self.block(x.new_empty(1, 6, 4, 8))

    tokens, keys, c = 24, 6, 8
    linear = 2 * tokens * c * c + keys * c * 2 * c  # q and proj; k and v
    shorten, products = keys * c * 4 * c, 2 * tokens * keys * c  # 2 x 2 tokens into one; Q Kᵀ and A V
    assert macs(Attention(), 32) == linear + shorten + products


def test_the_model_stays_as_it_was():
    model = sl.create_model("segformer_b0", 5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    macs(model, 64)
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())
