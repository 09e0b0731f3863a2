"""How long the report's two experiments take on this machine: pictures a second, memory, idle time, projected hours.

    python benchmarks/report_presets.py                         wants a CUDA GPU
    python benchmarks/report_presets.py --compile reduce-overhead            compiled, with CUDA graphs
    python benchmarks/report_presets.py --cards 8               also as if the GPU had 8 GB
    python benchmarks/report_presets.py --steps 2 --pictures 8 --batch-size 2 --out work/trial       tries the path

Synthetic pictures of full size, a third of them upright: random pixels cost what real ones cost, once they are packed
(`data pack`). A step is the run's own: pinned canvases go to the GPU, are augmented there (on a CPU: before), forward,
loss, backward, AdamW. Loading is not in it, workers do that meanwhile: benchmarks/data_rates.py measures it. The hours
of the validations follow from some pictures of the originals' size. Beside the hours stand floors, what the machine's
product and (not compiled) its copy would need for the same work, and the operations that took longest. Writes
report-presets.json to docs/results, compiled report-presets-compiled.json, and a picture of the floors and the profile
of each preset's first network, both anew after each row.
"""

import argparse
import gc
import math
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from record import RESULTS, save, write
from torchvision import tv_tensors

import segformer_lite as sl
from segformer_lite.analysis import macs, speed
from segformer_lite.data import BatchAugmentation, augmentation
from segformer_lite.data.batch_transforms import chances, on_canvas
from segformer_lite.show import COLOURS
from segformer_lite.training.batches import augments, mix
from segformer_lite.training.config import COMPILE_MODES
from segformer_lite.training.device import choose_device, choose_precision, weights_layout
from segformer_lite.training.loop import train_step

NETWORKS = ("segformer_b0", "segformer_b0_report", "unet")
ceilings = cache(speed.ceilings)  # asked once, not for each row
# Pictures to learn and to validate, classes, height and width.
PRESETS = {"report-coco": (50_000, 5_000, 81, (480, 640)), "report-chest-ct": (15_000, 3_000, 4, (512, 512))}
JUDGED = 64  # pictures of which a validation is timed


class HeldOut(list):
    """Pictures with labels as `evaluate` wants a data set."""

    ignore_index = 255

    def __init__(self, pictures: list, classes: int):
        super().__init__(pictures)
        self.classes = [str(number) for number in range(classes)]


