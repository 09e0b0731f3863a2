"""Attention maps are the weights of the network's own attention, laid over the right pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import segformer_lite as sl
from segformer_lite import EfficientSelfAttention
from segformer_lite.analysis import attention_map
from segformer_lite.models.variants import StripReduction


@pytest.fixture(scope="module")
def model():
    """A B0 whose attention is sharp and different everywhere, in training mode."""
    torch.manual_seed(0)
    net = sl.create_model("segformer_b0", num_classes=3).train()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, EfficientSelfAttention):
                module.q.weight.normal_(std=0.5)
                module.kv.weight.normal_(std=0.5)
    return net


def picture(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("stage", "heads"), [(1, 1), (2, 2), (3, 5), (4, 8)])
@pytest.mark.parametrize("block", [1, 2])
def test_weights_mix_the_values_into_what_the_block_gives(model, stage, heads, block):
    """Key weights read off the map, times V, must be the attention's own output at the query's token."""
    image, pixel = picture(96, 128), (37, 90)
    attention = model.encoder.stages[stage - 1].blocks[block - 1].attention
    seen = []
    hooks = [attention.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
             attention.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    weights = attention_map(model, image, f"stage{stage}.block{block}", pixel)
    for hook in hooks:
        hook.remove()
    assert weights.shape == (heads, 96, 128) and model.training

    step = 2 ** (stage + 1)
    with torch.no_grad():
        v = attention.queries_keys_values(seen[0])[2][0]  # (heads, keys, d)
    keys = torch.from_numpy(weights[:, ::32, ::32].copy()).flatten(1)  # every key lies over 32 x 32 pixels
    torch.testing.assert_close(keys.sum(1), torch.ones(heads))
    out = torch.einsum("hm,hmd->hd", keys, v).flatten()
    torch.testing.assert_close(out, seen[1][0, pixel[0] // step, pixel[1] // step], rtol=1e-4, atol=1e-5)
    constant = weights.reshape(heads, 3, 32, 4, 32)
    assert (constant == constant[:, :, :1, :, :1]).all()


class LooksForRed(nn.Module):
    """One attention on 4 x 4 pixel tokens; every query looks for red, and keys are means of their square."""

    def __init__(self, stride):
        super().__init__()
        self.attention = EfficientSelfAttention(3, 1, stride)
        with torch.no_grad():
            self.attention.q.weight.zero_(), self.attention.q.bias.copy_(torch.tensor([20.0, 0, 0]))
            self.attention.kv.weight[:3] = torch.eye(3)
            if stride > 1:
                self.attention.reduce.weight.copy_(torch.eye(3)[..., None, None].expand(-1, -1, stride, stride)
                                                   / stride**2)
                self.attention.norm = nn.Identity()

    def forward(self, x):
        return self.attention(F.avg_pool2d(x, 4).permute(0, 2, 3, 1))


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_what_is_looked_for_lights_up_where_it_is(stride):
    red = torch.zeros(3, 64, 96)
    red[0, 32:48, 16:32] = 1  # rows 32-47, columns 16-31: a whole square at every stride
    bright = attention_map(LooksForRed(stride), red, "attention")[0] > 1e-2
    assert bright[32:48, 16:32].all() and bright.sum() == 256


def test_the_query_is_the_token_under_the_pixel(model):
    """A map changes from token to token, not inside one."""
    def at(row, column):
        return attention_map(model, picture(64, 96), "stage3.block1", (row, column))

    assert np.array_equal(at(16, 32), at(31, 47))
    assert not np.allclose(at(16, 32), at(32, 32)) and not np.allclose(at(16, 32), at(16, 48))
    assert np.array_equal(attention_map(model, picture(64, 96), "stage3.block1"), at(32, 48))  # the centre


def test_normalised_pictures_give_the_same_map(model):
    image = picture(64, 64)
    assert np.array_equal(attention_map(model, image), attention_map(model, sl.preprocess(image[None])[0]))


@pytest.mark.parametrize(("size", "shares"), [((60, 60), (0.28, 1, 1)), ((100, 100), (0.92, 0.85, 0.73)),
                                              ((375, 500), (0.90, 0.89, 1)), ((64, 96), (1, 1, 1))])
def test_tokens_that_are_no_keys_show_zero(size, shares):
    model = sl.create_model("segformer_b0", num_classes=3)  # fresh: attention is nearly even, no key gets 0
    for stage, share in enumerate(shares, start=1):
        weights = attention_map(model, picture(*size), f"stage{stage}.block1")
        h, w = (-(-n // 2 ** (stage + 1)) for n in size)
        tokens = weights[0, [-(-i * size[0] // h) for i in range(h)]][:, [-(-i * size[1] // w) for i in range(w)]]
        assert round((tokens > 0).mean(), 2) == share
        assert tokens[0, 0] > 0 and (tokens[-1, -1] > 0) == (share == 1)


@pytest.mark.parametrize(("block", "says"), [
    ("stage5.block1", "no block 'stage5.block1' in SegFormer"),
    ("stage1.block3", "no block"),
    ("stage0.block1", "no block"),
    ("attention", "no block"),
    ("encoder.stages.0.norm", "LayerNorm, which has no method queries_keys_values"),
])
def test_a_block_that_is_none_is_named(model, block, says):
    with pytest.raises(ValueError, match=says) as caught:
        attention_map(model, picture(64, 64), block)
    assert "\n" not in str(caught.value)


def test_strip_reduction_has_no_map():
    net = sl.create_model("segformer_b0", num_classes=2, attention=StripReduction)
    with pytest.raises(ValueError, match="StripReduction"):
        attention_map(net, picture(64, 64))


@pytest.mark.parametrize("pixel", [(64, 0), (0, 96), (-1, 5)])
def test_a_pixel_outside_is_refused(model, pixel):
    with pytest.raises(ValueError, match="outside the picture of 64 x 96 px"):
        attention_map(model, picture(64, 96), pixel=pixel)
