"""Every figure of this course that wants a CUDA GPU and minutes, not hours, in one go.

    python benchmarks/gpu.py                        all four parts
    python benchmarks/gpu.py 0 2                    two of them, nothing compiled

Part 0 is training and inference beside other packages, part 1 training beside them compiled, part 2 the report's two
experiments (pictures a second, idle time, projected hours, what a card of 8 GB manages), part 3 these compiled, with
CUDA graphs.
It ends within eight minutes: a part may take its share of those left, and what it has measured by then stays. Not yet
run on a GPU: its parts were tried on a CPU with small figures, but for what only a GPU is asked (memory, idle time).
Where the package is not installed, set PYTHONPATH to the course's folder. Writes cuda-speed.json,
cuda-speed-compiled.json, report-presets.json and report-presets-compiled.json to docs/results; what fails or is stopped
is named. Then `python benchmarks/speed_table.py` has them in its table.
"""

import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from record import RESULTS, ROOT

MINUTES = 8
BENCH = ["-m", "segformer_lite", "bench", "--device", "cuda", "--precisions", "bf16", "--sizes", "256", "--turns", "30"]
PRESETS = ["benchmarks/report_presets.py"]
PARTS = [
    [*BENCH, "--batches", "8", "32", "--out", str(RESULTS / "cuda-speed.json")],
    [*BENCH, "--batches", "32", "--work", "training", "--compile", "--out", str(RESULTS / "cuda-speed-compiled.json")],
    [*PRESETS, "--cards", "8"],
    [*PRESETS, "--compile", "reduce-overhead"],  # last, so that it has all the time the others leave: it compiles most
]


def main(numbers: Sequence[str] = ()) -> int:
    if not torch.cuda.is_available():
        print("gpu.py: torch finds no CUDA GPU here; `python3 course.py doctor` says why", file=sys.stderr)
        return 2
    if wrong := set(numbers) - set(map(str, range(len(PARTS)))):
        print(f"gpu.py: no part {min(wrong)!r}; there are 0 to {len(PARTS) - 1}", file=sys.stderr)
        return 2
    end, failed = time.monotonic() + 60 * MINUTES, 0
    parts = [PARTS[int(number)] for number in numbers] or PARTS
    for waiting, part in zip(range(len(parts), 0, -1), parts, strict=True):
        began = time.monotonic()
        try:
            status = subprocess.run([sys.executable, *part], cwd=ROOT, timeout=(end - began) / waiting).returncode
            said = "FAILED" if status else "ended"
        except subprocess.TimeoutExpired:
            said = "STOPPED, the rows it has printed are written,"
        failed += said == "FAILED"
        print(f"{said} after {time.monotonic() - began:.0f} s: python {' '.join(part)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
