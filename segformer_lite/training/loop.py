"""The training loop: batches by step, one optimiser step each, a log, checkpoints, a network at the end.

A run may be cut anywhere, by Ctrl-C, a full disk or a kill: its last checkpoint is whole, and a run resumed from
there gives the same numbers as one that was never cut (on a GPU nearly: some of its sums come in no fixed order).
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import data
from ..evaluation import Report, evaluate
from ..files import write_text, writing
from ..models import Segmenter, create_model, preprocess
from . import checkpoint, distributed
from .batches import StepBatches, load, mix
from .config import TrainConfig
from .device import choose_device, choose_precision, mixed_precision, weights_layout
from .losses import segmentation_loss
from .pictures import draw_loss, draw_preview
from .schedule import make_optimizer, poly_with_warmup


@dataclass
class Run:
    """A finished run: its `folder`, `config`, `history` (a dict per logged step), `model` and final `report`.

    Of several processes started by torchrun, the first alone has a report; the others have None.
    """

    folder: Path
    config: TrainConfig
    history: list[dict]
    model: Segmenter
    report: Report | None = field(repr=False)


@contextmanager
def ctrl_c_waits() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that no step is left half done; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield asked
        return

    def ask(*_):
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if distributed.rank() == 0:
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")  # print is not for signal handlers

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def new_folder(config: TrainConfig) -> Path:
    """Where the run goes: `config.folder`, else <date>-<name>, numbered where that is taken, under the environment
    variable SEGFORMER_LITE_RUNS or, where it is not set, under runs/ of the course's folder."""
    if config.folder:
        return Path(config.folder)
    name = config.name or f"{Path(config.data).name}-{config.model}"
    runs = data.runs_folder()
    folder, number = runs / f"{date.today()}-{name}", 2
    while folder.exists():
        folder, number = runs / f"{date.today()}-{name}-{number}", number + 1
    return folder


def train(config: TrainConfig, resume: str | Path | None = None, progress: bool = True) -> Run:
    """Train a network, from scratch or from given weights, validate it, and leave everything in one folder.

    Arguments: `config`; `resume`: a folder whose run goes on where it stopped, to the same numbers; `progress`:
    show bars. The folder gets config.json, log.jsonl, loss.png, checkpoint.pt, model.safetensors, report.json, and
    preview.png (input | prediction | label) at every validation on the way.
    Started by torchrun, its processes share each batch. Raises ValueError or OSError in one line for settings, data
    or a disk that cannot work, and for a loss that is no number; Ctrl-C saves a checkpoint and says how to go on.
    """
    with distributed.joined(choose_device(config.device)) as device:
        training = Training(config, resume, progress, device)
        try:
            training.take_steps()
            return training.finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(training.how_to_go_on()) from None
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).partition("\n\nSet TORCH")[0].split())  # the rest is for PyTorch's makers
            raise ValueError(f"torch.compile does not work here ({reason}): train without compile") from None