@cache
def synthetic(count: int, classes: int, side: int, aspect: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pictures uint8 (3, side, side * aspect) of noise with labels in squares of 32 px."""
    height, width = side, round(side * aspect)
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for number in range(count):
        if number % 3 == 1 or number % 3 == 2 and height > width:  # every third stands upright
            height, width = width, height
        coarse = torch.randint(0, classes, (math.ceil(height / 32), math.ceil(width / 32)), generator=generator)
        label = coarse.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width]
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        pictures.append((image, label.contiguous()))
    return pictures


def loaded(pictures: list, config: sl.TrainConfig, device: torch.device) -> list:
    """Eight batches as the loader's workers leave them: pinned canvases for a GPU, lists of pictures for a CPU."""
    size = config.batch_size
    chosen = [[pictures[i % len(pictures)] for i in range(step * size, (step + 1) * size)] for step in range(8)]
    if not augments(device):
        return chosen
    canvases = (on_canvas([(*pair, chances(mix(0, step, i))) for i, pair in enumerate(batch)])
                for step, batch in enumerate(chosen))
    return [[part.pin_memory() for part in canvas] for canvas in canvases]


def batches(source: list, config: sl.TrainConfig, steps: int, device: torch.device):
    """`steps` augmented batches, made of the loaded ones as a run makes them."""
    on_device = augments(device)
    augment = BatchAugmentation(config.augment, config.size) if on_device else augmentation(config.augment, config.size)
    for step in range(steps):
        batch = source[step % len(source)]
        if on_device:
            yield augment(*(part.to(device, non_blocking=True) for part in batch))
        else:
            images, labels = zip(*(augment(tv_tensors.Image(image), tv_tensors.Mask(label))
                                   for image, label in batch), strict=True)
            yield tuple(torch.stack([item.as_subclass(torch.Tensor) for item in items]) for items in (images, labels))


def measure(preset: str, network: str, batch_size: int, args: argparse.Namespace, device: torch.device) -> dict:
    """Pictures a second, memory, projected hours and their floors, idle time, profile of one network and preset."""
    count, judged, classes, (height, width) = PRESETS[preset]
    config, steps = sl.TrainConfig.preset(preset, model=network, batch_size=batch_size), args.steps
    torch.manual_seed(0)
    model = sl.create_model(network, classes).to(device, memory_format=weights_layout(device))
    runs, optimizer = model, sl.training.make_optimizer(model, config.lr)
    dtype = choose_precision(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    source = loaded(synthetic(args.pictures, classes, config.short_side, width / height), config, device)

    def train(steps: int) -> None:
        for images, labels in batches(source, config, steps, device):
            train_step(runs, optimizer, scaler, images, labels, 1.0, config, dtype)
        wait(device)

    operations, copied = ceilings(device, dtype)
    floors = {"product": 6 * macs(model, config.size) / operations}  # two each; a backward pass is two forward
    if args.compile:  # spares most of what the copy would have to bring, so that is no floor of it
        torch.compiler.reset()  # else it makes code for any size, once it has seen two
        runs = torch.compile(model, mode=args.compile)
        train(1)  # what the compiler itself takes is not the row's
    else:
        floors["copy"] = speed.traffic(lambda: train(1)) / batch_size / copied
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what is left of the row before is none of this one's
        torch.cuda.reset_peak_memory_stats(device)
    train(max(4, steps // 4))  # to warm up
    began = time.perf_counter()
    train(steps)
    rate = steps * batch_size / (time.perf_counter() - began)
    hours = count * config.epochs / 3600  # of a second a picture
    row = {"preset": preset, "network": network, "compiled": args.compile, "size": config.size,
           "batch_size": batch_size, "pictures_per_second": round(rate, 1), "hours": round(hours / rate, 3),
           "hours_at_least": {name: round(hours * seconds, 4) for name, seconds in floors.items()}}
    watched = min(10, steps)
    worked, slowest = profiled(lambda: train(watched), device)
    if device.type == "cuda":  # reserved counts what CUDA graphs keep for themselves, too
        used = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        row |= {key: round(size / 2**30, 2) for key, size in zip(("peak_gb", "reserved_gb"), used, strict=True)}
        row["gpu_idle"] = round(max(0.0, 1 - worked / watched * rate / batch_size), 4) if worked else None
    held_out = HeldOut(synthetic(min(JUDGED, args.pictures), classes, height, width / height), classes)
    judging = validations(count, config) * judged * seconds_to_judge(model, held_out, config)
    row["validation_hours"] = round(judging / 3600, 3)
    return row | {"slowest": slowest}


def validations(count: int, config: sl.TrainConfig) -> int:
    """How often a run on `count` pictures looks at the others: on its way, and at its end."""
    steps = math.ceil(config.epochs * count / config.batch_size)
    return (steps - 1) // config.eval_every + 1


def seconds_to_judge(model: sl.models.Segmenter, held_out: HeldOut, config: sl.TrainConfig) -> float:
    """How long a validation takes for a picture that is already in memory."""
    few = HeldOut(held_out[:8], model.num_classes)
    for pictures in (few, held_out):  # the few to warm up
        began = time.perf_counter()
        sl.evaluation.evaluate(model, pictures, config.short_side, progress=False)
    return (time.perf_counter() - began) / len(held_out)


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profiled(work: Callable[[], None], device: torch.device) -> tuple[float, dict[str, float]]:
    """Seconds in which the device had an operation to run, 0 where the profiler saw none, and the eight that lead.

    These by name, as shares of the time of all. Of the work under the profiler no other time is asked: watching slows
    the CPU down, not a GPU's kernels.
    """
    kind = device.type.upper()
    with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, kind)]) as profile:
        work()
    events = [event for event in profile.events() if event.device_type == getattr(torch.autograd.DeviceType, kind)
              and not event.is_user_annotation]  # such a span covers the gaps between the kernels of a whole step
    spent = Counter()
    for event in events:  # a GPU's kernels have none inside them
        name = re.sub(r"^void |\(anonymous namespace\)::|cutlass::Kernel\d*<|[<>].*| ?\(.*", "", event.name)
        name = name.split("::")[-1]
        spent[name[:40]] += event.time_range.elapsed_us() if kind == "CUDA" else event.self_cpu_time_total
    seconds = covered([(event.time_range.start, event.time_range.end) for event in events]) / 1e6  # of microseconds
    return seconds, {name: round(time / spent.total(), 3) for name, time in spent.most_common(8)}


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of what the spans (start, end) cover together."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def largest_that_fits(preset: str, network: str, gigabytes: float, args, device: torch.device) -> dict:
    """The same with as much memory as a smaller card has, less half a GB for CUDA itself."""
    gc.collect()
    torch.cuda.empty_cache()  # what is kept of the row before counts as free, however much it is
    number = torch.cuda.current_device()
    whole = torch.cuda.get_device_properties(number).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gigabytes - 0.5) / whole), number)
    try:
        return {"card_gb": gigabytes, **largest_batch(preset, network, args, device)}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)


