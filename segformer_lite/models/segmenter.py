"""What every network in the course shares: how pictures go in and how label maps come out."""

from functools import cache

import torch
from torch import Tensor, nn

from .upsampling import label_map

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALLEST_SIDE = 32  # pixels


def preprocess(images: Tensor) -> Tensor:
    """Pictures as the networks want them: uint8 (B, 3, H, W), 0..255 -> ImageNet-normalised float, same shape.

    Raises ValueError when the tensor is not uint8 or not (B, 3, H, W).
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"preprocess wants uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    mean, std = imagenet_statistics(images.device)
    # A plain tensor (not a tv_tensors.Image), channels last: the layout in which every block works without copies.
    images = images.as_subclass(Tensor).float()
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@cache
def imagenet_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3, 1, 1) of values 0..255. Kept: a copy to a GPU waits for all that it has to do."""
    mean, std = (torch.tensor(values).view(3, 1, 1).to(device) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def require_size(x: Tensor) -> None:
    """Raises ValueError for an image (B, 3, H, W) under 32 px a side, of which no coarse map would be left."""
    if min(x.shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(f"the image is {x.shape[-2]} x {x.shape[-1]} px, but the network needs at least "
                         f"{SMALLEST_SIDE} px a side; enlarge it first")


def device_of(model: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU for one without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


class Segmenter(nn.Module):
    """A network that gives class logits (B, num_classes, h, w) for normalised images (B, 3, H, W)."""

    num_classes: int

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Label map of each image: uint8 (or normalised float) (B, 3, H, W) -> int64 (B, H, W), where the images are.

        Runs in evaluation mode and leaves the model in the mode it was in.
        """
        was_training = self.training
        self.eval()
        try:
            x = preprocess(images) if images.dtype == torch.uint8 else images
            logits = self(x.to(device_of(self)))
            # Upsample the logits, not the labels: borders stay smooth.
            return label_map(logits.float(), images.shape[-2:]).to(images.device)
        finally:
            self.train(was_training)
