"""Checks of the exercises: each takes the learner's object; AssertionError says what is wrong with it."""

from .ch00 import class_shares, iou, label_map
from .ch01 import foreground_scores, panoptic_merge, panoptic_quality, stamps
from .ch02 import score_sum, unet_count, unet_side, unpool
from .ch03 import coverage, patchify, plain_model, stage_sizes
from .ch04 import attention_model, reduce_squares, softmax_attention, strip_of_key
from .ch05 import depthwise, ffn_counts, leak_free, mix_ffn
from .ch06 import drop_rates, encoder_count, printed_encoder, transformer_block
from .ch07 import fold_linear, folded_network, mlp_decoder, upsample_row
from .ch08 import augment, paint, patient_folds, run_lengths
from .ch09 import mean_iou, region_score, squares_in_order, weighted_config
from .ch10 import patient_dice, patient_interval, rare_recipe
from .ch11 import erf_map, erf_side, erf_spread, own_token_model
from .ch12 import corrupted_score, retention, swap_pixels, wrong_elements
from .ch13 import finetune_recipe, rater_agreement, shape_outline, window_starts
from .ch14 import arithmetic_intensity, frozen_network, honest_ratio, interpolation_matrix
from .ch15 import pyramid_model, segments, window_attention
from .ch16 import (
    calm_prediction,
    labelled_loss,
    learning_rate,
    mirror_both,
    raw_scores,
    shrink_labels,
    square_reduction,
    tokens_to_map,
)
from .solved import progress, remembered

__all__ = [
    "arithmetic_intensity",
    "attention_model",
    "augment",
    "calm_prediction",
    "class_shares",
    "corrupted_score",
    "coverage",
    "depthwise",
    "drop_rates",
    "encoder_count",
    "erf_map",
    "erf_side",
    "erf_spread",
    "ffn_counts",
    "finetune_recipe",
    "fold_linear",
    "folded_network",
    "foreground_scores",
    "frozen_network",
    "honest_ratio",
    "interpolation_matrix",
    "iou",
    "label_map",
    "labelled_loss",
    "leak_free",
    "learning_rate",
    "mean_iou",
    "mirror_both",
    "mix_ffn",
    "mlp_decoder",
    "own_token_model",
    "paint",
    "panoptic_merge",
    "panoptic_quality",
    "patchify",
    "patient_dice",
    "patient_folds",
    "patient_interval",
    "plain_model",
    "printed_encoder",
    "progress",
    "pyramid_model",
    "rare_recipe",
    "rater_agreement",
    "raw_scores",
    "reduce_squares",
    "region_score",
    "retention",
    "run_lengths",
    "score_sum",
    "segments",
    "shape_outline",
    "shrink_labels",
    "softmax_attention",
    "square_reduction",
    "squares_in_order",
    "stage_sizes",
    "stamps",
    "strip_of_key",
    "swap_pixels",
    "tokens_to_map",
    "transformer_block",
    "unet_count",
    "unet_side",
    "unpool",
    "upsample_row",
    "weighted_config",
    "window_attention",
    "window_starts",
    "wrong_elements",
]

for _name in __all__:  # every check notes that it passed; `progress` lists them
    if _name != "progress":
        globals()[_name] = remembered(globals()[_name])
