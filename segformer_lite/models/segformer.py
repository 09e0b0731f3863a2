"""SegFormer: a four-stage Mix Transformer encoder and an all-MLP decoder, with the B0-B5 table."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import EfficientSelfAttention, Linear, MixFFN, OverlapPatchEmbed, TransformerBlock, linear_map
from .segmenter import Segmenter, require_size
from .upsampling import upsample


class Variant(NamedTuple):
    dims: tuple[int, int, int, int]  # channels C1..C4
    depths: tuple[int, int, int, int]  # blocks per stage L1..L4
    decoder_dim: int  # C


# Table 6 with the depths of the released code (it prints L2 = 3 for B2 and B3; weights and counts say 4).
VARIANTS = {
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Variant((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": Variant((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": Variant((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": Variant((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": Variant((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
HEADS = (1, 2, 5, 8)
REDUCTION_STRIDES = (8, 4, 2, 1)  # s per axis; the paper's R = s² = 64, 16, 4, 1
EXPANSIONS = (4, 4, 4, 4)  # as released; Table 6 prints 8, 8, 4, 4 for B0-B4
KERNELS, STRIDES = (7, 3, 3, 3), (4, 2, 2, 2)  # patch embedding of each stage


class Stage(nn.Module):
    """One resolution: patch embedding, a row of transformer blocks, a norm. (B, C_in, H, W) -> (B, C, H', W')."""

    def __init__(self, patch_embed: nn.Module, blocks: Iterable[nn.Module], norm: nn.Module):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).permute(0, 3, 1, 2)


class MixTransformer(nn.Module):
    """The encoder (MiT): image (B, 3, H, W) -> [F1, F2, F3, F4], NCHW, at 1/4, 1/8, 1/16, 1/32 of its size.

    Arguments: `dims` and `depths` of the four stages; `drop_path`: rate of the last block, rising linearly from
    0; `norm_eps` of block and stage norms; `attention`, `ffn`, `patch_embed`, `stage_norm`: classes to put in
    place of the released ones. Sizes round up where they do not divide. Source: section 3.1 and Table 6.
    """

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...], drop_path: float = 0.1, norm_eps: float = 1e-6,
                 attention: Callable = EfficientSelfAttention, ffn: Callable = MixFFN,
                 patch_embed: Callable = OverlapPatchEmbed, stage_norm: Callable = nn.LayerNorm):
        super().__init__()
        self.dims = tuple(dims)
        rates = iter(drop_path * i / (sum(depths) - 1) for i in range(sum(depths)))
        self.stages = nn.ModuleList()
        for i, (c_in, dim, depth) in enumerate(zip((3, *dims), dims, depths, strict=False)):
            embed = patch_embed(c_in, dim, KERNELS[i], STRIDES[i])
            blocks = [TransformerBlock(dim, HEADS[i], REDUCTION_STRIDES[i], EXPANSIONS[i], next(rates), attention, ffn,
                                       norm_eps) for _ in range(depth)]
            self.stages.append(Stage(embed, blocks, stage_norm(dim, eps=norm_eps)))
        self.apply(init_weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        require_size(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def init_weights(module: nn.Module) -> None:
    """Initialise as the released network: Linear truncated normal 0.02, Conv2d normal with fan-out variance.

    The depth-wise 3x3 of Mix-FFN has fan-out 9, so it starts at 0.47, not at 0.02: it is awake from step one.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


