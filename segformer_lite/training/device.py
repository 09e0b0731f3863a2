"""Where a network is trained, and in which precision."""

import math
import os
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def cuda_computes() -> bool:
    """Whether torch finds a CUDA GPU, and has kernels for it: a card may be too old for this torch."""
    try:
        if not torch.cuda.is_available():
            return False
        number = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()  # torchrun: each its own
        return bool(torch.ones(1, device=f"cuda:{number}").item())
    except RuntimeError:
        return False


def choose_device(device: str = "auto") -> torch.device:
    """The device to work on; "auto" takes CUDA, then the CPU (MPS only when asked for by name).

    Raises ValueError for one that this machine, or this torch, does not have.
    """
    if device == "cpu":
        return torch.device("cpu")  # without waking a GPU
    if device == "auto":
        device = "cuda" if cuda_computes() else "cpu"
    there = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda_computes() else 0,
             "mps": int(torch.backends.mps.is_available())}
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")  # no machine has it
    if (chosen.index or 0) >= there.get(chosen.type, 0):
        raise ValueError(f"torch finds no device {device[:40]!r} on this machine; it has "
                         + ", ".join(f"{kind}:{i}" if i else kind for kind, n in there.items() for i in range(n)))
    return chosen


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products: "auto" takes bf16 where it is native, fp16 on older GPUs, else fp32."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if native else torch.float32


def weights_layout(device: torch.device) -> torch.memory_format:
    """How weights lie in memory: channels last suits CUDA's kernels; on a CPU the plain layout trains faster."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


@contextmanager
def mixed_precision(images: Tensor, dtype: torch.dtype):
    """Matrix products of a network on `images` (B, 3, H, W) in `dtype`, what needs its range in float32."""
    if dtype == torch.float32:
        yield
        return
    # On a CPU the fused attention kernel's backward in bf16 is slow for short sequences: plain matrix products win up
    # to 256 px a side. Of larger pictures they write whole matrices, N x N / R, and the fused kernel wins.
    plain = images.device.type == "cpu" and math.prod(images.shape[-2:]) <= 256**2
    with torch.autocast(images.device.type, dtype), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        yield
