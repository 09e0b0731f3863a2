"""A table of positions against Mix-FFN at twice the size of training, and IoU by distance from the border.

    python benchmarks/position_table.py

Table 1c of the SegFormer paper in small. Every network is trained on crops of 64 px of the synthetic sample, whose
pictures are 128 px on the short side, and validated on the middle 128 x 128 px of each picture in two ways: cut into
four windows of 64 px, the size of training, and whole, twice that size. The pixels and their scale are the same
both ways. Whole pictures also give the IoU by distance from the border. Writes docs/results/position-table.json and
draws it beside. About 50 minutes on one CPU core; finished runs in --runs are not trained again.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from record import RESULTS, runs_folder, save, versions, write

import segformer_lite as sl
from segformer_lite.analysis import iou_by_border_distance
from segformer_lite.data.transforms import CentreCrop, resize_short_side
from segformer_lite.models.variants import MLPFFN, LearnedPosition, set_padding
from segformer_lite.show import COLOURS, use_style

WINDOW, WHOLE = 64, 128  # px
EDGES = (0, 4, 8, 16, 32, 64)  # px from the border
GRIDS = {32: 16, 64: 8, 160: 4, 256: 2}  # channels of a stage: tokens a side at 64 px
SETTINGS = dict(data="sample-coco", model="segformer_b0", size=WINDOW, base_size=WHOLE, batch_size=8, augment="flip",
                precision="fp32")


class TablePatchEmbed(LearnedPosition):
    """A table in every stage, as large as the stage's map at 64 px."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int):
        super().__init__(in_channels, dim, kernel, stride, grid=(GRIDS[dim], GRIDS[dim]))


class CircularPatchEmbed(sl.OverlapPatchEmbed):
    def __init__(self, *args):
        super().__init__(*args)
        set_padding(self, "circular")


class CircularMixFFN(sl.MixFFN):
    def __init__(self, *args):
        super().__init__(*args)
        set_padding(self, "circular")


NETWORKS = {
    "Mix-FFN": {},
    "table": {"patch_embed": TablePatchEmbed, "ffn": MLPFFN},
    "neither": {"ffn": MLPFFN},
    "Mix-FFN, circular padding": {"patch_embed": CircularPatchEmbed, "ffn": CircularMixFFN},
}


class Pieces:
    """The validation pictures' middle 128 x 128 px, in pieces of `size` px, as a data set."""

    def __init__(self, dataset, size: int):
        self.classes, self.ignore_index, self.items = dataset.classes, dataset.ignore_index, []
        crop = CentreCrop(WHOLE)
        for i in range(len(dataset)):
            image, label = crop(*resize_short_side(*dataset[i], WHOLE))
            for y in range(0, WHOLE, size):
                for x in range(0, WHOLE, size):
                    self.items.append((image[:, y:y + size, x:x + size], label[y:y + size, x:x + size]))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


def measure(seeds: int, steps: int, runs: Path) -> dict:
    configs = {name: sl.TrainConfig(**SETTINGS, steps=steps, model_options=options)
               for name, options in NETWORKS.items()}
    sl.compare(configs, seeds=seeds, folder=runs)
    val = sl.data.open_dataset(SETTINGS["data"], "val")
    windows, whole = Pieces(val, WINDOW), Pieces(val, WHOLE)
    results = {}
    for name, options in NETWORKS.items():
        results[name] = []
        for seed in range(seeds):
            model, _ = sl.load_model(runs / name / str(seed), **options)
            results[name].append({
                "windows": sl.evaluate(model, windows, batch_size=32, progress=False).miou,
                "whole": sl.evaluate(model, whole, batch_size=32, progress=False).miou,
                "by_border_distance": iou_by_border_distance(model, whole, EDGES).tolist(),
            })
            print(name, seed, {k: np.round(v, 3) for k, v in results[name][-1].items()}, flush=True)
    return {"settings": {**SETTINGS, "steps": steps}, "seeds": seeds, "window_px": WINDOW, "whole_px": WHOLE,
            "edges_px": EDGES, "miou_by_seed": results}


def draw(results: dict, path: Path) -> None:
    """Left: mIoU in windows and whole. Right: mIoU by distance from the border."""
    use_style()
    table = results["miou_by_seed"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
    centres = np.convolve(results["edges_px"], [0.5, 0.5], "valid")
    for (name, runs), colour, mark in zip(table.items(), COLOURS.values(), "os^v"):
        ends = np.array([[run["windows"], run["whole"]] for run in runs])
        left.plot([0, 1], ends.mean(0), mark + "-", color=colour, label=name)
        left.plot([0, 1], ends.T, ".", color=colour, alpha=0.5, markersize=4)
        right.plot(centres, np.mean([run["by_border_distance"] for run in runs], 0), mark + "-", color=colour)
    left.set(xticks=[0, 1], xticklabels=[f"windows\n{WINDOW} px", f"whole\n{WHOLE} px"], xlim=(-0.3, 1.3),
             ylabel="mIoU")
    right.set(xlabel="pixels from the border", ylabel="mIoU of the band")
    fig.legend(loc="outside lower center", ncols=4, fontsize=8)
    save(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--runs", type=Path, default=runs_folder() / "position-table", help="where the runs go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    began = time.process_time()
    results = {"command": "python benchmarks/position_table.py",
               "versions": versions(),
               **measure(args.seeds, args.steps, args.runs)}
    results["cpu_seconds"] = round(time.process_time() - began)
    write(args.out / "position-table.json", results)
    draw(results, args.out / "position-table.png")
    print(f"written: position-table.json and position-table.png in {args.out.name}")


if __name__ == "__main__":
    main()
