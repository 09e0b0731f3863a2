"""The commands that look at pictures through a trained network: `predict` and `erf`."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from . import data
from .analysis import receptive_field
from .analysis.receptive_field import SHARES, find_layer
from .data.base import IMAGE_SUFFIXES
from .evaluation import predict_labels, resize_for_model
from .files import beside, write_text
from .models import SegFormer, Segmenter, device_of
from .show import masks
from .training import load_model
from .training.checkpoint import KINDS, WEIGHTS
from .training.config import LARGEST_SIZE
from .training.device import choose_device

DEVICE = "auto, cpu, cuda, cuda:1, mps"  # what the flag may be
PRETRAINED_SIZE = 512  # px, the short side in the released tests on ADE20K


def add_commands(command: Callable) -> None:
    """Add the commands with their flags; `command(name, run, help, example)` gives the parser of one."""
    sub = command("predict", run_predict, "label maps, overlays and areas of your own pictures",
                  "predict runs/2030-01-31-sample-coco holiday.jpg --out masks")
    add_model_options(sub)
    sub.add_argument("pictures", type=Path, nargs="+", help="picture files, or folders of them")
    sub.add_argument("--out", type=Path, default=Path("masks"), help="folder for the results (default: masks)")

    sub = command("erf", run_erf, "effective receptive field: which pixels move one place of a layer",
                  "erf runs/2030-01-31-sample-coco holiday.jpg --layer stage3 --pixel 120 200 --out fields")
    add_model_options(sub)
    sub.add_argument("pictures", type=Path, nargs="+", help="picture files, or folders of them")
    sub.add_argument("--layer", default="stage4", help="stage1 to stage4, decoder, or the path of any submodule "
                     "(default: stage4)")
    sub.add_argument("--pixel", type=int, nargs=2, metavar=("Y", "X"), help="row and column in the picture as it is "
                     "(default: its centre)")
    sub.add_argument("--scalar", help='what is differentiated: sum, "largest logit" or "logit K", each also with '
                     '" of ReLU" (default: sum of ReLU; of a decoder, largest logit)')
    sub.add_argument("--out", type=Path, default=Path("fields"), help="folder for the results (default: fields)")


def add_model_options(sub) -> None:
    """The network of a command, the size of what it sees, and where it runs."""
    sub.add_argument("model", type=Path, help="a run's folder or .safetensors file, or SegFormer weights from "
                     "elsewhere: a folder, a file, or owner/name on the Hugging Face hub")
    sub.add_argument("--size", type=int, help="short side of what the network sees, px (default: as in training; "
                     f"{PRETRAINED_SIZE} for weights from elsewhere)")
    sub.add_argument("--device", default="auto", help=DEVICE)


def load_network(arguments) -> tuple[Segmenter, dict]:
    """A run's network and description, or as much for weights from elsewhere."""
    source, size = arguments.model, arguments.size
    if size is not None and not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"--size is {size}: give the short side in px, 1 to {LARGEST_SIZE}")
    try:
        with safe_open(source / WEIGHTS if source.is_dir() else source, framework="pt") as file:
            of_a_run = "segformer_lite" in (file.metadata() or {})
    except (SafetensorError, OSError):
        of_a_run = False
    if of_a_run:
        model, description = load_model(source)
        if missing := [key for key in KINDS if key not in description]:
            raise ValueError(f"{source} does not say its {missing[0]}: open it with load_model, or train it again")
    else:
        model = SegFormer.from_pretrained(source)
        description = {"data": None, "data_options": {}, "size": PRETRAINED_SIZE,
                       "palette": data.default_palette(model.num_classes),
                       "classes": model.classes or [f"class {i}" for i in range(model.num_classes)]}
    return model.to(choose_device(arguments.device)), {**description, "size": size or description["size"]}


def run_predict(arguments) -> int:
    """`predict`: of every picture NAME a label map NAME.png, NAME_overlay.png, and its areas in areas.json."""
    model, description = load_network(arguments)
    palette, classes = np.array(description["palette"], np.uint8), description["classes"]

    def look(image: torch.Tensor, name: str) -> dict:
        labels = predict_labels(model, image, description["size"])
        _save_picture(_palette_picture(labels, palette), arguments.out / f"{name}.png")
        _save_picture(Image.fromarray(masks.overlay(image, labels, palette)), arguments.out / f"{name}_overlay.png")
        return {"mask": f"{name}.png", "classes": areas(labels, classes)}

    return _for_each_picture(arguments, look, "areas.json")


