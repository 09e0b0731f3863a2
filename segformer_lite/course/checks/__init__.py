"""Checks of the exercises: each takes the learner's object; AssertionError says what is wrong with it."""

from .ch00 import class_shares, iou, label_map
from .ch03 import coverage, patchify, plain_model, stage_sizes
from .ch04 import attention_model, reduce_squares, softmax_attention, strip_of_key
from .ch05 import depthwise, ffn_counts, leak_free, mix_ffn
from .ch06 import drop_rates, encoder_count, printed_encoder, transformer_block
from .ch07 import fold_linear, folded_network, mlp_decoder, upsample_row
from .ch08 import augment, paint, patient_folds, run_lengths
from .solved import progress, remembered

__all__ = [
    "attention_model",
    "augment",
    "class_shares",
    "coverage",
    "depthwise",
    "drop_rates",
    "encoder_count",
    "ffn_counts",
    "fold_linear",
    "folded_network",
    "iou",
    "label_map",
    "leak_free",
    "mix_ffn",
    "mlp_decoder",
    "paint",
    "patchify",
    "patient_folds",
    "plain_model",
    "printed_encoder",
    "progress",
    "reduce_squares",
    "run_lengths",
    "softmax_attention",
    "stage_sizes",
    "strip_of_key",
    "transformer_block",
    "upsample_row",
]

for _name in __all__:  # every check notes that it passed; `progress` lists them
    if _name != "progress":
        globals()[_name] = remembered(globals()[_name])
