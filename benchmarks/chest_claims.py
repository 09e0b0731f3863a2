"""What the report says of its chest CT experiment, measured on the phantom: every patient tested once, by three runs.

    python benchmarks/chest_claims.py            about 30 minutes on one CPU core
    python benchmarks/chest_claims.py --steps 10 --seeds 1 --out work/trial

The twelve patients are dealt into three groups. Run k has seed k and tests on group k, which it has not seen, so
that each patient gets one honest figure. The settings differ in one thing each: the loss (class weights, Dice), the
input (192 px in batches of 4, as many pixels a step as 96 px in batches of 16), the augmentation, and what is held
out (slices instead of patients). Three augmentations are tested again under brighter, darker, flatter and noisier
pictures, and mirrored. Writes chest-claims.json and .png to docs/results after every run k. Broken off, it goes on
where it stopped: finished runs lie in runs/chest-claims-<steps>.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from record import RESULTS, runs_folder, save, versions, write

import segformer_lite as sl
from segformer_lite.analysis.ct_shifts import SEVERITIES, Shifted
from segformer_lite.evaluation import metrics, predict_labels
from segformer_lite.show import COLOURS, use_style
from segformer_lite.training import class_weights

DATA, GROUPS = "sample-chest-ct", 3
ORGANS = ("lung", "heart", "trachea")
AUGMENTED = ("not augmented", "plain", "colours")  # tested under shifts


class Mirrored(Shifted):
    """A data set with left and right exchanged in pictures and labels."""

    def __init__(self, dataset):
        super().__init__(dataset, "brighter", 0)

    def __getitem__(self, index: int):
        return tuple(item.as_subclass(torch.Tensor).flip(-1) for item in self.dataset[index])


def configs(held_out: list[str], steps: int) -> dict[str, sl.TrainConfig]:
    """The settings compared, by name; "plain" is the preset, each other differs from it in one thing."""
    plain = sl.TrainConfig.preset(DATA, steps=steps, checkpoint_every=100, data_options={"val_patients": held_out})
    slices = {"split_by": "slice", "val_share": 1 / GROUPS}
    return {
        "plain": plain,
        "class weights": replace(plain, class_weights=class_weights(pixel_counts(held_out))),
        "Dice loss": replace(plain, dice_weight=1.0),
        "192 px": replace(plain, size=192, batch_size=4),
        "colours": replace(plain, augment="segformer"),
        "not augmented": replace(plain, augment="none"),
        "split by slice": replace(plain, data_options=slices),
    }


def pixel_counts(held_out: list[str]) -> list[int]:
    """Pixels of each class in the training labels."""
    train_set = sl.data.open_dataset(DATA, "train", val_patients=held_out)
    maps = np.stack([train_set.read_mask(i) for i in range(len(train_set))])
    return np.bincount(maps.ravel(), minlength=len(train_set.classes)).tolist()


def organ_figures(report: sl.evaluation.Report) -> dict[str, dict[str, float | None]]:
    """dice, recall, precision and boundary_iou of each organ; None where there is nothing to measure."""
    with np.errstate(invalid="ignore"):
        border = dict(zip(report.classes, report.boundary[0] / report.boundary[1], strict=True))
    figures = {organ: {**{key: report.per_class[organ][key] for key in ("dice", "recall", "precision")},
                       "boundary_iou": float(border[organ])} for organ in ORGANS}
    return {organ: {key: None if math.isnan(value) else round(value, 4) for key, value in row.items()}
            for organ, row in figures.items()}


def trachea_regions(model, dataset, size: int) -> list[tuple[int, int]]:
    """(pixels, pixels found) of every connected piece of labelled trachea."""
    rows, trachea = [], dataset.classes.index("trachea")
    for image, label in (dataset[i] for i in range(len(dataset))):
        found = predict_labels(model, image.as_subclass(torch.Tensor), size) == trachea
        pieces = metrics.connected_components(np.asarray(label) == trachea)
        pixels = np.bincount(pieces.ravel())[1:]
        right = np.bincount(pieces[found], minlength=len(pixels) + 1)[1:]
        rows += zip(pixels.tolist(), right.tolist(), strict=True)
    return rows


def measure(name: str, config: sl.TrainConfig, folder: Path) -> dict:
    """Train one network, or take it from its folder, and measure it on the patients held out."""
    done = folder / "figures.json"
    if done.exists():
        return json.loads(done.read_text())
    began = time.perf_counter()
    run = sl.train(replace(config, folder=str(folder)), folder if (folder / "checkpoint.pt").exists() else None, False)
    size, held_out = config.short_side, config.data_options.get("val_patients")
    figures = {"seed": config.seed, "loss": [[entry["step"], round(entry["loss"], 4)] for entry in run.history],
               "pooled": organ_figures(run.report)}
    if held_out:
        each = {patient: sl.data.open_dataset(DATA, "val", val_patients=[patient]) for patient in held_out}
        figures["patients"] = {patient: organ_figures(sl.evaluate(run.model, dataset, size, progress=False))
                               for patient, dataset in each.items()}
        figures["regions"] = [row for dataset in each.values() for row in trachea_regions(run.model, dataset, size)]
    if name in AUGMENTED:
        some = sl.data.open_dataset(DATA, "val", val_patients=held_out, limit=36)
        tests = {"as they are": [some], "mirrored": [Mirrored(some)]}
        tests |= {kind: [Shifted(some, kind, k + 1) for k in range(len(SEVERITIES[kind]))] for kind in SEVERITIES}
        figures["shifts"] = {
            test: [{organ: row["dice"] for organ, row in organ_figures(
                sl.evaluate(run.model, dataset, size, progress=False)).items()} for dataset in datasets]
            for test, datasets in tests.items()}
    figures["seconds"] = round(time.perf_counter() - began, 1)
    write(done, json.dumps(figures))
    return figures


def patients() -> list[str]:
    both = (sl.data.open_dataset(DATA, split) for split in ("train", "val"))
    return sorted({patient for dataset in both for patient in dataset.patients})


def draw(results: dict, path: Path) -> None:
    """Left: the trachea's Dice of every patient under each setting; right: Dice under shifts, by augmentation."""
    use_style()
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=[1.4, 1], layout="constrained")
    names = [name for name, setting in results["settings"].items() if "patients" in setting["runs"][0]]
    for y, name in enumerate(names):
        values = [row["trachea"]["dice"] for run in results["settings"][name]["runs"]
                  for row in run["patients"].values()]
        left.plot(values, [y] * len(values), "o", color=COLOURS["sky"], markersize=4)
        left.plot(np.mean([v for v in values if v is not None]), y, "|", color="#333333", markersize=16)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set(xlabel="Dice of the trachea, a dot for each patient", xlim=(0, 1))
    for name, style in zip(AUGMENTED, ("o--", "s-", "^-"), strict=True):
        shifts = [run["shifts"] for run in results["settings"][name]["runs"]]
        curve = [np.mean([run["as they are"][0][organ] for run in shifts for organ in ORGANS])]
        curve += [np.mean([run[kind][k][organ] for run in shifts for kind in SEVERITIES for organ in ORGANS])
                  for k in range(5)]
        right.plot(curve, style, label=name, markersize=4)
    right.set(xlabel="severity of the shift", ylabel="Dice, mean of organs and shifts", ylim=(0, 1))
    right.legend()
    save(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of each run")
    parser.add_argument("--seeds", type=int, default=GROUPS, choices=range(1, GROUPS + 1), help="runs per setting")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()

    runs = runs_folder() / f"chest-claims-{args.steps}"
    everybody, settings = patients(), {}
    for k in range(args.seeds):
        for name, config in configs(everybody[k::GROUPS], args.steps).items():
            if name == "split by slice":
                config = replace(config, data_options={**config.data_options, "seed": k})
            figures = measure(name, replace(config, seed=k), runs / name.replace(" ", "-") / str(k))
            print(f"run {k}, {name:15s}", {organ: row["dice"] for organ, row in figures["pooled"].items()},
                  f"{figures['seconds']} s", flush=True)
            settings.setdefault(name, {"config": config.as_dict(), "runs": []})["runs"].append(figures)
        content = {
            "command": f"python benchmarks/chest_claims.py --steps {args.steps} --seeds {args.seeds}",
            "versions": versions(),
            "device": "cuda" if torch.cuda.is_available() else "cpu", "seeds": k + 1, "severities": SEVERITIES,
            "settings": settings,
        }
        write(args.out / "chest-claims.json", json.dumps(content) + "\n")  # a picture a line would be too long
        draw(content, args.out / "chest-claims.png")
        print(f"written: chest-claims.json and chest-claims.png in {args.out.name}", flush=True)


if __name__ == "__main__":
    main()
