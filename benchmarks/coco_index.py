"""Opening a full-size COCO: time and memory of the index, beside pycocotools' own.

    python benchmarks/coco_index.py

Draws a JSON of the size of instances_train2017 from a seed (118,287 pictures, 860,001 outlines, 469 MB; the pictures
are empty files, which an index does not open), then opens it in turns with `pycocotools.coco.COCO` and with
`CocoSegmentation`, each time in a process of its own, which has imported what it needs. Writes
docs/results/coco-index.json. Takes five minutes and 3 GB of memory; Linux only.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
from record import RESULTS, versions, write

from segformer_lite.analysis.speed import Timing

PICTURES, OUTLINES = 118_287, 860_001  # of COCO 2017's training part
POINTS = (4, 46)  # of an outline, which brings the file to its 450 MB
OPEN = {  # name -> what is imported before the clock starts, and what is timed
    "pycocotools": ("from pycocotools.coco import COCO", "COCO(root + '/annotations/instances_train2017.json')"),
    "segformer_lite": ("from segformer_lite.data.coco import CocoSegmentation", "CocoSegmentation(root)"),
    "segformer_lite, persons": ("from segformer_lite.data.coco import CocoSegmentation",
                                "CocoSegmentation(root, classes=['person'], limit=10000)"),
}
MEASURE = """
import resource, sys, time
{imports}
memory = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
root, before, began = sys.argv[1], memory(), time.perf_counter()
index = {open}
print("figures", time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
      memory() - before)
"""


def draw(root: Path, pictures: int, outlines: int, seed: int = 0) -> int:
    """Write a COCO folder of outlines drawn at random; returns the bytes of its JSON."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    path = root / "annotations" / "instances_train2017.json"
    with open(path, "w") as file:
        images = [{"license": 1, "file_name": f"{i:012d}.jpg", "coco_url": f"images/train2017/{i:012d}.jpg",
                   "height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", "id": i}
                  for i in range(pictures)]
        categories = [{"supercategory": "thing", "id": 1 + i, "name": "person" if i == 0 else f"thing {i}"}
                      for i in range(80)]
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [')
        for i in range(outlines):
            outline = (rng.random(2 * rng.integers(*POINTS, endpoint=True)) * 480).round(2).tolist()
            annotation = {"segmentation": [outline], "area": 1234.5, "iscrowd": 0,
                          "image_id": int(rng.integers(pictures)), "bbox": [0.0, 0.0, 480.0, 480.0],
                          "category_id": int(1 + min(rng.geometric(0.15) - 1, 79)), "id": i}
            file.write((", " if i else "") + json.dumps(annotation))
        file.write("]}")
    for image in images:
        (root / "train2017" / image["file_name"]).touch()
    return path.stat().st_size


def measure(root: Path, name: str) -> tuple[float, float, float]:
    """Seconds, and GB of memory at the worst moment and afterwards, of one way to open the folder."""
    imports, opening = OPEN[name]
    code = MEASURE.replace("{imports}", imports).replace("{open}", opening)
    answer = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"{name} did not open {root}: {answer.stderr.strip().splitlines()[-1]}")
    seconds, peak, after = map(float, answer.stdout.split("figures")[1].split())
    return seconds, peak / 1e9, after / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--outlines", type=int, default=OUTLINES)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "coco-index.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coco"
        size = draw(root, PICTURES * arguments.outlines // OUTLINES, arguments.outlines)
        turns = [{name: measure(root, name) for name in OPEN} for _ in range(arguments.turns)]
    timing = Timing({name: [turn[name][0] for turn in turns] for name in OPEN})
    result = {
        "command": "python benchmarks/coco_index.py", "machine": f"{platform.machine()} CPU", **versions(),
        "pycocotools": metadata.version("pycocotools"),
        "pictures": PICTURES * arguments.outlines // OUTLINES, "outlines": arguments.outlines,
        "json_mb": round(size / 1e6), "seconds": {n: [round(s, 1) for s in v] for n, v in timing.seconds.items()},
        "times as long as pycocotools": {
            name: [round(r, 2) for r in timing.ratio(name, "pycocotools")] for name in OPEN if name != "pycocotools"},
        "peak_gb": {name: round(statistics.median(turn[name][1] for turn in turns), 2) for name in OPEN},
        "kept_gb": {name: round(statistics.median(turn[name][2] for turn in turns), 2) for name in OPEN},
    }
    write(arguments.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
