"""How much do a wider encoder, and stages 1 to 3, matter? Three networks trained alike on the synthetic sample.

- B0: the released network, decoder on F1 to F4;
- B1: the same with twice the channels;
- B0, F4 only: a decoder that sees the last stage alone, as in Table 1d of the paper.

    python benchmarks/encoder_ablation.py            about 25 minutes on two CPU cores
    python benchmarks/encoder_ablation.py --steps 20 --seeds 1 --out work/trial

Leaves encoder-ablation.json and .png in docs/results. Broken off, it goes on where it stopped: finished runs lie
in runs/encoder-ablation and are not trained again. Chapter 06 draws the file.
"""

import argparse
import sys
from pathlib import Path

import torch.nn.functional as F
from record import RESULTS, runs_folder, save, versions, write
from torch import Tensor, nn

import segformer_lite as sl


class LastStageDecoder(nn.Module):
    """The MLP decoder without its fusing map, on F4 alone; logits at the size of F1, as the full decoder's.

    Arguments as `MLPDecoder`. Source: Table 1d, "S4".
    """

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_classes: int):
        super().__init__()
        self.linear = nn.Conv2d(in_channels[-1], dim, kernel_size=1)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(dim, num_classes, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        y = sl.models.upsample(self.linear(features[-1]), features[0].shape[-2:])
        return self.classify(self.dropout(F.relu(self.norm(y))))


def configs(steps: int) -> dict[str, sl.TrainConfig]:
    """The three settings: alike but for the network."""
    common = dict(data="sample-coco", size=96, steps=steps, batch_size=8, augment="flip", precision="fp32",
                  device="cpu", checkpoint_every=100)
    return {
        "B0, F1 to F4": sl.TrainConfig(model="segformer_b0", **common),
        "B1, F1 to F4": sl.TrainConfig(model="segformer_b1", **common),
        "B0, F4 only": sl.TrainConfig(model="segformer_b0", model_options={"decoder": LastStageDecoder}, **common),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of each run")
    parser.add_argument("--seeds", type=int, default=6, help="runs per network")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()

    runs = runs_folder() / f"encoder-ablation-{args.steps}"
    chosen = configs(args.steps)
    table = sl.compare(chosen, seeds=args.seeds, folder=runs, progress=sys.stderr.isatty())
    print(table)

    own = ("model", "model_options")
    every = {name: config.as_dict() for name, config in chosen.items()}
    content = {
        "command": f"python benchmarks/encoder_ablation.py --steps {args.steps} --seeds {args.seeds}",
        "versions": versions(),
        "settings": {key: value for key, value in next(iter(every.values())).items()
                     if key not in (*own, "seed", "folder", "name")},
        "networks": {name: {key: config[key] for key in own} for name, config in every.items()},
        "results": table.results,
    }
    write(args.out / "encoder-ablation.json", content)
    save(table.figure(), args.out / "encoder-ablation.png")
    print(f"written: encoder-ablation.json and encoder-ablation.png in {args.out.name}")


if __name__ == "__main__":
    main()
