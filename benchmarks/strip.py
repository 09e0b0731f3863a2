"""The strip of pictures at the head of the README: one drawn scene, and what a network makes of it.

    python benchmarks/strip.py RUN            seconds; RUN is the folder of a SegFormer's run on sample-coco

Any run of `python3 course.py run` will do, and so will one of those that benchmarks/sample_runs.py leaves in runs/.
Writes docs/results/strip.png. Mask and receptive field are those of the size that the run was trained at; attention is
asked at 256 px, where a key is one square of 8 x 8.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from record import RESULTS
from torchvision.transforms import functional as TF

import segformer_lite as sl
from segformer_lite import show
from segformer_lite.analysis import attention_map, position_maps, receptive_field
from segformer_lite.evaluation import predict_labels, resize_for_model
from segformer_lite.files import beside
from segformer_lite.show import masks
from segformer_lite.training import load_model

SCENE, QUERY = 57, (88, 128)  # of the validation pictures; row and column of 256


def square(picture: np.ndarray) -> np.ndarray:
    """The middle of a picture or map (H, W) or (H, W, 3), as wide as high."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def lit(model: torch.nn.Module, image: torch.Tensor, block: str) -> np.ndarray:
    """The image (3, 256, 256) as bright as each place weighs for the query at QUERY, in the mean of a block's heads."""
    weights = attention_map(model, image, block, QUERY).mean(0)
    light = 0.15 + 0.25 * weights / weights.mean()
    return (masks.as_picture(image) * np.clip(light, 0, 1)[..., None]).astype(np.uint8)


def panels(model: torch.nn.Module, size: int, dataset) -> dict[str, np.ndarray]:
    """The five pictures, square, by title. size: px, the short side that the network was trained at."""
    image = dataset[SCENE][0].as_subclass(torch.Tensor)
    seen = resize_for_model(image, size)
    large = TF.resize(torch.from_numpy(square(masks.as_picture(image)).copy()).permute(2, 0, 1), [256, 256])
    field = receptive_field(model, seen[None], "decoder")
    return {
        "a scene": square(masks.as_picture(image)),
        "its mask": square(masks.overlay(image, predict_labels(model, image, size), dataset.palette)),
        "what moves the\nmiddle pixel's answer": square(masks.heat(masks.decades_below(field), -3, 0)),
        "what one place asks\nby attention, stage 3": lit(model, large, "stage3.block2"),
        "a blank picture: place\nleaks in at the border": masks.heat(position_maps(model.encoder)[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a SegFormer's run on sample-coco")
    parser.add_argument("--out", type=Path, default=RESULTS / "strip.png")
    arguments = parser.parse_args()
    model, description = load_model(arguments.run)
    show.use_style()
    pictures = panels(model, description["size"], sl.data.open_dataset("sample-coco", "val"))
    fig = show.grid(list(pictures.values()), list(pictures), columns=len(pictures), cell=1.75)
    with beside(arguments.out) as part:
        fig.savefig(part, dpi=120, format="png", bbox_inches="tight", pad_inches=0.05)


if __name__ == "__main__":
    main()
