"""Guards for the chapters: in step with their masters, fully run, readable, nothing of this machine in them.

nbval compares outputs; these tests look for what it lets pass. Each guard is shown a planted mistake first.
"""

import ast
import copy
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for folder in ("notebooks", "notebooks/solutions") for p in (ROOT / folder).glob("*.ipynb"))
LARGEST_KB = 400
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|work|Users|tmp|usr|opt|mnt|var|private)/\w|\b[A-Za-z]:\\\\?\w")

QUESTION = r"(?:Name it|Predict, then run)"  # how a question to the reader begins
ANSWER = re.compile(r"<details>\n<summary><b>Answer</b></summary>\n\n.+?\n\n</details>", re.DOTALL)

spec = importlib.util.spec_from_file_location("build", ROOT / "notebooks" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def problems(book) -> list[str]:
    """Everything wrong with a built notebook, one line each."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    found = []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("execution counts are not 1, 2, 3 …: nbval would not compare these cells")
    if "widgets" in book.metadata:
        found.append("metadata.widgets is there: GitHub would not show the notebook")
    if (size := len(nbformat.writes(book, indent=1)) / 1000) > LARGEST_KB:
        found.append(f"{size:.0f} kB, at most {LARGEST_KB}")
    for number, cell in enumerate(book.cells):
        texts = [cell.source]
        for output in cell.get("outputs", []):
            found += [f"cell {number}: {line}" for line in output_problems(output, tags(cell))]
            texts += [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
            texts += [t for mime, t in output.get("data", {}).items() if mime.startswith("text/")]
        found += [f"cell {number}: machine path {m[0]!r}" for t in texts for m in [MACHINE_PATH.search(t)] if m]
        if (
            cell.cell_type == "code"
            and "raise NotImplementedError" in cell.source
            and "raises-exception" not in tags(cell)
        ):
            found.append(f"cell {number}: an open exercise without the tag raises-exception")
    return found + questions(book) + told_early(book) + dependencies(book)


def output_problems(output, cell_tags: list[str]) -> list[str]:
    found = []
    if output.get("name") == "stderr":
        found.append("writes to stderr")
    if output.output_type == "error" and "raises-exception" not in cell_tags:
        found.append(f"raised {output.ename}")
    for mime in output.get("data", {}):
        if mime in ("image/svg+xml", "image/jpeg", build.WIDGET):
            found.append(f"output of type {mime}; figures are PNG through show.figure")
        if mime == "image/png" and len(output.metadata.get(mime, {}).get("alt", "").split()) < 4:
            found.append("image without alt text; use show.figure(fig, alt=…)")
    return found


def dependencies(book) -> list[str]:
    """Later cells or text that use a name which a learner writes in an exercise."""
    written, found = set(), []
    for number, cell in enumerate(book.cells):
        if "exercise" in tags(cell):
            if cell.cell_type == "code":
                written |= {node.name for node in ast.parse(cell.source).body if hasattr(node, "name")}
        elif cell.cell_type == "code":
            used = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
            found += [f"cell {number}: uses {name}, which an exercise defines" for name in sorted(used & written)]
        else:
            named = set(re.findall(r"`(\w+)", cell.source))
            found += [f"cell {number}: speaks of {name}, which an exercise defines" for name in sorted(named & written)]
    return found


def questions(book) -> list[str]:
    """Questions that are folded or offer no choice, and answers that stand open, are missing or come too late."""
    text = "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    parts = re.split(rf"^(?=\*\*{QUESTION}\.\*\*|#+ )", text, flags=re.MULTILINE)
    asked, found, folds = [part for part in parts if re.match(r"\*\*" + QUESTION, part)], [], 0
    if len(asked) != len(re.findall(QUESTION, text)):
        found.append("a question that does not begin its line with **Predict, then run.** or **Name it.**")
    if re.search(r"<summary><b>(?!Answer<)", text):
        found.append("a fold in bold that is no answer: a question stands open")
    for part in parts:
        name = " ".join(part.split("** ", 1)[-1].split()[:7])
        if part in asked:
            if folds:
                found.append(f"question {name!r} is folded")
            if len(re.findall(r"^- [A-E]\. ", part.partition("<details>")[0], re.MULTILINE)) < 2:
                found.append(f"question {name!r} has fewer than two options")
            if not ANSWER.search(part):
                found.append(f"question {name!r} has no folded answer before the next question or heading")
            if re.search(r"^\*\*[A-E][^\w\s]", ANSWER.sub("", part), re.MULTILINE):
                found.append(f"question {name!r} has an open answer")
        folds += part.count("<details>") - part.count("</details>")
    return found


def told_early(book) -> list[str]:
    """Code between a question and its answer that asserts what comes out: it is read before it is run."""
    found, asked = [], False
    for cell in book.cells:
        if cell.cell_type == "markdown":
            for mark in re.finditer(rf"\*\*{QUESTION}|<summary><b>Answer", cell.source):
                asked = mark[0].startswith("**")
        elif asked:
            found += [f"told before the answer: {line.strip()}" for line in cell.source.splitlines()
                      if re.search(r"\bassert", line)]
    return found


# The real notebooks


def test_there_are_notebooks():
    assert NOTEBOOKS, "no built notebook: run `python notebooks/build.py`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_notebook_is_clean(path):
    assert problems(nbformat.read(path, as_version=4)) == []


@pytest.mark.parametrize("master", build.masters(), ids=lambda p: p.stem)
def test_master_and_notebooks_are_in_step(master):
    for path, book in build.derive(master).items():
        assert build.differences(book, path) is None, f"{path.name}: run `python notebooks/build.py`"


def test_every_notebook_has_a_master():
    derived = {path for master in build.masters() for path in build.derive(master)}
    assert set(NOTEBOOKS) <= derived, "a notebook without a master: delete it or write its master"


# Each guard, shown a mistake

MASTER = '''# %% [markdown]
# # A chapter

# %% tags=["setup"]
import math

# %% tags=["exercise"]
def my_area(r):
    """Area of a disc."""
    # SOLUTION
    return math.pi * r**2
    # END SOLUTION

assert round(my_area(1), 2) == 3.14

# %%
print("done")
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A course folder with one small master, not built."""
    (tmp_path / "masters").mkdir()
    (tmp_path / "masters" / "01_small.py").write_text(MASTER, encoding="utf-8")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    return tmp_path


def clean():
    """A notebook as the guards want it."""
    v4 = nbformat.v4
    figure = v4.new_output(
        "display_data",
        data={"image/png": "iVBORw0KGgo=", "text/plain": "A line that rises."},
        metadata={"image/png": {"alt": "A line that rises steadily."}},
    )
    error = v4.new_output("error", ename="NotImplementedError", evalue="", traceback=["NotImplementedError"])
    text = v4.new_output("stream", name="stdout", text="done\n")
    return v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Read `one/two` at https://example.org/home/page"),
            v4.new_code_cell(
                "show.figure(fig, alt='A line that rises steadily.')", execution_count=1, outputs=[figure]
            ),
            v4.new_code_cell(
                "def my_area(r):\n    raise NotImplementedError\nmy_area(1)",
                execution_count=2,
                outputs=[error],
                metadata={"tags": ["exercise", "raises-exception"]},
            ),
            v4.new_code_cell("print('done')", execution_count=3, outputs=[text]),
            v4.new_markdown_cell("**Predict, then run.** What is left?\n\n- A. Nothing.\n- B. One half."),
            v4.new_markdown_cell("<details>\n<summary><b>Answer</b></summary>\n\n**B.** *Why?* So.\n\n</details>"),
        ]
    )


