"""The networks. Nothing here imports anything but torch and this folder; reading weights takes safetensors as well."""

from .blocks import EfficientSelfAttention, MixFFN, OverlapPatchEmbed, TransformerBlock
from .cnn import FCN8s, SegNet, UNet
from .registry import create_model, list_models
from .resnet import DeepLabV3Plus, PSPNet, ResNet
from .segformer import MixTransformer, MLPDecoder, SegFormer
from .segmenter import Segmenter, device_of, preprocess
from .upsampling import interpolation, label_map, upsample
from .vit import SETR, ViT

__all__ = ["SETR", "DeepLabV3Plus", "EfficientSelfAttention", "FCN8s", "MLPDecoder", "MixFFN", "MixTransformer",
           "OverlapPatchEmbed", "PSPNet", "ResNet", "SegFormer", "SegNet", "Segmenter", "TransformerBlock", "UNet",
           "ViT", "create_model", "device_of", "interpolation", "label_map", "list_models", "preprocess", "upsample"]
