"""Checks of the exercises: each takes the learner's object and says "correct" or, by AssertionError, why not."""

from .ch03 import coverage, patchify, plain_model, stage_sizes

__all__ = ["coverage", "patchify", "plain_model", "stage_sizes"]
