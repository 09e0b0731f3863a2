"""Other implementations' weights under this package's names."""

import re

import torch
from torch import Tensor

# In-memory names of transformers' SegformerForSemanticSegmentation (5.x) -> ours, tried in order.
TRANSFORMERS_NAMES = [
    (r"^segformer\.stages", "encoder.stages"),
    (r"\.patch_embeddings\.layer_norm\.", ".patch_embed.norm."),
    (r"\.patch_embeddings\.", ".patch_embed."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.sequence_reduction\.sequence_reduction\.", ".reduce."),
    (r"\.sequence_reduction\.layer_norm\.", ".norm."),
    (r"\.attention\.(q|k|v)_proj\.", r".attention.\1."),
    (r"\.o_proj\.", ".proj."),
    (r"\.mlp\.dwconv\.", ".ffn."),
    (r"\.mlp\.", ".ffn."),
    (r"(stages\.\d)\.layer_norm\.", r"\1.norm."),
    (r"^decode_head\.linear_projections\.(\d)\.proj\.", r"decoder.linear.\1."),
    (r"^decode_head\.linear_fuse\.", "decoder.fuse."),
    (r"^decode_head\.batch_norm\.", "decoder.norm."),
    (r"^decode_head\.classifier\.", "decoder.classify."),
]


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers' SegformerForSemanticSegmentation as one that `SegFormer` loads strictly.

    Build the model with `norm_eps=1e-5`: transformers uses that in every LayerNorm.
    """
    renamed = {}
    for name, value in state.items():
        for pattern, ours in TRANSFORMERS_NAMES:
            name = re.sub(pattern, ours, name)
        renamed[name] = value.flatten(1) if name == "decoder.fuse.weight" else value  # 1x1 convolution -> Linear
    for name in [n for n in renamed if ".attention.k." in n]:  # keys and values share one map here
        k, v = renamed.pop(name), renamed.pop(name.replace(".k.", ".v."))
        renamed[name.replace(".k.", ".kv.")] = torch.cat([k, v])
    return renamed
