"""The site: it builds without a warning, every picture is described, every link leads somewhere, nothing is fetched."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import architecture  # noqa: E402

COMMAND = ["sphinx", "-W", "--keep-going", "-q", "-c", "docs", "."]
MISSING = [name for name in ("sphinx", "myst_nb", "furo") if importlib.util.find_spec(name) is None]


class Page(HTMLParser):
    """What a built page refers to: its anchors, its links, its pictures, and the files that a browser loads for it."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.pictures, self.loaded = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img":
            self.pictures.append(found)
        if tag in ("img", "script", "iframe") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "shortcut icon", "preload"):
            self.loaded.append(found["href"])


def problems(site: Path) -> list[str]:
    """What is wrong with a built site, one line each."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: picture {picture.get('src')} without a description" for picture in page.pictures
                  if len((picture.get("alt") or "").split()) < 4]
        found += [f"{name}: loads {address} from elsewhere" for address in page.loaded
                  if urlsplit(address).netloc]
        for address in page.links + page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue  # the world outside is not asked
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{name}: {address} leads to no file")
            elif parts.fragment and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: {address} leads to no heading")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as the command of docs/conf.py builds it."""
    if MISSING:
        pytest.skip(f"{', '.join(MISSING)} not installed: python -m pip install -e '.[site]'")
    folder = tmp_path_factory.mktemp("site") / "html"
    done = subprocess.run([sys.executable, "-m", *COMMAND, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_chapter_is_there(site):
    for notebook in ROOT.glob("notebooks/**/[0-9]*.ipynb"):
        if ".ipynb_checkpoints" not in notebook.parts:
            assert (site / notebook.relative_to(ROOT).with_suffix(".html")).is_file()


def test_pictures_links_and_loads(site):
    assert problems(site) == []


def test_figures_keep_the_words_stored_with_them(site):
    alts = [picture["alt"] for picture in Page(site / "notebooks/04_efficient_attention.html").pictures]
    assert any(alt.startswith("Map of SegFormer.") for alt in alts)
    assert len(set(alts)) == len(alts) > 5


def test_formulas_need_no_script(site):
    page = (site / "notebooks/04_efficient_attention.html").read_text(encoding="utf-8")
    assert page.count("<math ") > 50
    halves = re.sub(r"\s", "", (site / "notebooks/01_what_is_segmentation.html").read_text(encoding="utf-8"))
    assert "<mfrac><mn>1</mn><mn>2</mn></mfrac>" in halves and "<mfrac><mn>12</mn>" not in halves


GOOD = '<h2 id="here">Here</h2><img src="a.png" alt="A line that rises steadily."><a href="other.html#there">there</a>'
MISTAKES = {
    '<img src="a.png">': "without a description",
    '<img src="a.png" alt="a.png">': "without a description",
    '<a href="gone.html">x</a>': "leads to no file",
    '<a href="other.html#gone">x</a>': "leads to no heading",
    '<a href="#gone">x</a>': "leads to no heading",
    '<script src="https://example.org/a.js"></script>': "from elsewhere",
}


@pytest.mark.parametrize("mistake", ["", *MISTAKES])
def test_a_mistake_is_found(tmp_path, mistake):
    (tmp_path / "a.png").touch()
    (tmp_path / "other.html").write_text('<h2 id="there">There</h2>')
    (tmp_path / "page.html").write_text(GOOD + mistake)
    found = problems(tmp_path)
    assert len(found) == bool(mistake) and all(MISTAKES[mistake] in line for line in found)


# The picture of the rooms


def test_the_picture_of_the_rooms_is_that_of_the_table():
    table = architecture.allowed()
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.draw(table), (
        "docs/architecture.svg is out of date: run `python docs/architecture.py`"
    )


def test_the_picture_of_the_rooms_follows_the_table():
    table = architecture.allowed()
    assert "analysis may use data</title>" not in architecture.draw(table)
    assert "analysis may use data</title>" in architecture.draw({**table, "analysis": {"data", *table["analysis"]}})
    with pytest.raises(ValueError, match="kitchen"):
        architecture.draw({**table, "kitchen": set()})
