"""Kill a training process at random moments, again and again: no file may break, and no number may change.

    python benchmarks/kill_test.py [KILLS]          20 kills, about a minute on two CPU cores (Linux only)

A small run saves a checkpoint after every step, so that some kills hit a file being written. It is resumed after each
kill until it ends; its weights, optimiser state and losses must then equal, bit for bit, those of a run that nobody
killed. Then the next run begins, until all kills are spent.
"""

import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

import segformer_lite as sl
from segformer_lite.training.checkpoint import CHECKPOINT, CONFIG, LOG, WEIGHTS, load_checkpoint


def settings(sample: Path, folder: Path) -> sl.TrainConfig:
    return sl.TrainConfig(data=str(sample), size=32, batch_size=2, steps=6, warmup=2, checkpoint_every=1,
                          precision="fp32", device="cpu", folder=str(folder))


def train(sample: Path, folder: Path) -> None:
    """Begin the run in `folder`, or go on with it."""
    torch.set_num_threads(1)
    sl.train(settings(sample, folder), folder if (folder / CHECKPOINT).exists() else None, progress=False)


def step_on_disk(folder: Path) -> int:
    """The step of the checkpoint, 0 without one. Raises where any file of the run is not whole."""
    if (folder / CONFIG).exists():
        json.loads((folder / CONFIG).read_text())
    if (folder / WEIGHTS).exists():
        sl.load_model(folder)
    return load_checkpoint(folder / CHECKPOINT)["step"] if (folder / CHECKPOINT).exists() else 0


def outcome(folder: Path) -> tuple[list, list[float]]:
    """All tensors of a finished run (weights, optimiser), and its logged losses."""
    content = load_checkpoint(folder / CHECKPOINT)
    moments = [value for state in content["optimizer"]["state"].values() for value in state.values()]
    losses = [json.loads(line)["loss"] for line in (folder / LOG).read_text().splitlines()]
    return [*sl.load_model(folder)[0].state_dict().values(), *content["model"].values(), *moments], losses


def wait_for(process, changes: int, *paths: Path) -> None:
    """Until files have come, gone or been written this many times, or the process has ended."""
    def stamps():
        return [path.stat().st_mtime_ns if path.exists() else None for path in paths]

    last = stamps()
    while changes and process.is_alive():
        time.sleep(0.001)
        if stamps() != last:
            last, changes = stamps(), changes - 1


def kill_test(kills: int, work: Path, seed: int = 0) -> list[dict]:
    """Kill `kills` times, after 0 to 3 checkpoints: every other time somewhere in a step, else in the next saving.

    Returns a dict for each kill. Its keys: "step" of the checkpoint on disk, "mid_write": whether a file was left half
    written, beside the whole one.
    Raises AssertionError or ValueError where a file broke or a number changed.
    """
    fork, draw, killed = multiprocessing.get_context("fork"), random.Random(seed), []
    sample = sl.data.make_sample("coco", work / "sample", count=12)
    whole, folder = work / "whole", work / "run"
    began = time.perf_counter()
    train(sample, whole)
    one_step = (time.perf_counter() - began) / settings(sample, whole).steps
    tensors, losses = outcome(whole)
    while True:
        process = fork.Process(target=train, args=(sample, folder))
        process.start()
        if len(killed) < kills:
            path = folder / CHECKPOINT
            wait_for(process, draw.randint(0, 3), path)
            if len(killed) % 2:
                wait_for(process, 1, path, path.with_name(f"{CHECKPOINT}.part"))
            process.join(draw.uniform(0, 0.03 if len(killed) % 2 else one_step))
            process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed.append({"step": step_on_disk(folder), "mid_write": any(folder.glob("*.part"))})
            continue
        assert process.exitcode == 0, "a resumed run failed; its message is above"
        ours, theirs = outcome(folder)
        assert all(torch.equal(a, b) for a, b in zip(ours, tensors, strict=True)) and theirs == losses
        shutil.rmtree(folder)
        if len(killed) == kills:
            return killed


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        for number, kill in enumerate(kill_test(int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(work)), 1):
            print(f"kill {number:>2}: checkpoint of step {kill['step']} is whole"
                  + (", a file was being written" if kill["mid_write"] else ""))
    print("every run went on to the same weights, optimiser state and losses, bit for bit")
