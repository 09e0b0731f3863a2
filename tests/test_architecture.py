"""The rooms of the package and who may import whom: data flows one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segformer_lite"

# room -> the rooms it may import besides itself
ALLOWED = {
    "models": set(),
    "show": set(),
    "data": set(),
    "evaluation": {"models"},
    "analysis": {"models", "evaluation"},
    "training": {"data", "models", "evaluation", "show"},
    "course": {"data", "models", "evaluation", "analysis", "training", "show"},
}
BELOW = {"files", "memory", "threads"}  # below all rooms: every room but models/ may use it
OUTSIDE = {"models": {"torch", "torchvision", "safetensors", "huggingface_hub"}}  # what else models/ may need


def imports(path: Path):
    """(package room or None, top-level name) of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = (PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1])
            base = base[: len(base) - node.level + 1] if node.level else ()
            full = (*base, *(node.module or "").split(".")) if node.module else base
            if full[0] != PACKAGE.name:
                yield None, full[0]
                continue
            for name in node.names:
                place = full if len(full) > 1 else (*full, name.name)
                yield place[1] if len(place) > 1 else None, name.name
        elif isinstance(node, ast.Import):
            yield from ((None, alias.name.split(".")[0]) for alias in node.names)


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_one_way(room):
    for path in (PACKAGE / room).rglob("*.py"):
        for target, name in imports(path):
            allowed = {None, room, *ALLOWED[room], *(BELOW if room != "models" else ())}
            assert target in allowed, f"{path.relative_to(PACKAGE)} imports {target} ({name})"
            if room == "analysis":
                assert name != "matplotlib", f"{path.relative_to(PACKAGE)} draws"


def test_models_need_nothing_but_torch():
    standard = sys.stdlib_module_names
    for path in (PACKAGE / "models").rglob("*.py"):
        for target, name in imports(path):
            assert target or name in standard or name in OUTSIDE["models"], f"{path.name} imports {name}"


def test_the_package_imports_without_course_and_test_packages():
    """On a GPU machine without them the package must work: they are imported where they are used."""
    blocked = ["pycocotools", "IPython", "ipywidgets", "jupyterlab", "nbval", "transformers", "jupytext",
               "huggingface_hub"]
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport segformer_lite, segformer_lite.cli"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
