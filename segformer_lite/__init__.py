"""segformer_lite: the small package that the SegFormer course stands on."""

from . import analysis, data, evaluation, models, show, training
from .evaluation import evaluate
from .models import (
    EfficientSelfAttention,
    MixFFN,
    OverlapPatchEmbed,
    SegFormer,
    TransformerBlock,
    create_model,
    list_models,
    preprocess,
)
from .training import TrainConfig, compare, load_model, train

__version__ = "0.1.0"
__all__ = ["EfficientSelfAttention", "MixFFN", "OverlapPatchEmbed", "SegFormer", "TrainConfig", "TransformerBlock",
           "analysis", "compare", "create_model", "data", "evaluate", "evaluation", "list_models", "load_model",
           "models", "preprocess", "show", "train", "training"]
