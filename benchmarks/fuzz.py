"""Bad input by the thousand: data sets, weights, runs, pictures and commands, damaged by chance.

    python benchmarks/fuzz.py --count 2000    about four minutes on one CPU core
    python benchmarks/fuzz.py --count 1 --start 317    case 317 alone, what it did and what came of it

Each case copies something whole, damages it as its number says, and hands it to the package. What may follow: it is
accepted, or it is refused in one line (ValueError or OSError; a command: exit status 2). What may not: a traceback, a
file that was there and is lost or changed, a file left half written, or damage that goes unnoticed where the format
could tell. Writes fuzz.json to docs/results; exit status 1 if anything went wrong. tests/test_fuzz.py runs the first
cases of the same row.
"""

import argparse
import io
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import RESULTS, write
from safetensors import safe_open

import segformer_lite as sl
from segformer_lite.cli import main as cli
from segformer_lite.data.verify import verify

LIMIT = 60  # seconds of the CPU that a case may take
PARTS = (".part", ".tmp")
ODD = [None, True, -1, 0, 0.5, 1e308, float("nan"), 10**30, 2**31, "", "x", "../../x", "\0", "9" * 400, [], {}, [[]],
       [[1, 2]]]
WORDS = ["", "0", "-1", "1", "31", "nan", "inf", "1e400", "x", "..", "ü", "a" * 300, "\0", "person", "{}", "9" * 30]


class TooSlow(Exception):
    """A case that does not come to an end."""


# Something whole to damage


def make_stock(folder: Path) -> Path:
    """One of everything, small: three data sets, weights in two formats, a finished run, pictures of many kinds."""
    coco = sl.data.make_sample("coco", folder / "coco", count=12)
    sl.data.make_sample("chest_ct", folder / "chest_ct", count=12)
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / "own" / part).mkdir(parents=True)
    for k in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / "own" / "images" / f"{k}.jpg")
        Image.fromarray(rng.integers(0, 3, (40, 50), np.uint8)).save(folder / "own" / "masks" / f"{k}.png")
    (folder / "own" / "classes.txt").write_text("background\npart\npore\n")
    (folder / "own" / "val.txt").write_text("4\n5.jpg\n")
    torch.manual_seed(0)
    model = sl.create_model("segformer_b0", 3, norm_eps=1e-5)
    model.save_pretrained(folder / "safetensors")
    shutil.copytree(folder / "safetensors", folder / "bin", ignore=shutil.ignore_patterns("*.safetensors"))
    with safe_open(folder / "safetensors" / "model.safetensors", framework="pt") as file:
        torch.save({name: file.get_tensor(name) for name in file.keys()}, folder / "bin" / "pytorch_model.bin")  # noqa: SIM118
    sl.train(sl.TrainConfig(data=str(coco), size=32, steps=1, batch_size=2, device="cpu", folder=str(folder / "run")),
             progress=False)
    write_pictures(folder / "pictures", 12, rng)
    return folder


def write_pictures(folder: Path, count: int, rng: np.random.Generator, side: int = 48) -> None:
    """`count` small pictures, each of another kind in turn: formats, colour modes, depths, EXIF notes."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        height, width = rng.integers(side // 2, 2 * side, 2)
        rgb = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height))
        deep = np.linspace(0, 65535, height * width).reshape(height, width).astype(np.uint16)
        turned, palette = Image.Exif(), rgb.convert("P")
        turned[0x0112] = 6  # Orientation: to be turned by a quarter
        palette.info["transparency"] = 0
        name, picture, options = [
            ("rgb.png", rgb, {}), ("rgb.jpg", rgb, {}), ("grey.png", rgb.convert("L"), {}),
            ("deep.png", Image.fromarray(deep), {}), ("cmyk.jpg", rgb.convert("CMYK"), {}),
            ("palette.png", palette, {"transparency": 0}), ("turned.jpg", rgb, {"exif": turned}),
            ("deep.tiff", Image.fromarray(deep), {}), ("cmyk.tif", rgb.convert("CMYK"), {}), ("rgb.webp", rgb, {}),
            ("rgb.bmp", rgb, {}), ("alpha.png", rgb.convert("RGBA"), {}), ("bits.png", rgb.convert("1"), {}),
            ("grey-alpha.PNG", rgb.convert("LA"), {}), ("moving.webp", rgb, {"save_all": True, "append_images": [rgb]}),
        ][k % 15]
        picture.save(folder / f"{k:04d}-{name}", **options)


def copy(stock: Path, folder: Path) -> Path:
    """The stock's part at `folder`; large files are linked, since damage replaces a file and never writes into it."""
    def one(source, target):
        (os.link if os.path.getsize(source) > 2**20 else shutil.copy)(source, target)

    return Path(shutil.copytree(stock, folder, copy_function=one))


