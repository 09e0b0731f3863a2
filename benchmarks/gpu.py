"""Every figure of this course that wants a CUDA GPU and minutes, not hours, in one go.

    python benchmarks/gpu.py

Training and inference beside other packages, as they are and compiled; then the report's two experiments: pictures a
second, idle time, projected hours, what 8 and 16 GB cards manage. Planned for eight minutes on a large card; not yet
run on one: its parts were tried on a CPU with small figures. Writes cuda-speed.json, cuda-speed-compiled.json,
report-presets.json and report-presets-compiled.json to docs/results; what fails is named.
"""

import subprocess
import sys
import time

import torch
from record import RESULTS, ROOT

BENCH = ["-m", "segformer_lite", "bench", "--device", "cuda", "--precisions", "bf16", "--sizes", "256"]
PRESETS = ["benchmarks/report_presets.py"]
PARTS = [
    [*BENCH, "--batches", "8", "32", "--out", str(RESULTS / "cuda-speed.json")],
    [*PRESETS, "--cards", "8", "16"],
    [*PRESETS, "--compile", "reduce-overhead"],
    [*BENCH, "--batches", "32", "--compile", "--out", str(RESULTS / "cuda-speed-compiled.json")],
]


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu.py: torch finds no CUDA GPU here; `python3 course.py doctor` says why", file=sys.stderr)
        return 2
    failed = 0
    for part in PARTS:
        began = time.monotonic()
        status = subprocess.run([sys.executable, *part], cwd=ROOT).returncode
        failed += status != 0
        print(f"{'ended' if status == 0 else 'FAILED'} after {time.monotonic() - began:.0f} s: python {' '.join(part)}",
              flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