def test_guards_accept_a_clean_notebook():
    assert problems(clean()) == []


def null_count(book): book.cells[3].execution_count = None
def unsorted_counts(book): book.cells[1].execution_count, book.cells[3].execution_count = 3, 1
def widget_state(book): book.metadata.widgets = {}
def too_large(book): book.cells[0].source = "x" * 401_000
def stderr(book): book.cells[3].outputs[0].name = "stderr"
def an_error(book): book.cells[3].outputs = book.cells[2].outputs
def svg(book): book.cells[1].outputs[0].data["image/svg+xml"] = "<svg/>"
def widget_view(book): book.cells[1].outputs[0].data[build.WIDGET] = {}
def no_alt(book): book.cells[1].outputs[0].metadata = nbformat.from_dict({})
def poor_alt(book): book.cells[1].outputs[0].metadata["image/png"]["alt"] = "figure"
def path_in_output(book): book.cells[3].outputs[0].text = "saved to /home/ada/runs/1\n"
def path_in_source(book): book.cells[3].source = "open('/tmp/x.png')"
def path_in_error(book): book.cells[2].outputs[0].traceback = ["File /usr/lib/python3/x.py:1"]
def windows_path(book): book.cells[3].outputs[0].text = "C:\\Users\\ada"
def untagged_stub(book): book.cells[2].metadata.tags = ["exercise"]
def later_use(book): book.cells[3].source = "print(my_area(2))"
def folded_question(book): book.cells[4].source = "<details>\n\n" + book.cells[4].source + "\n\n</details>"
def question_as_summary(book): book.cells[4].source = "<summary><b>Predict, then run.</b> What is left?</summary>"
def other_question(book): book.cells[4].source = "<summary><b>Guess.</b> What is left?</summary>"
def name_it_in_a_fold(book): book.cells[4].source = "<summary><b>Name it.</b> What is left?</summary>"
def name_it_unanswered(book): book.cells[4:] = [nbformat.v4.new_markdown_cell("**Name it.** Q\n\n- A. X.\n- B. Y.")]
def no_choice(book): book.cells[4].source = "**Predict, then run.** What is left?\n\n- A. Nothing."
def no_answer(book): del book.cells[5]
def late_answer(book): book.cells[4].source += "\n\n### The next thing"
def open_answer(book): book.cells[5].source += "\n\n**B.** One half."
def told(book): book.cells.insert(5, nbformat.v4.new_code_cell("x = 1\nassert x == 1", execution_count=4))
def later_text(book): book.cells.append(nbformat.v4.new_markdown_cell("As your `my_area` showed"))


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (null_count, "execution counts"),
        (unsorted_counts, "execution counts"),
        (widget_state, "metadata.widgets"),
        (too_large, "kB"),
        (stderr, "stderr"),
        (an_error, "raised NotImplementedError"),
        (svg, "svg"),
        (widget_view, "widget-view"),
        (no_alt, "alt text"),
        (poor_alt, "alt text"),
        (path_in_output, "machine path"),
        (path_in_source, "machine path"),
        (path_in_error, "machine path"),
        (windows_path, "machine path"),
        (untagged_stub, "raises-exception"),
        (later_use, "exercise defines"),
        (later_text, "exercise defines"),
        (folded_question, "is folded"),
        (question_as_summary, "does not begin its line"),
        (other_question, "a question stands open"),
        (name_it_in_a_fold, "does not begin its line"),
        (name_it_unanswered, "no folded answer"),
        (no_choice, "two options"),
        (no_answer, "no folded answer"),
        (late_answer, "no folded answer"),
        (open_answer, "open answer"),
        (told, "told before the answer: assert x == 1"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_guard_sees_a_planted_mistake(plant, complaint):
    book = copy.deepcopy(clean())
    plant(book)
    assert any(complaint in line for line in problems(book)), problems(book)


def test_exercise_is_open_for_the_learner_and_solved_in_the_solutions(folder):
    chapter, solutions = build.derive(folder / "masters" / "01_small.py").values()
    stub, solved = chapter.cells[2], solutions.cells[2]
    assert "    raise NotImplementedError\n\nassert" in stub.source and "math.pi" not in stub.source
    assert '"""Area of a disc."""' in stub.source and "raises-exception" in tags(stub)
    assert "math.pi * r**2\n\nassert" in solved.source and "SOLUTION" not in solved.source
    assert "raises-exception" not in tags(solved)
    assert len(chapter.cells) == 4 and len(solutions.cells) == 3, ("solutions: a title, the imports, the exercise")


def test_unclosed_solution_is_refused(folder):
    master = folder / "masters" / "01_small.py"
    master.write_text(MASTER.replace("    # END SOLUTION\n", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="END SOLUTION"):
        build.derive(master)


def test_two_builds_are_byte_identical_and_check_notices_every_edit(folder, capsys):
    assert build.main(["--check"]) == 1 and "missing" in capsys.readouterr().out
    assert build.main([]) == 0
    files = sorted(folder.rglob("*.ipynb"))
    first = [path.read_bytes() for path in files]
    assert len(files) == 2 and build.main(["--check"]) == 0
    assert build.main(["--force"]) == 0
    assert [path.read_bytes() for path in files] == first
    assert problems(nbformat.read(folder / "01_small.ipynb", as_version=4)) == []

    path = folder / "01_small.ipynb"
    for old, new in (("done", "gone"), ("raises-exception", "nbval-skip"), ('"master": "', '"master": "0')):
        path.write_bytes(first[files.index(path)].replace(old.encode(), new.encode()))
        assert build.main(["--check"]) == 1, f"an edit of {old!r} went unnoticed"
    path.write_bytes(first[files.index(path)])
    assert build.main(["--check"]) == 0


def test_a_change_of_text_alone_runs_nothing(folder, capsys, monkeypatch):
    master, path = folder / "masters" / "01_small.py", folder / "01_small.ipynb"
    assert build.main([]) == 0
    outputs = [cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells]
    runs = []
    monkeypatch.setattr(build, "execute", lambda book, place: runs.append(book))
    master.write_text("# %% [markdown]\n# A line more.\n\n" + MASTER, encoding="utf-8")
    assert build.main([]) == 0 and not runs and "only text" in capsys.readouterr().out
    book = nbformat.read(path, as_version=4)
    assert [cell.get("outputs") for cell in book.cells] == [None, *outputs] and "A line more" in book.cells[0].source
    assert problems(book) == [] and build.main(["--check"]) == 0
    master.write_text(MASTER.replace("math.pi * r**2", "r**2 * math.pi"), encoding="utf-8")
    assert build.main([]) == 0 and len(runs) == 1, "the solutions' code has changed, the chapter's has not"


def test_what_a_kernel_leaves_behind_is_made_canonical(folder):
    v4 = nbformat.v4
    bar = v4.new_output("display_data", data={build.WIDGET: {}, "text/plain": "0%| | 0/3"})
    stderr = v4.new_output("stream", name="stderr", text="warning\n")
    parts = [v4.new_output("stream", name="stdout", text=t) for t in ("a", "b")]
    ignored = v4.new_code_cell("x", outputs=[bar, stderr, *parts], metadata={"tags": ["nbval-ignore-output"]})
    assert [o.text for o in build._canonical(ignored)] == ["ab"]
    with pytest.raises(ValueError, match="stderr"):
        build._canonical(v4.new_code_cell("x", outputs=[stderr]))
