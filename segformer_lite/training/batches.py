"""The batches of a run: which pictures each step sees, and how they are augmented.

All of it is a function of (seed, step, index). So a run that is cut and resumed, or divided among processes, sees
what an unbroken run of one process sees, and a checkpoint needs to hold no generator's state. On a CPU the loader's
workers augment picture by picture; a GPU does it itself, batch by batch, with other chances of the same distribution.
"""

import hashlib
import signal
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.batch_transforms import BatchAugmentation, chances, on_canvas
from ..data.transforms import augmentation, resize_short_side
from .config import TrainConfig

MEMORY_LIMIT = 2 * 2**30  # bytes of resized images that a data set may keep in memory


def mix(*numbers: int) -> int:
    """One seed out of several numbers, well spread."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "little")


class Resized(Dataset):
    """Items of `dataset` resized to `short_side` px, each with the chances that its position in the run gives it."""

    def __init__(self, dataset, short_side: int, seed: int, copies: int = 1):
        self.dataset, self.short_side, self.seed = dataset, short_side, seed
        self.kept: dict[int, tuple] = {}
        # Image and label of a 4:3 picture; each of `copies` processes keeps its own.
        self.keep = copies * len(dataset) * short_side**2 * 4 * 4 / 3 < MEMORY_LIMIT

    def base(self, index: int) -> tuple[Tensor, Tensor]:
        """The item at base size; decoded once if all of them fit into memory."""
        if index in self.kept:
            image, label = self.kept[index]
            return image, type(label)(label.long())
        image, label = self.dataset[index]
        image, label = resize_short_side(image, label, self.short_side)
        if self.keep:
            self.kept[index] = image, type(label)(label.to(torch.uint8))
        return image, label

    def __getitem__(self, position_and_index: tuple[int, int]) -> tuple[Tensor, ...]:
        position, index = position_and_index
        image, label = self.base(index)
        return image.as_subclass(Tensor), label.as_subclass(Tensor), chances(mix(self.seed, position, index))


class Augmented(Resized):
    """Items resized and augmented; the position in the run seeds the augmentation."""

    def __init__(self, dataset, short_side: int, size: int, augment: str, seed: int, copies: int = 1):
        super().__init__(dataset, short_side, seed, copies)
        self.transform = augmentation(augment, size)

    def __getitem__(self, position_and_index: tuple[int, int]) -> tuple[Tensor, ...]:
        position, index = position_and_index
        # The CPU's generator alone: torch.manual_seed also visits every GPU's, which costs more than the mirror.
        torch.default_generator.manual_seed(mix(self.seed, position, index))
        image, label = self.transform(*self.base(index))
        return image.as_subclass(Tensor), label.as_subclass(Tensor)


class StepBatches(Sampler):
    """For each step from `start` on, a list of (position in the run, index): shuffled epochs, end to end.

    Where several `processes` share each list, number `rank` gets every `processes`-th pair of it.
    """

    def __init__(self, length: int, batch_size: int, steps: int, seed: int, start: int = 0, rank: int = 0,
                 processes: int = 1):
        self.length, self.batch_size, self.steps, self.seed, self.start = length, batch_size, steps, seed, start
        self.rank, self.processes = rank, processes
        self.epoch = -1
        self.order: list[int] = []

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (self.batch(step)[self.rank::self.processes] for step in range(self.start, self.steps))

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The whole batch of one step, of all processes together."""
        return [(p, self.index(p)) for p in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def index(self, position: int) -> int:
        """Which image stands at a position of the run."""
        if position // self.length != self.epoch:
            self.epoch = position // self.length
            generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
            self.order = torch.randperm(self.length, generator=generator).tolist()
        return self.order[position % self.length]


def load(dataset, order: StepBatches, config: TrainConfig, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The augmented batches of a run: images uint8 (B, 3, size, size), labels int64 (B, size, size), on a CUDA device
    if `device` is one, else on the CPU."""
    on_device = augments(device)
    copies = max(1, config.workers) * order.processes
    items = (Resized(dataset, config.short_side, config.seed, copies) if on_device else
             Augmented(dataset, config.short_side, config.size, config.augment, config.seed, copies))
    loader = DataLoader(items, batch_sampler=order, num_workers=config.workers, worker_init_fn=leave_ctrl_c,
                        pin_memory=device.type == "cuda", persistent_workers=config.workers > 0,
                        collate_fn=on_canvas if on_device else None)
    if not on_device:
        yield from one_line_errors(loader)
        return
    augment = BatchAugmentation(config.augment, config.size)
    for batch in one_line_errors(loader):
        yield augment(*(part.to(device, non_blocking=True) for part in batch))


def augments(device: torch.device) -> bool:
    """Whether a device augments whole batches itself."""
    return device.type == "cuda"


def one_line_errors(loader: Iterable) -> Iterator:
    """The loader's batches; what goes wrong in a worker comes as its one line, not in the worker's whole traceback."""
    try:
        yield from loader
    except (ValueError, OSError) as error:
        if not str(error).startswith("Caught "):  # raised in this process: one line already
            raise
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.partition(": ")[2]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError("a process that loads data was ended from outside, most often because memory, or in a container "
                      "/dev/shm, ran out: use fewer workers or a smaller batch") from None


def leave_ctrl_c(worker: int) -> None:
    """For a loader's workers: Ctrl-C reaches them too, but it is the training process that ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