# Damage


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes of a file, cut, flipped, wiped, doubled, exchanged or replaced."""
    n = len(content)
    a, b = sorted(rng.integers(0, n + 1, 2).tolist())
    if rng.random() < 0.5:  # near the start, where the headers are
        a, b = a * 400 // (n + 400), min(n, a * 400 // (n + 400) + int(rng.integers(1, 40)))
    flipped = bytearray(content)
    for _ in range(int(rng.choice([1, 1, 3, 30]))):
        if n:
            spot = int(rng.integers(n)) if rng.random() < 0.7 else max(0, n - int(rng.integers(1, 2000)))
            flipped[spot] ^= 1 << int(rng.integers(8))
    return [content[:a], content[:b], b"", bytes(flipped), bytes(flipped), bytes(flipped),
            content[:a] + bytes(b - a) + content[b:], content[:a] + content[b:], content[:b] + content[a:],
            rng.bytes(min(n, 5000)), b"<html>404 not found</html>", content + b"\0" * 7,
            content[:a] + rng.bytes(b - a) + content[b:]][rng.integers(13)]


def odd_json(text: str, rng: np.random.Generator) -> str:
    """A JSON text with one value exchanged, taken out, or buried, somewhere in its tree."""
    content = json.loads(text)
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = keys[rng.integers(len(keys))]
        if isinstance(node[key], dict | list) and rng.random() < 0.85:
            node = node[key]
            continue
        if rng.random() < 0.25:
            del node[key]
        else:
            node[key] = ODD[rng.integers(len(ODD))]
        break
    if rng.random() < 0.03:
        return "[" * 100_000
    return json.dumps(ODD[rng.integers(len(ODD))] if rng.random() < 0.03 else content)


def damage(path: Path, rng: np.random.Generator) -> str:
    """Damage one file; what was done, in words."""
    content = path.read_bytes()
    path.unlink()
    if rng.random() < 0.04:
        return f"{path.name} taken away"
    if rng.random() < 0.04:
        path.mkdir()
        return f"{path.name} is a folder"
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(odd_json(content.decode(), rng))
        return f"{path.name} with an odd value"
    path.write_bytes(damaged(content, rng))
    return f"{path.name} damaged"


def some_file(folder: Path, rng: np.random.Generator, *patterns: str) -> Path:
    """A file of one of the patterns, each pattern as likely."""
    found = sorted(folder.glob(patterns[rng.integers(len(patterns))]))
    return found[rng.integers(len(found))]


# The kinds of cases: (stock, an empty folder, chance) -> what was done, and what then is asked of the package


def read_all(folder: Path) -> None:
    """Open both splits and read every item; label maps hold known classes only."""
    for split in ("train", "val"):
        dataset = sl.data.open_dataset(folder, split)
        for i in range(len(dataset)):
            image, label = dataset[i]
            assert image.shape[1:] == label.shape and image.dtype == torch.uint8, "image and label do not fit"
            assert set(label.unique().tolist()) <= {*range(len(dataset.classes)), 255}, "a label of no class"


def data_set(name: str, *patterns: str):
    def case(stock, here, rng):
        folder = copy(stock / name, here / name)
        what = damage(some_file(folder, rng, *patterns), rng)
        look = verify if rng.random() < 0.3 else read_all
        return f"{what}, {look.__name__}", lambda: look(folder)
    return case


def weights(name: str, *patterns: str):
    def case(stock, here, rng):
        folder = copy(stock / name, here / name)
        what = damage(some_file(folder, rng, *patterns), rng)

        def act():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = sl.SegFormer.from_pretrained(folder)
            if "pytorch_model.bin" in what:  # a zip file has check sums
                whole = sl.SegFormer.from_pretrained(stock / name).state_dict()
                same = all(torch.equal(value, whole[key]) for key, value in model.state_dict().items())
                assert same, "other numbers than were saved, and not a word"
        return what, act
    return case


def run_folder(stock, here, rng):
    folder = copy(stock / "run", here / "run")
    what = damage(some_file(folder, rng, "model.safetensors", "checkpoint.pt", "config.json", "log.jsonl"), rng)
    if rng.random() < 0.5:
        return f"{what}, loaded", lambda: sl.load_model(folder)
    return f"{what}, resumed", lambda: command(["train", "--resume", folder])


def header(stock, here, rng):
    """The description in the header of a run's weights, with an odd value."""
    folder = copy(stock / "run", here / "run")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8:8 + length])
    table["__metadata__"]["segformer_lite"] = odd_json(table["__metadata__"]["segformer_lite"], rng)
    new = json.dumps(table).encode()
    path.unlink()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length:])
    if rng.random() < 0.5:
        return "an odd header, loaded", lambda: sl.load_model(folder)
    return "an odd header, predict", lambda: command(
        ["predict", folder, stock / "pictures" / "0000-rgb.png", "--out", here / "out", "--device", "cpu"])


