"""What a network costs: its parameters and the multiply-accumulates (MACs) of one forward pass."""

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, image_size: int | tuple[int, int], part: str = "") -> int:
    """Multiply-accumulates of one forward pass of one image: matrix products, convolutions and attention.

    Norms, activations and upsampling are not counted, as is the custom. The "FLOPs" of the SegFormer paper
    (Tables 1a, 1b, 2) are these MACs, with the decoder as printed: give `create_model` a decoder class whose
    `forward` is `MLPDecoder.forward_unfolded`. Runs on shapes alone ("meta" tensors), so any size is free.

    Arguments: `model` takes (1, 3, H, W); `image_size` (H, W) in pixels, or one side of a square; `part`: the
    dotted name of a submodule to count alone, e.g. "decoder" or "encoder.stages.0". Raises ValueError for a
    name that is not there.
    """
    names = [name for name, _ in model.named_modules()]
    if part not in names:
        raise ValueError(f"the model has no part {part!r}; its parts begin with "
                         f"{', '.join(name for name, _ in model.named_children())}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    shapes = {name: torch.empty_like(tensor, device="meta")
              for tensors in (model.named_parameters(), model.named_buffers()) for name, tensor in tensors}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(model, shapes, torch.empty(1, 3, height, width, device="meta"))
    finally:
        model.train(was_training)
    counts = counter.get_flop_counts()
    flops = counts.get(".".join(filter(None, (type(model).__name__, part))), {})
    return sum(flops.values()) // 2  # a multiply-accumulate is two floating-point operations