class Training:
    """A run on its way: from settings to steps to files, which the first process alone writes."""

    def __init__(self, config: TrainConfig, resume: str | Path | None, progress: bool, device: torch.device):
        self.config, self.device = config, device
        self.first = distributed.rank() == 0
        self.progress = progress and self.first
        with distributed.first_goes_first():  # it may have a sample to make
            self.train_set = data.open_dataset(config.data, "train", **config.data_options)
            self.val_set = data.open_dataset(config.data, "val", **config.data_options)
        images, classes = len(self.train_set), list(self.train_set.classes)
        if config.class_weights is not None and len(config.class_weights) != len(classes):
            raise ValueError(f"class_weights holds {len(config.class_weights)} weights, but {config.data} has "
                             f"{len(classes)} classes ({', '.join(classes[:4])}, ...): give one for each")
        if config.batch_size < distributed.processes():
            raise ValueError(f"batch_size is {config.batch_size}, but torchrun started {distributed.processes()} "
                             "processes: each needs a picture of every batch")
        data.augmentation(config.augment, config.size)  # complains of a name that it does not know
        self.steps = config.steps if config.epochs is None else math.ceil(config.epochs * images / config.batch_size)

        torch.manual_seed(config.seed)
        model = create_model(config.model, len(classes), **config.model_options)
        if config.weights and not resume:
            checkpoint.start_from(model, config.weights)
        model.encoder.requires_grad_(not config.freeze_encoder)
        self.model: Segmenter = model.to(device=device).to(memory_format=weights_layout(device))
        self.optimizer = make_optimizer(self.model, config.lr, config.weight_decay, config.head_lr_mult)
        self.dtype = choose_precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

        self.settings = {**config.as_dict(), "steps": self.steps, "classes": classes, "images": images}
        self.folder = Path(distributed.from_first(str(resume or new_folder(config))))
        self.done = 0
        self.history: list[dict] = []
        if resume:
            self._resume()
        elif (self.folder / checkpoint.CHECKPOINT).exists():
            raise ValueError(f"{self.folder} already holds a run; choose another folder, "
                             f"or go on with resume={str(self.folder)!r}")
        self.unchecked: list[Tensor] = []  # of each step since the last check, a number that is finite if all is well
        self.batches = StepBatches(images, config.batch_size, self.steps, config.seed, self.done,
                                   distributed.rank(), distributed.processes())
        if self.first:
            write_text(self.folder / checkpoint.CONFIG, json.dumps(self.settings, indent=1))
            write_text(self.folder / checkpoint.LOG, "".join(json.dumps(entry) + "\n" for entry in self.history))

    def take_steps(self) -> None:
        """Train up to the last step, or to where Ctrl-C is pressed: then raises KeyboardInterrupt, all saved."""
        config, stop = self.config, False
        pairs = load(self.train_set, self.batches, config, self.device)
        net = distributed.parallel(self.model, self.device)
        if config.compile:
            net = cast(nn.Module, torch.compile(net, mode=config.compile))
        began = time.perf_counter() - (self.history[-1]["seconds"] if self.history else 0)
        with ctrl_c_waits() as asked, tqdm(pairs, desc=config.model, initial=self.done, total=self.steps,
                                           unit="step", disable=not self.progress) as bar:
            for step, (images, labels) in enumerate(bar, self.done):
                count, stop = distributed.agree(labels, asked.is_set())
                if stop:
                    break
                factor = poly_with_warmup(step, self.steps, config.warmup)
                torch.manual_seed(mix(config.seed, step) + distributed.rank())  # drop path and dropout of this step
                loss, norm = train_step(net, self.optimizer, self.scaler, images.to(self.device, non_blocking=True),
                                        labels.to(self.device, non_blocking=True), factor, config, self.dtype, count)
                # A gradient scaler looks for infinite gradients on purpose, and leaves out their step.
                self.unchecked.append(loss if self.scaler.is_enabled() else loss + 0 * norm)
                self.done, last = step + 1, step + 1 == self.steps
                validate = not last and config.eval_every > 0 and self.done % config.eval_every == 0
                if self.done % 10 == 0 or last or validate:
                    self._log(loss, config.lr * factor, time.perf_counter() - began, validate)
                    bar.set_postfix(loss=f"{self.history[-1]['loss']:.3f}")
                if self.done % config.checkpoint_every == 0 or last:
                    self._save()
            if stop or asked.is_set():
                self._save()
                distributed.from_first()  # all processes find the checkpoint there
                raise KeyboardInterrupt

    def finish(self) -> Run:
        """Write the network, evaluate it, write the report."""
        report = None
        if self.first:
            description = {key: self.settings[key] for key in ("model", "model_options", "classes", "data",
                                                               "data_options")}
            description |= {"palette": self.train_set.palette.tolist(), "size": self.config.short_side}
            checkpoint.save_model(self.model, self.folder / checkpoint.WEIGHTS, description)
            report = evaluate(self.model, self.val_set, self.config.short_side, progress=self.progress)
            report.save(self.folder / "report.json")
            draw_loss(self.folder, self.history)
        distributed.from_first()
        return Run(self.folder, self.config, self.history, self.model.eval(), report)

    def how_to_go_on(self) -> str:
        """What to tell who stopped the run."""
        if not (self.folder / checkpoint.CHECKPOINT).exists():
            return "stopped before the first checkpoint"
        return f"stopped; to go on from the last checkpoint: segformer-lite train --resume {self.folder}"

    def _log(self, loss: Tensor, lr: float, seconds: float, validate: bool) -> None:
        """Add this step to the log, and with `validate` what the network is worth by now, in numbers and pictures."""
        self._require_finite()
        entry = {"step": self.done, "loss": round(distributed.mean(loss).item(), 6), "lr": lr,
                 "seconds": round(seconds, 2)}
        if validate and self.first:
            entry |= evaluate(self.model, self.val_set, self.config.short_side, progress=self.progress).summary()
        self.history.append(entry)
        if self.first:
            with writing(self.folder / checkpoint.LOG), (self.folder / checkpoint.LOG).open("a") as log:
                log.write(json.dumps(entry) + "\n")
        if validate and self.first:
            draw_loss(self.folder, self.history)
            draw_preview(self.folder, self.model, self.val_set, self.config.short_side)

    def _save(self) -> None:
        self._require_finite()
        if self.first:
            checkpoint.save_checkpoint(self.folder / checkpoint.CHECKPOINT, self.done, self.model, self.optimizer,
                                       self.scaler, self.settings)

    def _require_finite(self) -> None:
        """Raises ValueError naming the first step since the last check that went wrong, and its pictures.

        Looked at in steps, not in each: every look makes a GPU wait for the CPU.
        """
        values = torch.stack(self.unchecked).tolist() if self.unchecked else []
        for step, value in enumerate(values, self.done - len(values)):
            if not math.isfinite(value):
                names = ", ".join(self.train_set.names[index] for _, index in self.batches.batch(step))
                raise ValueError(f"the loss or its gradient is nan or inf at step {step + 1}, on {names}: look at "
                                 f"these pictures and their labels, or lower lr (it is {self.config.lr}); the last "
                                 "checkpoint is from before")
        self.unchecked.clear()

    def _resume(self) -> None:
        """Load the folder's checkpoint into model and optimiser; take its step, and the log up to there."""
        content = checkpoint.load_checkpoint(self.folder / checkpoint.CHECKPOINT)
        old = {**TrainConfig().as_dict(), **content["settings"]}  # a setting that is younger than the run: its default
        # These may differ; a device's rounding does, too, and compiled code draws other random numbers.
        free = {"workers", "device", "compile", "folder", "name", "checkpoint_every", "eval_every"}
        changed = [key for key in self.settings if key not in free and self.settings[key] != old.get(key)]
        if changed:
            key = changed[0]
            raise ValueError(f"{self.folder} was run with {key} = {_short(old.get(key))}, not "
                             f"{_short(self.settings[key])}: resume with the same settings, or start a new run")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        for parameter, state in self.optimizer.state.items():  # AdamW wants its means in the weights' memory layout,
            for mean in ("exp_avg", "exp_avg_sq"):  # and gets that of the device on which they were saved
                state[mean] = torch.empty_like(parameter.detach()).copy_(state[mean])
        if content["scaler"]:  # empty where the device before needed none
            self.scaler.load_state_dict(content["scaler"])
        self.done = content["step"]
        self.history = checkpoint.read_log(self.folder / checkpoint.LOG, self.done)


def train_step(model: nn.Module, optimizer, scaler, images: Tensor, labels: Tensor, factor: float,
               config: TrainConfig, dtype: torch.dtype, count: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One optimiser step on uint8 images (B, 3, H, W) and labels (B, H, W).

    Arguments: `factor` on the learning rate; `config`: its loss and its `clip`; `count`: see `segmentation_loss`.
    Returns the loss before the step, and the norm of its gradient before it was clipped.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)  # before the forward pass, which can use their memory
    with mixed_precision(images, dtype):
        logits = model(preprocess(images))
    loss = segmentation_loss(logits.float(), labels, count=count, class_weights=config.class_weights,
                             dice_weight=config.dice_weight)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), norm


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
