"""Are small objects found and large ones lost, and is that "the Transformer"? Five networks and a loss, trained alike.

- b0: the released SegFormer-B0, whose keys are squares of R tokens;
- b0-strips: the same, but the keys are strips of R consecutive tokens, as in the report's listing;
- b0-blocks: the maps of b0-strips on squares, so that shape alone parts the two;
- b0-report: the report's whole network;
- unet: no Transformer at all;
- b0-weights: b0 with class weights in its loss.

    python benchmarks/coco_claims.py            about 45 minutes on one CPU core
    python benchmarks/coco_claims.py --data data/coco --size 256 --steps 20000        a real set, on a GPU
    python benchmarks/coco_claims.py --steps 10 --seeds 1 --out work/trial

Every run gets the same pictures, batches, steps and seeds. Learning rates are each network's own: of two settings
the one with the best mIoU after a quarter of the steps, with a seed of its own. Leaves coco-claims.json and .png in
docs/results. Broken off, it goes on where it stopped: finished runs lie in runs/coco-claims-<data>-<size>-<steps>.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from record import RESULTS, best_rate, runs_folder, save, versions, write
from torch import Tensor

import segformer_lite as sl
from segformer_lite.analysis import macs, parameters
from segformer_lite.evaluation import metrics, predict_labels
from segformer_lite.models.variants import StripReduction
from segformer_lite.show import COLOURS, use_style
from segformer_lite.training import class_weights, load_model
from segformer_lite.training.device import choose_device

RATES = ((1e-3, 10.0), (3e-3, 1.0))  # of the encoder, and how many times higher the decoder's is
BINS = {"small": (0, 1 / 300), "medium": (1 / 300, 0.03), "large": (0.03, 0.1), "> 10 %": (0.1, 0.3),
        "> 30 %": (0.3, 1.01)}  # shares of the picture: COCO's bins, the last of them in three


class Strips(StripReduction):
    """Strip reduction without its dropout, which the released attention has not either."""

    def __init__(self, dim: int, heads: int, stride: int):
        super().__init__(dim, heads, stride, dropout=0.0)


class Blocks(Strips):
    """The maps of `Strips` on squares of R tokens. Sides must be multiples of the stride.

    The tokens are set in another order, in which the R of a square follow each other, and set back at the end.
    Attention itself knows no order. (B, H, W, C) -> same.
    """

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        s = round(self.reduction**0.5)
        squares = x.view(b, h // s, s, w // s, s, c).transpose(2, 3)
        y = super().forward(squares.reshape(x.shape)).view(squares.shape)
        return y.transpose(2, 3).reshape(x.shape)


ATTENTION = {"b0-strips": Strips, "b0-blocks": Blocks}
TITLES = {"b0": "B0, squares (released)", "b0-strips": "B0, strips", "b0-blocks": "B0, squares, maps of the strips",
          "b0-report": "the report's network", "unet": "U-Net, no Transformer",
          "b0-weights": "B0, squares, class weights"}


def settings(common: sl.TrainConfig) -> dict[str, sl.TrainConfig]:
    """What is trained: alike but for network, attention or loss."""
    return {"b0": replace(common, model="segformer_b0"),
            **{name: replace(common, model="segformer_b0", model_options={"attention": attention})
               for name, attention in ATTENTION.items()},
            "b0-report": replace(common, model="segformer_b0_report"),
            "unet": replace(common, model="unet")}


def weights_of(config: sl.TrainConfig) -> list[float]:
    """Class weights from the training labels."""
    labels = sl.data.open_dataset(config.data, "train", **config.data_options)
    counts = sum(torch.bincount(label.flatten(), minlength=256) for _, label in map(labels.__getitem__,
                                                                                    range(len(labels))))
    return class_weights(counts[: len(labels.classes)].tolist())


def by_size(folder: Path, config: sl.TrainConfig) -> np.ndarray:
    """`size_counts` of a run's network over the validation set, in BINS: (5, 5)."""
    model, _ = load_model(folder, **config.model_options)
    model.to(choose_device())
    counts = np.zeros((len(BINS), 5), np.int64)
    pictures = sl.data.open_dataset(config.data, "val", **config.data_options)
    for image, label in map(pictures.__getitem__, range(len(pictures))):
        prediction = torch.from_numpy(predict_labels(model, image.as_subclass(Tensor), config.short_side))
        counts += metrics.size_counts(prediction, label.as_subclass(Tensor), bins=BINS)
    return counts


