#!/usr/bin/env python3
"""The SegFormer course: run, lab, test, doctor.

Needs nothing but Python 3.11 or newer. On first use each command makes a virtual environment in .venv and
installs what it needs there; later calls start at once.
"""
import sys

if sys.version_info < (3, 11):      # before anything that an older Python could not read
    sys.exit("course.py: the course needs Python 3.11 or newer, and this is Python %d.%d (%s). Install a"
             " newer one (python.org or your package manager) and call it, as in: python3.12 course.py run"
             % (sys.version_info[0], sys.version_info[1], sys.executable))

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NOTEBOOKS, WORK = ROOT / "notebooks", ROOT / "work"
DOCTOR = ROOT / "segformer_lite" / "course" / "doctor.py"
CUDA = sys.platform == "linux"       # there, PyTorch's packages bring the CUDA libraries along
FULL_GB, FULL_SIZE = (8, "about 6 GB, most of it CUDA libraries") if CUDA else (4, "one to two GB")
EXTRA_GB, EXTRA_SIZE = 1, "a few 100 MB at most"      # when torch is there already


def stop(problem):
    """End with one line for people and status 1."""
    raise SystemExit(f"course.py: {problem}")


def call(command, env=None, watch=False):
    """Show `command`, run it in the course's folder, return its exit status and, with `watch`, its stderr.

    Ctrl-C goes to the command, which may have something to save or to ask; this process waits for it.
    """
    command = [str(part) for part in command]
    print("$ " + subprocess.list2cmdline(command).replace(str(ROOT) + os.sep, ""), flush=True)
    interrupted, errors = [], []
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    try:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE if watch else None,
                                 text=True, errors="replace")
        for line in child.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            errors.append(line)
        status = child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted and status:
        raise KeyboardInterrupt
    if status == -9:
        stop("the command above was killed (signal 9), most often because memory ran out: "
             "close other programs and try again.")
    return (status if status >= 0 else 128 - status), "".join(errors)


# ----------------------------------------------------------------------------------------------------
# .venv

def venv_folder():
    return Path(os.environ.get("SEGFORMER_LITE_VENV") or ROOT / ".venv").absolute()


def venv_python(venv):
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def look_into(venv):
    """Ask the environment's Python for its version and the modules it finds; None if it does not start."""
    code = ("import json, sys, importlib.util as u; print(json.dumps([sys.version_info[:2], "
            "[m for m in ('pip', 'torch', 'segformer_lite') if u.find_spec(m)]]))")
    try:
        answer = subprocess.run([venv_python(venv), "-c", code], cwd=venv,
                                capture_output=True, text=True, check=True)
        version, modules = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.CalledProcessError):
        return None
    return tuple(version), modules


def fingerprint():
    """What an installation depends on: the two files that list packages, and where the course lies."""
    files = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*files, str(ROOT).encode()])).hexdigest()


