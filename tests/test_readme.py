"""What README and docs/ promise: minutes, sums, results and links are those of the chapters and the stored figures."""

import json
import re
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def cells(path: Path) -> list[str]:
    """The text of a page, or of each cell of text in a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return [text]
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]


@cache
def chapters() -> dict[str, tuple[int, int, int, str]]:
    """By number: minutes to read and run, minutes of the exercises, how many there are, and GB of memory.

    The number of exercises is counted, all else is what the chapter's first cell says.
    """
    found = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        stated = re.search(r"About (\d+) minutes to read and run, (\d+)\s+more", " ".join(cells(path)[0].split()))
        memory = re.search(r"([\d.]+) GB", cells(path)[0])
        found[path.name[:2]] = int(stated[1]), int(stated[2]), len(boxes(path)), memory[1]
    return found


def boxes(path: Path) -> list[int]:
    """The minutes that each exercise of a chapter asks for."""
    pattern = r"^### (?:Exercise )?\d+[.:] .*\((\d+) minutes"
    return [int(minutes) for minutes in re.findall(pattern, "\n".join(cells(path)), re.MULTILINE)]


def rows(text: str, first: str) -> list[list[str]]:
    """The rows of tables whose first cell matches."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in table if re.fullmatch(first, row[0])]


def test_chapters_are_listed_with_what_their_titles_say():
    listed = {row[0]: (row[1], row[3:]) for row in rows(README.read_text(encoding="utf-8"), r"\d\d")}
    assert list(listed) == list(chapters())
    for number, (link, figures) in listed.items():
        read, more, count, memory = chapters()[number]
        assert f"(notebooks/{number}_" in link
        assert figures == [f"{read} + {more}", str(count), memory], f"chapter {number} in the README's table"


def test_the_minutes_of_a_title_are_the_sum_of_its_exercises():
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        assert chapters()[path.name[:2]][1] == sum(boxes(path)), f"{path.name}: the title's minutes of exercises"


def test_routes_are_sums_of_the_table():
    def clock(minutes: int) -> str:
        return f"{minutes // 60} h" + (f" {minutes % 60:02d}" if minutes % 60 else "")

    text = README.read_text(encoding="utf-8")
    routes = [row for row in rows(text, ".*") if re.match(r"\d\d (·|to) ", row[1])]
    assert len(routes) > 4
    for _, route, read, whole in routes:
        chosen = list(chapters()) if " to " in route else re.findall(r"\d\d", route)
        sums = [sum(chapters()[number][i] for number in chosen) for i in (0, 1)]
        assert (read, whole) == (clock(sums[0]), clock(sum(sums))), f"the route {route} in the README"
    assert f"{sum(count for _, _, count, _ in chapters().values())} exercises, each" in text


def test_results_are_those_of_the_files():
    def figure(runs: list[dict], key: str) -> str:
        values = [run[key] for run in runs]
        return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

    def stored(name: str) -> dict:
        return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))

    text = " ".join(README.read_text(encoding="utf-8").split())
    sets = [stored("sample-runs")["sets"][name]["rows"] for name in ("sample-coco", "sample-chest-ct")]
    for title, name in (("background everywhere", "majority"), ("most frequent class of each colour", "colour"),
                        ("SegFormer-B0", "segformer_b0")):
        figures = [figure(rows_of[name], key) for rows_of in sets for key in ("miou", "dice")]
        assert f"| {title} | {' | '.join(figures)} |" in text
    neighbours = stored("neighbours")["sets"]
    for data, content in neighbours.items():
        best = max(content["rows"], key=lambda name: mean(run["miou"] for run in content["rows"][name]))
        assert best == {"sample-coco": "fcn8s", "sample-chest-ct": "unet"}[data]  # as the README says in words
        for name in (best, "segformer_b0"):
            assert figure(content["rows"][name], "miou") in text, f"{name} on {data}"
    assert figure(neighbours["sample-coco"]["longer"]["rows"]["segnet"], "miou") in text


def test_speed_is_that_of_the_files():
    rows = json.loads((ROOT / "docs" / "results" / "speed.json").read_text(encoding="utf-8"))["rows"]
    cases = {(row["work"], row["precision"], row["size"], row["batch"]): row for row in rows}
    quoted = [cases["training", "fp32", 256, 8], cases["training", "bf16", 256, 8], cases["inference", "fp32", 512, 1]]
    times = [median(row["times_faster_than"]["transformers"]) for row in quoted]
    memory = [row["peak_mb"]["segformer_lite"] / row["peak_mb"]["transformers"] for row in quoted[:2]]
    text = " ".join(README.read_text(encoding="utf-8").split())
    said = re.search(r"a training step takes 1/([\d.]+) of its time and ([\d.]+) of its memory, "
                     r"in bfloat16 1/([\d.]+) and ([\d.]+); "
                     r"a forward pass of one picture of 512 px takes 1/([\d.]+)", text)
    assert [float(said[1]), float(said[3]), float(said[5])] == pytest.approx(times, abs=0.05)
    assert [float(said[2]), float(said[4])] == pytest.approx(memory, abs=0.006)
    kept = json.loads((ROOT / "docs" / "results" / "speed-kept.json").read_text(encoding="utf-8"))["rows"]
    cases = {(row["work"], row["size"], row["batch"]): median(row["times_faster_than"]["transformers"]) for row in kept}
    said = re.search(r"keep what they free, the float32 step takes 1/([\d.]+) and the one picture 1/([\d.]+)", text)
    assert [float(x) for x in said.groups()] == pytest.approx([cases["training", 256, 8], cases["inference", 512, 1]],
                                                              abs=0.05)


# Links


def slug(heading: str) -> str:
    """The anchor that GitHub and the site give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", "\n".join(cells(path)), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#{1,3} (.*)$", text, re.MULTILINE)}


def broken(page: Path, text: str) -> list[str]:
    """The links of a page to files of the repository that lead to no file or to no heading."""
    found = []
    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in address:
            continue
        name, _, anchor = unquote(address).partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(address)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found():
    text = "[a](docs/faq.md) [b](docs/faq.md#nowhere) [c](gone.md) [d](notebooks/00_start_here.ipynb#train) [e](#gone)"
    assert broken(README, text) == ["docs/faq.md#nowhere", "gone.md", "#gone"]


def test_every_question_is_listed_and_answered_by_a_chapter():
    questions = re.split(r"^## ", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:-1]
    listed = re.findall(r"^\d+\. \[(.*)\]\(docs/faq", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert [question.splitlines()[0] for question in questions] == listed and len(listed) == 15
    assert all(re.search(r"\.ipynb#[\w-]+\)", question) for question in questions)
