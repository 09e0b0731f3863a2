"""Effective receptive fields: how much each input pixel moves one place of a layer, and measures of such a field."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..models import EfficientSelfAttention, MixFFN, OverlapPatchEmbed, TransformerBlock, preprocess

SHARES = (0.2, 0.3, 0.5, 0.95)  # of the mass, for which `ReceptiveField.measures` gives sizes
SCALARS = ("sum", "largest logit", "logit K")  # K: the number of a class; each also " of ReLU"
HEADS = ("decoder", "classifier")  # layers that give class logits: ours, torchvision's
CHANNELS_LAST = (EfficientSelfAttention, MixFFN, OverlapPatchEmbed, TransformerBlock)
AT_ONCE = 8  # images in one pass: the memory does not grow with their number


@dataclass
class ReceptiveField:
    """A map (H, W) of shares that sum to 1, with the layer, the scalar that was differentiated, and the pixel.

    `pixel`: (row, column) of the input that the differentiated place lies over. `mass`: sum of the absolute
    gradient before it was made 1, mean of the images; no measure but `log_area` uses it. `np.asarray(field)` is
    the map. Squares and bands are centred on `pixel`; where they reach over the picture's border, their sides
    count in full and their area does not.
    """

    map: np.ndarray
    layer: str
    scalar: str
    pixel: tuple[int, int]
    mass: float = 1.0

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.map, dtype=dtype, copy=True if copy is None else copy)

    def extent(self, share: float = 0.5) -> tuple[int, int]:
        """Rows and columns (px) of the smallest bands, centred on `pixel`, that hold `share` of the mass."""
        rows, columns = (2 * _reach(self.map.sum(1 - axis), abs(np.arange(n) - self.pixel[axis]), share) + 1
                         for axis, n in enumerate(self.map.shape))
        return rows, columns

    def side(self, share: float = 0.5) -> int:
        """Side (px) of the smallest square, centred on `pixel`, that holds `share` of the mass."""
        return 2 * _reach(self.map, self._rings(), share) + 1

    def area(self, share: float = 0.5) -> float:
        """Share of the picture taken by the smallest square, centred on `pixel`, that holds `share` of the mass.

        Read off the raw map: no logarithm, so the figure does not depend on the gradients' scale.
        """
        rings = self._rings()
        return float((rings <= _reach(self.map, rings, share)).mean())

    def log_area(self, share: float = 0.5, scale: float = 1.0) -> float:
        """`area` of log10(scale * gradient + 1): RepLKNet's figure, to compare with theirs.

        It depends on the gradient's scale, which says nothing about where a network looks: the logarithm bends only
        what is not small against 1. A random B0 on noise of 256 px, half of the mass: `area` is 0.001 at stage 1 and
        0.037 at stage 4, whatever the scale. log_area is 0.001 and 0.040 as the gradients come, 0.001 and 0.086 with
        them times 100, 0.467 and 0.303 times 10,000: now stage 1 seems to see more than stage 4. Compare networks by
        `area`. Source: Ding et al. 2022 (RepLKNet), the released script, there with positive gradients only.
        """
        rings = self._rings()
        bent = np.log10(scale * self.mass * self.map + 1)
        return float((rings <= _reach(bent, rings, share)).mean())

    def anisotropy(self, share: float = 0.5) -> float:
        """Columns over rows of `extent`: 1 for a round field, above 1 for a horizontal streak."""
        rows, columns = self.extent(share)
        return columns / rows

    def centre_share(self, reach: int = 16) -> float:
        """Share of the mass at most `reach` rows and columns from `pixel`: in a square of 2 * reach + 1 px."""
        return float(self.map[self._rings() <= reach].sum())

    def support(self) -> float:
        """Share of the picture's pixels that have any gradient at all, however small: what can be seen, not what is.

        1 for a network with global keys, from its first block on, while `area` says that nearly all mass is near.
        """
        return float((self.map > 0).mean())

    def measures(self) -> dict:
        """All measures as plain numbers and lists, keys of text: ready for JSON."""
        by_share = {name: {str(share): getattr(self, name)(share) for share in SHARES}
                    for name in ("area", "side", "extent", "anisotropy", "log_area")}
        return {"layer": self.layer, "scalar": self.scalar, "pixel": list(self.pixel), **by_share,
                "centre_share": self.centre_share(), "support": self.support()}

    def _rings(self) -> np.ndarray:
        """Distance of each pixel from `pixel`, in squares around it."""
        rows, columns = np.ogrid[: self.map.shape[0], : self.map.shape[1]]
        return np.maximum(abs(rows - self.pixel[0]), abs(columns - self.pixel[1]))


def _reach(values: np.ndarray, distances: np.ndarray, share: float) -> int:
    """Smallest distance within which `share` of the sum of `values` lies."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: a share of the mass lies above 0 and is at most 1, as 0.5")
    mass = np.cumsum(np.bincount(distances.ravel(), weights=values.ravel()))
    return int(np.searchsorted(mass, (share - 1e-9) * mass[-1]))


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule of a name: "stage1" to "stage4" of the encoder, or any path: "decoder", "backbone.layer4".

    Raises ValueError when there is none of that name.
    """
    path = f"encoder.stages.{int(layer[5:]) - 1}" if layer.startswith("stage") and layer[5:].isdigit() else layer
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"no layer {layer!r} in {type(model).__name__}; it has stage1 to stage4 if it is a SegFormer, "
                         f"or paths that begin with {names}") from None


def scalar_of(feature: Tensor, scalar: str) -> Tensor:
    """What is differentiated: the channels at one place (B, C) -> one number per image (B,).

    "sum" of channels, "largest logit", or "logit 3" of class 3; each " of ReLU", which silences negative channels.
    Raises ValueError for another name or a class that is not there.
    """
    what, relu = scalar.removesuffix(" of ReLU"), scalar.endswith(" of ReLU")
    feature = feature.relu() if relu else feature
    if what == "sum":
        return feature.sum(1)
    if what == "largest logit":
        return feature.amax(1)
    number = what.removeprefix("logit ")
    if number == what or not number.isdecimal():
        raise ValueError(f"no scalar {scalar!r}; there are {', '.join(SCALARS)}, and each with ' of ReLU' behind it")
    if int(number) >= feature.shape[1]:
        raise ValueError(f"no class {number} in {scalar!r}: the layer's channels are 0 to {feature.shape[1] - 1}")
    return feature[:, int(number)]


class Probe:
    """One forward pass of pictures, kept: each field of any pixel and layer is then one backward pass through it.

    Arguments: `model`, run in evaluation mode (no dropout, running batch-norm statistics) and left as it was;
    `images` uint8 or normalised float (B, 3, H, W); `layers`: see `find_layer`. A layer gives (B, C, h, w), or has
    its channels last as tokens have, which is seen by its proportions; one that is used several times is read
    at its first use. Raises ValueError for a layer that is unknown, unused or gives no such map.
    """

    def __init__(self, model: nn.Module, images: Tensor, layers: Sequence[str]):
        modules = {layer: find_layer(model, layer) for layer in layers}
        height, width = images.shape[-2:]
        self.layers, self.size = list(layers), (height, width)
        outputs = {}

        def keep(layer):
            # A clone: the ReLU behind may work in place.
            def hook(module, arguments, output):
                if layer not in outputs:
                    outputs[layer] = output.clone() if isinstance(output, Tensor) else output
            return hook

        hooks = [module.register_forward_hook(keep(layer)) for layer, module in modules.items()]
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                device = next((p.device for p in model.parameters()), images.device)
                x = preprocess(images) if images.dtype == torch.uint8 else images.clone()
                self.x = x.detach().to(device).requires_grad_()
                model(self.x)
        finally:
            for hook in hooks:
                hook.remove()
            model.train(was_training)
        self.features = {layer: _channels_first(outputs.get(layer), module, layer, self.size)
                         for layer, module in modules.items()}

    def __call__(self, layer: str, pixel: tuple[int, int] | None = None, scalar: str | None = None) -> ReceptiveField:
        """The field of the place of `layer` that lies over `pixel`; see `receptive_field` for the arguments."""
        if layer not in self.features:
            raise ValueError(f"layer {layer!r} was not kept; there are {', '.join(self.layers)}")
        feature, (height, width) = self.features[layer], self.size
        pixel = (height // 2, width // 2) if pixel is None else (pixel[0], pixel[1])
        if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
            raise ValueError(f"pixel {pixel} lies outside the picture of {height} x {width} px")
        scalar = scalar or ("largest logit" if layer in HEADS else "sum of ReLU")
        row, column = (p * n // size for p, n, size in zip(pixel, feature.shape[-2:], self.size, strict=True))
        with torch.inference_mode(False), torch.enable_grad():
            value = scalar_of(feature[:, :, row, column], scalar).sum()
            gradient, = torch.autograd.grad(value, self.x, retain_graph=True)
        maps = gradient.abs().sum(1).cpu().double().numpy()
        mass = maps.sum((1, 2), keepdims=True)
        if not np.isfinite(mass).all():
            raise ValueError(f"the gradient of {layer} at {pixel} is not finite: are the network's weights?")
        if (mass == 0).any():
            raise ValueError(f"{scalar} of {layer} at {pixel} has no gradient in an image: choose another scalar "
                             "or pixel")
        return ReceptiveField((maps / mass).mean(0), layer, scalar, pixel, float(mass.mean()))


def _channels_first(output, module: nn.Module, layer: str, size: tuple[int, int]) -> Tensor:
    """A layer's output as (B, C, h, w), with h : w as in the picture up to rounding."""
    if output is None:
        raise ValueError(f"layer {layer!r} is not used when the network looks at a picture: choose another")
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} gives {shape}, not one map (B, C, h, w): choose one of its submodules")
    last = output.permute(0, 3, 1, 2)
    for feature in [last] if isinstance(module, CHANNELS_LAST) else [output, last]:
        h, w = feature.shape[-2:]
        # The grids whose cells can be squares of one whole number of pixels, sizes rounded up or down.
        if abs(h * size[1] - w * size[0]) <= max(size):
            return feature
    raise ValueError(f"layer {layer!r} gives {tuple(output.shape)}, in which no grid has the proportions of the "
                     f"picture of {size[0]} x {size[1]} px: choose another layer")


