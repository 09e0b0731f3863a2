"""How much position leaks into the encoder through its padding, before and after training.

    python benchmarks/position_leak.py

Two measurements for each setting of padding, written to docs/results/position-leak.json and drawn beside it:

- spread: a constant picture through a random MiT-B0, `position_spread` of each stage;
- readout: a tiny MiT trained on noise to tell (y, x) of every token, R² of each stage on new noise, at the size
  of training and at twice that size.

About five minutes on one CPU core. Same seeds, same numbers, up to rounding between machines.
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from record import RESULTS, save, versions, write

from segformer_lite.analysis.position import position_spread, readout_r2, split_padding, train_readout
from segformer_lite.models import MixFFN, MixTransformer
from segformer_lite.models.variants import MLPFFN
from segformer_lite.show import COLOURS, use_style

# name -> padding of the patch embeddings, padding of Mix-FFN's convolution, class of the feed-forward network
SETTINGS = {
    "zeros everywhere": ("zeros", "zeros", MixFFN),
    "zeros in Mix-FFN only": ("circular", "zeros", MixFFN),
    "zeros in patch embeddings only": ("zeros", "circular", MixFFN),
    "zeros, Mix-FFN without convolution": ("zeros", "zeros", MLPFFN),
    "replicate everywhere": ("replicate", "replicate", MixFFN),
    "reflect everywhere": ("reflect", "reflect", MixFFN),
    "circular everywhere": ("circular", "circular", MixFFN),
}
B0, TINY, DEPTHS = (32, 64, 160, 256), (16, 32, 40, 64), (2, 2, 2, 2)
SPREAD_SIZE, TRAIN_SIZE, UNSEEN_SIZE = 256, 96, 192  # px


def encoder(dims: tuple[int, ...], setting: str, seed: int) -> MixTransformer:
    patch_embed, padding, ffn = SETTINGS[setting]
    torch.manual_seed(seed)
    return split_padding(MixTransformer(dims, DEPTHS, drop_path=0.0, ffn=ffn), patch_embed, padding)


def measure(spread_seeds: int, readout_seeds: int, steps: int) -> dict:
    spread = {name: [position_spread(encoder(B0, name, seed), SPREAD_SIZE) for seed in range(spread_seeds)]
              for name in SETTINGS}
    readout = {name: {str(TRAIN_SIZE): [], str(UNSEEN_SIZE): []} for name in SETTINGS}
    for name in SETTINGS:
        for seed in range(readout_seeds):
            trained = train_readout(encoder(TINY, name, seed), TRAIN_SIZE, steps, seed=seed)
            for size in (TRAIN_SIZE, UNSEEN_SIZE):
                readout[name][str(size)].append(readout_r2(trained, size))
            print(name, seed, np.round(readout[name][str(TRAIN_SIZE)][-1], 2), flush=True)
    return {"spread": {"image_px": SPREAD_SIZE, "dims": B0, "seeds": spread_seeds, "stages_by_seed": spread},
            "readout": {"train_px": TRAIN_SIZE, "unseen_px": UNSEEN_SIZE, "dims": TINY, "steps": steps,
                        "seeds": readout_seeds, "r2_by_size_and_seed": readout}}


def draw(results: dict, path: Path) -> None:
    """R² of each stage, one line per setting, at the trained and at the unseen size."""
    use_style()
    table = results["readout"]["r2_by_size_and_seed"]
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True)
    for ax, size, title in zip(axes, (TRAIN_SIZE, UNSEEN_SIZE), ("as trained", "twice the size")):
        for (name, scores), colour, mark in zip(table.items(), COLOURS.values(), "os^vDP*"):
            ax.plot(range(1, 5), np.mean(scores[str(size)], axis=0), mark + "-", color=colour, label=name)
        ax.set(title=f"{title}: {size} px", xlabel="stage", xticks=range(1, 5), ylim=(-0.05, 1.05))
    axes[0].set_ylabel("R² of (y, x)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    save(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--spread-seeds", type=int, default=5)
    parser.add_argument("--readout-seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250, help="training steps of a readout (default 250)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    results = {"command": "python benchmarks/position_leak.py",
               "versions": versions(),
               **measure(args.spread_seeds, args.readout_seeds, args.steps)}
    results["cpu_seconds"] = round(time.process_time() - began)
    write(args.out / "position-leak.json", results)
    draw(results, args.out / "position-leak.png")
    print(f"written: position-leak.json and position-leak.png in {args.out.name}")


if __name__ == "__main__":
    main()
