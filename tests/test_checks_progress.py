"""What has been solved is remembered in the learner's folder, and nowhere else."""

import json
import re
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat import v4

from segformer_lite.course import checks
from segformer_lite.course.checks import ch08, solved


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course folder of its own, with the learner in work/ and no test around."""
    (tmp_path / "course.py").touch()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for variable in solved.TESTS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(solved, "TESTS", ("SEGFORMER_TEST",))  # pytest sets the other one again for every test
    return tmp_path


def right(mask):
    return ch08._run_lengths(mask)


def wrong(mask):
    return []


def remembered(course):
    file = course / "work" / ".progress.json"
    return json.loads(file.read_text()) if file.exists() else {}


def test_a_passed_check_is_remembered_once_and_shown(course, capsys):
    checks.run_lengths(right)
    assert list(remembered(course)) == ["run_lengths"]
    first = (course / "work" / ".progress.json").stat().st_mtime_ns
    checks.run_lengths(right)
    assert (course / "work" / ".progress.json").stat().st_mtime_ns == first
    capsys.readouterr()
    checks.progress()
    out = capsys.readouterr().out
    assert "chapter 08, data: 1 of 4" in out and "[x] run_lengths" in out and "[ ] paint" in out
    assert re.search(r"^1 of \d+ exercises solved$", out, re.MULTILINE)
    assert sorted(path.name for path in (course / "work").iterdir()) == [".progress.json"]


def test_a_failed_check_is_not_remembered(course):
    with pytest.raises(AssertionError):
        checks.run_lengths(wrong)
    assert remembered(course) == {}


def test_a_second_check_keeps_the_first(course):
    solved.note("paint")
    checks.run_lengths(right)
    assert sorted(remembered(course)) == ["paint", "run_lengths"]


def test_the_work_folder_is_made_when_missing(course, monkeypatch):
    monkeypatch.chdir(course)
    (course / "work").rmdir()
    checks.run_lengths(right)
    assert list(remembered(course)) == ["run_lengths"]


def test_a_damaged_file_counts_as_empty_and_is_replaced(course, capsys):
    (course / "work" / ".progress.json").write_text("[1, 2")
    checks.progress()
    assert "0 of" in capsys.readouterr().out
    checks.run_lengths(right)
    assert list(remembered(course)) == ["run_lengths"]


def test_where_nothing_can_be_written_the_answer_is_still_right(course, monkeypatch, capsys):
    def refuse(*arguments):
        raise PermissionError("read-only")

    monkeypatch.setattr(solved.os, "replace", refuse)
    checks.run_lengths(right)
    out = capsys.readouterr().out
    assert "correct" in out and "not remembered" in out


@pytest.mark.parametrize("variable", solved.TESTS)
def test_tests_write_and_read_nothing(course, monkeypatch, variable, capsys):
    solved.note("paint")
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(solved, "TESTS", (variable,))
    checks.run_lengths(right)
    assert list(remembered(course)) == ["paint"]
    checks.progress()
    assert "[x]" not in capsys.readouterr().out


def test_outside_of_a_course_folder_nothing_is_written(course, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    checks.run_lengths(right)
    assert list(elsewhere.iterdir()) == [] and remembered(course) == {}


def test_every_check_is_listed_once_under_its_chapter(course, capsys):
    checks.progress()
    out = capsys.readouterr().out
    names = [name for name in checks.__all__ if name != "progress"]
    assert sorted(re.findall(r"\[ \] (\w+)", out)) == sorted(names)
    assert all(re.match(r"chapter \d\d, \S.*: 0 of \d$", line) for line in out.splitlines()[:-1:2])
    assert len(set(map(id, (getattr(checks, name) for name in names)))) == len(names)


def test_a_check_keeps_its_name_and_its_words():
    assert checks.run_lengths.__name__ == "run_lengths" and checks.run_lengths.__doc__ == ch08.run_lengths.__doc__


def frames(error):
    return [Path(frame.path).name for frame in error.traceback]


def test_a_failed_check_shows_none_of_its_own_lines_and_all_of_the_learners():
    with pytest.raises(AssertionError) as error:
        checks.run_lengths(wrong)
    assert "ch08.py" not in frames(error) and "expect.py" not in frames(error)

    def doubtful(mask):
        assert not len(mask), "my own thought"

    with pytest.raises(AssertionError, match="my own thought") as error:
        checks.run_lengths(doubtful)
    assert frames(error)[-1] == Path(__file__).name and "ch08.py" not in frames(error)

    def broken(mask):
        return len(mask.nothing)

    with pytest.raises(AttributeError) as error:
        checks.run_lengths(broken)
    assert frames(error)[-1] == Path(__file__).name and "ch08.py" not in frames(error)


def test_in_a_notebook_a_mistake_shows_the_learners_lines_alone(tmp_path):
    cells = ["from segformer_lite.course import checks",
             "def mine(mask):\n    return []\nchecks.run_lengths(mine)",
             "def broken(mask):\n    return len(mask.nothing)\nchecks.run_lengths(broken)"]
    book = v4.new_notebook(cells=[v4.new_code_cell(text) for text in cells])
    NotebookClient(book, kernel_name="python3", allow_errors=True,
                   resources={"metadata": {"path": str(tmp_path)}}).execute()
    seen = [re.sub(r"\x1b\[[\d;]*m", "", "\n".join(cell.outputs[-1]["traceback"])) for cell in book.cells[1:]]
    assert "checks.run_lengths(mine)" in seen[0] and "AssertionError: " in seen[0]
    assert "return len(mask.nothing)" in seen[1] and "AttributeError: " in seen[1]
    assert not any(name in text for text in seen for name in ("ch08.py", "expect.py", "solved.py"))
