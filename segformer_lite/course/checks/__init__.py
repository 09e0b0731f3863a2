"""Checks of the exercises: each takes what the learner wrote, says "correct" or raises AssertionError with the reason."""

from .ch03 import coverage, patchify, plain_model, stage_sizes

__all__ = ["coverage", "patchify", "plain_model", "stage_sizes"]
