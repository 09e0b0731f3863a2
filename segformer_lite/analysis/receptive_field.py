"""Effective receptive fields: how much each input pixel moves one place of a layer."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..models import preprocess

# What is differentiated: a feature map (B, C) at one place -> one number per image (B,).
SCALARS = {
    # A plain sum would be constant after a layer norm (its channels sum to 0 at initialisation): no gradient.
    "sum of ReLU": lambda f: f.relu().sum(1),
    "largest logit": lambda f: f.amax(1),
}


@dataclass
class ReceptiveField:
    """A map (H, W) of shares that sum to 1, with the layer, the scalar that was differentiated, and the pixel.

    `pixel`: (row, column) of the input that the differentiated place lies over. `np.asarray(field)` is the map.
    """

    map: np.ndarray
    layer: str
    scalar: str
    pixel: tuple[int, int]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.map, dtype=dtype, copy=True if copy is None else copy)

    def extent(self, share: float = 0.5) -> tuple[int, int]:
        """Rows and columns (px) of the smallest bands, centred on `pixel`, that hold `share` of the mass."""
        return tuple(2 * _reach(self.map.sum(1 - axis), self.pixel[axis], share) + 1 for axis in (0, 1))

    def area(self, share: float = 0.5) -> float:
        """Share of the picture taken by the smallest square, centred on `pixel`, that holds `share` of the mass.

        Read off the raw map: no logarithm, so the figure does not depend on the gradients' scale.
        """
        rows, columns = np.ogrid[: self.map.shape[0], : self.map.shape[1]]
        ring = np.maximum(abs(rows - self.pixel[0]), abs(columns - self.pixel[1]))
        mass = np.bincount(ring.ravel(), weights=self.map.ravel())
        reach = int(np.searchsorted(np.cumsum(mass), share - 1e-9))
        return float((ring <= reach).sum() / self.map.size)

    def anisotropy(self, share: float = 0.5) -> float:
        """Columns over rows of `extent`: 1 for a round field, above 1 for a horizontal streak."""
        rows, columns = self.extent(share)
        return columns / rows


def _reach(profile: np.ndarray, centre: int, share: float) -> int:
    """Smallest r for which profile[centre - r : centre + r + 1] holds `share` of its sum."""
    mass = np.bincount(abs(np.arange(len(profile)) - centre), weights=profile)
    return int(np.searchsorted(np.cumsum(mass), share * profile.sum() - 1e-9))


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule of a name: "stage1" to "stage4" of the encoder, or any path such as "decoder".

    Raises ValueError when there is none of that name.
    """
    path = f"encoder.stages.{int(layer[5:]) - 1}" if layer.startswith("stage") and layer[5:].isdigit() else layer
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"no layer {layer!r} in {type(model).__name__}; it has stage1 to stage4 if it is a SegFormer, "
                         f"or paths that begin with {names}") from None


def receptive_field(model: nn.Module, images: Tensor, layer: str = "stage4",
                    pixel: tuple[int, int] | None = None, scalar: str | None = None) -> ReceptiveField:
    """Effective receptive field of one place of a layer, averaged over images.

    A scalar of the layer's output (B, C, h, w) at that place is differentiated by the input; for each image the
    gradient is made absolute, summed over colours and normalised to sum 1 before averaging, so no image counts
    more than another. The model runs in evaluation mode: no dropout, running batch-norm statistics.

    Arguments: `images` uint8 or normalised float (B, 3, H, W); `layer`: see `find_layer`; `pixel`: (row, column)
    of the input, by default the centre; `scalar`: "sum of ReLU" (of channels; the default) or "largest logit" (the
    default for "decoder"). Raises ValueError for an unknown layer or scalar, or a pixel outside the picture.
    Source: Luo et al. 2016 for the definition; figure 3 shows such maps without naming its scalar.
    """
    module = find_layer(model, layer)
    height, width = images.shape[-2:]
    pixel = pixel or (height // 2, width // 2)
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(f"pixel {pixel} lies outside the picture of {height} x {width} px")
    scalar = scalar or ("largest logit" if layer == "decoder" else "sum of ReLU")
    if scalar not in SCALARS:
        raise ValueError(f"no scalar {scalar!r}; there are {', '.join(SCALARS)}")
    kept = []
    hook = module.register_forward_hook(lambda *call: kept.append(call[2]))
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            x = (preprocess(images) if images.dtype == torch.uint8 else images).detach().requires_grad_()
            model(x)
            feature = kept[0]
            row, column = (p * n // size for p, n, size in zip(pixel, feature.shape[-2:], (height, width), strict=True))
            gradient, = torch.autograd.grad(SCALARS[scalar](feature[:, :, row, column]).sum(), x)
    finally:
        hook.remove()
        model.train(was_training)
    maps = gradient.abs().sum(1).double()
    mass = maps.sum((1, 2), keepdim=True)
    if (mass == 0).any():
        raise ValueError(f"{scalar} of {layer} at {pixel} has no gradient in an image: choose another scalar or pixel")
    return ReceptiveField((maps / mass).mean(0).cpu().numpy(), layer, scalar, tuple(pixel))
