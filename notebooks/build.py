"""Turn the masters into the notebooks a learner opens.

`notebooks/masters/NN_name.py` (jupytext py:percent) is the only file edited by hand. From each one this makes

- `notebooks/NN_name.ipynb`: the chapter, executed, with every exercise left open;
- `notebooks/solutions/NN_name.ipynb`: the imports and the exercises only, solved and executed.

    python notebooks/build.py              build the chapters whose master changed (where only text did: run nothing)
    python notebooks/build.py 03 --force   build chapter 03 whatever its state
    python notebooks/build.py --check      say what is out of step, start no kernel, exit 1 if anything is

Marks in a master:

- tag `setup`: the cell is needed by the exercises, so it goes into the solutions too (imports);
- tag `exercise`: text or code of an exercise, in both notebooks. In code the lines from `# SOLUTION` to
  `# END SOLUTION` become `raise NotImplementedError` for the learner;
- tag `nbval-ignore-output`: the output depends on the machine or on time (device, training, sliders).
"""

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent

# The surroundings of every kernel, here and in the tests: one thread, no GPU, so that printed numbers agree.
ENV = {
    "SEGFORMER_TEST": "1",
    "SEGFORMER_LITE_MODE": "fast",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
}
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
SOLUTION = re.compile(r"^( *)# SOLUTION\n(.*?)^ *# END SOLUTION\n?", re.MULTILINE | re.DOTALL)


def masters(chosen: list[str] | None = None) -> list[Path]:
    """Master files in order; `chosen` keeps those whose name starts with one of the given numbers."""
    found = sorted((FOLDER / "masters").glob("[0-9][0-9]_*.py"))
    for number in chosen or []:
        if not any(path.name.startswith(number) for path in found):
            raise ValueError(f"no master starts with {number!r}; there are: {', '.join(p.stem for p in found)}")
    return [path for path in found if not chosen or path.name.startswith(tuple(chosen))]


def derive(master: Path) -> dict[Path, nbformat.NotebookNode]:
    """The chapter and its solutions, by path, not yet executed. No solutions when there is no exercise."""
    text = master.read_text(encoding="utf-8")
    if text.count("# SOLUTION\n") != text.count("# END SOLUTION"):
        raise ValueError(f"{master.name}: every '# SOLUTION' line needs its '# END SOLUTION' line")
    cells = jupytext.reads(text, fmt="py:percent").cells
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    made = {FOLDER / f"{master.stem}.ipynb": _notebook(cells, digest, solved=False)}
    if any("exercise" in _tags(cell) for cell in cells):
        title = f"# Solutions to chapter {master.stem.split('_')[0]}\n\n"
        title += f"The chapter itself is [{master.stem}.ipynb](../{master.stem}.ipynb). Try first, then look."
        kept = [cell for cell in cells if {"setup", "exercise"} & set(_tags(cell))]
        kept.insert(0, nbformat.v4.new_markdown_cell(title))
        made[FOLDER / "solutions" / f"{master.stem}.ipynb"] = _notebook(kept, digest, solved=True)
    return made


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _notebook(cells: list, digest: str, solved: bool) -> nbformat.NotebookNode:
    book = nbformat.v4.new_notebook(metadata={**METADATA, "segformer_lite": {"master": digest}})
    seen: dict[str, int] = {}
    for old in cells:
        source, tags = old.source, list(_tags(old))
        if old.cell_type == "code" and "# SOLUTION" in source:
            if not solved:
                source = SOLUTION.sub(r"\1raise NotImplementedError\n", source).strip("\n")
                tags.append("raises-exception")
            source = re.sub(r"^ *# (END )?SOLUTION\n?", "", source, flags=re.MULTILINE)
        make = nbformat.v4.new_code_cell if old.cell_type == "code" else nbformat.v4.new_markdown_cell
        cell = make(source, metadata={"tags": tags} if tags else {})
        # The id follows the text, so an edit elsewhere leaves it alone; equal cells are numbered.
        key = hashlib.sha256(source.encode()).hexdigest()[:8]
        seen[key] = seen.get(key, 0) + 1
        cell.id = f"{key}-{seen[key]}"
        book.cells.append(cell)
    return book