def largest_batch(preset: str, network: str, args, device: torch.device) -> dict:
    """`measure` at the preset's batch size, or halved until it fits into memory."""
    batch_size = args.batch_size or sl.TrainConfig.preset(preset).batch_size
    while batch_size:
        try:
            return measure(preset, network, batch_size, args, device)
        except RuntimeError as error:  # cuDNN says in words of its own that memory for its work was refused
            if not isinstance(error, torch.OutOfMemoryError) and "unable to find an engine" not in str(error):
                raise
        gc.collect()  # only here has the error let go of the network
        torch.cuda.empty_cache()
        batch_size //= 2
    return {"preset": preset, "network": network, "batch_size": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps that are timed")
    parser.add_argument("--pictures", type=int, default=512, help="different pictures in memory")
    parser.add_argument("--batch-size", type=int, help="default: each preset's own")
    parser.add_argument("--compile", metavar="MODE", choices=COMPILE_MODES,
                        help="networks through torch.compile, in its mode of this name")
    parser.add_argument("--cards", type=float, nargs="*", default=[], help="GB of smaller cards to stand in for")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    device = choose_device()
    if args.cards and device.type != "cuda":
        parser.error("--cards limits a GPU's memory, and torch finds no CUDA GPU here")

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"
    stem = "report-presets-compiled" if args.compile else "report-presets"
    content = {"command": " ".join(["python", "benchmarks/report_presets.py", *sys.argv[1:]]),
               "device": name, "torch": torch.__version__.split("+")[0], "rows": []}
    for row in rows(args, device):
        print({key: value for key, value in row.items() if key != "slowest"}, flush=True)
        content["rows"].append(row)
        write(args.out / f"{stem}.json", content)
        save(draw(content["rows"]), args.out / f"{stem}.png")


def rows(args: argparse.Namespace, device: torch.device) -> Iterator[dict]:
    """Every network under every preset: on the whole device, then on smaller cards."""
    for gigabytes, network, preset in product((None, *args.cards), NETWORKS, PRESETS):
        if gigabytes is None:
            yield largest_batch(preset, network, args, device)
        else:
            yield largest_that_fits(preset, network, gigabytes, args, device)


def draw(rows: list[dict]) -> Figure:
    """Left the hours of every row over their floors, right the profile of each preset's first network."""
    measured = [row for row in rows if "hours" in row]
    first = {row["preset"]: row for row in measured if row["network"] == NETWORKS[0] and "card_gb" not in row}
    fig, axes = plt.subplots(1, 1 + len(first), figsize=(7 + 6 * len(first), 1 + 0.3 * max(8, len(measured))),
                             squeeze=False, layout="constrained")
    ax, *panels = axes[0]
    names = [f"{row['preset']}, {row['network']}" + (f", {row['card_gb']:g} GB" if "card_gb" in row else "")
             for row in measured]
    training = [row["hours"] for row in measured]
    ax.barh(names, training, color=COLOURS["sky"], label="training, projected")
    ax.barh(names, [row["validation_hours"] for row in measured], left=training, color=COLOURS["grey"],
            label="validations, projected")
    for floor, mark, colour in (("product", "o", "blue"), ("copy", "s", "orange")):
        ax.plot([row["hours_at_least"].get(floor, math.nan) for row in measured], names, mark, color=COLOURS[colour],
                label=f"at least, by the {floor}")
    ax.set(xlabel="hours")
    ax.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    for ax, row in zip(panels, first.values(), strict=True):
        ax.barh(list(row["slowest"]), [100 * share for share in row["slowest"].values()], color=COLOURS["sky"])
        idle = f", idle {row['gpu_idle']:.1%}" if row.get("gpu_idle") is not None else ""
        ax.set(xlabel="percent of all operations' time", title=f"{row['preset']}, {row['network']}{idle}")
    for ax in axes[0]:
        ax.invert_yaxis()
    return fig


if __name__ == "__main__":
    main()
