"""The training loop: batches by step, one optimiser step each, a log, checkpoints, a network at the end.

Every random choice is a function of (seed, step, index). So a run that is cut and resumed gives the same
numbers as one that is not, and a checkpoint needs to hold no generator's state.
"""

import hashlib
import json
import math
import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from .. import data
from ..data.transforms import augmentation, resize_short_side
from ..evaluation import Report, evaluate
from ..models import Segmenter, create_model, preprocess
from ..show.curves import loss_curve
from . import checkpoint
from .config import TrainConfig
from .losses import segmentation_loss
from .schedule import make_optimizer, poly_with_warmup

MEMORY_LIMIT = 2 * 2**30  # bytes of resized images that a data set may keep in memory


@dataclass
class Run:
    """A finished run: its `folder`, `config`, `history` (a dict per logged step), `model` and final `report`."""

    folder: Path
    config: TrainConfig
    history: list[dict]
    model: Segmenter
    report: Report = field(repr=False)


def mix(*numbers: int) -> int:
    """One seed out of several numbers, well spread."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "little")


class Augmented(Dataset):
    """Items of `dataset` resized to `short_side` px and augmented; the position in the run seeds the augmentation."""

    def __init__(self, dataset, short_side: int, size: int, augment: str, seed: int):
        self.dataset, self.short_side, self.seed = dataset, short_side, seed
        self.transform = augmentation(augment, size)
        self.kept: dict[int, tuple] = {}
        self.keep = len(dataset) * short_side**2 * 4 * 4 / 3 < MEMORY_LIMIT  # image and label of a 4:3 picture

    def base(self, index: int) -> tuple[Tensor, Tensor]:
        """The item at base size; decoded once if all of them fit into memory."""
        if index in self.kept:
            image, label = self.kept[index]
            return image, type(label)(label.long())
        image, label = resize_short_side(*self.dataset[index], self.short_side)
        if self.keep:
            self.kept[index] = image, type(label)(label.to(torch.uint8))
        return image, label

    def __getitem__(self, position_and_index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        position, index = position_and_index
        # The CPU's generator alone: torch.manual_seed also visits every GPU's, which costs more than the mirror.
        torch.default_generator.manual_seed(mix(self.seed, position, index))
        image, label = self.transform(*self.base(index))
        return image.as_subclass(Tensor), label.as_subclass(Tensor)


class StepBatches(Sampler):
    """For each step from `start` on, a list of (position in the run, index): shuffled epochs, end to end."""

    def __init__(self, length: int, batch_size: int, steps: int, seed: int, start: int = 0):
        self.length, self.batch_size, self.steps, self.seed, self.start = length, batch_size, steps, seed, start

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self):
        epoch, order = -1, []
        for step in range(self.start, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    generator = torch.Generator().manual_seed(mix(self.seed, epoch))
                    order = torch.randperm(self.length, generator=generator).tolist()
                batch.append((position, order[position % self.length]))
            yield batch


def choose_device(device: str = "auto") -> torch.device:
    """The device to work on; "auto" takes CUDA, then the CPU (MPS only when asked for by name)."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch finds no CUDA GPU; use --device cpu")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type of matrix products: "auto" takes bf16 where it is native, fp16 on older GPUs, else fp32."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if native else torch.float32


@contextmanager
def mixed_precision(device: torch.device, dtype: torch.dtype):
    """Matrix products in `dtype`, what needs its range in float32."""
    if dtype == torch.float32:
        yield
        return
    # On a CPU, plain matrix products beat the fused attention kernel, whose backward in bf16 is slow.
    kernel = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype), kernel:
        yield


def new_folder(config: TrainConfig) -> Path:
    """Where the run goes: `config.folder`, else <date>-<name>, numbered where that is taken, under the environment
    variable SEGFORMER_LITE_RUNS or, where it is not set, under runs/ of the course's folder."""
    if config.folder:
        return Path(config.folder)
    name = config.name or f"{Path(config.data).name}-{config.model}"
    runs = Path(os.environ.get("SEGFORMER_LITE_RUNS") or data.course_folder() / "runs")
    folder, number = runs / f"{date.today()}-{name}", 2
    while folder.exists():
        folder, number = runs / f"{date.today()}-{name}-{number}", number + 1
    return folder


