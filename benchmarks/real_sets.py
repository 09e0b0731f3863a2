"""SegFormer-B0, the report's variant and U-Net from scratch on real pictures: COCO persons and chest CT.

    python benchmarks/real_sets.py FOLDER    two hours on one CPU core, most of it for the report's variant
    python benchmarks/real_sets.py FOLDER --networks segformer_b0 unet    forty minutes
    python benchmarks/real_sets.py FOLDER --steps 20 --seeds 1 --out work/trial

FOLDER holds coco_person/ (COCO's layout, the class person) and chest_ct/ (the Kaggle layout); a set that is not there
is left out, by name; --val-patients ID,ID names the patients to hold out. Pictures of 128 px, equal steps, batches and
seeds. Chest CT is divided twice: by patient, which is the question a clinic has, and by slice, which lets neighbours
of the training slices into validation. Writes real-sets.json and .md to docs/results: figures only, no picture.
Broken off, it goes on where it stopped.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from record import RESULTS, runs_folder, versions, write
from sample_runs import baselines

import segformer_lite as sl

NETWORKS = {"segformer_b0": {"lr": 1e-3, "head_lr_mult": 1.0}, "segformer_b0_report": {"lr": 1e-3, "head_lr_mult": 1.0},
            "unet": {"lr": 3e-3, "head_lr_mult": 1.0}}
SETS = {  # name: folder, share of the steps, how it is divided
    "coco_person": ("coco_person", 1.0, {}),
    "chest_ct, patients held out": ("chest_ct", 0.4, {"split_by": "patient"}),
    "chest_ct, slices held out": ("chest_ct", 0.4, {"split_by": "slice"}),
}


def run_set(args: argparse.Namespace, name: str, runs: Path) -> dict:
    """The networks on one set: settings, sizes of the parts, and the figures of every seed beside the baselines."""
    folder, share, options = SETS[name]
    if args.val_patients and options.get("split_by") == "patient":
        options = {**options, "val_patients": args.val_patients}
    common = {"data": str(args.folder / folder), "size": 128, "augment": "flip",
              "steps": max(1, round(share * args.steps)), "data_options": options}
    configs = {network: sl.TrainConfig(model=network, **common, **NETWORKS[network]) for network in args.networks}
    table = sl.compare(configs, seeds=args.seeds, folder=runs / name.replace(", ", "-").replace(" ", "-"),
                       progress=sys.stderr.isatty())
    parts = {split: sl.data.open_dataset(common["data"], split, **options) for split in ("train", "val")}
    print(name, table, sep="\n", flush=True)
    settings = {key: value for key, value in configs[args.networks[0]].as_dict().items()
                if key in ("size", "augment", "steps", "batch_size", "data_options")}
    return {"settings": settings, "pictures": {split: len(part) for split, part in parts.items()},
            "classes": parts["train"].classes, "rows": {**baselines(*parts.values()), **table.results}}


def page(results: dict) -> str:
    """The results as a page, one table for each set."""
    columns = ("miou", "miou_foreground", "dice_foreground", "boundary_iou", "pixel_accuracy")
    lines = ["# From scratch on real pictures", "",
             f"`{results['command']}` on {results['device']}, torch {results['versions']['torch']}. Mean ± "
             "standard deviation over seeds, at the labels' own resolution. Few pictures and few steps: these figures "
             "show that the path works and what a laptop reaches, not what the networks can do."]
    for name, content in results["sets"].items():
        pictures, settings = content["pictures"], content["settings"]
        lines += ["", f"## {name}", "", f"{pictures['train']} training pictures, {pictures['val']} held out; "
                  f"{settings['steps']} steps of {settings['batch_size']} pictures of {settings['size']} px, "
                  f"augmentation \"{settings['augment']}\", nothing pretrained.", "",
                  "| | " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|---" * 6 + "|"]
        for row, runs in content["rows"].items():
            cells = [[run[column] for run in runs] for column in columns]
            lines.append(f"| {row} | " + " | ".join(
                f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" if len(v) > 1 else f"{v[0]:.3f}" for v in cells)
                + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds coco_person/ and chest_ct/")
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps on COCO; chest CT takes 0.4 of them")
    parser.add_argument("--seeds", type=int, default=3, help="runs per network and set")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--val-patients", type=lambda text: text.split(","), help="chest CT: hold out these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()

    runs = runs_folder() / f"real-sets-{args.steps}"
    sets = {}
    for name, (folder, *_) in SETS.items():
        if (args.folder / folder).is_dir():
            sets[name] = run_set(args, name, runs)
        else:
            print(f"{name}: no {folder}/ in {args.folder}, left out", flush=True)
    content = {
        "command": f"python benchmarks/real_sets.py FOLDER --steps {args.steps} --seeds {args.seeds} "
                   f"--networks {' '.join(args.networks)}"
                   + (f" --val-patients {','.join(args.val_patients)}" if args.val_patients else ""),
        "seeds": args.seeds, "device": "cuda" if torch.cuda.is_available() else "cpu",
        "versions": versions(),
        "sets": sets,
    }
    for name, text in {"real-sets.json": json.dumps(content, indent=1) + "\n", "real-sets.md": page(content)}.items():
        for patient in args.val_patients or []:
            text = text.replace(patient, "ID")  # whoever has the set has the names
        write(args.out / name, text)
    print(f"written: real-sets.json and real-sets.md in {args.out.name}")


if __name__ == "__main__":
    main()
