"""Several processes, one run: `torchrun` starts them, and each takes its share of every batch, on a GPU of its own.

Together they take the steps that one process takes on the whole batch. The first alone writes, evaluates and prints.
Where torchrun started nothing, every function here does nothing.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(hours=2)  # how long the others wait for the first, which evaluates


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun started; gives this one's device.

    Raises ValueError where there are more processes than GPUs.
    """
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # what pins memory and asks for bfloat16 asks the current one
        yield device
        return
    if device.type == "cuda":
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise ValueError(f"torchrun started process {number + 1} on a machine with {gpus} GPUs: "
                             f"use --nproc-per-node {gpus}, or --device cpu")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    # Tensors on the CPU go by gloo on every machine: what is agreed before a step waits for no GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield device
    dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 is the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as a process of several trains it: its gradients are the mean over all processes, and on CUDA its
    batch norms see the whole batch. On a CPU each process normalises by its own share. Source: PyTorch's DDP.
    """
    if not dist.is_initialized():
        return model
    # A kernel of 1 x 1 has two layouts that differ in name only; DDP warns of a copy that costs nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match")
    if device.type == "cuda":
        return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[device.index])
    return DistributedDataParallel(model)


@contextmanager
def together() -> Iterator[None]:
    """Raises ConnectionError in one line where another process has gone and so cannot answer."""
    try:
        yield
    except RuntimeError:
        raise ConnectionError("another process of this run has stopped; its own message says why") from None


def agree(labels: Tensor, stop: bool, ignore_index: int = 255) -> tuple[Tensor | None, bool]:
    """What the processes need to know of each other before a step: (count of valid pixels, whether any must stop).

    Shares hold unequally many valid pixels, so the mean of their mean losses is not the batch's mean loss. Each
    process divides its sum by the mean count instead: then the mean of their gradients is the batch's gradient.
    Arguments: `labels` int64 (B, H, W), the process's share. The count is None for a lone process, and stays on the
    labels' device: a GPU's is not waited for.
    """
    if not dist.is_initialized():
        return None, stop
    count, stops = (labels != ignore_index).sum().double(), torch.tensor(float(stop))
    with together():
        dist.all_reduce(count)
        dist.all_reduce(stops)
    return (count.clamp(min=1) / processes()).float(), stops.item() > 0


def mean(value: Tensor) -> Tensor:
    """The mean over processes of a tensor."""
    if dist.is_initialized():
        value = value.clone()
        with together():
            dist.all_reduce(value)
        value /= processes()
    return value


def from_first(value=None):
    """The first process's value; the others wait for it here."""
    if dist.is_initialized():
        box = [value]
        with together():
            dist.broadcast_object_list(box)
        value = box[0]
    return value


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process alone, then the others: what it makes on the disk, they find there."""
    if rank() > 0:
        from_first()
    try:
        yield
    finally:
        if rank() == 0:
            from_first()
