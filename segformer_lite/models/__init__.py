"""The networks. Nothing here imports anything but torch and this folder: each file can be taken as it is."""

from .blocks import EfficientSelfAttention, MixFFN, OverlapPatchEmbed, TransformerBlock
from .registry import create_model, list_models
from .segformer import MixTransformer, MLPDecoder, SegFormer
from .segmenter import Segmenter, preprocess, upsample

__all__ = ["EfficientSelfAttention", "MLPDecoder", "MixFFN", "MixTransformer", "OverlapPatchEmbed", "SegFormer",
           "Segmenter", "TransformerBlock", "create_model", "list_models", "preprocess", "upsample"]
