"""What lessons put in place of a released block: same signatures, another idea inside.

`create_model(..., attention=..., ffn=..., patch_embed=..., decoder=...)` builds the whole network with them.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Linear, OverlapPatchEmbed

Padding = Literal["zeros", "circular", "reflect", "replicate"]
REPORT_DROPOUT = 0.1  # ours: the report uses dropout and gives no rate


class StripReduction(nn.Module):
    """Attention with the reshape of equation 2 taken literally: R consecutive tokens of the raster scan merge.

    The strip is 1 x R tokens (or whole rows), not the s x s square of the released network; shapes and the size
    C·R x C of each linear map are the same, so neither tells the two apart. Separate maps make K and V.
    Arguments as `EfficientSelfAttention`, R = stride²; `dropout` on attention weights and output.
    (B, H, W, C) -> same. Raises ValueError when R does not divide N = H·W. Source: equation 2; the report, 3.2.
    """

    def __init__(self, dim: int, heads: int, stride: int, dropout: float = REPORT_DROPOUT):
        super().__init__()
        self.heads, self.reduction, self.dropout = heads, stride * stride, dropout
        self.q = Linear(dim, dim)
        self.k = nn.Linear(dim * self.reduction, dim)
        self.v = nn.Linear(dim * self.reduction, dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        if (h * w) % self.reduction:
            raise ValueError(f"strip reduction needs N divisible by R, got N = {h} x {w} = {h * w} tokens and "
                             f"R = {self.reduction}; use an image whose sides are multiples of 32")
        strips = x.reshape(b, h * w // self.reduction, c * self.reduction)  # Reshape(N/R, C·R)
        q, k, v = (y.view(b, -1, self.heads, c // self.heads).transpose(1, 2)
                   for y in (self.q(x), self.k(strips), self.v(strips)))
        rate = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        return F.dropout(self.proj(out.transpose(1, 2).reshape(x.shape)), rate)


class FullConvFFN(nn.Module):
    """The report's Mix-FFN: 1x1 (C -> C), a full 3x3 convolution (C -> E·C), GELU, 1x1 back.

    Arguments and shapes as `MixFFN`. Source: the report, section 3.2.
    """

    def __init__(self, dim: int, expansion: int):
        super().__init__()
        self.fc1 = Linear(dim, dim)
        self.conv = nn.Conv2d(dim, dim * expansion, 3, padding=1)
        self.fc2 = Linear(dim * expansion, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))


class MLPFFN(nn.Module):
    """The plain feed-forward network of ViT: no convolution, so no position. Arguments and shapes as `MixFFN`."""

    def __init__(self, dim: int, expansion: int):
        super().__init__()
        self.fc1 = Linear(dim, dim * expansion)
        self.fc2 = Linear(dim * expansion, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ReportPatchEmbed(nn.Module):
    """The report's patch embedding: overlapping convolution, then dropout; no norm. Shapes as `OverlapPatchEmbed`."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int, dropout: float = REPORT_DROPOUT):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding=kernel // 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.proj(x).permute(0, 2, 3, 1))


class LearnedPosition(OverlapPatchEmbed):
    """A patch embedding with a learned table of positions added, resized (bicubic) where the map has another size.

    Arguments: those of `OverlapPatchEmbed`, and `grid`: rows and columns of the table, as at training.
    Source: section 3.1 and Table 1c (the positional encoding that Mix-FFN replaces).
    """

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int, grid: tuple[int, int]):
        super().__init__(in_channels, dim, kernel, stride)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim, *grid), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        table = self.position
        if table.shape[-2:] != x.shape[1:3]:
            table = F.interpolate(table, size=x.shape[1:3], mode="bicubic", align_corners=False)
        return x + table.permute(0, 2, 3, 1)


class ReportDecoder(nn.Module):
    """The report's decoder: 1x1 without bias, upsampling with align_corners=True, concatenate, 1x1, group norm,
    GELU, 1x1. The report gives no number of groups: 32 is ours. Arguments and shapes as `MLPDecoder`.
    Source: the report, section 3.2.
    """

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int, groups: int = 32):
        super().__init__()
        self.linear = nn.ModuleList(nn.Conv2d(c, dim, 1, bias=False) for c in in_channels)
        self.fuse = nn.Conv2d(len(in_channels) * dim, dim, 1)
        self.norm = nn.GroupNorm(groups, dim)
        self.classify = nn.Conv2d(dim, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        stacked = torch.cat([F.interpolate(linear(f), size=size, mode="bilinear", align_corners=True)
                             for f, linear in zip(features, self.linear, strict=True)], dim=1)
        return self.classify(F.gelu(self.norm(self.fuse(stacked))))


# All that makes "segformer_b0_report" of "segformer_b0". The residual branches of the report are never dropped.
REPORT = dict(attention=StripReduction, ffn=FullConvFFN, patch_embed=ReportPatchEmbed, decoder=ReportDecoder,
              stage_norm=nn.Identity, drop_path=0.0)


def set_padding(model: nn.Module, padding_mode: Padding) -> nn.Module:
    """Let every padded convolution of `model` pad by `padding_mode`; returns the model.

    Zero padding is how position leaks into the network; the other modes shut that door. Source: section 3.1.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.padding != (0, 0):
            module.padding_mode = padding_mode
    return model