def predict(stock, here, rng):
    folder = copy(stock / "pictures", here / "pictures")
    what = [damage(some_file(folder, rng, "*"), rng) for _ in range(3)]
    return ", ".join(what), lambda: command(["predict", stock / "run", folder, "--out", here / "out", "--size", 32,
                                             "--device", "cpu"])


def arguments(stock, here, rng):
    """A command with an odd word in place of one of its arguments."""
    run, picture, coco, out = stock / "run", stock / "pictures" / "0000-rgb.png", stock / "coco", here / "out"
    small = ["--steps", 0, "--size", 32, "--batch-size", 2, "--device", "cpu", "--folder", out]
    argv = [["predict", run, picture, "--size", 32, "--device", "cpu", "--out", out],
            ["erf", run, picture, "--layer", "stage1", "--pixel", 3, 4, "--size", 32, "--device", "cpu", "--out", out],
            ["evaluate", run, "--data", coco, "--limit", 2, "--size", 32, "--device", "cpu", "--out", out / "r.json"],
            ["train", "--data", coco, *small, "--lr", 1e-3, "--warmup", 2, "--head-lr-mult", 2, "--seed", 1],
            ["train", "--data", coco, *small, "--augment", "flip", "--precision", "fp32", "--epochs", 0.0],
            ["train", "--data", coco, *small, "--weights", run, "--eval-every", 2, "--base-size", 32],
            ["data", "verify", stock / "own"], ["data", "sample", "coco", "--out", out],
            ["data", "pack", stock / "own", "--out", out, "--size", 32]][rng.integers(9)]
    argv = [str(word) for word in argv]
    spot = int(rng.integers(1, len(argv)))
    word = WORDS[rng.integers(len(WORDS))]
    if argv[spot - 1] == "--out" and not word.startswith("\0"):
        word = str(here / word.replace("..", "out"))  # wherever it is: in this case's own folder
    if argv[spot - 1] in ("--steps", "--epochs") and word.isdigit():
        word = "1"  # more would be refused by nobody, and take as long as it takes
    changed = [*argv[:spot], word, *argv[spot + 1:]]
    return " ".join(map(repr, changed))[:200], lambda: command(changed)


KINDS = {
    "COCO": data_set("coco", "annotations/*.json", "annotations/*.json", "*2017/*.jpg"),
    "chest CT": data_set("chest_ct", "train.csv", "images/images/*", "masks/masks/*"),
    "own folder": data_set("own", "classes.txt", "val.txt", "images/*", "masks/*"),
    "safetensors": weights("safetensors", "model.safetensors", "config.json"),
    "torch's .bin": weights("bin", "pytorch_model.bin", "pytorch_model.bin", "config.json"),
    "run's folder": run_folder,
    "run's header": header,
    "pictures": predict,
    "arguments": arguments,
}


# One case, and many


