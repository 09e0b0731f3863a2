"""Setting up: the package lists agree, course.py does what it says, the doctor finds planted faults."""

import ast
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from segformer_lite.course import doctor

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "course.py"


# ----------------------------------------------------------------------------------------------------
# the lists of packages

@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_pin_what_pyproject_asks_for(project, constraints):
    pins = {canonicalize_name(pin.name): str(pin.specifier) for pin in constraints}
    assert len(pins) == len(constraints)
    assert all(re.fullmatch(r"==[\w.]+", pin) for pin in pins.values())
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["course"], *extras["test"], *extras["hub"], *extras["site"]]
    for need in map(Requirement, lines):
        if need.name != project["name"]:
            assert need.specifier, f"{need} states no lowest version"
            assert need.specifier.contains(pins[canonicalize_name(need.name)][2:]), need


def test_constraints_hold_for_every_system(constraints):
    assert not [pin.name for pin in constraints if re.match("nvidia|cuda|triton", pin.name)]


def test_test_extra_holds_the_extras_that_tests_use(project):
    assert "segformer-lite[course,site]" in project["optional-dependencies"]["test"]


def test_environment_yml_only_points_to_the_lists(project):
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, listed = conda["dependencies"]
    need = Requirement(python)
    assert (need.name, need.specifier) == ("python", SpecifierSet(project["requires-python"]))
    assert pip == "pip"
    assert listed == {"pip": ["-c constraints.txt", "-e .[course,test]"]}
    assert {"course", "test"} <= set(project["optional-dependencies"])


def test_the_version_is_stated_once_and_cited(project):
    import segformer_lite

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" not in project and "version" in project["dynamic"]
    assert segformer_lite.__version__ == str(citation["version"])
    newest = re.search(r"^## (\d\S*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == segformer_lite.__version__


# ----------------------------------------------------------------------------------------------------
# course.py

@pytest.fixture
def course(tmp_path, monkeypatch):
    """course.py as a module, its folder a temporary one, its calls recorded in `calls` instead of made."""
    spec = importlib.util.spec_from_file_location("course", COURSE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.delenv("SEGFORMER_LITE_VENV", raising=False)
    module.calls, module.answer = [], (0, "")
    module.state = ((3, 11), ["pip", "torch", "segformer_lite"])

    def call(command, env=None, watch=False):
        module.calls.append(([str(part) for part in command], env))
        if command[1:3] == ["-m", "venv"]:
            make_venv(tmp_path)
        return module.answer

    monkeypatch.setattr(module, "call", call)
    module.look = module.look_into
    monkeypatch.setattr(module, "look_into", lambda v: module.state if (v / "pyvenv.cfg").exists() else None)
    return module


def make_venv(root: Path) -> None:
    (root / ".venv").mkdir(exist_ok=True)
    (root / ".venv" / "pyvenv.cfg").touch()


def chapter(root: Path, name: str, text: str = "") -> Path:
    """A chapter that has been run: a cell of text, and one of code with its result."""
    code = {"cell_type": "code", "source": text, "outputs": [{"text": "the answer"}], "execution_count": 1}
    path = root / "notebooks" / name
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "Größe"}, code], "nbformat": 4}))
    return path


def source(path: Path) -> str:
    return json.loads(path.read_text())["cells"][1]["source"]


def pip_targets(course) -> list[str]:
    return [command[command.index("-e") + 1] for command, _ in course.calls if command[1:3] == ["-m", "pip"]]


def fails_with(pattern: str):
    """The block ends the program, with status 1 and one line that matches."""
    return pytest.raises(SystemExit, match=rf"\Acourse\.py: [^\n]*{pattern}[^\n]*\Z")


def test_old_python_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with fails_with(r"needs Python 3\.11 or newer, and this is Python 3\.10"):
        runpy.run_path(str(COURSE), run_name="__main__")