def execute(book: nbformat.NotebookNode, folder: Path) -> None:
    """Run top to bottom in a fresh kernel inside `folder`, then bring the outputs into one canonical form."""
    folder.mkdir(exist_ok=True)
    client = NotebookClient(
        book,
        kernel_name="python3",
        timeout=300,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **ENV})
    book.metadata = nbformat.from_dict({**METADATA, "segformer_lite": book.metadata["segformer_lite"]})
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _canonical(cell)


def _canonical(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    ignored = "nbval-ignore-output" in _tags(cell)
    kept: list[nbformat.NotebookNode] = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stderr":
            if not ignored:
                raise ValueError(
                    f"this cell writes to stderr: mend it or tag it nbval-ignore-output\n{cell.source}"
                    f"\n--- stderr ---\n{output.text}"
                )
            continue
        if output.output_type == "error":  # name and message are the lesson; frames hold machine paths
            output.traceback = [f"{output.ename}: {output.evalue}".rstrip(": ")]
        if output.get("data", {}).pop(WIDGET, None) is not None and ignored:
            continue  # a frozen progress bar or slider tells a reader nothing
        if kept and output.output_type == "stream" and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def write(book: nbformat.NotebookNode, path: Path) -> None:
    """The same notebook always gives the same bytes; beside first, then renamed."""
    nbformat.validate(book)
    beside = path.with_suffix(".tmp")
    beside.write_text(nbformat.writes(book, indent=1).rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    os.replace(beside, path)


def differences(wanted: nbformat.NotebookNode, path: Path) -> str | None:
    """How the stored notebook differs from what its master gives, outputs aside; None if it does not."""
    if not path.exists():
        return f"{path.name} is missing"
    stored = nbformat.read(path, as_version=4)
    if stored.metadata.get("segformer_lite") != wanted.metadata["segformer_lite"]:
        return "the master has changed since it was built"
    if len(stored.cells) != len(wanted.cells):
        return f"{len(stored.cells)} cells, the master gives {len(wanted.cells)}"
    for i, (mine, due) in enumerate(zip(stored.cells, wanted.cells, strict=True)):
        for what in ("id", "cell_type", "source", "metadata"):
            if mine[what] != due[what]:
                return f"cell {i} differs from its master in {what}"
    return None


def keep_outputs(book: nbformat.NotebookNode, path: Path) -> bool:
    """Take over the outputs of the stored notebook if its code cells are the same: then only text has changed."""
    if not path.exists():
        return False
    stored, new = ([cell for cell in cells if cell.cell_type == "code"]
                   for cells in (nbformat.read(path, as_version=4).cells, book.cells))
    if [(cell.source, _tags(cell)) for cell in stored] != [(cell.source, _tags(cell)) for cell in new]:
        return False
    for old, cell in zip(stored, new, strict=True):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", nargs="*", help="chapter numbers, for example 03; all when none is given")
    parser.add_argument("--force", action="store_true", help="execute even when the master has not changed")
    parser.add_argument("--check", action="store_true", help="compare only, run nothing; exit 1 on a difference")
    args = parser.parse_args(argv)
    try:
        chosen = masters(args.chapter)
    except ValueError as error:
        parser.error(str(error))
    stale = 0
    for master in chosen:
        for path, book in derive(master).items():
            name = path.relative_to(FOLDER)
            difference = differences(book, path)
            if args.check:
                stale += difference is not None
                print(f"{name}: {difference or 'in step'}")
            elif difference and not args.force and keep_outputs(book, path):
                print(f"{name}: only text has changed, outputs kept", flush=True)
                write(book, path)
            elif difference or args.force:
                print(f"{name}: building ({difference or 'forced'})", flush=True)
                execute(book, path.parent)
                write(book, path)
            else:
                print(f"{name}: in step")
    if stale:
        print(f"{stale} out of step: run `python notebooks/build.py` and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