def read_stamp(venv):
    """The fingerprint and extras of the last finished installation; empty where there was none."""
    try:
        stamp = json.loads((venv / "segformer_course.json").read_text())
        return stamp["fingerprint"], set(stamp["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", set()


def write_stamp(venv, extras):
    part = venv / "segformer_course.json.part"
    part.write_text(json.dumps({"fingerprint": fingerprint(), "extras": sorted(extras)}))
    os.replace(part, venv / "segformer_course.json")


def check_disk(folder, gigabytes):
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        stop(f"only {free:.1f} GB free at {folder}, and installing needs {gigabytes} GB. Free some space, "
             "or set the environment variable SEGFORMER_LITE_VENV to a folder on a larger disk.")


def make_venv(venv):
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            stop(f"this Python ({sys.executable}) comes without its module {module}. On Debian or Ubuntu: "
                 "sudo apt install python3-venv; elsewhere install Python from python.org. Then try again.")
    if venv.exists() and not (venv / "pyvenv.cfg").exists() and (venv.is_file() or any(venv.iterdir())):
        stop(f"{venv} is there but is no virtual environment. "
             "Move it away, or set SEGFORMER_LITE_VENV to another folder.")
    check_disk(venv, FULL_GB)
    print(f"{'Repairing' if venv.exists() else 'Making'} the virtual environment {venv}", flush=True)
    if call([sys.executable, "-m", "venv", "--clear", venv])[0]:
        stop(f"Python could not make {venv} (its own message is above). Check that you may write there.")


def ensure(*extras):
    """Make or mend the environment so that it holds the course with `extras`; return its Python's path."""
    venv = venv_folder()
    python = venv_python(venv)
    state = look_into(venv)
    if state is None:
        make_venv(venv)
        state = look_into(venv) or stop(f"the new {venv} does not start. Delete it and try again.")
    version, modules = state
    if version < (3, 11):
        stop(f"{venv} was made by Python {version[0]}.{version[1]}, and the course needs 3.11 or newer. "
             "Delete that folder and try again, or set SEGFORMER_LITE_VENV to another one.")
    installed, have = read_stamp(venv)
    if installed == fingerprint() and have >= set(extras) and {"torch", "segformer_lite"} <= set(modules):
        return python
    if "pip" not in modules and call([python, "-m", "ensurepip", "--upgrade"])[0]:
        stop(f"{venv} has no pip. Delete that folder and try again.")
    install(venv, sorted(have | set(extras)), first="torch" not in modules)
    return python


def install(venv, extras, first):
    check_disk(venv, FULL_GB if first else EXTRA_GB)
    print(f"Installing the course into {venv}: {FULL_SIZE if first else EXTRA_SIZE}, "
          f"{'a few minutes' if first else 'seconds'} on a fast connection.", flush=True)
    (venv / "segformer_course.json").unlink(missing_ok=True)     # so that a half-finished installation shows
    target = f".[{','.join(extras)}]" if extras else "."
    status, errors = call([venv_python(venv), "-m", "pip", "install", "--disable-pip-version-check",
                           "-e", target, "-c", "constraints.txt"], watch=True)
    if status:
        stop(explain(errors))
    write_stamp(venv, extras)


def explain(errors):
    """One line on why pip failed and what to do, from what it wrote to stderr."""
    def says(*signs):
        return any(sign.lower() in errors.lower() for sign in signs)

    if says("No space left", "Errno 28", "not enough space"):
        return ("the disk is full. Free some space, or set SEGFORMER_LITE_VENV (for the packages) and TMPDIR "
                "(for pip's downloads) to folders on a larger disk; then try again.")
    if says("CERTIFICATE_VERIFY_FAILED", "SSLError"):
        return ("the connection's certificate was not accepted, as happens behind a company's proxy. "
                "Give pip the proxy's certificate (environment variable PIP_CERT); then try again.")
    if says("Failed to establish", "NameResolution", "ConnectTimeout", "ReadTimeout", "Read timed out",
            "ProxyError", "ConnectionReset", "Connection aborted", "Max retries", "Network is unreachable"):
        return "the network could not be reached. Check the connection or proxy; then try again."
    if says("Permission denied", "Errno 13", "WinError 5"):
        return ("a file could not be written. Close programs that use the environment and check that the "
                "folder is yours, or set SEGFORMER_LITE_VENV to a folder of your own; then try again.")
    if says("No matching distribution", "ResolutionImpossible", "conflicting dependencies"):
        python = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sys.platform}"
        return (f"a package has no version for this system ({python}; pip's lines above name the package). "
                "PyTorch has none for Intel Macs and 32-bit systems; if yours is very new, try an older one.")
    return "pip could not install the course; its message is above. If in doubt, delete .venv and try again."


# ----------------------------------------------------------------------------------------------------
# the four commands

def run(arguments):
    return call([ensure(), "-m", "segformer_lite", "train", "--preset", "sample-coco", *arguments])[0]


def chapters():
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def without_results(chapter):
    """The text of a chapter's notebook as it was before it ran: its results would give every prediction away."""
    book = json.loads(chapter.read_text(encoding="utf-8"))
    for cell in book.get("cells", []):
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def copy_chapters():
    """Copy the chapters that work/ lacks, never touch one that it holds; say what is new or has changed."""
    WORK.mkdir(exist_ok=True)
    record = WORK / ".copied.json"
    try:
        copied = json.loads(record.read_text())
    except (OSError, ValueError):
        copied = {}
    for chapter in chapters():
        mine, now = WORK / chapter.name, hashlib.sha256(chapter.read_bytes()).hexdigest()
        if not mine.exists():
            mine.with_suffix(".part").write_text(without_results(chapter), encoding="utf-8")
            os.replace(mine.with_suffix(".part"), mine)
            copied[chapter.name] = now
            print(f"new: work/{chapter.name}")
        elif copied.get(chapter.name, now) != now:
            print(f"changed: notebooks/{chapter.name} is newer than your copy. Yours in work/ stays as it "
                  "is; to get the new one too, rename yours and start lab again.")
    part = record.with_suffix(".part")
    part.write_text(json.dumps(copied, indent=1))
    os.replace(part, record)


def lab(arguments):
    wanted = "00"
    if arguments and not arguments[0].startswith("-"):
        wanted, *arguments = arguments
    names = [chapter.name for chapter in chapters()]
    chosen = [name for name in names if name.startswith(wanted.zfill(2) + "_") or wanted in (name, name[:-6])]
    if not chosen:
        print(f"course.py: there is no chapter {wanted!r}; there are: {', '.join(names) or 'none'}",
              file=sys.stderr)
        return 2
    python = ensure("course")
    copy_chapters()
    # The folder shown is the course's, since solutions lie in notebooks/; the address printed is the chapter's.
    places = f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url=/lab/tree/work/{chosen[0]}"
    return call([python, "-m", "jupyterlab", *places, *arguments])[0]


def test(arguments):
    """Run pytest on tests, chapters and solutions, or only on .py and .ipynb files among the arguments."""
    python = ensure("test")
    named = any(argument.split("::")[0].endswith((".py", ".ipynb")) for argument in arguments)
    notebooks = chapters() + sorted(NOTEBOOKS.glob("solutions/[0-9][0-9]_*.ipynb"))
    # One thread on the CPU: the numbers stored in the chapters are compared with those of this run.
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                        "PYTHONHASHSEED": "0", "SEGFORMER_TEST": "1", "SEGFORMER_LITE_MODE": "fast",
                        "SEGFORMER_QUICK": "1"}     # a chapter's own training is cut short
    env.pop("MPLBACKEND", None)         # a kernel chooses its own, tests/conftest.py sets that of the tests
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile",
               "--nbval", "--nbval-current-env", "--nbval-cell-timeout=120",
               "--nbval-sanitize-with", "tests/nbval_sanitize.cfg"]
    files = [] if named else ["tests", *(path.relative_to(ROOT) for path in notebooks)]
    # What tests and chapters write goes with them, and the learner's runs/ stays clean.
    with tempfile.TemporaryDirectory(prefix="segformer_tests_", ignore_cleanup_errors=True) as scratch:
        env |= {"TMPDIR": scratch, "SEGFORMER_LITE_RUNS": os.path.join(scratch, "runs")}
        return call([*command, *files, *arguments], env=env)[0]


