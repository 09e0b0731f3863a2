"""Is this machine ready for the course? One line per check, each with a remedy where something is wrong.

Standard library only, and runnable as a file, so that it still answers when torch is missing or broken.
A check is a function of plain facts; `examine` gathers the facts.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
INSTALL = "run: python3 course.py run"
REINSTALL = "delete the folder .venv, then run: python3 course.py run"


@dataclass(frozen=True)
class Result:
    """One line of the report. passed: True [OK], False [FAIL], None [--] (optional, or only to know)."""

    name: str
    passed: bool | None
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {True: "[OK]  ", False: "[FAIL]", None: "[--]  "}[self.passed]
        return f"{mark} {self.name}: {self.detail}" + (f"\n         -> {self.remedy}" if self.remedy else "")


def check_python(version: tuple[int, ...]) -> Result:
    text = ".".join(map(str, version[:3]))
    if version[:2] < (3, 11):
        return Result("Python", False, f"{text}, needed is 3.11 or newer",
                      "install a newer one (python.org or your package manager) and make .venv anew with it")
    return Result("Python", True, text)


def check_environment(prefix: str, base_prefix: str, conda: str | None) -> Result:
    """prefix, base_prefix: as in `sys`; conda: the active conda environment's folder, if any."""
    if prefix != base_prefix:
        return Result("environment", True, Path(prefix).name)
    if conda:
        return Result("environment", True, f"conda, {Path(conda).name}")
    return Result("environment", None, f"none of its own, this is the Python in {prefix}",
                  f"to make one with everything in it, {INSTALL}")


def check_torch(facts: dict) -> Result:
    """facts: what TORCH_PROBE printed, or {"error": its last line}."""
    error = facts.get("error", "")
    if "No module named" in error:
        return Result("torch", False, error, INSTALL)
    if "torchvision::" in error:
        return Result("torch", False, f"torch and torchvision are not a pair ({error})", REINSTALL)
    if error:
        return Result("torch", False, f"does not import ({error})", REINSTALL)
    return Result("torch", True, f"torch {facts['torch']}, torchvision {facts['torchvision']}")


def check_gpu(facts: dict, driver: list[str], hidden: bool) -> Result:
    """driver: the GPUs that the NVIDIA driver lists; hidden: CUDA_VISIBLE_DEVICES is set and names none."""
    if "torch" not in facts:
        return Result("GPU", None, "not asked, because torch does not import")
    gpu = facts["gpu"]
    if gpu and facts["gpu_error"]:
        return Result("GPU", False, f"{gpu} does not compute with this torch ({facts['gpu_error']})",
                      "install the build of torch for this GPU (pytorch.org/get-started); until then, set "
                      "CUDA_VISIBLE_DEVICES to nothing and everything runs on the CPU")
    if gpu:
        return Result("GPU", True, f"{gpu}, {facts['gpu_gb']:.0f} GB, CUDA {facts['cuda']}")
    if hidden:
        return Result("GPU", None, "hidden by CUDA_VISIBLE_DEVICES, which names none: the CPU path works")
    if driver and facts["cuda"]:
        return Result("GPU", False, f"the driver of {driver[0]} does not serve torch's CUDA {facts['cuda']}",
                      "update the NVIDIA driver and restart; until then everything runs on the CPU")
    if driver:
        return Result("GPU", None, f"{driver[0]} is not used by this torch, a CPU build: the CPU path works",
                      "to use it, install the CUDA build of torch and torchvision (pytorch.org/get-started)")
    return Result("GPU", None, "no CUDA GPU: the CPU path works")


def check_memory(total: int | None) -> Result:
    """total: bytes of memory that this process may use, None where the system does not say."""
    if total is None:
        return Result("memory", None, "this system does not say how much there is")
    if total < 3.5e9:       # a machine sold with 4 GB shows a little less
        return Result("memory", False, f"{total / 1e9:.1f} GB, the chapters are made for 4 GB or more",
                      "close other programs, and train with a smaller batch (segformer-lite train --help)")
    return Result("memory", True, f"{total / 1e9:.0f} GB")


def check_disk(free: int, needed_gb: float) -> Result:
    if free < needed_gb * 1e9:
        return Result("disk", False, f"{free / 1e9:.1f} GB free, needed are {needed_gb:g} GB",
                      "free some space, or set SEGFORMER_LITE_VENV to a folder on a larger disk")
    return Result("disk", True, f"{free / 1e9:.0f} GB free")


def check_kernel(facts: dict, python: str) -> Result:
    """facts: what KERNEL_PROBE printed, or {"error": its last line}; python: the running interpreter."""
    error = facts.get("error", "")
    if "No module named 'jupyterlab'" in error:
        return Result("notebooks", None, "JupyterLab is not installed", "for the chapters run: python3 course.py lab")
    if error:
        return Result("notebooks", False, f"JupyterLab is not complete ({error})",
                      "delete the folder .venv, then run: python3 course.py lab")
    starts = facts["argv"][0] if facts["argv"] else "nothing"
    if starts not in ("python", python):            # "python" stands for the interpreter that runs Jupyter
        return Result("notebooks", False, f"the kernel python3 starts {starts}, not this environment",
                      f"remove that kernel: {python} -m jupyter kernelspec remove python3")
    return Result("notebooks", True, "the kernel python3 is there")


