"""The command line: `segformer-lite data | train | evaluate | predict | erf | bench | doctor`.

Bad input is one clear line and exit status 2; what came out and how to go on is said at the end of every command.
"""

import argparse
import json
import os
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import cli_bench, cli_data, cli_look, data
from .analysis import receptive_field
from .evaluation import evaluate, predict_labels, resize_for_model
from .files import beside, write_text
from .memory import keep_freed_memory
from .models import Segmenter, device_of
from .show import masks
from .training import PRESETS, TrainConfig, train
from .training.config import COMPILE_MODES, require_own_classes

SETTINGS = {  # the settings of TrainConfig that have a flag: what its help says
    "data": "a folder, or sample-coco, sample-chest-ct, coco, chest_ct",
    "model": "network, e.g. segformer_b0",
    "size": "side of the training crops, px",
    "weights": "start from these: a run's folder, a file, or owner/name on the Hugging Face hub",
    "freeze_encoder": "train the decoder only",
    "base_size": "short side that images are resized to first, px (default: the crop's)",
    "augment": "none, flip, pspnet or segformer",
    "steps": "optimiser steps",
    "epochs": "passes over the data, in place of steps",
    "batch_size": "images per step",
    "lr": "peak learning rate of the encoder",
    "head_lr_mult": "how many times faster the decoder learns",
    "weight_decay": "AdamW's, on all but norms",
    "warmup": "steps of rising learning rate",
    "precision": "auto, fp32, bf16 or fp16",
    "device": cli_look.DEVICE,
    "compile": "torch.compile's mode: " + ", ".join(COMPILE_MODES),
    "seed": "of everything random",
    "eval_every": "steps between validations (0: at the end only)",
    "checkpoint_every": "steps between checkpoints",
    "workers": "processes that load data",
    "folder": "where the run goes",
}
FULL = "memory is full: use smaller pictures, or fewer at a time"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    if arguments.run is not cli_bench.run_bench:  # which measures as the users of other packages run them
        keep_freed_memory()
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or arguments.stopped, 130)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the very end: Python flushes it there)
        return 0
    except (torch.OutOfMemoryError, MemoryError):
        return _complain(FULL)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # a CPU's full memory has no class of its own
            raise
        return _complain(FULL)
    except (ValueError, OSError) as error:
        return _complain(" ".join(str(error).split()) or type(error).__name__)


def _watched() -> bool:
    """Whether a person looks on: bars are for a terminal, not for a log file."""
    return sys.stderr.isatty()


def _complain(message: str, status: int = 2) -> int:
    print(f"segformer-lite: {message}", file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """All commands with their flags; each command's help ends with an example."""
    parser = argparse.ArgumentParser(prog="segformer-lite", description="SegFormer: data, training, masks.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = partial(_command, commands)

    sub = command("data", None, "make, fetch, pack and check data sets", "data coco --images 5000")
    cli_data.add_commands(partial(_command, sub.add_subparsers(required=True, metavar="command")))

    sub = command("train", run_train, "train, evaluate, draw", "train --preset sample-coco --steps 200")
    sub.set_defaults(stopped="stopped; a run that has a checkpoint goes on with train --resume FOLDER")
    sub.add_argument("--preset", choices=list(PRESETS), help="settings to start from")
    sub.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    types = {f.name: f.type for f in fields(TrainConfig)}
    for name, help_text in SETTINGS.items():
        number = int if types[name] in (int, int | None) else float if types[name] in (float, float | None) else str
        kind = {"action": argparse.BooleanOptionalAction} if types[name] is bool else {"type": number}
        sub.add_argument("--" + name.replace("_", "-"), help=help_text, **kind)
    cli_data.add_data_options(sub)

    sub = command("evaluate", run_evaluate, "mIoU, Dice and more of a run on a data set",
                  "evaluate runs/2030-01-31-sample-coco")
    cli_look.add_model_options(sub)
    sub.add_argument("--data", help="data set (default: the one it was trained on)")
    sub.add_argument("--split", default="val", choices=["train", "val"])
    sub.add_argument("--out", type=Path, help="also write the report there as JSON")
    cli_data.add_data_options(sub)

    cli_look.add_commands(command)
    cli_bench.add_commands(command)

    command("doctor", run_doctor, "check this machine: one line per finding, each with a remedy", "doctor")
    return parser


def _command(commands, name: str, run, help: str, example: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=help, description=help, epilog=f"example: segformer-lite {example}")
    sub.set_defaults(run=run, stopped="stopped")
    return sub


def run_train(arguments) -> None:
    """`train`: train, evaluate, and draw what the network does."""
    changes = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    options = cli_data.data_options(arguments)
    if arguments.resume and (arguments.preset or arguments.folder):
        raise ValueError("--resume goes on with a run, in its folder and with its settings: leave out --preset and "
                         "--folder")
    if arguments.resume:
        config = _config_of_run(arguments.resume)
    else:
        config = TrainConfig.preset(arguments.preset) if arguments.preset else TrainConfig()
    if "data" in changes:
        config = config.changed(data_options={})  # another data set: the preset's options do not fit it
    config = config.changed(**changes, data_options={**config.data_options, **options})
    run = train(config, arguments.resume, progress=_watched())
    if run.report is None:  # one of several processes, and not the first, which draws and prints
        return
    val_set = data.open_dataset(config.data, "val", **config.data_options)
    draw_results(run.model, val_set, config.short_side, run.folder / "figure.png")
    write_text(run.folder / "report.txt", f"{run.report}\n")
    print(run.report)
    print(f"\nfigure     {run.folder / 'figure.png'}\nreport     {run.folder / 'report.json'}\n"
          f"loss       {run.folder / 'loss.png'}\nnetwork    {run.folder / 'model.safetensors'}\n\n"
          f"your own pictures:  segformer-lite predict {run.folder} PICTURE --out masks")


def _config_of_run(folder: Path) -> TrainConfig:
    """The settings that a run was started with, to go on with."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume from: no {path}")
    try:
        settings = json.loads(path.read_text())
        require_own_classes(settings["model_options"], path)
        return TrainConfig(**{f.name: settings[f.name] for f in fields(TrainConfig) if f.name in settings})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the settings of a run ({error}); start anew without --resume") from None


def run_evaluate(arguments) -> None:
    """`evaluate`: the report of a trained network on a data set."""
    model, description = cli_look.load_network(arguments)
    if not (arguments.data or description["data"]):
        raise ValueError(f"{arguments.model} names no data set: say which one, --data")
    same = arguments.data in (None, description["data"])  # then the run's own classes and patients hold, too
    options = {**(description["data_options"] if same else {}), **cli_data.data_options(arguments)}
    dataset = data.open_dataset(arguments.data or description["data"], arguments.split, **options)
    report = evaluate(model, dataset, description["size"], progress=_watched())
    print(report)
    if arguments.out:
        report.save(arguments.out)
        print(f"\nreport     {arguments.out}")


def draw_results(model: Segmenter, dataset, size: int, path: Path, count: int = 5) -> None:
    """Write input | prediction | label | receptive field of `count` images spread over a data set."""
    device = device_of(model)
    items = [dataset[i] for i in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)]
    predictions = [predict_labels(model, image, size) for image, _ in items]
    maps = [np.asarray(receptive_field(model, resize_for_model(image, size)[None].to(device), "decoder"))
            for image, _ in items]
    with beside(path) as part:
        masks.comparison([i for i, _ in items], predictions, [m for _, m in items], dataset.classes, dataset.palette,
                         fields=maps, path=part)


def run_doctor(arguments) -> int:
    """`doctor`: what works on this machine and what does not."""
    from .course import doctor

    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