def command(argv: list) -> None:
    """A command of the CLI; what it may do is end with 0, or with 2 and nothing but its own lines."""
    out, said = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(said):
            status = cli([str(word) for word in argv])
    except SystemExit as stop:  # argparse: usage and one line
        status = stop.code
        assert status in (0, 2), f"exit status {status}"
        if status:
            raise ValueError(said.getvalue().strip().splitlines()[-1]) from None
        return
    lines = said.getvalue().splitlines()
    assert status in (0, 2), f"exit status {status}"
    assert all(line.startswith("segformer-lite: ") for line in lines), f"on stderr: {lines[:3]}"
    assert bool(lines) == (status == 2), f"exit status {status} with {len(lines)} lines on stderr"
    if status:
        raise ValueError(lines[0])


def listing(folder: Path) -> dict[str, tuple]:
    """Size and time of last change of every file in a folder."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))
            if path.is_file()}


def half_written(folder: Path) -> list[str]:
    """Files that a broken-off write would leave: parts, and results that do not open."""
    bad = [path.name for path in folder.rglob("*") if path.suffix in PARTS]
    for path in (folder / "out").rglob("*") if (folder / "out").is_dir() else ():
        try:
            if path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                safe_open(path, framework="pt")
        except Exception as error:
            bad.append(f"{path.name} ({error})")
    return bad


@contextmanager
def time_limit():
    def stop(*_):
        raise TooSlow(f"more than {LIMIT} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_case(number: int, stock: Path, seed: int = 0) -> tuple[str, str, str, str]:
    """(kind, what was done, outcome, what was said) of one case.

    The outcome is "accepted" or "refused"; else "traceback", "silent", "lost" or "half-written".
    """
    rng = np.random.default_rng([seed, number])
    kind = list(KINDS)[number % len(KINDS)]
    with tempfile.TemporaryDirectory(dir=stock.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = Path(folder)
        what, act = KINDS[kind](stock, here, rng)
        before = {**listing(here), **listing(stock)}
        outcome, said = "accepted", ""
        try:
            with time_limit(), chdir(here):
                act()
        except (ValueError, OSError) as error:
            outcome, said = "refused", str(error)
            if not said.strip() or "\n" in said.strip():
                outcome = "traceback"
        except AssertionError as error:
            outcome, said = "silent" if "not a word" in str(error) else "traceback", str(error)
        except BaseException as error:
            outcome, said = "traceback", f"{type(error).__name__}: {error}"
        after = {**listing(here), **listing(stock)}
        own = {name for name in before if Path(name).name in ("config.json", "log.jsonl", "report.json", "loss.png",
                                                               "figure.png", "report.txt", "model.safetensors",
                                                               "checkpoint.pt") and "resumed" in what}
        changed = [name for name, state in before.items() if name not in own and after.get(name) != state]
        changed += [name for name in own if outcome == "refused" and name not in after]
        if changed:
            outcome, said = "lost", f"{changed[0]} changed or gone; {said}"
        elif left := half_written(here):
            outcome, said = "half-written", f"{left[0]}; {said}"
    return kind, what, outcome, said.strip()[:300]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    table, wrong, began = {kind: Counter() for kind in KINDS}, [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEGFORMER_LITE_CACHE"] = str(Path(folder) / "cache")
        stock = make_stock(Path(folder) / "stock")
        for number in range(args.start, args.start + args.count):
            kind, what, outcome, said = run_case(number, stock)
            table[kind][outcome] += 1
            if outcome not in ("accepted", "refused"):
                wrong.append(f"case {number}, {kind}: {what}: {outcome}: {said}".replace(str(stock.parent), "…"))
                print(wrong[-1], flush=True)
            elif args.count == 1:
                print(f"{kind}: {what}: {outcome}: {said}".replace(str(stock.parent), "…"))
    outcomes = ("accepted", "refused", "traceback", "silent", "lost", "half-written")
    rows = {kind: {outcome: counts[outcome] for outcome in outcomes} for kind, counts in table.items()}
    total = {outcome: sum(row[outcome] for row in rows.values()) for outcome in outcomes}
    content = {"command": f"python benchmarks/fuzz.py --count {args.count}", "seed": 0,
               "python": platform.python_version(), "torch": torch.__version__.split("+")[0],
               "seconds": round(time.perf_counter() - began), "total": total, "kinds": rows, "wrong": wrong}
    print(json.dumps(total))
    if args.count > 1:
        write(args.out / "fuzz.json", content)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
