"""segformer_lite: the small package that the SegFormer course stands on."""

from .models import (
    EfficientSelfAttention, MixFFN, OverlapPatchEmbed, SegFormer, TransformerBlock, create_model, list_models, preprocess,
)

__version__ = "0.1.0"
