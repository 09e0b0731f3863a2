"""Measure how fast pictures come: packing, reading, augmentation, in images per second of one core (or one GPU).

    python benchmarks/data_rates.py --data data/coco

Writes docs/results/data-rates.json. Each rate is of one thread, by its processor time, so that other programs do not
count; the best of three passes over the same pictures (of one for packing, which includes decoding, painting the label
maps and resizing). "rasterise" is the painting of COCO's outlines alone; "read source" finds them painted in its best
pass. Where there is a CUDA GPU, batches of 32 are augmented there as well, by the clock. Takes half a minute.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import RESULTS, write

import segformer_lite as sl
from segformer_lite.data import BatchAugmentation, augmentation, open_dataset, pack, pack_dataset, resize_short_side
from segformer_lite.data.batch_transforms import STEPS, chances, on_canvas
from segformer_lite.data.coco import CocoSegmentation, paint

BATCH = 32


def rate(count: int, action: Callable[[], object], passes: int = 3, clock=time.process_time) -> float:
    """Images per second of an action on `count` images: the best of several passes."""
    times = []
    for _ in range(passes):
        start = clock()
        action()
        times.append(clock() - start)
    return float(f"{count / min(times):.3g}")


def recipes_alone(items: list, size: int) -> dict[str, float]:
    """Rates of the recipes, picture by picture."""
    rates = {}
    for name in STEPS:
        transform = augmentation(name, size)
        torch.manual_seed(0)
        rates[name] = rate(len(items), lambda transform=transform: [transform(*item) for item in items])
    return rates


def recipes_in_batches(items: list, size: int) -> dict[str, float]:
    """Rates of the recipes on whole batches that lie on the GPU already."""
    batches = [[(image, label, chances(start + i)) for i, (image, label) in enumerate(items[start : start + BATCH])]
               for start in range(0, len(items), BATCH)]
    batches = [tuple(part.cuda() for part in on_canvas(batch)) for batch in batches]
    rates = {}
    for name in STEPS:
        augment = BatchAugmentation(name, size)

        def passed(augment=augment):
            for batch in batches:
                augment(*batch)
            torch.cuda.synchronize()

        passed()  # what only the first call needs is not counted
        rates[name] = rate(len(items), passed, clock=time.perf_counter)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="sample-coco", help="a data set's name or folder")
    parser.add_argument("--size", type=int, default=256, help="base size and size of the crops, px")
    parser.add_argument("--limit", type=int, default=128, help="how many training pictures are measured")
    parser.add_argument("--out", type=Path, default=RESULTS / "data-rates.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.cpu_count = lambda: 1  # packing would share its work among all cores
    size, limit = arguments.size, arguments.limit
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEGFORMER_LITE_CACHE"] = folder  # so that label maps are painted here and now
        packed = Path(folder) / "pack"
        count = sum(len(open_dataset(arguments.data, split, limit=limit)) for split in ("train", "val"))
        rates = {"pack": rate(count, lambda: pack_dataset(arguments.data, packed, size, limit=limit), passes=1)}
        source, items = open_dataset(arguments.data, limit=limit), open_dataset(packed)
        if isinstance(source, CocoSegmentation):
            jobs = [(outlines, (image["width"], image["height"]), source.label_of_category)
                    for outlines, image in zip(source.annotations, source.images, strict=True)]
            rates["rasterise"] = rate(len(jobs), lambda: [paint(*job) for job in jobs])
        rates["read source, resize"] = rate(
            len(source), lambda: [resize_short_side(*source[i], size) for i in range(len(source))])
        rates["read pack"] = rate(len(items), lambda: [items[i] for i in range(len(items))])
        base = [items[i] for i in range(len(items))]
        bytes_each = sum((packed / name).stat().st_size for name in (pack.IMAGES, pack.LABELS)) / count
        plain = [tuple(part.as_subclass(torch.Tensor) for part in item) for item in base]
        rates["augment, picture by picture"] = recipes_alone(base, size)
        if torch.cuda.is_available():
            rates["augment, in batches"] = recipes_in_batches(plain, size)
    result = {
        "command": f"python benchmarks/data_rates.py --data data/{Path(arguments.data).name}",
        "unit": "images per second of one thread, in batches of the GPU",
        "machine": f"{platform.machine()} CPU, 1 thread",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(), "torch": torch.__version__.split("+")[0], "package": sl.__version__,
        "data": Path(arguments.data).name, "images": len(base), "size": size,
        "bytes an image in the pack": round(bytes_each), "rates": rates,
    }
    write(arguments.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