def train(config: TrainConfig, resume: str | Path | None = None, progress: bool = True) -> Run:
    """Train a network from scratch, validate it, and leave everything in one folder.

    Arguments: `config`; `resume`: a folder whose run goes on where it stopped, to the same numbers; `progress`:
    show bars. The folder gets config.json, log.jsonl, loss.png, checkpoint.pt, model.safetensors, report.json.
    Raises ValueError or FileNotFoundError in one line for settings or data that cannot work.
    """
    device = choose_device(config.device)
    train_set = data.open_dataset(config.data, "train", **config.data_options)
    val_set = data.open_dataset(config.data, "val", **config.data_options)
    steps = config.steps if config.epochs is None else math.ceil(config.epochs * len(train_set) / config.batch_size)

    torch.manual_seed(config.seed)
    model = create_model(config.model, len(train_set.classes), **config.model_options)
    # Channels last suits CUDA kernels; on a CPU the plain layout trains faster.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    optimizer = make_optimizer(model, config.lr, config.weight_decay, config.head_lr_mult)
    dtype = choose_precision(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    settings = {**config.as_dict(), "steps": steps, "classes": list(train_set.classes), "images": len(train_set)}

    folder, start, history = Path(resume or new_folder(config)), 0, []
    if resume:
        start, history = _resume(folder, model, optimizer, scaler, settings)
    elif (folder / checkpoint.CHECKPOINT).exists():
        raise ValueError(f"{folder} already holds a run; choose another folder, or go on with resume={str(folder)!r}")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / checkpoint.CONFIG, json.dumps(settings, indent=1))

    description = {"model": config.model, "model_options": settings["model_options"], "classes": settings["classes"],
                   "palette": train_set.palette.tolist(), "size": config.short_side, "data": config.data,
                   "data_options": config.data_options}
    batches = DataLoader(
        Augmented(train_set, config.short_side, config.size, config.augment, config.seed),
        batch_sampler=StepBatches(len(train_set), config.batch_size, steps, config.seed, start),
        num_workers=config.workers, pin_memory=device.type == "cuda", persistent_workers=config.workers > 0)
    _write(folder / checkpoint.LOG, "".join(json.dumps(entry) + "\n" for entry in history))
    with (folder / checkpoint.LOG).open("a") as log, tqdm(
            batches, initial=start, total=steps, desc=config.model, unit="step", disable=not progress) as bar:
        began = time.perf_counter()
        for step, (images, labels) in enumerate(bar, start):
            factor = poly_with_warmup(step, steps, config.warmup)
            torch.manual_seed(mix(config.seed, step))  # drop path and dropout of this step
            loss = train_step(model, optimizer, scaler, images.to(device, non_blocking=True),
                              labels.to(device, non_blocking=True), factor, config.clip, dtype)
            done = step + 1
            if done % 10 == 0 or done == steps:
                entry = {"step": done, "loss": round(loss.item(), 6), "lr": config.lr * factor,
                         "seconds": round(time.perf_counter() - began, 2)}
                if config.eval_every and done % config.eval_every == 0 and done < steps:
                    entry |= evaluate(model, val_set, config.short_side, progress=progress).summary()
                if not math.isfinite(entry["loss"]):
                    raise ValueError(f"the loss is {entry['loss']} at step {done}: lower lr (it is {config.lr})")
                history.append(entry)
                log.write(json.dumps(entry) + "\n")
                log.flush()
                bar.set_postfix(loss=f"{entry['loss']:.3f}")
            if done % config.checkpoint_every == 0 or done == steps:
                checkpoint.save_checkpoint(folder / checkpoint.CHECKPOINT, done, model, optimizer, scaler, settings)
    checkpoint.save_model(model, folder / checkpoint.WEIGHTS, description)
    report = evaluate(model, val_set, config.short_side, progress=progress)
    report.save(folder / "report.json")
    loss_curve(history, folder / "loss.png")
    return Run(folder, config, history, model.eval(), report)


def train_step(model, optimizer, scaler, images: Tensor, labels: Tensor, factor: float, clip: float,
               dtype: torch.dtype) -> Tensor:
    """One optimiser step on uint8 images (B, 3, H, W) and labels (B, H, W); returns the loss before it."""
    model.train()
    with mixed_precision(images.device, dtype):
        logits = model(preprocess(images))
    loss = segmentation_loss(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def _resume(folder: Path, model, optimizer, scaler, settings: dict) -> tuple[int, list[dict]]:
    """Load the folder's checkpoint into model and optimiser; its step, and the log up to there."""
    content = checkpoint.load_checkpoint(folder / checkpoint.CHECKPOINT)
    old = content["settings"]
    free = {"workers", "device", "folder", "name", "checkpoint_every"}  # these change no number
    changed = [key for key in settings if key not in free and settings[key] != old.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(f"{folder} was run with {key} = {_short(old.get(key))}, not {_short(settings[key])}: "
                         "resume with the same settings, or start a new run")
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    scaler.load_state_dict(content["scaler"])
    log = folder / checkpoint.LOG
    history = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return content["step"], [entry for entry in history if entry["step"] <= content["step"]]


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _write(path: Path, text: str) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(text)
    beside.replace(path)