def run_erf(arguments) -> int:
    """`erf`: of every picture NAME a figure NAME_erf.png of the field beside it, and its measures in erf.json."""
    model, description = load_network(arguments)
    find_layer(model, arguments.layer)  # a wrong name is wrong for every picture
    device = device_of(model)

    def look(image: torch.Tensor, name: str) -> dict:
        seen = resize_for_model(image, description["size"])
        pixel = _scaled(arguments.pixel, image.shape[-2:], seen.shape[-2:]) if arguments.pixel else None
        field = receptive_field(model, seen[None].to(device), arguments.layer, pixel, arguments.scalar)
        sides = {f"{share:.0%}": field.side(share) for share in SHARES}
        with beside(arguments.out / f"{name}_erf.png") as part:
            masks.field_figure(seen, field, field.pixel, sides, f"{field.layer}, {field.scalar}", path=part)
        return {"figure": f"{name}_erf.png", "seen_at": list(seen.shape[-2:]), **field.measures()}

    return _for_each_picture(arguments, look, "erf.json")


def _for_each_picture(arguments, look: Callable[[torch.Tensor, str], dict], summary: str) -> int:
    """Run `look(image, name)` on every picture and write what it returns; one bad file does not stop the rest."""
    out = arguments.out
    if any((path if path.is_dir() else path.parent).resolve() == out.resolve() for path in arguments.pictures):
        raise ValueError(f"--out {out} holds the pictures themselves: choose another folder for the results")
    pictures = find_pictures(arguments.pictures, out)
    out.mkdir(parents=True, exist_ok=True)
    results, failed = [], []
    named = list(zip(pictures, _distinct(p.stem for p in pictures), strict=True))
    for path, name in tqdm(named, unit="img", desc=out.name, disable=not sys.stderr.isatty()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, on files that it reads or refuses right afterwards
                image = torch.from_numpy(np.array(data.read_image(path))).permute(2, 0, 1)
            size = {"height": image.shape[1], "width": image.shape[2]}
            results.append({"picture": str(path), **size, **look(image, name)})
        except (torch.OutOfMemoryError, MemoryError):
            failed.append(f"{path}: memory is full: use a smaller --size")
        except (ValueError, OSError) as error:
            failed.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    for message in failed:
        print(f"segformer-lite: {message}", file=sys.stderr)
    without, numbers = f", {len(failed)} failed" if failed else "", ""
    if results:
        write_text(out / summary, json.dumps(results, indent=1) + "\n")
        numbers = f", numbers in {out / summary}"
    print(f"{len(results)} of {len(pictures)} pictures done{without}: {out}{numbers}")
    return 2 if failed else 0


def areas(labels: np.ndarray, classes: list[str]) -> dict[str, dict]:
    """Pixels and share of the picture of each class that occurs in a label map (H, W), by name, largest first."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    return {classes[c]: {"id": int(c), "pixels": int(counts[c]), "share": round(counts[c] / labels.size, 6)}
            for c in np.argsort(-counts, kind="stable") if counts[c]}


def find_pictures(paths: list[Path], out: Path) -> list[Path]:
    """The files among `paths` and all pictures in its folders, but what an earlier run has written to `out`.

    Raises ValueError or FileNotFoundError for none.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()
                            and p.resolve().parent != out.resolve())
            if not inside:
                raise ValueError(f"no pictures in {path}; known endings are {', '.join(sorted(IMAGE_SUFFIXES))}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no such picture or folder: {path}")
    return found


def _scaled(pixel: Sequence[int], size: Sequence[int], seen: Sequence[int]) -> tuple[int, int]:
    """The pixel of the picture as it is, in the picture as the network sees it."""
    if not all(0 <= p < n for p, n in zip(pixel, size, strict=True)):
        raise ValueError(f"--pixel {pixel[0]} {pixel[1]} lies outside the picture of {size[0]} x {size[1]} px "
                         "(rows x columns)")
    row, column = (p * m // n for p, n, m in zip(pixel, size, seen, strict=True))
    return row, column


def _distinct(names) -> Iterator[str]:
    """The names, with -2, -3, ... where results of two pictures would write over each other."""
    taken: set[str] = set()
    for name in names:
        candidate, number = name, 2
        while taken & {candidate, f"{candidate}_overlay"}:
            candidate, number = f"{name}-{number}", number + 1
        taken |= {candidate, f"{candidate}_overlay"}
        yield candidate


def _palette_picture(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    picture = Image.fromarray(labels)
    picture.putpalette(palette.tobytes())  # the pixels stay class ids; the colours are for looking
    return picture


def _save_picture(picture: Image.Image, path: Path) -> None:
    with beside(path) as part:
        picture.save(part, format="PNG")
