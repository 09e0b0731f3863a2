"""Checks of the exercises: each takes the learner's object; AssertionError says what is wrong with it."""

from .ch00 import class_shares, iou, label_map
from .ch03 import coverage, patchify, plain_model, stage_sizes
from .ch05 import depthwise, ffn_counts, leak_free, mix_ffn
from .ch07 import fold_linear, folded_network, mlp_decoder, upsample_row

__all__ = [
    "class_shares",
    "coverage",
    "depthwise",
    "ffn_counts",
    "fold_linear",
    "folded_network",
    "iou",
    "label_map",
    "leak_free",
    "mix_ffn",
    "mlp_decoder",
    "patchify",
    "plain_model",
    "stage_sizes",
    "upsample_row",
]
