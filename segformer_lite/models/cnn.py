"""The convolutional neighbours in teaching size: FCN-8s, SegNet, U-Net, and on a dilated ResNet PSPNet, DeepLabV3+.

Each is an encoder, which gives feature maps (finest first), and a decoder, which makes class logits of them. What
tells them apart is how the decoder gets back to fine detail. Every convolution here pads to keep the size and has
batch norm after it, whether or not the original has; all start from scratch, where the originals but U-Net take
ImageNet weights. Poolings round sizes up and decoders crop to what they meet, so any size from 32 px will do.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .segmenter import Segmenter, require_size


def conv_bn_relu(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU: (B, c_in, H, W) -> (B, c_out, ceil(H / stride), ceil(W / stride))."""
    padding = dilation * (kernel // 2)
    # No bias: batch norm subtracts the mean, and any bias with it.
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, bias=False),
                         nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


def conv_row(*channels: int) -> nn.Sequential:
    """3x3 convolutions in a row, from `channels[0]` to `channels[1]` and so on."""
    return nn.Sequential(*(conv_bn_relu(a, b) for a, b in pairwise(channels)))


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling, and where in `x` each maximum was: two maps (B, C, ceil(H / 2), ceil(W / 2))."""
    return F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)


def init_he(module: nn.Module) -> None:
    """Initialise convolutions so that a ReLU behind them keeps the scale of what came in. Source: He et al. 2015."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PoolingEncoder(nn.Module):
    """Stages of 3x3 convolutions, 2x2 max pooling between them: what VGG-16 and U-Net have in common.

    Arguments: `dims` channels and `depths` convolutions of each stage. Image (B, 3, H, W) -> [F1, F2, ...], NCHW,
    at 1, 1/2, 1/4, ... of its size: each stage's output before it is pooled. With `return_indices` also the list
    of the maxima's places. Raises ValueError for an image under 32 px a side.
    """

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...]):
        super().__init__()
        self.dims, self.depths = tuple(dims), tuple(depths)
        self.stages = nn.ModuleList(conv_row(c_in, *[dim] * depth)
                                    for c_in, dim, depth in zip((3, *dims), dims, depths, strict=False))
        self.apply(init_he)

    def forward(self, x: Tensor, return_indices: bool = False) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        require_size(x)
        features, indices = [], []
        for stage in self.stages:
            features.append(stage(x))
            x, where = max_pool(features[-1])
            indices.append(where)
        return (features, indices) if return_indices else features


def vgg16(width: int) -> PoolingEncoder:
    """VGG-16's thirteen convolutions; `width` is 64 in the original. Source: Simonyan and Zisserman 2015, Table 1."""
    return PoolingEncoder(dims=(width, 2 * width, 4 * width, 8 * width, 8 * width), depths=(2, 2, 3, 3, 3))


# --- FCN-8s: skip by sum ---------------------------------------------------------------------------------------------


