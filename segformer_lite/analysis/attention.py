"""Attention maps: how much weight a query gives to each key, laid over the pixels the key was made from."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models import EfficientSelfAttention, device_of, preprocess


def find_attention(model: nn.Module, block: str) -> EfficientSelfAttention:
    """The attention of a block: "stage2.block1" is the first block of stage 2; any path of a submodule will do too.

    Raises ValueError when there is none of that name, or one that does not give its queries and keys.
    """
    match = re.fullmatch(r"stage(\d+)\.block(\d+)", block)
    path = f"encoder.stages.{int(match[1]) - 1}.blocks.{int(match[2]) - 1}.attention" if match else block
    try:
        attention: Any = model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"no block {block!r} in {type(model).__name__}; the first block of the first stage is "
                         '"stage1.block1"') from None
    if not hasattr(attention, "queries_keys_values"):
        raise ValueError(f"{block} is a {type(attention).__name__}, which has no method queries_keys_values(x) as "
                         "EfficientSelfAttention has; only queries and keys give a map")
    return attention


@torch.no_grad()
def attention_map(model: nn.Module, image: Tensor, block: str = "stage1.block1",
                  pixel: tuple[int, int] | None = None) -> np.ndarray:
    """Weights that the query over one pixel gives to all keys, per head, lifted back to pixels: (heads, H, W).

    Every pixel shows the weight of the key that its token was merged into, softmax(q kᵀ / sqrt(d_head)); tokens
    that went into no key (see `EfficientSelfAttention`) show 0. The model runs in evaluation mode.

    Arguments: `image` (3, H, W), uint8 or normalised float; `block`: see `find_attention`; `pixel`: (row, column)
    of the query, by default the centre. Raises ValueError for another block or a pixel outside the picture.
    Source: section 3.1, equations 1 and 2.
    """
    attention = find_attention(model, block)
    height, width = image.shape[-2:]
    pixel = pixel or (height // 2, width // 2)
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(f"pixel {pixel} lies outside the picture of {height} x {width} px")
    tokens = _input_of(attention, model, image)
    h, w = tokens.shape[1:3]
    q, k, _ = attention.queries_keys_values(tokens)
    query = q[0, :, pixel[0] * h // height * w + pixel[1] * w // width]  # (heads, d_head)
    weights = torch.einsum("hd,hmd->hm", query, k[0]).div(query.shape[-1] ** 0.5).softmax(-1)

    s = attention.stride
    over_tokens = torch.zeros(len(weights), h, w)
    squares = weights.view(-1, h // s, w // s).repeat_interleave(s, 1).repeat_interleave(s, 2)
    over_tokens[:, : h // s * s, : w // s * s] = squares.cpu()
    rows, columns = torch.arange(height) * h // height, torch.arange(width) * w // width
    return over_tokens[:, rows][:, :, columns].numpy()


def _input_of(module: nn.Module, model: nn.Module, image: Tensor) -> Tensor:
    """What `module` is given when `model` looks at `image`."""
    kept = []
    hook = module.register_forward_pre_hook(lambda _, arguments: kept.append(arguments[0]))
    was_training = model.training
    model.eval()
    try:
        x = preprocess(image[None]) if image.dtype == torch.uint8 else image[None]
        model(x.to(device_of(model)))
    finally:
        hook.remove()
        model.train(was_training)
    return kept[0]
