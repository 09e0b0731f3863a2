"""SegFormer-B0 and its neighbours, trained alike on both samples, beside two answers that look at no shape.

    python benchmarks/neighbours.py            about two hours on two CPU cores
    python benchmarks/neighbours.py --steps 20 --seeds 1 --out work/trial

Every network gets the same pictures, batches, steps and seeds. Learning rates are each network's own: of three
settings, the one with the best mIoU after a quarter of the steps, on the scenes, with a seed of its own. Who ends
near the table of colours is trained once more, three times as long: does it learn slowly, or not at all? Writes
neighbours.json, .md and .png to docs/results, with parameters, multiply-accumulates and milliseconds of each
network. Broken off, it goes on where it stopped: finished runs lie in runs/neighbours-<steps>.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from record import RESULTS, runs_folder, versions, write
from sample_runs import baselines

import segformer_lite as sl
from segformer_lite.analysis import macs, parameters
from segformer_lite.show import COLOURS, use_style

NETWORKS = ("fcn8s", "segnet", "unet", "pspnet", "deeplabv3plus", "setr", "segformer_b0")
SETS = ("sample-coco", "sample-chest-ct")
RATES = ((1e-3, 1.0), (1e-3, 10.0), (3e-3, 1.0))  # of the encoder, and how many times higher the decoder's is
SEARCH_SEED = 100
NEAR, LONGER = 1.5, 3  # near: less than this many times the mIoU of the table of colours; so many times the steps


def choose_rates(steps: int, runs: Path) -> dict[str, tuple[float, float]]:
    """The best of RATES for each network, by a quarter of the steps."""
    chosen = {}
    for network in NETWORKS:
        scores = {}
        for rate, times in RATES:
            folder = runs / "rates" / network / f"{rate}x{times:g}"
            config = sl.TrainConfig.preset(SETS[0], model=network, lr=rate, head_lr_mult=times, steps=steps // 4,
                                           seed=SEARCH_SEED, folder=str(folder))
            if not (folder / "report.json").exists():
                sl.train(config, folder if (folder / "checkpoint.pt").exists() else None, sys.stderr.isatty())
            scores[rate, times] = json.loads((folder / "report.json").read_text())["miou"]
        chosen[network] = max(scores, key=scores.get)
        print(network, {f"{r} x{t:g}": round(s, 3) for (r, t), s in scores.items()}, flush=True)
    return chosen


def train_longer(configs: dict[str, sl.TrainConfig], rows: dict[str, list[dict]], seeds: int, folder: Path) -> dict:
    """Those networks near the table of colours, trained LONGER times the steps: {"steps": ..., "rows": ...}."""
    line = NEAR * rows["colour"][0]["miou"]
    slow = {name: replace(config, steps=LONGER * config.steps) for name, config in configs.items()
            if statistics.mean(run["miou"] for run in rows[name]) < line}
    table = sl.compare(slow, seeds=seeds, folder=folder, progress=sys.stderr.isatty())
    return {"steps": LONGER * next(iter(configs.values())).steps, "rows": table.results}


def milliseconds(size: int, repeats: int = 15) -> dict[str, float]:
    """Median time of one picture through each network, float32; the networks take turns."""
    networks = {name: sl.create_model(name, num_classes=9).eval() for name in NETWORKS}
    x = torch.randn(1, 3, size, size)
    times = {name: [] for name in networks}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, network in networks.items():
                began = time.perf_counter()
                network(x)
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def draw(results: dict, path: Path) -> None:
    """mIoU of every network on both sets: bar of the mean, a dot per seed, a line for the colour table."""
    use_style()
    fig, axes = plt.subplots(1, len(SETS), figsize=(8, 3), sharey=True)
    for ax, name in zip(axes, SETS, strict=True):
        rows = results["sets"][name]["rows"]
        for y, network in enumerate(NETWORKS):
            values = [run["miou"] for run in rows[network]]
            colour = COLOURS["orange" if network == "segformer_b0" else "sky"]
            ax.barh(y, statistics.mean(values), color=colour, height=0.6)
            ax.plot(values, [y] * len(values), ".", color="#333333", markersize=4)
        ax.axvline(rows["colour"][0]["miou"], color="#333333", linestyle="--", linewidth=1)
        ax.set(title=name, xlabel="mIoU (dashed: colour table)", xlim=(0, None))
    axes[0].set_yticks(range(len(NETWORKS)), NETWORKS)
    axes[0].invert_yaxis()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def page(results: dict) -> str:
    """The results as a page: one table for each set, one for what each network costs."""
    columns = ("miou", "boundary_iou", "recall_small", "recall_medium", "recall_large")
    lines = ["# SegFormer-B0 and its neighbours, trained alike", "",
             f"Regenerated by `{results['command']}`; figures in neighbours.json. Mean ± standard deviation over "
             "seeds; background counts; recall of the pixels of small, medium and large regions. Colour and majority "
             "look at no shape: a network near them has learned little.", "",
             "![mIoU of every network on both samples](neighbours.png)"]
    for name, content in results["sets"].items():
        settings = content["settings"]
        lines += ["", f"## {name}", "", f"{settings['steps']} steps of {settings['batch_size']} pictures of "
                  f"{settings['size']} px, from random weights.", "",
                  "| | " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|---" * 6 + "|"]
        longer = {f"{row}, {content['longer']['steps']} steps": runs for row, runs in content["longer"]["rows"].items()}
        for row, runs in {**content["rows"], **longer}.items():
            values = [[run[column] for run in runs if column in run] for column in columns]
            lines.append(f"| {row} | " + " | ".join(map(mean_and_sd, values)) + " |")
    lines += ["", f"## Costs, one picture of {results['size_px']} px", "",
              f"Milliseconds in float32 on the {results['device']} of the run, networks taking turns.", "",
              "| | parameters | M MACs | ms | learning rate | decoder times |", "|---" * 6 + "|"]
    for name, cost in results["costs"].items():
        rate = results["rates"][name]
        lines.append(f"| {name} | {cost['parameters']:,} | {cost['macs'] / 1e6:.0f} | {cost['ms']:.1f} | "
                     f"{rate['lr']:g} | {rate['head_lr_mult']:g} |")
    return "\n".join(lines) + "\n"


def mean_and_sd(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else ""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs per network and set")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()

    runs = runs_folder() / f"neighbours-{args.steps}"
    rates = choose_rates(args.steps, runs)
    sets, size = {}, sl.TrainConfig.preset(SETS[0]).size
    costs = {name: {"parameters": parameters(model), "macs": macs(model, size)}
             for name in NETWORKS for model in [sl.create_model(name, num_classes=9)]}
    for name, ms in milliseconds(size).items():
        costs[name]["ms"] = ms
    for name in SETS:
        common = sl.TrainConfig.preset(name, steps=args.steps)
        configs = {network: replace(common, model=network, lr=rate, head_lr_mult=times)
                   for network, (rate, times) in rates.items()}
        table = sl.compare(configs, seeds=args.seeds, folder=runs / name, progress=sys.stderr.isatty())
        print(name, table, sep="\n", flush=True)
        rows = {**baselines(*(sl.data.open_dataset(name, split) for split in ("train", "val"))), **table.results}
        sets[name] = {"settings": common.as_dict(), "rows": rows,
                      "longer": train_longer(configs, rows, args.seeds, runs / f"{name}-longer")}
    content = {
        "command": f"python benchmarks/neighbours.py --steps {args.steps} --seeds {args.seeds}",
        "versions": versions(),
        "device": "cuda" if torch.cuda.is_available() else "cpu", "size_px": size,
        "rates": {name: {"lr": rate, "head_lr_mult": times} for name, (rate, times) in rates.items()},
        "costs": costs, "sets": sets,
    }
    write(args.out / "neighbours.json", content)
    write(args.out / "neighbours.md", page(content))
    draw(content, args.out / "neighbours.png")
    print(f"written: neighbours.json and neighbours.png in {args.out.name}")


if __name__ == "__main__":
    main()