def bilinear_up(channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution that doubles height and width, bilinear to begin with, each channel on its own."""
    up = nn.ConvTranspose2d(channels, channels, kernel_size=4, stride=2, padding=1, bias=False)
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        up.weight.copy_(torch.eye(channels)[:, :, None, None] * torch.outer(ramp, ramp))
    return up


class FCNDecoder(nn.Module):
    """Class scores at three scales, summed: the coarse say what, the fine say where.

    Arguments: `in_channels` of the five stages, `dim` channels of fc6 and fc7, `num_classes`.
    [F1..F5] at 1 to 1/16 -> logits at 1/8.
    """

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int):
        super().__init__()
        *_, c3, c4, c5 = in_channels
        # VGG's fully connected layers as convolutions: they slide over an image of any size.
        self.fc6, self.fc7 = conv_bn_relu(c5, dim, kernel=7), conv_bn_relu(dim, dim, kernel=1)
        self.score3, self.score4, self.score7 = (nn.Conv2d(c, num_classes, kernel_size=1) for c in (c3, c4, dim))
        self.up4, self.up7 = bilinear_up(num_classes), bilinear_up(num_classes)
        self.apply(init_he)

    def forward(self, features: list[Tensor]) -> Tensor:
        pool3, pool4, pool5 = (max_pool(f)[0] for f in features[2:])
        if min(pool5.shape[-2:]) < 3:  # there a CPU's bf16 gradient of a 7 x 7 kernel is wrong (torch 2.15)
            with torch.autocast(pool5.device.type, enabled=False):
                x = self.fc6(pool5.float())
        else:
            x = self.fc6(pool5)
        score = self.score7(self.fc7(x))
        score = self.score4(pool4) + crop(self.up7(score), pool4)
        return self.score3(pool3) + crop(self.up4(score), pool3)


def crop(x: Tensor, like: Tensor) -> Tensor:
    """`x` without the rows and columns that it has more than `like`: pooling had rounded an odd size up."""
    return x[..., : like.shape[-2], : like.shape[-1]]


class FCN8s(Segmenter):
    """FCN-8s: VGG-16 turned into convolutions throughout; score maps of three levels are summed.

    Images (B, 3, H, W) -> logits (B, num_classes, ceil(H/8), ceil(W/8)). Argument `width`: VGG's, 64 originally.
    Source: Long, Shelhamer and Darrell 2015, sections 3.1, 3.3, 4.2. Unlike there: fc6 and fc7 have 16 x `width`
    channels, not 4096, and batch norm, not dropout; the input is not padded by 100; the last step, a fixed
    bilinear x8, is left to loss and prediction, which upsample all logits alike.
    """

    def __init__(self, num_classes: int, width: int = 16):
        super().__init__()
        self.num_classes = num_classes
        self.encoder = vgg16(width)
        self.decoder = FCNDecoder(self.encoder.dims, 16 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


# --- SegNet: skip by indices -----------------------------------------------------------------------------------------


class SegNetDecoder(nn.Module):
    """The encoder mirrored: unpool each value to where its maximum was, then convolve to fill the zeros between.

    Arguments: `dims` and `depths` of the encoder; `num_classes`. Its input is the coarsest map, and of every level
    no features, only the `indices` of the maxima (as many as pooled values) and the `sizes` before pooling.
    """

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...], num_classes: int):
        super().__init__()
        finer = ([], *([dim] for dim in dims[:-1]))  # a stage ends in the next one's channels, the last in classes
        self.stages = nn.ModuleList(conv_row(*[dim] * depth, *then)
                                    for dim, depth, then in zip(dims, depths, finer, strict=True))
        self.classify = nn.Conv2d(dims[0], num_classes, kernel_size=3, padding=1)
        self.apply(init_he)

    def forward(self, x: Tensor, indices: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        for stage, where, size in reversed(list(zip(self.stages, indices, sizes, strict=True))):
            x = stage(F.max_unpool2d(x, where, kernel_size=2, output_size=size))
        return self.classify(x)


class SegNet(Segmenter):
    """SegNet: pooling remembers where each maximum was, and the decoder puts it back there.

    Images (B, 3, H, W) -> logits (B, num_classes, H, W). Argument `width`: VGG's, 64 originally.
    Source: Badrinarayanan, Kendall and Cipolla 2017, section 3; the original has batch norm too.
    """

    def __init__(self, num_classes: int, width: int = 12):
        super().__init__()
        self.num_classes = num_classes
        self.encoder = vgg16(width)
        self.decoder = SegNetDecoder(self.encoder.dims, self.encoder.depths, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features, indices = self.encoder(x, return_indices=True)
        pool5, _ = max_pool(features[-1])
        return self.decoder(pool5, indices, [f.shape[-2:] for f in features])


# --- U-Net: skip by concatenation ------------------------------------------------------------------------------------


class UNetDecoder(nn.Module):
    """Double the size, concatenate the encoder's map of that size, two 3x3 convolutions; up to full resolution.

    Arguments: `in_channels` of the encoder's stages, each twice the one before; `num_classes`.
    """

    def __init__(self, in_channels: tuple[int, ...], num_classes: int):
        super().__init__()
        pairs = list(pairwise(in_channels))  # (finer, coarser)
        # Kernel = stride: the 2x2 squares that each value paints do not overlap, so they make no checkerboard.
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarser, finer, 2, stride=2) for finer, coarser in pairs)
        self.stages = nn.ModuleList(conv_row(2 * finer, finer, finer) for finer, _ in pairs)
        self.classify = nn.Conv2d(in_channels[0], num_classes, kernel_size=1)
        self.apply(init_he)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for up, stage, skip in reversed(list(zip(self.ups, self.stages, skips, strict=True))):
            x = stage(torch.cat([skip, crop(up(x), skip)], dim=1))
        return self.classify(x)


class UNet(Segmenter):
    """U-Net: every feature map of the encoder is handed over whole and concatenated.

    Images (B, 3, H, W) -> logits (B, num_classes, H, W). Argument `width`: channels of the first stage, 64
    originally. Source: Ronneberger, Fischer and Brox 2015, section 2 and figure 1. Unlike there: padded
    convolutions (there 572 px in give 388 out) and batch norm.
    """

    def __init__(self, num_classes: int, width: int = 12):
        super().__init__()
        self.num_classes = num_classes
        self.encoder = PoolingEncoder(dims=tuple(width * 2**i for i in range(5)), depths=(2, 2, 2, 2, 2))
        self.decoder = UNetDecoder(self.encoder.dims, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))
