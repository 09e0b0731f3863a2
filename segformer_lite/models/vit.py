"""ViT and SETR in teaching size: a Transformer on one scale, with SegFormer's own block at its plainest.

With stride 1 `EfficientSelfAttention` is standard attention, and `MLPFFN` is the feed-forward network without the
convolution. What is left to tell a ViT from SegFormer: patches that do not overlap, one resolution, a position table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import TransformerBlock
from .cnn import conv_bn_relu, init_he
from .segformer import Stage, init_weights
from .segmenter import Segmenter, require_size
from .upsampling import upsample
from .variants import MLPFFN


class PatchEmbed(nn.Module):
    """Cut an image into patches that do not overlap, embed each, and add a learned table of positions.

    Arguments: `dim` channels C; `patch` in pixels; `grid`: rows and columns of the table, in patches. Another
    number of patches resizes the table (bicubic); sides that `patch` does not divide are stretched until it does.
    (B, 3, H, W) -> (B, ceil(H / patch), ceil(W / patch), C). Source: Dosovitskiy et al. 2021, section 3.1, 3.2.
    """

    def __init__(self, dim: int, patch: int, grid: tuple[int, int]):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim, *grid), std=0.02))

    def positions(self, size: tuple[int, int]) -> Tensor:
        """The table for a map of `size` (rows, columns): (1, C, *size)."""
        if self.position.shape[-2:] == size:
            return self.position
        return F.interpolate(self.position, size=size, mode="bicubic", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(-(-side // self.patch) * self.patch for side in x.shape[-2:])
        tokens = self.proj(x if x.shape[-2:] == size else upsample(x, size))
        return (tokens + self.positions(tokens.shape[-2:])).permute(0, 2, 3, 1)


class ViT(nn.Module):
    """The Vision Transformer as an encoder: image (B, 3, H, W) -> [F], one map (B, dim, H / patch, W / patch).

    Arguments: `dim`, `depth` blocks, `heads`; `patch` in pixels; `grid`: patches (rows, columns) at training.
    No class token: it gathers one vector for the whole image, and segmentation wants one for each place.
    Raises ValueError for an image under 32 px a side. Source: Dosovitskiy et al. 2021, section 3.1, equations 1-4.
    """

    def __init__(self, dim: int, depth: int, heads: int, patch: int, grid: tuple[int, int]):
        super().__init__()
        self.dims = (dim,)
        blocks = nn.ModuleList(TransformerBlock(dim, heads, stride=1, expansion=4, ffn=MLPFFN) for _ in range(depth))
        blocks.apply(init_weights)
        self.stages = nn.ModuleList([Stage(PatchEmbed(dim, patch, grid), blocks, nn.LayerNorm(dim, eps=1e-6))])

    def forward(self, x: Tensor) -> list[Tensor]:
        require_size(x)
        return [self.stages[0](x)]


class PUPDecoder(nn.Module):
    """Progressive upsampling: a 3x3 convolution, then double the size, again and again; classify.

    Arguments: `in_channels` of the one map, `dim`, `num_classes`, `doublings`. Its logits are the last
    convolution's size; loss and prediction do the last doubling. Source: Zheng et al. 2021, section 3.3.
    """

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int, doublings: int):
        super().__init__()
        self.stages = nn.ModuleList(conv_bn_relu(c, dim) for c in (*in_channels, *[dim] * (doublings - 1)))
        self.classify = nn.Conv2d(dim, num_classes, kernel_size=1)
        self.apply(init_he)

    def forward(self, features: list[Tensor]) -> Tensor:
        x, = features
        for i, stage in enumerate(self.stages):
            if i:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = stage(x)
        return self.classify(x)


class SETR(Segmenter):
    """SETR-PUP: a plain ViT sees the whole image in every layer, at one coarse scale; a decoder enlarges its map.

    Images (B, 3, H, W) -> logits (B, num_classes, about H/2, W/2). Argument `patch`: side in pixels, a power of 2.
    Source: Zheng et al. 2021, sections 3.2, 3.3. Unlike there: 5 layers of 128 channels in 2 heads, not 24 of 1024
    in 16; patches of 8 px, not 16, so that a 96-px picture has 12 x 12 tokens and not 6 x 6 (the paper's 768 px
    give 48 x 48); 32 decoder channels, not 256, and as many doublings as `patch` needs; no auxiliary heads.
    Raises ValueError where `patch` is no power of 2.
    """

    def __init__(self, num_classes: int, patch: int = 8):
        super().__init__()
        if patch < 2 or patch & (patch - 1):
            raise ValueError(f"patch must be a power of 2 from 2 on, got {patch}: the decoder only doubles")
        self.num_classes = num_classes
        self.encoder = ViT(dim=128, depth=5, heads=2, patch=patch, grid=(96 // patch, 96 // patch))
        self.decoder = PUPDecoder(self.encoder.dims, 32, num_classes, doublings=patch.bit_length() - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))
