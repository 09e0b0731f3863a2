"""How much SegFormer-B0, DeepLabV3+ and U-Net keep of their mIoU under the 16 corruptions of Cityscapes-C.

    python benchmarks/robustness.py            about 9 minutes on one CPU core once the networks are trained
    python benchmarks/robustness.py --pictures 4 --seeds 1 --out work/trial

The networks are those of benchmarks/neighbours.py, trained alike on the sample scenes, clean pictures only; missing
ones are trained first, with the learning rates stored in neighbours.json. Each corruption counts with the mean over
its severities, noise with 1 to 3; retention is the mean over corruptions as a share of the clean mIoU. Radii are in
pixels, as in the original, and once more scaled to the pictures' size, as if Cityscapes' 1024 rows had been made
small. Also: mIoU against the side of the input. Writes robustness.json and .png to docs/results. Broken off, it goes
on where it stopped.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from record import RESULTS, runs_folder, save, versions, write

import segformer_lite as sl
from segformer_lite.analysis.corruptions import CORRUPTIONS, FAMILIES, Corrupted, counted, robustness
from segformer_lite.evaluation import confusion_matrix, iou_per_class, predict_labels
from segformer_lite.show import COLOURS, use_style

DATA, STEPS = "sample-coco", 500
NETWORKS = ("segformer_b0", "deeplabv3plus", "unet")
CITYSCAPES = 1024  # rows of its pictures
WITH_RADII = (*FAMILIES["blur"], "snow", "spatter")
SIDES = (32, 64, 96, 128, 160, 192, 256)  # px of the input's short side


class Pictures:
    """Every n-th item of a data set, `count` in all, read once."""

    def __init__(self, dataset, count: int):
        indices = range(0, len(dataset), max(1, len(dataset) // count))[:count]
        self.items, self.names = [dataset[i] for i in indices], [dataset.names[i] for i in indices]
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def trained(seeds: int, runs: Path) -> dict[str, list]:
    """network -> its model of each seed; trains those that are not there."""
    rates = json.loads((RESULTS / "neighbours.json").read_text(encoding="utf-8"))["rates"]
    missing = {network: sl.TrainConfig.preset(DATA, model=network, steps=STEPS, **rates[network])
               for network in NETWORKS for seed in range(seeds)
               if not (runs / network / str(seed) / "report.json").exists()}
    if missing:
        sl.compare(missing, seeds=seeds, folder=runs, progress=False)
    return {network: [sl.load_model(runs / network / str(seed))[0] for seed in range(seeds)] for network in NETWORKS}


def miou(model, items: list[tuple], size: int) -> float:
    """As `sl.evaluate(...).miou`, without the counts that nobody asks for here: half the time."""
    confusion = 0
    for image, label in items:
        prediction = torch.from_numpy(predict_labels(model, image, size))
        confusion = confusion + confusion_matrix(prediction, label, model.num_classes)
    return round(float(np.nanmean(iou_per_class(confusion.numpy()))), 4)


def measure(models: dict[str, list], dataset, size: int) -> dict[str, list[float]]:
    """mIoU of every model, network -> by seed; each picture is corrupted once for all."""
    items = [tuple(part.as_subclass(torch.Tensor) for part in dataset[i]) for i in range(len(dataset))]
    return {network: [miou(model, items, size) for model in group] for network, group in models.items()}


def all_conditions(pictures, size: int) -> dict[str, tuple]:
    """key -> data set and input side of everything that is measured."""
    conditions = {"clean": (pictures, size)}
    conditions |= {f"side/{side}": (pictures, side) for side in SIDES}
    for radii, made_for, names in (("pixels", None, CORRUPTIONS), ("scaled", CITYSCAPES, WITH_RADII)):
        conditions |= {f"{radii}/{name}/{severity}": (Corrupted(pictures, name, severity, made_for=made_for), size)
                       for name in names for severity in counted(name)}
    return conditions


def measure_all(models: dict[str, list], conditions: dict[str, tuple], store: Path) -> dict[str, dict]:
    """key -> network -> mIoU by seed; what `store` already holds is not measured again."""
    done = json.loads(store.read_text()) if store.exists() else {}
    for key, (dataset, size) in conditions.items():
        if key in done:
            continue
        done[key] = measure(models, dataset, size)
        write(store, done)
        print(key, {network: round(statistics.mean(values), 3) for network, values in done[key].items()}, flush=True)
    return done


def gather(done: dict[str, dict], network: str, seed: int) -> dict:
    """One run: clean mIoU, mIoU of each corruption by severity for both kinds of radii, retention, mIoU by side."""
    clean = done["clean"][network][seed]
    pixels = {name: [done[f"pixels/{name}/{s}"][network][seed] for s in counted(name)] for name in CORRUPTIONS}
    scaled = pixels | {name: [done[f"scaled/{name}/{s}"][network][seed] for s in counted(name)]
                       for name in WITH_RADII}
    return {"clean": clean, "pixels": pixels, "scaled": {name: scaled[name] for name in WITH_RADII},
            "retention": {"pixels": robustness(pixels, clean), "scaled": robustness(scaled, clean)},
            "sides": {side: done[f"side/{side}"][network][seed] for side in SIDES}}


def draw(results: dict, path: Path) -> None:
    """Retention of every family for both kinds of radii: bar of the mean, a dot per seed."""
    use_style()
    groups = [*FAMILIES, "all"]
    fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for ax, (radii, title) in zip(axes, {"pixels": "radii in pixels", "scaled": "radii scaled"}.items(), strict=True):
        for i, (network, colour) in enumerate(zip(NETWORKS, ("orange", "sky", "blue"), strict=True)):
            for x, group in enumerate(groups):
                values = [run["retention"][radii][group] for run in results["runs"][network]]
                place = x + 0.27 * (i - 1)
                ax.bar(place, statistics.mean(values), 0.25, color=COLOURS[colour], label=None if x else network)
                ax.plot([place] * len(values), values, ".", color="#333333", markersize=4)
        ax.set(title=title, xticks=range(len(groups)), xticklabels=groups, ylim=(0, 1.05))
    axes[0].set_ylabel("retention of the clean mIoU")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=38, help="validation pictures, spread over the whole set")
    parser.add_argument("--seeds", type=int, default=3, help="runs per network")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()

    began = time.process_time()
    runs = runs_folder()
    pictures = Pictures(sl.data.open_dataset(DATA, "val"), args.pictures)
    size = sl.TrainConfig.preset(DATA).size
    models = trained(args.seeds, runs / f"neighbours-{STEPS}" / DATA)
    store = runs / f"robustness-{args.pictures}-{args.seeds}" / "done.json"
    done = measure_all(models, all_conditions(pictures, size), store)
    content = {
        "command": f"python benchmarks/robustness.py --pictures {args.pictures} --seeds {args.seeds}",
        "versions": versions(),
        "settings": {"data": DATA, "steps": STEPS, "pictures": len(pictures), "size_px": size,
                     "made_for_px": CITYSCAPES, "severities": {name: counted(name) for name in CORRUPTIONS}},
        "runs": {network: [gather(done, network, seed) for seed in range(args.seeds)] for network in NETWORKS},
        "cpu_seconds": round(time.process_time() - began),
    }
    write(args.out / "robustness.json", content)
    draw(content, args.out / "robustness.png")
    print(f"written: robustness.json and robustness.png in {args.out.name}")


if __name__ == "__main__":
    main()
