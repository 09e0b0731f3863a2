"""The `data` commands of the command line: make, fetch, pack and check data sets."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import data
from .data.download import chest_ct_from_kaggle, download_coco, unpack_chest_ct
from .data.pack import IMAGES, LABELS
from .data.verify import SHOWN, verify

STOPPED = "stopped; what has come is kept: run the same command again and it goes on from here"


def add_commands(command: Callable) -> None:
    """Add the commands with their flags; `command(name, run, help, example)` gives the parser of one."""
    sub = command("sample", run_sample, "make the synthetic sample in a data set's own layout", "data sample coco")
    sub.add_argument("kind", choices=["coco", "chest_ct"])
    sub.add_argument("--out", type=Path, help="folder (default: where `--data sample-...` looks for it)")

    sub = command("coco", run_coco, "fetch a part of COCO 2017, picture by picture; goes on where it was cut",
                  "data coco --images 5000 --out data/coco")
    sub.add_argument("--images", type=int, metavar="N", help="at most N of each split, chosen by seed (default: all)")
    sub.add_argument("--out", type=Path, help="folder (default: where `--data coco` looks for it)")
    sub.add_argument("--split", choices=["train", "val", "both"], default="both", help="default: both")
    sub.add_argument("--classes", type=_names, help="only pictures that hold one of these: person,dog")
    sub.add_argument("--seed", type=int, default=0, help="another seed chooses other pictures (default: 0)")
    sub.add_argument("--yes", action="store_true", help="do not ask before fetching")
    sub.set_defaults(stopped=STOPPED)

    sub = command("chest-ct", run_chest_ct, "unpack and check the chest CT set of Kaggle",
                  "data chest-ct --zip chest-ct-segmentation.zip --out data/chest_ct")
    sub.add_argument("--zip", type=Path, metavar="FILE", help="Kaggle's zip (default: download it through kagglehub)")
    sub.add_argument("--out", type=Path, help="folder (default: where `--data chest_ct` looks for it)")
    sub.set_defaults(stopped=STOPPED)

    sub = command("pack", run_pack, "resize a data set once, into two files that training reads fast",
                  "data pack coco --size 256 --out data/coco-256")
    sub.add_argument("source", help=f"a data set's folder, or one of {', '.join(data.NAMED)}")
    sub.add_argument("--size", type=int, default=256, help="short side of every picture, px (default: 256)")
    sub.add_argument("--out", type=Path, required=True, help="folder")
    add_data_options(sub)
    sub.set_defaults(stopped="stopped; what is packed is kept: run the same command again and it goes on from here")

    sub = command("verify", run_verify, "read all of a data set: what is there, what is broken, what to do",
                  "data verify data/coco")
    sub.add_argument("folder", metavar="DIR", help=f"a data set's folder, or one of {', '.join(data.NAMED)}")
    sub.set_defaults(stopped="stopped; nothing was changed")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def add_data_options(sub) -> None:
    """Add the flags that choose among a data set's pictures."""
    sub.add_argument("--classes", type=_names, help="COCO classes to keep, by name: person,dog")
    sub.add_argument("--limit", type=int, help="use this many images, chosen by seed")
    sub.add_argument("--val-patients", type=_names, help="chest CT: patients to validate on")
    sub.add_argument("--split-by", choices=["patient", "slice"], help="chest CT: what is divided (slices leak)")


def data_options(arguments) -> dict:
    """The values of these flags, those that were given."""
    options = {key: getattr(arguments, key) for key in ("classes", "limit", "val_patients", "split_by")}
    return {key: value for key, value in options.items() if value is not None}


def run_sample(arguments) -> None:
    """`data sample`: write the synthetic sample."""
    name = "sample-" + arguments.kind.replace("_", "-")
    folder = data.make_sample(arguments.kind, arguments.out or data.named_folder(name),
                              progress=sys.stderr.isatty())
    print(f"sample: {folder}")


def run_coco(arguments) -> int:
    """`data coco`: ask, fetch, and say what is there."""
    result = download_coco(
        arguments.out or data.named_folder("coco"), arguments.images, arguments.split, arguments.classes,
        arguments.seed, agree=_say if arguments.yes else _ask, progress=sys.stderr.isatty(),
    )
    for name, why in list(result.failed.items())[:SHOWN]:
        print(f"segformer-lite: {name}: {why}", file=sys.stderr)
    if result.failed:
        print(f"segformer-lite: failed: {len(result.failed):,}; run the same command again", file=sys.stderr)
    print(f"{result}\n\nlicences   each photograph has its own: `license` in annotations/instances_*.json\n"
          f"train      segformer-lite train --data {result.folder}")
    return 2 if result.failed else 0


def _say(plan: str) -> None:
    print(plan, file=sys.stderr)


def _ask(plan: str) -> None:
    """Raises ValueError where nobody says yes."""
    if not sys.stdin.isatty():
        raise ValueError(f"{plan}: nothing was fetched, add --yes to fetch it without being asked")
    try:
        answer = input(f"{plan}. Go on? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ValueError("nothing was fetched")


def run_chest_ct(arguments) -> int:
    """`data chest-ct`: unpack the zip and read all that came out."""
    folder = arguments.out or data.named_folder("chest_ct")
    unpack_chest_ct(arguments.zip or chest_ct_from_kaggle(), folder, progress=sys.stderr.isatty())
    return _report(folder)


def run_pack(arguments) -> None:
    """`data pack`: write the pack and say what it holds."""
    began = time.perf_counter()
    folder = data.pack_dataset(arguments.source, arguments.out, arguments.size, progress=sys.stderr.isatty(),
                               **data_options(arguments))
    seconds = time.perf_counter() - began
    train, val = (len(data.open_dataset(folder, split)) for split in ("train", "val"))
    size = sum((folder / name).stat().st_size for name in (IMAGES, LABELS))
    print(f"packed     {train:,} + {val:,} images, {size:,} bytes, {seconds:.0f} seconds\n"
          f"train      segformer-lite train --data {folder} --size {arguments.size}")


def run_verify(arguments) -> int:
    """`data verify`: the table of a folder."""
    name = arguments.folder
    return _report(data.named_folder(name) if name in data.NAMED else Path(name))


def _report(folder: Path) -> int:
    verification = verify(folder, progress=sys.stderr.isatty())
    print(verification)
    return 2 if verification.broken else 0
