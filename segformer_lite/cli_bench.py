"""The `bench` command: this package's SegFormer beside other people's, on the reader's own machine."""

import json
import platform
import statistics
from collections.abc import Callable
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from . import __version__
from .analysis import speed
from .cli_look import DEVICE
from .files import beside, write_text
from .models import SegFormer, preprocess
from .show.curves import bar_panels
from .training import TrainConfig, make_optimizer
from .training.config import COMPILE_MODES, LARGEST_SIZE
from .training.device import choose_device, weights_layout
from .training.loop import train_step

CLASSES = 150
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORK = ("inference", "training")
SAME = 1e-3  # logits of two networks that compute the same function differ by less, in float32


def add_commands(command: Callable) -> None:
    """Add `bench` with its flags; `command(name, run, help, example)` gives the parser of one."""
    sub = command("bench", run_bench, "how fast: milliseconds, memory, beside other packages that are installed",
                  "bench --variant b0 --sizes 256 512 --batches 1 8 --out work/speed.json")
    sub.add_argument("--variant", default="b0", choices=[f"b{i}" for i in range(6)], help="SegFormer's size")
    sub.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides of the pictures, px")
    sub.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="pictures at a time")
    sub.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"])
    sub.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    sub.add_argument("--compile", nargs="?", const="default", metavar="MODE", choices=COMPILE_MODES,
                     help="all networks through torch.compile, in its mode of this name (default: default)")
    sub.add_argument("--turns", type=int, default=7, help="times that each is measured; they take turns")
    sub.add_argument("--device", default="auto", help=DEVICE)
    sub.add_argument("--out", type=Path, help="also write the figures there as JSON, and a picture beside it")
    sub.set_defaults(stopped="stopped; with --out the cases printed above are written")


def run_bench(arguments) -> None:
    """`bench`: check that the networks agree, measure, print a line for each case."""
    if min(*arguments.batches, arguments.turns) < 1 or any(not 32 <= size <= LARGEST_SIZE for size in arguments.sizes):
        raise ValueError(f"sizes are 32 to {LARGEST_SIZE} px, batches and turns at least 1")
    device = choose_device(arguments.device)
    torch.manual_seed(0)
    ours = SegFormer(arguments.variant, CLASSES).to(device).to(memory_format=weights_layout(device))
    networks: dict[str, nn.Module] = {"segformer_lite": ours}
    for name, network in speed.peers(arguments.variant, ours).items():
        if isinstance(network, str):
            print(f"{name}: {network}, left out")
        else:
            networks[name] = network.to(device)
    require_equal(networks, device)
    rates = {name: speed.ceilings(device, PRECISIONS[name]) for name in arguments.precisions}
    for name, (operations, copied) in rates.items():
        print(f"this machine, {name}: {operations / 1e9:,.0f} G operations a second in a matrix product, "
              f"{copied / 1e9:.1f} GB a second copied")
    rows = []
    for case in product(arguments.work, arguments.precisions, arguments.sizes, arguments.batches):
        rows.append(measure(networks, *case, arguments, device, rates[case[1]]))
        print(line(rows[-1]), flush=True)
        if arguments.out:  # after each case: a bench that is stopped keeps what it has measured
            write(arguments, device, networks, rates, rows)