def test_old_python_can_read_the_file():
    ast.parse(COURSE.read_text(), feature_version=(3, 6))


def test_help_shows_an_example_of_every_command():
    for command in ("run", "lab", "test", "doctor"):
        for arguments in (["--help"], [command, "--help"]):
            answer = subprocess.run([sys.executable, COURSE, *arguments], capture_output=True, text=True)
            assert answer.returncode == 0 and f"python3 course.py {command}" in answer.stdout


def test_wrong_command_is_status_2(course, capsys):
    with pytest.raises(SystemExit) as ended:
        course.main(["rnu"])
    assert ended.value.code == 2
    assert course.main(["doctor", "--fix"]) == 2
    assert "--fix" in capsys.readouterr().err


def test_first_use_makes_and_installs_then_no_more(course, tmp_path):
    python = course.ensure("course")
    assert [command[1:3] for command, _ in course.calls] == [["-m", "venv"], ["-m", "pip"]]
    assert course.calls[1][0] == [str(python), "-m", "pip", "install", "--disable-pip-version-check",
                                  "-e", ".[course]", "-c", "constraints.txt"]
    assert python.is_relative_to(tmp_path / ".venv")
    course.calls.clear()
    assert course.ensure("course") == course.ensure() == python
    assert course.calls == []


def test_extras_add_up(course):
    for extras in ([], ["course"], ["test"], ["course"]):
        course.ensure(*extras)
    assert pip_targets(course) == [".", ".[course]", ".[course,test]"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_lists_are_installed_again(course, tmp_path, name):
    course.ensure()
    (tmp_path / name).write_text((tmp_path / name).read_text() + "# changed\n")
    course.ensure()
    assert pip_targets(course) == [".", "."]


def test_moved_course_is_installed_again(course, tmp_path, monkeypatch):
    course.ensure()
    moved = shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + "_moved"))
    monkeypatch.setattr(course, "ROOT", moved)
    course.ensure()
    assert pip_targets(course) == [".", "."]


def test_unfinished_installation_is_taken_up_again(course, capsys):
    course.ensure()
    course.answer = (1, "ERROR: something new")
    with fails_with("pip could not install"):
        course.ensure("test")
    course.answer = (0, "")
    course.ensure()
    assert pip_targets(course) == [".", ".[test]", "."]


def test_interrupted_installation_is_taken_up_again(course, monkeypatch):
    course.ensure()
    recorded = course.call

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(course, "call", interrupt)
    with pytest.raises(KeyboardInterrupt):
        course.ensure("course")
    monkeypatch.setattr(course, "call", recorded)
    course.ensure()
    assert pip_targets(course) == [".", "."]


def test_lost_package_is_installed_again(course):
    course.ensure()
    course.state = ((3, 11), ["pip", "segformer_lite"])
    course.ensure()
    assert pip_targets(course) == [".", "."]


def test_environment_without_pip_gets_pip(course, tmp_path):
    make_venv(tmp_path)
    course.state = ((3, 12), [])
    course.ensure()
    assert [command[2] for command, _ in course.calls] == ["ensurepip", "pip"]


def test_broken_environment_is_made_again(course, tmp_path, monkeypatch):
    make_venv(tmp_path)
    states = iter([None, course.state])
    monkeypatch.setattr(course, "look_into", lambda venv: next(states))
    course.ensure()
    assert course.calls[0][0][1:] == ["-m", "venv", "--clear", str(tmp_path / ".venv")]


def test_environment_is_asked_what_it_holds(course, tmp_path):
    folder = tmp_path / "real"
    assert course.look(folder) is None
    venv.create(folder, with_pip=False)
    version, modules = course.look(folder)
    assert version == sys.version_info[:2] and modules == []
    course.venv_python(folder).unlink()
    assert course.look(folder) is None


