"""Checks of the exercises: each takes the learner's object; AssertionError says what is wrong with it."""

from .ch00 import class_shares, iou, label_map
from .ch03 import coverage, patchify, plain_model, stage_sizes

__all__ = ["class_shares", "coverage", "iou", "label_map", "patchify", "plain_model", "stage_sizes"]
