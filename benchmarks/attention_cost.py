"""Measure one stage-1 attention as the picture grows: time and memory, with and without sequence reduction.

    python benchmarks/attention_cost.py

Writes docs/results/attention-cost.json, which chapter 04 draws. One thread, float32, CPU, the sizes of B0 (32
channels, one head). Each size is measured in a process of its own: processor time of the fastest of several runs,
so that other programs do not count, and how far the peak of resident memory rises during them. Linux only,
because of how memory is read. Takes about two minutes.
"""

import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from record import RESULTS, write
from torch import Tensor

from segformer_lite import EfficientSelfAttention

SIDES = {  # pixels
    "full, matrix kept": (64, 128, 192, 256, 384),
    "full, fused": (64, 128, 192, 256, 384, 512, 768, 1024),
    "reduced, fused": (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
}


def kept_matrix(attention: EfficientSelfAttention, x: Tensor) -> Tensor:
    """The attention as equation 1 is printed: all N x N weights are written into memory."""
    q, k, v = attention.queries_keys_values(x)
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).reshape(x.shape))


def memory(field: str) -> float:
    """A figure of this process in MB: "VmRSS" now, "VmHWM" at its highest."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@torch.inference_mode()
def measure(form: str, side: int) -> dict:
    """Seconds and MB of one forward pass on the tokens of a side x side picture."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    attention = EfficientSelfAttention(dim=32, heads=1, stride=8 if form.startswith("reduced") else 1)
    run = kept_matrix if form.endswith("kept") else EfficientSelfAttention.forward
    run(attention, torch.randn(1, 16, 16, 32))  # what only the first call needs is not counted
    x = torch.randn(1, side // 4, side // 4, 32)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest value so far
    before, times = memory("VmRSS"), []
    while not times or (sum(times) < 2 and len(times) < 30):
        start = time.process_time()
        run(attention, x)
        times.append(time.process_time() - start)
    n, keys = x[0, ..., 0].numel(), x[0, ..., 0].numel() // attention.stride**2
    return {"form": form, "side": side, "tokens": n, "keys": keys, "entries": n * keys,
            "seconds": round(min(times), 6), "memory_mb": round(memory("VmHWM") - before, 1)}


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    rows = []
    for form, sides in SIDES.items():
        for side in sides:
            child = subprocess.run([sys.executable, __file__, form, str(side)], check=True, text=True,
                                   capture_output=True)
            rows.append(json.loads(child.stdout))
            print(rows[-1], flush=True)
    result = {"command": "python benchmarks/attention_cost.py", "machine": f"{platform.machine()} CPU, 1 thread",
              "python": platform.python_version(), "torch": torch.__version__.split("+")[0], "rows": rows}
    write(RESULTS / "attention-cost.json", result)


if __name__ == "__main__":
    main()