def test_folder_that_is_no_environment_is_left_alone(course, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    monkeypatch.setenv("SEGFORMER_LITE_VENV", str(mine))
    with fails_with("is no virtual environment"):
        course.ensure()
    assert course.calls == [] and (mine / "thesis.txt").exists()


def test_environment_of_an_old_python_is_left_alone(course, tmp_path):
    make_venv(tmp_path)
    course.state = ((3, 9), ["pip"])
    with fails_with(r"made by Python 3\.9.*Delete that folder"):
        course.ensure()
    assert course.calls == []


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_missing_module_names_the_package_to_install(course, monkeypatch, module):
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None if name == module else object())
    with fails_with(rf"without its module {module}.*apt install python3-venv"):
        course.ensure()
    assert course.calls == []


def test_full_disk_is_told_before_the_download(course, monkeypatch):
    monkeypatch.setattr(course.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    with fails_with(r"only 1\.0 GB free.*SEGFORMER_LITE_VENV"):
        course.ensure()
    assert course.calls == []


@pytest.mark.parametrize("said, meant", [
    ("ERROR: Could not install packages: OSError: [Errno 28] No space left on device", "disk is full"),
    ("Retrying after connection broken by 'NewConnectionError(Failed to establish a new connection)'\n"
     "ERROR: No matching distribution found for setuptools>=68", "network"),
    ("SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED) Max retries exceeded", "certificate"),
    ("ERROR: Could not install packages: OSError: [Errno 13] Permission denied: 'x'", "not be written"),
    ("ERROR: No matching distribution found for torch>=2.6", "no version for this system"),
    ("error: subprocess-exited-with-error", "pip could not install"),
])
def test_pip_failures_are_explained_in_one_line(course, said, meant):
    line = course.explain(said)
    assert meant in line and "\n" not in line


def test_stopped_by_a_child_or_by_hand(tmp_path):
    """A command's status comes through; Ctrl-C gives one line and 130."""
    if os.name == "nt":
        pytest.skip("sends POSIX signals")
    def answer(child):
        code = f"""if True:
            import sys
            import course
            def run(arguments):
                return course.call([sys.executable, "-c", {child!r}])[0]
            course.COMMANDS = {{run: ("", "", "")}}
            sys.exit(course.main(["run"]))"""
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert answer("raise SystemExit(7)").returncode == 7
    interrupted = answer("import os, signal; os.kill(os.getppid(), signal.SIGINT); raise SystemExit(1)")
    assert interrupted.returncode == 130
    assert interrupted.stderr.strip() == "course.py: stopped. The same command goes on from here."
    ended_well = answer("import os, signal; os.kill(os.getppid(), signal.SIGINT)")
    assert ended_well.returncode == 0
    killed = answer("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.returncode == 1 and "memory ran out" in killed.stderr


# ----------------------------------------------------------------------------------------------------
# lab and test

def test_lab_copies_what_is_missing_and_never_overwrites(course, tmp_path, capsys):
    chapter(tmp_path, "00_start_here.ipynb", "first")
    chapter(tmp_path, "draft.ipynb")
    assert course.lab([]) == 0
    mine = tmp_path / "work" / "00_start_here.ipynb"
    assert source(mine) == "first"
    assert "new: work/00_start_here.ipynb" in capsys.readouterr().out

    mine.write_text("my own answers")
    chapter(tmp_path, "03_patch_embedding.ipynb", "third")
    assert course.lab(["3", "--no-browser"]) == 0
    assert mine.read_text() == "my own answers"
    said = capsys.readouterr().out
    assert "new: work/03_patch_embedding.ipynb" in said and "00_start_here" not in said
    command = course.calls[-1][0]
    assert command[1:] == ["-m", "jupyterlab", f"--ServerApp.root_dir={tmp_path}",
                           "--LabApp.default_url=/lab/tree/work/03_patch_embedding.ipynb", "--no-browser"]
    names = {".copied.json", "00_start_here.ipynb", "03_patch_embedding.ipynb"}
    assert set(os.listdir(tmp_path / "work")) == names


def test_lab_copies_chapters_without_their_results(course, tmp_path):
    original = chapter(tmp_path, "00_start_here.ipynb", "print(6 * 7)")
    before = original.read_bytes()
    course.lab([])
    copy = json.loads((tmp_path / "work" / original.name).read_text(encoding="utf-8"))
    due = json.loads(before)
    due["cells"][1] |= {"outputs": [], "execution_count": None}
    assert copy == due and original.read_bytes() == before


def test_lab_tells_of_newer_chapters(course, tmp_path, capsys):
    chapter(tmp_path, "00_start_here.ipynb", "first")
    course.lab([])
    chapter(tmp_path, "00_start_here.ipynb", "better")
    capsys.readouterr()
    for _ in range(2):      # it is told as long as it is so
        course.lab([])
        assert "changed: notebooks/00_start_here.ipynb" in capsys.readouterr().out
    mine = tmp_path / "work" / "00_start_here.ipynb"
    assert source(mine) == "first"
    mine.rename(tmp_path / "work" / "my_start.ipynb")
    for _ in range(2):      # and no longer
        course.lab(["--no-browser"])
        assert source(mine) == "better"
        assert "changed" not in capsys.readouterr().out


def test_lab_survives_a_damaged_record(course, tmp_path):
    chapter(tmp_path, "00_start_here.ipynb")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ".copied.json").write_text('{"00_')
    assert course.lab([]) == 0


def test_lab_names_the_chapters_there_are(course, tmp_path, capsys):
    chapter(tmp_path, "00_start_here.ipynb")
    assert course.lab(["17"]) == 2
    error = capsys.readouterr().err
    assert "'17'" in error and "00_start_here.ipynb" in error
    assert course.calls == []       # nothing was installed to find that out


def test_test_runs_tests_chapters_and_solutions(course, tmp_path, monkeypatch):
    names = ["00_start_here.ipynb", "solutions/00_start_here.ipynb"]
    for name in [*names, "draft.ipynb", "solutions/.ipynb_checkpoints"]:
        chapter(tmp_path, name)
    course.ensure("test")
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    course.answer = (5, "")
    assert course.test(["-k", "data"]) == 5
    command, env = course.calls[-1]
    assert command[-5:] == ["tests", *(str(Path("notebooks", name)) for name in names), "-k", "data"]
    assert env["CUDA_VISIBLE_DEVICES"] == "" and env["SEGFORMER_TEST"] == "1" and "MPLBACKEND" not in env
    assert Path(env["SEGFORMER_LITE_RUNS"]).parent == Path(env["TMPDIR"])
    assert not Path(env["TMPDIR"]).exists()     # gigabytes of it


def test_test_runs_named_files_alone_and_needs_no_notebooks(course):
    course.test(["tests/test_setup.py::test_x", "-x"])
    course.test([])
    assert course.calls[-2][0][-3:] == ["tests/nbval_sanitize.cfg", "tests/test_setup.py::test_x", "-x"]
    assert course.calls[-1][0][-2:] == ["tests/nbval_sanitize.cfg", "tests"]


def test_doctor_runs_without_an_environment(course):
    course.doctor([])
    assert course.calls == [([sys.executable, str(course.DOCTOR)], None)]


# ----------------------------------------------------------------------------------------------------
# the doctor

TORCH = {"torch": "2.15.0", "torchvision": "0.29.2", "cuda": "13.2", "gpu": "", "gpu_gb": 0, "gpu_error": ""}
GPU = TORCH | {"gpu": "H200", "gpu_gb": 150}


@pytest.mark.parametrize("result, passed, words", [
    (doctor.check_python((3, 11, 0)), True, "3.11.0"),
    (doctor.check_python((3, 10, 9)), False, "3.11 or newer"),
    (doctor.check_environment("/a/.venv", "/usr", None), True, ".venv"),
    (doctor.check_environment("/usr", "/usr", "/conda/x"), True, "conda"),
    (doctor.check_environment("/usr", "/usr", None), None, "course.py run"),
    (doctor.check_torch(TORCH), True, "0.29.2"),
    (doctor.check_torch({"error": "No module named 'torch'"}), False, "torch: No module named 'torch'"),
    (doctor.check_torch({"error": "operator torchvision::nms does not exist"}), False, "not a pair"),
    (doctor.check_torch({"error": "OSError: libcudart.so"}), False, "does not import"),
    (doctor.check_gpu(GPU, ["H200"], hidden=False), True, "150 GB, CUDA 13.2"),
    (doctor.check_gpu(GPU | {"gpu_error": "no kernel"}, ["K80"], hidden=False), False, "no kernel"),
    (doctor.check_gpu(TORCH, ["H200"], hidden=False), False, "update the NVIDIA driver"),
    (doctor.check_gpu(TORCH, ["H200"], hidden=True), None, "hidden"),
    (doctor.check_gpu(TORCH | {"cuda": None}, ["H200"], hidden=False), None, "CPU build"),
    (doctor.check_gpu(TORCH, [], hidden=False), None, "no CUDA GPU: the CPU path works"),
    (doctor.check_gpu({"error": "x"}, [], hidden=False), None, "torch does not import"),
    (doctor.check_memory(int(3.9e9)), True, "4 GB"),
    (doctor.check_memory(int(2e9)), False, "smaller batch"),
    (doctor.check_memory(None), None, "does not say"),
    (doctor.check_disk(int(9e9), 8), True, "9 GB"),
    (doctor.check_disk(int(7e9), 8), False, "7.0 GB free, needed are 8 GB"),
    (doctor.check_kernel({"argv": ["python", "-m"]}, "/a/python"), True, "is there"),
    (doctor.check_kernel({"argv": ["/a/python", "-m"]}, "/a/python"), True, "is there"),
    (doctor.check_kernel({"argv": ["/b/python", "-m"]}, "/a/python"), False, "/b/python"),
    (doctor.check_kernel({"error": "No module named 'jupyterlab'"}, "/a/python"), None, "course.py lab"),
    (doctor.check_kernel({"error": "No module named 'ipykernel'"}, "/a/python"), False, "delete the folder .venv"),
])
def test_doctor_judges(result, passed, words):
    line = str(result)
    assert result.passed is passed and words in line
    assert line.startswith({True: "[OK]", False: "[FAIL]", None: "[--]"}[passed])
    assert passed is not False or result.remedy, "a fault without a remedy"


def test_doctor_looks_into_the_data_folders(tmp_path):
    def passed():
        return [result.passed for result in doctor.check_data(tmp_path)]

    assert passed() == [None, None]
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").touch()        # not of these pictures
    (tmp_path / "chest_ct" / "images").mkdir(parents=True)
    assert passed() == [False, False]
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").touch()
    (tmp_path / "chest_ct" / "masks").mkdir()
    (tmp_path / "chest_ct" / "train.csv").touch()
    assert passed() == [True, True]


def test_doctor_names_the_program_so_that_it_can_be_typed(tmp_path, monkeypatch):
    bins = tmp_path / ".venv" / "bin"
    bins.mkdir(parents=True)
    monkeypatch.setattr(doctor, "HERE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.program(str(bins / "python")) == "segformer-lite"     # not installed: its plain name
    name = "segformer-lite.exe" if os.name == "nt" else "segformer-lite"
    (bins / name).touch(mode=0o755)
    assert Path(doctor.program(str(bins / "python"))) == Path(".venv", "bin", name)
    monkeypatch.setattr(doctor, "HERE", tmp_path / "elsewhere")
    assert Path(doctor.program(str(bins / "python"))) == bins / name
    monkeypatch.setenv("PATH", str(bins))
    assert doctor.program(str(bins / "python")) == "segformer-lite"


def test_doctor_tries_to_write(tmp_path, monkeypatch):
    assert doctor.check_writable(tmp_path / "runs").passed
    assert list(tmp_path.iterdir()) == []
    blocked = tmp_path / "runs"
    blocked.touch()         # a file in the folder's place: nobody can write into it, not even root
    assert doctor.check_writable(blocked).passed is False


def test_doctor_outlives_what_it_probes():
    assert doctor.probe("print('noise'); print('{\"argv\": []}')") == {"argv": []}
    assert doctor.probe("import no_such_module")["error"] == "No module named 'no_such_module'"
    assert "status 3" in doctor.probe("import os; os._exit(3)")["error"]


def test_doctor_ends_with_1_when_something_failed(monkeypatch, capsys):
    good, bad = doctor.Result("disk", True, "fine"), doctor.Result("GPU", False, "too old", "update it")
    monkeypatch.setattr(doctor, "examine", lambda root: [good, doctor.Result("data", None, "none")])
    assert doctor.main() == 0 and "Ready." in capsys.readouterr().out
    monkeypatch.setattr(doctor, "examine", lambda root: [good, bad])
    assert doctor.main() == 1
    assert "[FAIL] GPU: too old\n         -> update it\n\n1 of 2 checks failed." in capsys.readouterr().out


def test_doctor_examines_this_machine(monkeypatch):
    monkeypatch.delenv("SEGFORMER_LITE_RUNS", raising=False)  # set where the whole course is tested
    marks = {result.name: result.passed for result in doctor.examine(ROOT)}
    assert marks["Python"] and marks["torch"] and marks["notebooks"]
    assert {"data/", "runs/", "work/"} <= set(marks) and len(marks) == 12


def test_doctor_needs_nothing_but_python():
    names = {name.name.split(".")[0] for node in ast.walk(ast.parse(Path(doctor.__file__).read_text()))
             if isinstance(node, ast.Import) for name in node.names}
    assert names <= sys.stdlib_module_names


# ----------------------------------------------------------------------------------------------------
# what is committed

def git(*arguments: str) -> list[str]:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def test_learner_work_and_data_stay_out_of_git():
    ours = ["segformer_lite/data/coco.py", "data/README.md", "notebooks/00_start_here.ipynb"]
    theirs = ["data/coco/x.json", "data/sample/x", "work/00_start_here.ipynb", "runs/a/log.jsonl", ".venv/x"]
    assert git("check-ignore", "--no-index", *ours, *theirs) == theirs


def test_no_file_names_a_machine_or_a_registry():
    """What holds on one machine only: addresses of package indexes, absolute paths."""
    foreign = re.compile("|".join([r"pypi\.org", "pythonhosted", r"download\.pytorch\.org", "index-url",
                                   r"(?<![\w.])/(?:root|work|opt)/\w", r"file:/{3}"]))
    found = []
    for name in git("ls-files", "--cached", "--others", "--exclude-standard"):
        path = ROOT / name
        if path == Path(__file__) or path.suffix in (".png", ".jpg") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = re.sub(r'"image/(?:png|jpeg)": "[^"]*"', "", text)
        found += [f"{name}: {match.group()}" for match in foreign.finditer(text)]
    assert not found


def test_ci_calls_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec python3 course.py test")


def test_the_workflow_runs_the_same_and_a_report_brings_the_doctor():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())
    [job] = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        asked = yaml.safe_load(form.read_text())["body"]
        assert all(field["validations"]["required"] for field in asked if field["id"] in ("where", "doctor")), form.name
    assert "`python3 course.py doctor`" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()


def test_citation_names_paper_and_report():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper, report = citation["references"]
    assert len(paper["authors"]) == 6 and "2105.15203" in json.dumps(paper)
    assert report["authors"][0]["family-names"] == "Hirokawa"
