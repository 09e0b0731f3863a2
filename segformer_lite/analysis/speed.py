"""How fast a network runs and how much memory it takes, beside others that do the same.

Machines are noisy and drift, so contestants take turns in one process, and what is compared is the ratio of
neighbouring turns. The floor beside each time is what this machine needs for the same work at its best.
"""

import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..models import SegFormer
from ..models.blocks import linear_map
from ..models.segformer import VARIANTS


@dataclass
class Timing:
    """Seconds of every contestant's turns, in the order they were taken: name -> list."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds of the middle turn."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> tuple[float, float, float]:
        """How many times longer `name` takes than `other`, turn by turn: lower quartile, median, upper quartile."""
        ratios = [a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return low, middle, high


def take_turns(work: Mapping[str, Callable[[], object]], turns: int = 7, device: torch.device | None = None) -> Timing:
    """Run every function to warm up, then `turns` times, one after the other in each turn.

    Arguments: `work`: name -> function; `device`: where they compute; a GPU is waited for before the clock stops.
    """
    on_gpu = device is not None and device.type == "cuda"

    def seconds(function: Callable) -> float:
        began = time.perf_counter()
        function()
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    for function in work.values():
        calls, until = 0, time.perf_counter() + (0.5 if on_gpu else 0)  # an idle GPU is slower at first
        while calls < (3 if on_gpu else 1) or time.perf_counter() < until:  # calls 2 and 3 make CUDA graphs
            seconds(function)
            calls += 1
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(turns):
        for name, function in work.items():
            times[name].append(seconds(function))
    return Timing(times)


def flops(function: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in one call: two for each MAC."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def traffic(function: Callable[[], object]) -> int:
    """Bytes that the operations of one call read and write: every tensor that one takes or gives, views for nothing.

    What would pass between memory and cores if no cache helped; a kernel's own scratch memory is not in it.
    """
    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            if not operation.is_view and not re.search("empty|unsafe_view", operation.name()):  # these move nothing
                for tensor in tree_leaves((args, kwargs, result)):
                    if isinstance(tensor, Tensor):
                        sides = [size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
                        self.total += math.prod(sides) * tensor.element_size()  # an expanded side lies there once
            return result

    with Count() as count:
        function()
    return count.total


def peak_memory(function: Callable[[], object], model: nn.Module, device: torch.device | None = None) -> int:
    """Bytes of tensors alive at the worst moment of a second call, the model's own and those of the first included.

    So what an optimiser makes once, its means, belongs to it. On a GPU the allocator counts. On a CPU every tensor
    that is made is followed until it dies, so the figure is the same on every machine. A kernel's own scratch memory
    is seen by the first alone.
    """
    if device is not None and device.type == "cuda":
        own = [t for p in model.parameters() for t in (p, p.grad) if t is not None] + list(model.buffers())
        others = torch.cuda.memory_allocated(device) - sum(tensor.nbytes for tensor in own)
        function()
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - others
    tracker = MemTracker()
    tracker.track_external(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its remarks on modules that are gone concern per-module figures
        with tracker:
            function()
            tracker.reset_mod_stats()
            function()
    return sum(figures["Total"] for figures in tracker.get_tracker_snapshot("peak").values())


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """What the machine reaches here and now: (operations a second of a large matrix product, bytes a second copied).

    The product is made as our networks make theirs, by `linear_map`: on some processors `@` is slower.
    """
    side, size = (2048, 2**26) if device.type == "cpu" else (8192, 2**30)  # a GPU is done with less before it began
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    tokens = a.view(1, 32, -1, side)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = take_turns({"product": lambda: linear_map(tokens, b), "copy": lambda: target.copy_(source)}, 7, device)
    return 2 * side**3 / min(timing.seconds["product"]), 2 * size / min(timing.seconds["copy"])


def inference(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A forward pass of normalised images (B, 3, H, W) without gradients, up to the logits."""
    @torch.inference_mode()
    def run() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return model(images)

    model.eval()
    return run


def peers(variant: str, ours: SegFormer) -> dict[str, nn.Module | str]:
    """Other people's SegFormers: name -> a network from normalised images to logits, or why there is none.

    transformers gets our weights and computes the same function; the others have a decoder of their own.
    """
    makers = {"transformers": _transformers, "segmentation_models_pytorch": _smp, "segformer_pytorch": _lucidrains}
    found: dict[str, nn.Module | str] = {}
    for name, make in makers.items():
        try:
            found[name] = make(variant, ours)
        except ImportError:
            found[name] = "not installed"
    return found


class Logits(nn.Module):
    """transformers' network as a plain one: it also gives the loss that comes with it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.network(x, labels=labels).loss


def _transformers(variant: str, ours: SegFormer) -> nn.Module:
    import tempfile

    from transformers import SegformerForSemanticSegmentation, logging

    logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that two epsilons differ: `bench` looks at the logits themselves
        ours.save_pretrained(folder)
        return Logits(SegformerForSemanticSegmentation.from_pretrained(folder))


def _smp(variant: str, ours: SegFormer) -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Segformer(f"mit_{variant}", encoder_weights=None, classes=ours.num_classes)


def _lucidrains(variant: str, ours: SegFormer) -> nn.Module:
    from segformer_pytorch import Segformer

    dims, depths, width = VARIANTS[variant]
    return Segformer(dims=dims, heads=(1, 2, 5, 8), ff_expansion=(4, 4, 4, 4), reduction_ratio=(8, 4, 2, 1),
                     num_layers=depths, decoder_dim=width, num_classes=ours.num_classes)


def plain_training_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """The training step that a user of another package writes: its own loss if it has one, AdamW, clipped gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            if isinstance(model, Logits):
                loss = model.loss(images, labels)
            else:
                logits = F.interpolate(model(images).float(), labels.shape[-2:], mode="bilinear")
                loss = F.cross_entropy(logits, labels, ignore_index=255)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.train()
    return run
