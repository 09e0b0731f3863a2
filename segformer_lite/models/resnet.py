"""Two neighbours on a dilated ResNet, in teaching size: PSPNet pools to see the whole, DeepLabV3+ spreads its taps.

Both start from scratch here, where the originals take ImageNet weights, and have no auxiliary head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cnn import conv_bn_relu, init_he
from .segmenter import Segmenter, require_size
from .upsampling import upsample


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to what came in: (B, c_in, H, W) -> (B, dim, H / stride, ...).

    Arguments: `stride` of the first convolution, `dilations` of the two. Source: He et al. 2016, figure 2.
    """

    def __init__(self, c_in: int, dim: int, stride: int, dilations: tuple[int, int]):
        super().__init__()
        self.conv1 = conv_bn_relu(c_in, dim, stride=stride, dilation=dilations[0])
        self.conv2 = conv_bn_relu(dim, dim, dilation=dilations[1])[:2]  # its ReLU comes after the sum
        self.shortcut: nn.Module = nn.Identity()
        if (c_in, stride) != (dim, 1):
            self.shortcut = conv_bn_relu(c_in, dim, kernel=1, stride=stride)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.conv2(self.conv1(x)))


class ResNet(nn.Module):
    """ResNet-18 whose last stages dilate instead of striding: image (B, 3, H, W) -> [F1, F2, F3, F4], NCHW.

    A stage that would stride beyond `output_stride` keeps the size and doubles the dilation of all that follows:
    the same weights see the same places as before, and the values between them are computed as well.

    Arguments: `width`: channels of the first stage, 64 originally, doubled by each; `output_stride`: 8, 16 or 32;
    F1 is at 1/4 of the image's size, F4 at 1 / output_stride. Raises ValueError for an image under 32 px a side.
    Source: He et al. 2016, Table 1 (18-layer); Chen et al. 2017 (DeepLabV3), section 3.1.
    """

    def __init__(self, width: int, output_stride: int = 8):
        super().__init__()
        self.dims = (width, 2 * width, 4 * width, 8 * width)
        self.stem = conv_bn_relu(3, width, kernel=7, stride=2)
        self.stages = nn.ModuleList()
        total, dilation, c_in = 4, 1, width
        for i, dim in enumerate(self.dims):
            stride, before = 1 if i == 0 else 2, dilation
            if total * stride > output_stride:
                stride, dilation = 1, 2 * dilation
            total *= stride
            # The first convolution still reads the finer spacing: it is the one that strode.
            self.stages.append(nn.Sequential(BasicBlock(c_in, dim, stride, (before, dilation)),
                                             BasicBlock(dim, dim, 1, (dilation, dilation))))
            c_in = dim
        self.apply(init_he)

    def forward(self, x: Tensor) -> list[Tensor]:
        require_size(x)
        x = F.max_pool2d(self.stem(x), kernel_size=3, stride=2, padding=1)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def require_pair(module: nn.Module, x: Tensor) -> None:
    """Raises ValueError for one picture in training: its mean is one number a channel, which has no spread."""
    if module.training and len(x) == 1:
        raise ValueError("this network's image-level mean needs at least 2 pictures a batch to train: raise batch_size")


class PyramidPooling(nn.Module):
    """The map's means over 1x1, 2x2, 3x3 and 6x6 bins, each embedded, upsampled and set beside the map.

    Arguments: `channels` C and `bins` per side; each level gets C / (number of levels) channels.
    (B, C, H, W) -> (B, 2C, H, W). Source: Zhao et al. 2017, section 3.2 and figure 3.
    """

    def __init__(self, channels: int, bins: tuple[int, ...] = (1, 2, 3, 6)):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), conv_bn_relu(channels, channels // len(bins), kernel=1))
            for b in bins)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(upsample(level(x), x.shape[-2:]) for level in self.levels)], dim=1)