class MLPDecoder(nn.Module):
    """The all-MLP decoder, folded: features at four scales -> class logits at 1/4 of the image's size.

    The paper projects each level to C channels (eq. 4, line 1), upsamples (line 2), concatenates and fuses
    (line 3), and classifies (line 4). All of lines 1-3 is linear, and bilinear upsampling commutes with maps of
    channels. So level i's projection and its slice of the fusing matrix multiply into one C_i x C matrix which
    runs at the level's own, small resolution; only sums meet at 1/4. Same function, same parameters, 4.1
    instead of 8.4 G multiply-accumulates for B0 at 512 px. `forward_unfolded` is the equation as printed.

    Arguments: `in_channels` C1..C4, `dim` C, `num_classes`, `dropout` rate of whole channels.
    Source: section 3.2, equation 4; batch norm and ReLU after the fusing map as released.
    """

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.linear = nn.ModuleList(Linear(c, dim) for c in in_channels)
        self.fuse = Linear(len(in_channels) * dim, dim, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(dropout, inplace=True)
        self.classify = nn.Conv2d(dim, num_classes, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.scores(self.folded(features))

    def folded(self, features: list[Tensor]) -> Tensor:
        """Lines 1 to 3 of equation 4 in one: features at four scales -> (B, dim, h, w) at the finest."""
        size = features[0].shape[-2:]
        slices = self.fuse.weight.chunk(len(features), dim=1)  # of the stack F4, F3, F2, F1
        mixed = (linear_map(f.permute(0, 2, 3, 1), fuse @ linear.weight, fuse @ linear.bias).permute(0, 3, 1, 2)
                 for f, linear, fuse in zip(features[::-1], self.linear[::-1], slices, strict=True))
        fused = upsample(next(mixed), size)
        for y in mixed:
            fused += y if y.shape[-2:] == size else upsample(y, size)  # in place: the largest maps of all
        return fused

    def scores(self, fused: Tensor) -> Tensor:
        """Batch norm, ReLU, dropout, then line 4 of equation 4: (B, dim, h, w) -> (B, num_classes, h, w)."""
        # Dropout and ReLU may change places, for no factor is negative; then both may overwrite their input.
        return self.classify(F.relu(self.dropout(self.norm(fused)), inplace=True))

    def forward_unfolded(self, features: list[Tensor]) -> Tensor:
        """Equation 4 as printed: what `forward` computes, at 5.6 times the work (B0, 512 px; network: twice)."""
        size = features[0].shape[-2:]
        projected = [linear(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                     for f, linear in zip(features, self.linear, strict=True)]
        stacked = torch.cat([upsample(f, size) for f in reversed(projected)], dim=1)
        fused = self.fuse(stacked.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.scores(fused)


class SegFormer(Segmenter):
    """SegFormer-B0 to B5: normalised images (B, 3, H, W) -> logits (B, num_classes, ceil(H/4), ceil(W/4)).

    Arguments: `variant` "b0" to "b5"; `num_classes`; `decoder`: a class with the signature of `MLPDecoder`;
    every other option goes to `MixTransformer`. `model.encoder(x)` gives the four feature maps; `model.classes`:
    the names of the classes, where the weights came with them.
    Raises ValueError for an unknown variant, or an image under 32 px a side. Source: figure 2, Tables 1a and 6.
    """

    classes: list[str] | None = None

    def __init__(self, variant: str = "b0", num_classes: int = 150, decoder: Callable = MLPDecoder, **encoder):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"no SegFormer variant {variant!r}; there are {', '.join(VARIANTS)}")
        dims, depths, decoder_dim = VARIANTS[variant]
        self.num_classes = num_classes
        self.encoder = MixTransformer(dims, depths, **encoder)
        self.decoder = decoder(dims, decoder_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    @classmethod
    def from_pretrained(cls, source: str | Path | Mapping[str, Tensor], num_classes: int | None = None) -> "SegFormer":
        """A SegFormer-B0 to B5 with weights from elsewhere, in evaluation mode.

        Arguments: `source`: a folder with model.safetensors or pytorch_model.bin (and config.json for the classes'
        names), such a file, NVlabs' .pth, a run of this package, a state dict of transformers' SegFormer, or a name
        on the Hugging Face hub (with huggingface_hub, its cache and HF_HUB_OFFLINE). `num_classes`: of the decoder,
        by default as in the source; for another number the classifier starts at random, for a source with an
        encoder only the whole decoder, and a warning says so. LayerNorm's eps is that of the source.
        Raises FileNotFoundError or ValueError, in one line, for what is missing, damaged, foreign or does not fit.
        """
        from . import checkpoints

        return checkpoints.load(cls, source, num_classes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, which transformers' SegformerForSemanticSegmentation loads.

        Class names go along from `classes`. Raises ValueError for a network with other parts than the released ones.
        """
        from . import checkpoints

        checkpoints.save(self, folder)
