"""What a short run reaches on both samples, three seeds each, beside two baselines that look at no shape.

    python benchmarks/sample_runs.py            about 20 minutes on two CPU cores

Writes docs/results/sample-runs.json and a picture of each sample beside it. Baselines: "majority" answers the most
frequent class everywhere; "colour" looks each pixel's colour up in a table of 16 x 16 x 16 colours that holds the
most frequent class of the training pixels of that colour.
"""

import os
import platform

import numpy as np
import torch
from record import RESULTS, versions, write

import segformer_lite as sl
from segformer_lite.cli import draw_results
from segformer_lite.evaluation import metrics

SEEDS = 3


def colour_table(train_set, num_classes: int) -> np.ndarray:
    """The most frequent class of each of 4096 colours in the training pictures; background where none was seen."""
    counts = np.zeros((4096, num_classes), np.int64)
    for image, label in (train_set[i] for i in range(len(train_set))):
        valid = label != train_set.ignore_index
        np.add.at(counts, (bins(image)[valid].numpy(), label[valid].numpy()), 1)
    return counts.argmax(1)


def bins(image: torch.Tensor) -> torch.Tensor:
    red, green, blue = (image.long() >> 4).unbind(0)
    return (red * 16 + green) * 16 + blue


def baseline(val_set, predict) -> dict[str, float]:
    """The figures of label maps that `predict(image)` gives."""
    k = len(val_set.classes)
    confusion, boundary = np.zeros((k, k), np.int64), np.zeros((2, k), np.int64)
    for image, label in (val_set[i] for i in range(len(val_set))):
        guess = predict(image.as_subclass(torch.Tensor))
        confusion += metrics.confusion_matrix(guess, label, k).numpy()
        boundary += metrics.boundary_counts(guess, label, k).numpy()
    return sl.evaluation.Report(val_set.classes, confusion, boundary, np.zeros((3, 5), int)).summary()


def baselines(train_set, val_set) -> dict[str, list[dict[str, float]]]:
    """The figures of both baselines on a set's validation pictures."""
    table = torch.from_numpy(colour_table(train_set, len(train_set.classes)))
    return {"majority": [baseline(val_set, lambda image: torch.zeros(image.shape[1:], dtype=torch.int64))],
            "colour": [baseline(val_set, lambda image: table[bins(image)])]}


def main() -> None:
    results = {"command": "python benchmarks/sample_runs.py", "seeds": SEEDS, **versions(),
               "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
               "device": "cuda" if torch.cuda.is_available() else "cpu", "sets": {}}
    for name in ("sample-coco", "sample-chest-ct"):
        train_set, val_set = (sl.data.open_dataset(name, split) for split in ("train", "val"))
        rows = {**baselines(train_set, val_set), "segformer_b0": []}
        for seed in range(SEEDS):
            run = sl.train(sl.TrainConfig.preset(name, seed=seed, name=f"{name}-seed{seed}"))
            rows["segformer_b0"].append(run.report.summary())
            print(f"{name}, seed {seed}\n{run.report}\n")
            if seed == 0:
                draw_results(run.model, val_set, run.config.short_side, RESULTS / f"{name}.png")
        results["sets"][name] = {"settings": sl.TrainConfig.preset(name).as_dict(), "rows": rows}
    for name, values in results["sets"].items():
        for row, runs in values["rows"].items():
            print(f"{name:16s} {row:14s}", "  ".join(
                f"{key} {np.mean([r[key] for r in runs]):.3f} ± {np.std([r[key] for r in runs], ddof=1):.3f}"
                if len(runs) > 1 else f"{key} {runs[0][key]:.3f}" for key in ("miou", "dice", "pixel_accuracy")))
    write(RESULTS / "sample-runs.json", results)


if __name__ == "__main__":
    main()