def require_equal(networks: dict[str, nn.Module], device: torch.device) -> None:
    """Raises ValueError where transformers' network does not give the logits that it is compared for."""
    if "transformers" not in networks:
        return
    x = torch.randn(1, 3, 96, 64, device=device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU's convolutions round to 10 bits otherwise
        a, b = (speed.inference(networks[name], x, torch.float32)() for name in ("segformer_lite", "transformers"))
    if (a - b).abs().max() > SAME:
        raise ValueError(f"transformers' logits differ by {(a - b).abs().max():.2g}: they would not be compared fairly")


def measure(networks: dict[str, nn.Module], work: str, precision: str, size: int, batch: int, arguments,
            device: torch.device, rates: tuple[float, float]) -> dict:
    """One case: the networks in turns, their memory, and how near ours comes to the machine's product and copy."""
    if arguments.compile:
        torch.compiler.reset()  # else it makes code for any size and batch, once it has seen two
    for network in networks.values():
        network.zero_grad()  # the case before left its gradients, and they are none of this one's memory
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.randint(0, CLASSES, (batch, size, size), device=device)
    dtype = PRECISIONS[precision]
    functions = {name: step(name, network, work, images, labels, dtype, arguments.compile)
                 for name, network in networks.items()}
    plain = {name: step(name, network, work, images, labels, dtype, None)
             for name, network in networks.items()} if arguments.compile else functions
    watched = functions if device.type == "cuda" else plain  # on a CPU nobody sees into compiled code
    peaks = {name: round(speed.peak_memory(watched[name], network, device) / 2**20)
             for name, network in networks.items()}  # first: an optimiser makes its means once, and they belong to it
    timing = speed.take_turns(functions, arguments.turns, device)
    forward = speed.flops(speed.inference(networks["segformer_lite"], preprocess(images), torch.float32))
    flops = forward * (3 if work == "training" else 1)  # of a backward pass, two forward passes' by custom
    moved = speed.traffic(plain["segformer_lite"])
    seconds, (operations, copied) = timing.median("segformer_lite"), rates
    return {"work": work, "precision": precision, "size": size, "batch": batch, "compiled": arguments.compile,
            "ms": {name: [round(1000 * s, 2) for s in values] for name, values in timing.seconds.items()},
            "times_faster_than": {name: [round(r, 2) for r in timing.ratio(name, "segformer_lite")]
                                  for name in networks if name != "segformer_lite"},
            "peak_mb": peaks,
            "gflop": round(flops / 1e9, 2), "share_of_matrix_product": round(flops / seconds / operations, 3),
            "gb": round(moved / 1e9, 3), "share_of_copy": round(moved / seconds / copied, 3)}


def step(name: str, network: nn.Module, work: str, images: Tensor, labels: Tensor, dtype: torch.dtype,
         compiled: str | None) -> Callable[[], object]:
    """One forward pass, or one training step as each package's users write it; `compiled`: torch.compile's mode."""
    runs = compile_network(network, compiled) if compiled else network
    if work == "inference":
        return speed.inference(runs, preprocess(images), dtype)
    if name != "segformer_lite":
        return speed.plain_training_step(runs, preprocess(images), labels, dtype)
    optimizer, scaler = make_optimizer(network, 1e-4), torch.amp.GradScaler(images.device.type, enabled=False)
    return lambda: train_step(runs, optimizer, scaler, images, labels, 1.0, TrainConfig(), dtype)


def compile_network(network: nn.Module, mode: str) -> nn.Module:
    """`network` through torch.compile; of one that brings its loss along, what gives the loss."""
    if isinstance(network, speed.Logits):
        return speed.Logits(compile_network(network.network, mode))
    return cast(nn.Module, torch.compile(network, mode=mode))


def line(row: dict) -> str:
    """A case in words."""
    median = statistics.median(row["ms"]["segformer_lite"])
    text = (f"{row['work']:<10}{row['precision']}  {row['size']:>5} px x {row['batch']:<3}{median:>9.1f} ms"
            f"{row['peak_mb']['segformer_lite']:>7,} MB  {row['share_of_matrix_product']:.0%} of a matrix product, "
            f"{row['share_of_copy']:.0%} of a copy")
    for name, (low, middle, high) in row["times_faster_than"].items():
        share = row["peak_mb"]["segformer_lite"] / row["peak_mb"][name]
        text += f"; {middle:.2f} ({low:.2f}-{high:.2f}) times as fast as {name}, memory {share:.2f} of its"
    return text


def write(arguments, device: torch.device, networks: dict[str, nn.Module], rates: dict, rows: list[dict]) -> None:
    """The figures as JSON, and as a picture how many times faster than each peer."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    others = {"torch", *networks} - {"segformer_lite"}
    versions = {package: metadata.version(package).split("+")[0] for package in sorted(others)}
    content = {"variant": arguments.variant, "device": name, "threads": torch.get_num_threads(),
               "python": platform.python_version(), "versions": {"segformer_lite": __version__, **versions},
               "classes": CLASSES,
               "ceilings": {name: {"operations": round(o), "bytes_copied": round(c)} for name, (o, c) in rates.items()},
               "rows": rows}
    write_text(arguments.out, json.dumps(content, indent=1) + "\n")
    if figure := ratios(rows):
        with beside(arguments.out.with_suffix(".png")) as part:
            figure.savefig(part, dpi=110, format="png")
        plt.close(figure)


def ratios(rows: list[dict]) -> Figure | None:
    """A picture of how many times faster than each peer, case by case; None where there is no peer."""
    tables: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        case = f"{row['work']} {row['precision']} {row['size']} px x {row['batch']}"
        for peer in row["times_faster_than"]:
            pairs = zip(row["ms"][peer], row["ms"]["segformer_lite"], strict=True)
            tables.setdefault(peer, {})[case] = [theirs / own for theirs, own in pairs]
    return bar_panels(tables, "times faster than the peer (1: as fast)") if tables else None