def receptive_field(model: nn.Module, images: Tensor, layer: str = "stage4",
                    pixel: tuple[int, int] | None = None, scalar: str | None = None) -> ReceptiveField:
    """Effective receptive field of one place of a layer, averaged over images.

    A scalar of the layer's output (B, C, h, w) at that place is differentiated by the input; for each image the
    gradient is made absolute, summed over colours and normalised to sum 1 before averaging, so no image counts
    more than another. The model runs in evaluation mode: no dropout, running batch-norm statistics.

    Arguments: `images` uint8 or normalised float (B, 3, H, W); `layer`: see `find_layer` and `Probe`; `pixel`:
    (row, column) of the input, by default the centre (the measures are centred on the pixel, and place i of stage 4 on
    pixel 32 i: a multiple of 32 leaves no offset); `scalar`: "sum", "largest logit" or
    "logit K", each also " of ReLU"; by default "sum of ReLU" (the plain sum of what a fresh layer norm gives is 0
    whatever the input: no gradient but rounding noise), and "largest logit" for a layer called "decoder" or
    "classifier".
    Raises ValueError for an unknown layer or scalar, a pixel outside the picture, or no gradient at all.
    Source: Luo et al. 2016 for the definition; figure 3 shows such maps without naming its scalar.
    """
    if len(images) == 0:
        raise ValueError("no images: a receptive field is an average over at least one")
    fields = [Probe(model, part, [layer])(layer, pixel, scalar) for part in images.split(AT_ONCE)]
    weights = [len(part) / len(images) for part in images.split(AT_ONCE)]
    first = fields[0]
    mean = sum((w * f.map for w, f in zip(weights, fields, strict=True)), np.zeros_like(first.map))
    mass = sum(w * f.mass for w, f in zip(weights, fields, strict=True))
    return ReceptiveField(mean, layer, first.scalar, first.pixel, mass)