def figures(folder: Path, config: sl.TrainConfig) -> dict:
    """What a finished run is worth: headline figures, IoU of each class, counts by size."""
    report = json.loads((folder / "report.json").read_text())
    headline = {key: value for key, value in report.items() if isinstance(value, float)}
    return {**headline, "iou": [c["iou"] for c in report["per_class"].values()],
            "sizes": by_size(folder, config).tolist()}


def draw(content: dict, path: Path) -> None:
    """Recall, IoU and share found of regions by size: a line of the mean for each network, a dot for each seed."""
    networks = {name: runs for name, runs in content["results"].items() if name != "b0-weights"}
    use_style()
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
    for (name, runs), colour in zip(networks.items(), COLOURS.values(), strict=False):
        n, found, pixels, right, wrong = np.moveaxis(np.array([run["sizes"] for run in runs], float), -1, 0)
        with np.errstate(invalid="ignore"):
            panels = {"recall of pixels": right / pixels, "IoU": right / (pixels + wrong), "share found": found / n}
        for ax, (title, values) in zip(axes, panels.items(), strict=True):
            ax.plot(values.mean(0), color=colour, label=content["titles"][name])
            ax.plot(values.T, ".", color=colour, markersize=4)
            ax.set_title(title)
            ax.set_xticks(range(len(BINS)), BINS)
    axes[0].set(ylim=(0, 1))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample-coco", help="sample-coco, or the folder of a real set")
    parser.add_argument("--size", type=int, default=96, help="px of the square crops in training, and of short sides")
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()

    common = sl.TrainConfig.preset("sample-coco", data=args.data, size=args.size, steps=args.steps,
                                   checkpoint_every=100)
    place = f"coco-claims-{Path(args.data).name}-{args.size}-{args.steps}"
    runs = runs_folder() / place
    configs = {name: replace(config, **best_rate(config, RATES, runs / "rates" / name))
               for name, config in settings(common).items()}
    configs["b0-weights"] = replace(configs["b0"], class_weights=weights_of(common))
    table = sl.compare(configs, seeds=args.seeds, folder=runs, progress=sys.stderr.isatty())
    print(table)

    classes = sl.data.open_dataset(args.data, "val").classes
    networks = {name: sl.create_model(config.model, len(classes), **config.model_options)
                for name, config in configs.items()}
    content = {
        "command": f"python benchmarks/coco_claims.py --data {Path(args.data).name} --size {args.size} "
                   f"--steps {args.steps} --seeds {args.seeds}",
        "versions": versions(),
        "settings": {**common.as_dict(), "data": Path(args.data).name},
        "classes": list(classes),
        "class_weights": configs["b0-weights"].class_weights,
        "bins": list(BINS),
        "columns": ["regions", "found", "pixels", "right", "wrong"],
        "titles": TITLES,
        "rates": {name: {"lr": config.lr, "head_lr_mult": config.head_lr_mult} for name, config in configs.items()},
        "costs": {name: {"parameters": parameters(network), "macs": macs(network, args.size)}
                  for name, network in networks.items()},
        "results": {name: [figures(runs / name / str(seed), config) for seed in range(args.seeds)]
                    for name, config in configs.items()},
    }
    write(args.out / "coco-claims.json", content)
    draw(content, args.out / "coco-claims.png")
    print(f"written: coco-claims.json and coco-claims.png in {args.out.name}")


if __name__ == "__main__":
    main()