def program(python: str) -> str:
    """segformer-lite as one types it in the course's folder: with its place, where the shell would not find it."""
    place = shutil.which("segformer-lite", path=str(Path(python).parent))
    if place is None or shutil.which("segformer-lite"):
        return "segformer-lite"
    return str(Path(place).relative_to(HERE) if Path(place).is_relative_to(HERE) else place)


FETCH = {"coco": "data coco --images 5000 --out data/coco",
         "chest_ct": "data chest-ct --zip FILE --out data/chest_ct"}
LAYOUTS: dict[str, list[tuple[str, ...]]] = {     # what lies in a data set's folder, in any one of these ways
    "coco": [("annotations/instances_train2017.json", "train2017"),
             ("annotations/instances_val2017.json", "val2017")],
    "chest_ct": [("train.csv", "images", "masks")],
}


def check_data(data: Path) -> list[Result]:
    """One line per real data set: absent is no fault, incomplete is one."""
    results = []
    for data_set, layouts in LAYOUTS.items():
        folder, name = data / data_set, f"data/{data_set}"
        if any(all((folder / part).exists() for part in layout) for layout in layouts):
            results.append(Result(name, True, "there"))
        elif folder.is_dir():
            expected = ", or ".join(" and ".join(layout) for layout in layouts)
            results.append(Result(name, False, f"incomplete, expected {expected}",
                                  f"{program(sys.executable)} data verify {name} says what is missing"))
        else:
            results.append(Result(name, None, "not here, and not needed: the course makes its own sample",
                                  f"to have it all the same: {program(sys.executable)} {FETCH[data_set]}"))
    return results


def check_writable(folder: Path) -> Result:
    """May files be made in `folder`, or where it would be made?"""
    place = folder
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return Result(f"{folder.name}/", True, "may be written")
    except OSError as error:
        return Result(f"{folder.name}/", False, f"may not be written ({error.strerror})",
                      "move the course into a folder of your own, or ask for the right to write there")


TORCH_PROBE = """
import json, torch, torchvision
facts = dict(torch=torch.__version__, torchvision=torchvision.__version__, cuda=torch.version.cuda,
             gpu="", gpu_gb=0, gpu_error="")
if torch.cuda.is_available():
    try:
        facts["gpu"] = torch.cuda.get_device_name(0)
        facts["gpu_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
        torch.ones(8, device="cuda").sum().item()
    except Exception as error:
        facts["gpu"] = facts["gpu"] or "a CUDA GPU"
        facts["gpu_error"] = str(error).strip().splitlines()[0]
print(json.dumps(facts))
"""
KERNEL_PROBE = """
import json, jupyterlab, ipykernel, ipywidgets
from jupyter_client.kernelspec import KernelSpecManager
print(json.dumps({"argv": KernelSpecManager().get_kernel_spec("python3").argv}))
"""


def probe(code: str) -> dict:
    """Run `code` in a Python of its own, which may crash; return its last line's JSON, or {"error": …}."""
    command = [sys.executable, "-P", "-c", code]        # -P: files in the current folder are not imported
    answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if answer.returncode == 0:
        return json.loads(answer.stdout.splitlines()[-1])
    last = (answer.stderr.strip().splitlines() or [f"Python ended with status {answer.returncode}"])[-1]
    return {"error": last.removeprefix("ModuleNotFoundError: ").removeprefix("RuntimeError: ")}


def driver_gpus() -> list[str]:
    """Names of the GPUs that the NVIDIA driver knows, by its own tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def memory_bytes() -> int | None:
    """The machine's memory, or a container's share of it."""
    if sys.platform == "win32":
        class Status(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong),
                        *((name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e"))]
        status = Status(length=ctypes.sizeof(Status))
        return status.total if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = Path("/sys/fs/cgroup/memory.max")
        share = limit.read_text().strip() if limit.exists() else "max"
        return min(total, int(share)) if share.isdigit() else total
    except (OSError, ValueError):
        return None


def examine(root: Path) -> list[Result]:
    """Run every check on this machine. root: the course's folder."""
    data = Path(os.environ.get("SEGFORMER_LITE_DATA") or root / "data")
    runs = Path(os.environ.get("SEGFORMER_LITE_RUNS") or root / "runs")
    torch_facts = probe(TORCH_PROBE)
    installed = importlib.util.find_spec("torch") is not None
    return [
        check_python(sys.version_info[:3]),
        check_environment(sys.prefix, sys.base_prefix, os.environ.get("CONDA_PREFIX")),
        check_torch(torch_facts),
        check_gpu(torch_facts, driver_gpus(), hidden=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")),
        check_memory(memory_bytes()),
        check_disk(shutil.disk_usage(root).free, needed_gb=2 if installed else 8),
        check_kernel(probe(KERNEL_PROBE), sys.executable),
        *check_data(data),
        check_writable(data),
        check_writable(runs),
        check_writable(root / "work"),
    ]


def main() -> int:
    """Print the report; return 1 if anything failed, else 0."""
    results = examine(HERE if (HERE / "course.py").exists() else Path.cwd())
    print(*results, sep="\n")
    failed = sum(result.passed is False for result in results)
    print(f"\n{failed} of {len(results)} checks failed." if failed else "\nReady.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
