"""One door to every network of the course: `create_model(name, num_classes)`."""

from collections.abc import Callable

from torch import nn

from .cnn import FCN8s, SegNet, UNet
from .resnet import DeepLabV3Plus, PSPNet
from .segformer import VARIANTS, SegFormer
from .segmenter import Segmenter
from .variants import REPORT
from .vit import SETR

# name -> (class, options that the name stands for)
MODELS: dict[str, tuple[Callable[..., Segmenter], dict]] = {
    **{f"segformer_{v}": (SegFormer, {"variant": v}) for v in VARIANTS},
    "segformer_b0_report": (SegFormer, {"variant": "b0", **REPORT}),
    "fcn8s": (FCN8s, {}),
    "segnet": (SegNet, {}),
    "unet": (UNet, {}),
    "pspnet": (PSPNet, {}),
    "deeplabv3plus": (DeepLabV3Plus, {}),
    "setr": (SETR, {}),
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(MODELS)


def create_model(name: str, num_classes: int, **options) -> Segmenter:
    """A fresh network by name, randomly initialised.

    Arguments: `name` from `list_models()`; `num_classes`, background included; `options` of the network's class,
    e.g. `attention=MyAttention` for a SegFormer. Raises ValueError for an unknown name, fewer than 1 class, or an
    object where a class belongs.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    for option, part in options.items():
        if isinstance(part, nn.Module):
            kind = type(part).__name__
            raise ValueError(f"{option} must be the class itself, without brackets: {option}={kind}, not {kind}(…)")
    build, defaults = MODELS[name]
    return build(num_classes=num_classes, **{**defaults, **options})