def doctor(arguments):
    """Run the checks with the environment's Python, or with this one where no environment works."""
    if arguments:
        print(f"course.py: doctor takes no arguments, got {' '.join(arguments)}", file=sys.stderr)
        return 2
    venv = venv_folder()
    state = look_into(venv)
    return call([venv_python(venv) if state and state[0] >= (3, 11) else sys.executable, DOCTOR])[0]


COMMANDS = {
    run: ("make the synthetic sample, train SegFormer-B0 from scratch, show its masks",
          "Further arguments go to `segformer-lite train --preset sample-coco`.",
          "python3 course.py run"),
    lab: ("copy new chapters into work/ and open JupyterLab there",
          "First argument: a chapter's number or name (00 if none). Further arguments go to JupyterLab.\n"
          "The copies begin without results: run the cells. They are never overwritten.",
          "python3 course.py lab 03 --no-browser"),
    test: ("run every test, the chapters included",
           "Further arguments go to pytest; test files or notebooks among them run alone.",
           "python3 course.py test -k coco"),
    doctor: ("check this machine and say how to mend what is wrong",
             "Installs nothing.",
             "python3 course.py doctor"),
}


def main(argv=None):
    examples = "".join(f"\n  {example}" for _, _, example in COMMANDS.values())
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(
        prog="course.py", description=__doc__, **style,
        epilog=f"examples (on Windows: py instead of python3):{examples}\n\n"
               "The environment variable SEGFORMER_LITE_VENV names another place for .venv.")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    for function, (purpose, details, example) in COMMANDS.items():
        command = commands.add_parser(function.__name__, help=purpose, description=f"{purpose}.\n{details}",
                                      epilog=f"example: {example}", **style)
        command.set_defaults(function=function)
    options, rest = parser.parse_known_args(argv)
    try:
        return options.function(rest)
    except KeyboardInterrupt:
        print("\ncourse.py: stopped. The same command goes on from here.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