class PSPDecoder(nn.Module):
    """Pyramid pooling of the last map, a 3x3 convolution, a classifier: [.., F4] -> logits at F4's size."""

    def __init__(self, in_channels: tuple[int, ...], num_classes: int, dropout: float = 0.1):
        super().__init__()
        *_, channels = in_channels
        self.pyramid = PyramidPooling(channels)
        self.fuse = conv_bn_relu(2 * channels, channels // 4)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels // 4, num_classes, kernel_size=1)
        self.apply(init_he)

    def forward(self, features: list[Tensor]) -> Tensor:
        require_pair(self, features[-1])
        return self.classify(self.dropout(self.fuse(self.pyramid(features[-1]))))


class PSPNet(Segmenter):
    """PSPNet: what a place is depends on the scene, so every place is told the means of larger and larger regions.

    Images (B, 3, H, W) -> logits (B, num_classes, ceil(H/8), ceil(W/8)). Argument `width`: the ResNet's, 64
    originally. Source: Zhao et al. 2017, section 3. Unlike there: ResNet-18, not 50 or more; no auxiliary loss.
    """

    def __init__(self, num_classes: int, width: int = 24):
        super().__init__()
        self.num_classes = num_classes
        self.encoder = ResNet(width)
        self.decoder = PSPDecoder(self.encoder.dims, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: one map read by a 1x1, three dilated 3x3 and the mean over the image.

    Arguments: `c_in` and `dim` channels in and out; `rates`: dilations in places of the map.
    (B, c_in, H, W) -> (B, dim, H, W). Source: Chen et al. 2017 (DeepLabV3), section 3.3 and figure 5.
    """

    def __init__(self, c_in: int, dim: int, rates: tuple[int, ...]):
        super().__init__()
        self.branches = nn.ModuleList([conv_bn_relu(c_in, dim, kernel=1),
                                       *(conv_bn_relu(c_in, dim, dilation=rate) for rate in rates)])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn_relu(c_in, dim, kernel=1))
        self.project = conv_bn_relu((len(rates) + 2) * dim, dim, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        require_pair(self, x)
        image = self.image(x).expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), image], dim=1))


class DeepLabDecoder(nn.Module):
    """ASPP of the last map, upsampled; a thin copy of the first beside it; two 3x3 convolutions and a classifier.

    Arguments: `in_channels` of the encoder's stages, `num_classes`, `rates` of `ASPP`, `dropout` rate of whole
    channels. [F1, .., F4] -> logits at F1's size, 1/4 of the image's.
    """

    def __init__(self, in_channels: tuple[int, ...], num_classes: int, rates: tuple[int, ...], dropout: float = 0.1):
        super().__init__()
        low_level, *_, channels = in_channels
        dim = channels // 4
        thin = dim * 48 // 256  # few channels, so that detail does not outweigh meaning
        self.aspp = ASPP(channels, dim, rates)
        self.reduce = conv_bn_relu(low_level, thin, kernel=1)
        self.refine = nn.Sequential(conv_bn_relu(dim + thin, dim), conv_bn_relu(dim, dim))
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(dim, num_classes, kernel_size=1)
        self.apply(init_he)

    def forward(self, features: list[Tensor]) -> Tensor:
        detail = self.reduce(features[0])
        meaning = upsample(self.aspp(features[-1]), detail.shape[-2:])
        return self.classify(self.dropout(self.refine(torch.cat([meaning, detail], dim=1))))


class DeepLabV3Plus(Segmenter):
    """DeepLabV3+: dilated convolutions at several rates see several scales; one fine map sharpens the borders.

    Images (B, 3, H, W) -> logits (B, num_classes, ceil(H/4), ceil(W/4)). Arguments: `width`: the ResNet's;
    `rates`: dilations of ASPP. Source: Chen et al. 2018, section 3.1 and figure 2. Unlike there: ResNet-18, not
    101 or Xception; output stride 8 in training too; 8 x `width` / 4 channels in place of 256, and of those the
    same share (48 / 256) for detail; rates 2, 4, 6 on the 12 x 12 map of a 96-px picture reach as far as 6, 12,
    18 do on the 33 x 33 map of a 513-px one. Larger rates would leave the map, and 3x3 become 1x1.
    """

    def __init__(self, num_classes: int, width: int = 24, rates: tuple[int, ...] = (2, 4, 6)):
        super().__init__()
        self.num_classes = num_classes
        self.encoder = ResNet(width)
        self.decoder = DeepLabDecoder(self.encoder.dims, num_classes, rates)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))
