"""Data sets by one command: a server that fails in every way, a zip that means harm, folders with broken files."""

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import threading
import time
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segformer_lite.cli import main
from segformer_lite.data import ChestCT, CocoSegmentation, make_sample, open_dataset
from segformer_lite.data.download import chest_ct, coco, download_coco, fetch, unpack_chest_ct
from segformer_lite.data.verify import verify

ARCHIVE = f"/annotations/{coco.ARCHIVE}"
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
COUNT = {"train": 14, "val": 5}
EMPTY = 4  # every fourth image holds no object


# ---- a small COCO, and a server that misbehaves as told ----


def jpeg(seed: int, size=(40, 30)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    return file.getvalue()


def instances(split: str) -> dict:
    first = 100 if split == "val" else 0
    ids = range(first + 1, first + 1 + COUNT[split])
    box = [[2, 2, 20, 2, 20, 20, 2, 20]]
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 3, "name": "Attribution-NonCommercial-NoDerivs License"}],
        "images": [
            {"id": i, "file_name": f"{i:012}.jpg", "width": 40, "height": 30, "license": 3,
             "coco_url": f"http://images.cocodataset.org/{split}2017/{i:012}.jpg"}
            for i in reversed(ids)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + 2 * (i % 2), "segmentation": box, "iscrowd": 0}
            for i in ids if i % EMPTY
        ],
        "categories": CATEGORIES,
    }


def annotations_zip(**contents: dict) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in COUNT:
            content = contents.get(split) or instances(split)
            archive.writestr(f"annotations/instances_{split}2017.json", json.dumps(content))
        archive.writestr("annotations/captions_val2017.json", np.random.default_rng(0).bytes(30_000))
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.send_response(200 if self.path in self.server.files else 404)
        self.end_headers()

    def do_GET(self):
        server, path, wanted = self.server, self.path, self.headers["Range"]
        with server.lock:
            server.log.append((path, wanted))
            waiting = server.faults.get(path, [])
            fault = waiting.pop(0) if waiting else server.always.get(path)
        time.sleep(server.delay)
        body = server.files.get(path)
        if fault == "drop":  # no answer at all
            return
        if body is None or isinstance(fault, int):
            return self.send_error(fault or 404)
        if fault == "html":
            body = b"<html>Please log in to this network</html>"
        if fault == "garbage":  # damaged in the middle, as long as announced
            body = body[:1000] + bytes(1000) + body[2000:]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and fault != "no range" else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            first = 0 if fault == "other part" else start
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        rest = body if fault == "other part" else body[start:]
        announced = {"announces more": len(rest) + 100, "announces less": len(rest) // 2}.get(fault, len(rest))
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(rest[: len(rest) // 2] if fault == "cut" else rest)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files = {ARCHIVE: annotations_zip()}
        for split in COUNT:
            self.files |= {f"/{split}2017/{i['file_name']}": jpeg(i["id"]) for i in instances(split)["images"]}
        self.faults: dict[str, list] = {}  # of the next answers to a path
        self.always: dict[str, str | int] = {}  # of all further ones
        self.log, self.lock, self.delay = [], threading.Lock(), 0.0

    def handle_error(self, request, client_address):
        pass  # a client that was killed

    def asked(self) -> Counter:
        return Counter(path for path, _ in self.log)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))  # room for all of COCO
    with Server() as running:
        monkeypatch.setattr(coco, "ADDRESSES", [running.address])
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All of the small COCO, as from the big zips."""
    root = tmp_path_factory.mktemp("whole")
    (root / "annotations").mkdir()
    for split in COUNT:
        (root / f"{split}2017").mkdir()
        content = instances(split)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        for image in content["images"]:
            (root / f"{split}2017" / image["file_name"]).write_bytes(jpeg(image["id"]))
    return root


def pictures(folder: Path) -> dict[str, bytes]:
    return {f"/{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("*2017/*")}


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- COCO: the choice ----


def test_the_folder_opens_as_the_whole_set_with_a_limit(server, whole, tmp_path):
    result = download_coco(tmp_path / "coco", 4, seed=8)
    assert (result.wanted, result.fetched, result.failed) == (8, 8, {})
    for split in COUNT:
        ours, theirs = CocoSegmentation(tmp_path / "coco", split), CocoSegmentation(whole, split, limit=4, seed=8)
        assert ours.names == theirs.names and len(ours) == 4 and ours.classes == theirs.classes
        assert all((a[1] == b[1]).all() and (a[0] == b[0]).all() for a, b in zip(ours, theirs))
    assert all(server.files[path] == body for path, body in pictures(tmp_path / "coco").items())
    assert server.asked() == Counter([ARCHIVE, *pictures(tmp_path / "coco")])  # each once, and nothing else
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_train2017.json").read_text())
    assert content["licenses"] and all(image["license"] == 3 for image in content["images"])
    assert len(content["annotations"]) == 4
    assert not list(tmp_path.rglob("*.part"))


def test_same_seed_same_choice_and_more_keeps_less(server, tmp_path):
    def names(folder, *arguments, **options):
        download_coco(tmp_path / folder, *arguments, **options)
        return set(pictures(tmp_path / folder))

    few = names("a", 4, "train", seed=1)
    assert names("b", 4, "train", seed=1) == few != names("c", 4, "train", seed=2)
    server.log.clear()
    more = names("a", 7, "train", seed=1)
    assert few < more and set(server.asked()) == more - few  # no archive, no picture twice
    assert len(open_dataset(tmp_path / "a", "train")) + len(open_dataset(tmp_path / "a", "val")) == 7


def test_classes_choose_pictures_and_keep_all_labels(server, whole, tmp_path, capsys):
    download_coco(tmp_path / "coco", None, "both", ["car"])
    assert CocoSegmentation(tmp_path / "coco").classes == ["background", "person", "car"]
    assert CocoSegmentation(tmp_path / "coco").names == CocoSegmentation(whole, classes=["car"]).names
    with pytest.raises(ValueError, match="'cart'.*did you mean 'car'"):
        download_coco(tmp_path / "coco", None, "both", ["cart"])


# ---- COCO: a server that fails ----


@pytest.mark.parametrize(
    "fault", ["cut", "announces more", "announces less", "drop", "html", 500, 503, 429], ids=str)
def test_a_picture_that_fails_twice_comes_in_the_end(server, tmp_path, fault):
    paths = [path for path in server.files if path != ARCHIVE]
    server.faults = {path: [fault, fault] for path in paths[::2]}
    result = download_coco(tmp_path / "coco")
    assert not result.failed and result.fetched == 11 + 4
    assert all(server.files[path] == body for path, body in pictures(tmp_path / "coco").items())
    assert not any(server.faults[path] for path in pictures(tmp_path / "coco") if path in server.faults)


@pytest.mark.parametrize(
    ("fault", "why", "tries"),
    [(404, "404", 1), (403, "403", 1), (500, "500", fetch.TRIES), ("html", "'<html>", fetch.TRIES),
     ("cut", "cut after", fetch.TRIES), ("announces less", "cannot be decoded", fetch.TRIES),
     ("other size", "41x30 pixels, the annotations say 40x30", fetch.TRIES)], ids=str)
def test_a_picture_that_never_comes_is_named_and_comes_with_the_next_run(
        server, tmp_path, capsys, fault, why, tries):
    path, folder = "/train2017/000000000003.jpg", tmp_path / "coco"
    good = server.files[path]
    if fault == "other size":
        server.files[path] = jpeg(3, (41, 30))
    else:
        server.always[path] = fault
    command = ["data", "coco", "--out", str(folder), "--yes"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert "14 of 15 pictures" in out
    named, remedy = err.splitlines()[-2:]
    assert "train2017/000000000003.jpg: " in named and why in named
    assert "failed: 1; run the same command again" in remedy
    assert server.asked()[path] == tries
    assert not (folder / path[1:]).exists() and not list(folder.rglob("*.part"))
    assert len(CocoSegmentation(folder)) == 10  # it opens as it is
    assert any("lacks 1 chosen picture" in line for line in verify(folder).broken)

    server.always.clear()
    server.files[path] = good
    server.log.clear()
    assert main(command) == 0
    assert set(server.asked()) == {path} and (folder / path[1:]).read_bytes() == good
    assert not verify(folder).broken and len(CocoSegmentation(folder)) == 11


@pytest.mark.parametrize("fault", ["cut", "announces more", "announces less", "drop", "html", "garbage", 500], ids=str)
def test_the_archive_comes_through_a_server_that_fails(server, tmp_path, fault):
    server.faults = {ARCHIVE: [fault, fault]}
    download_coco(tmp_path / "coco", 2)
    assert (tmp_path / "coco" / coco.ARCHIVE).read_bytes() == server.files[ARCHIVE]
    ranges = [wanted for path, wanted in server.log if path == ARCHIVE]
    half, quarter = (len(server.files[ARCHIVE]) * n // 4 for n in (2, 3))
    if fault == "cut":  # the rest alone is asked for
        assert ranges == [None, f"bytes={half}-", f"bytes={quarter}-"]
    elif fault == "announces more":  # whole, whatever was announced
        assert ranges == [None]
    else:
        assert ranges == [None, None, None]


@pytest.mark.parametrize("left", ["half", "all", "more", "rubbish"])
@pytest.mark.parametrize("fault", [None, "no range", "other part"], ids=str)
def test_what_an_earlier_run_left_of_the_archive(server, tmp_path, left, fault):
    whole = server.files[ARCHIVE]
    (tmp_path / f"{coco.ARCHIVE}.part").write_bytes(
        {"half": whole[:9000], "all": whole, "more": whole + bytes(70_000), "rubbish": bytes(9000)}[left])
    server.always = {ARCHIVE: fault} if fault == "no range" else {}
    server.faults = {ARCHIVE: [fault]}
    download_coco(tmp_path, 2)
    assert (tmp_path / coco.ARCHIVE).read_bytes() == whole
    ranges = [wanted for path, wanted in server.log if path == ARCHIVE]
    assert ranges[:1] == {"half": ["bytes=9000-"], "all": [], "rubbish": ["bytes=9000-"],
                          "more": [f"bytes={len(whole) + 70_000}-"]}[left]
    again = left != "all" and {None: left != "half", "no range": False, "other part": True}[fault]
    assert len(ranges) == (left != "all") + again and ranges[1:] in ([], [None])


@pytest.mark.parametrize("fault", ["html", "garbage", "announces less", "cut", 404], ids=str)
def test_an_archive_that_never_comes_whole_is_not_taken(server, tmp_path, fault, capsys):
    server.always = {ARCHIVE: fault}
    if fault == "cut":
        server.always, server.faults = {}, {ARCHIVE: ["cut"] * fetch.TRIES}
    assert main(["data", "coco", "--images", "2", "--out", str(tmp_path / "coco"), "--yes"]) == 2
    assert "run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "coco" / coco.ARCHIVE).exists() and not pictures(tmp_path / "coco")
    server.always = {}
    assert not download_coco(tmp_path / "coco", 2).failed


def test_a_dead_network_is_given_up_soon(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "GIVE_UP", 4)
    monkeypatch.setattr(fetch, "THREADS", 1)
    server.always = {path: 404 for path in server.files if path.startswith("/val")}
    with pytest.raises(ValueError, match="4 pictures in a row failed .*404.*run the same command again"):
        download_coco(tmp_path / "coco")
    assert len(pictures(tmp_path / "coco")) == 11 and not list((tmp_path / "coco").glob("annotations/*"))
    assert "run again: segformer-lite data coco --split both --seed 0" in str(verify(tmp_path / "coco"))
    server.always = {}
    assert download_coco(tmp_path / "coco").fetched == 4


def test_the_first_server_that_answers_is_asked(server, tmp_path):
    servers = ["http://127.0.0.1:9", f"{server.address}/no", server.address]
    assert not download_coco(tmp_path / "coco", 2, addresses=servers).failed
    with pytest.raises(ValueError, match=r"no server answers \(http://127.0.0.1:9: .*look after network and proxy"):
        download_coco(tmp_path / "other", 2, addresses=["http://127.0.0.1:9"])


def test_pictures_damaged_on_disk_are_fetched_again_and_whole_ones_are_not(server, tmp_path):
    download_coco(tmp_path)
    short, other, empty, gone, kept = sorted((tmp_path / "train2017").iterdir())[:5]
    short.write_bytes(short.read_bytes()[:-50])
    other.write_bytes(jpeg(1, (30, 40)))
    empty.write_bytes(b"")
    gone.unlink()
    kept.write_bytes(kept.read_bytes() + b"\n")  # decodes, though its end is not a JPEG's
    server.log.clear()
    assert download_coco(tmp_path).fetched == 4
    assert set(server.asked()) == {f"/train2017/{path.name}" for path in (short, other, empty, gone)}
    assert not verify(tmp_path).broken


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_in_the_middle_nothing_is_half_there_and_the_rest_comes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "THREADS", 2)
    server.delay = 0.05
    process = multiprocessing.get_context("fork").Process(target=download_coco, args=(tmp_path / "coco",))
    process.start()
    limit = time.monotonic() + 20
    while len(pictures(tmp_path / "coco")) < 4 and time.monotonic() < limit:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    server.delay = 0.0
    there = {path: body for path, body in pictures(tmp_path / "coco").items() if not path.endswith(".part")}
    assert 4 <= len(there) < 15 and all(server.files[path] == body for path, body in there.items())
    time.sleep(0.1)  # requests of the killed one
    server.log.clear()
    result = download_coco(tmp_path / "coco")
    assert result.fetched == 15 - len(there) and not set(server.asked()) & set(there)
    assert not verify(tmp_path / "coco").broken


def test_a_file_name_that_leads_elsewhere_is_refused(server, tmp_path):
    for name in ("../../evil.jpg", "/tmp/evil.jpg", "..", "a\\..\\evil.jpg", ""):
        content = instances("train")
        content["images"][-1] |= {"file_name": name, "coco_url": "http://x/train2017/000000000001.jpg"}
        server.files[ARCHIVE] = annotations_zip(train=content)
        with pytest.raises(ValueError, match="no plain file name"):
            download_coco(tmp_path / "coco")
        (tmp_path / "coco" / coco.ARCHIVE).unlink()
    assert not content_of(tmp_path)


# ---- COCO: the command ----


def complaint(capsys, *argv) -> str:
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("segformer-lite: ")
    return lines[0]


def test_it_asks_first_and_fetches_nothing_without_a_yes(server, tmp_path, capsys, monkeypatch):
    command = ["data", "coco", "--images", "50000", "--out", tmp_path / "coco"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))  # no terminal: nobody was asked
    said = complaint(capsys, *command)
    assert "55,000 photographs" in said and "9.2 GB" in said and "--yes" in said and "licence" in said
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    for answer in ("n", "", "maybe"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert "nothing was fetched" in complaint(capsys, *command)
    assert not server.log and not (tmp_path / "coco").exists()

    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "y")
    assert main([str(a) for a in command]) == 0
    out = capsys.readouterr().out
    assert "15 of 15 pictures" in out and "licences" in out and f"train --data {tmp_path / 'coco'}" in out
    assert main([str(a) for a in command]) == 0 and len(questions) == 1  # all there: nothing to ask
    next((tmp_path / "coco" / "val2017").iterdir()).unlink()
    assert main([str(a) for a in command]) == 0 and "1 of 15 photographs" in questions[1]


def test_senseless_requests_are_one_line(server, whole, tmp_path, capsys, monkeypatch):
    assert "at least 1" in complaint(capsys, "data", "coco", "--images", "0", "--out", tmp_path, "--yes")
    before = content_of(whole)
    assert "annotations from elsewhere" in complaint(capsys, "data", "coco", "--out", whole, "--yes")
    assert content_of(whole) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9_300_000_000))
    assert "no room" in complaint(capsys, "data", "coco", "--images", "50000", "--out", tmp_path / "coco", "--yes")
    assert not server.log and not (tmp_path / "coco").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_there(server, tmp_path, capsys, monkeypatch):
    write_bytes = Path.write_bytes

    def fill(path, content):
        if ".jpg" in path.name:
            write_bytes(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    assert main(["data", "coco", "--out", str(tmp_path / "coco"), "--yes"]) == 2
    plan, said = capsys.readouterr().err.splitlines()
    assert "20.4 GB" in plan and "No space left" in said
    assert all(path.endswith(".part") for path in pictures(tmp_path / "coco"))
    monkeypatch.undo()
    assert not download_coco(tmp_path / "coco", addresses=[server.address]).failed


def test_ctrl_c_says_how_to_go_on(server, tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "write", interrupted)
    assert main(["data", "coco", "--out", str(tmp_path / "coco"), "--yes"]) == 130
    assert "run the same command again" in capsys.readouterr().err


# ---- chest CT ----


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    """The phantom in the layout of the Kaggle set, with one image more than train.csv names."""
    root = make_sample("chest_ct", tmp_path_factory.mktemp("ct") / "ct", count=12)
    (root / "sample.json").unlink()
    shutil.copy(next((root / "images" / "images").iterdir()), root / "images" / "images" / "ID9_1.jpg")
    return root


def pack(root: Path, path: Path, name=lambda name: name, more: dict | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, name(file.relative_to(root).as_posix()))
        for extra, content in (more or {}).items():
            archive.writestr(extra, content)
    return path


@pytest.mark.parametrize("name", [
    lambda name: name,
    lambda name: f"chest-ct-segmentation/{name}",
    lambda name: name.replace("images/images", "images").replace("masks/masks", "masks"),
], ids=["as it is", "in a folder", "single folders"])
def test_the_zip_becomes_a_folder_that_opens(ct, tmp_path, capsys, name):
    more = {"numpy_images_files.zip": b"pickles", "images/images/readme.txt": b"x", "images/images/._ID1_1.jpg": b"x"}
    path, folder = pack(ct, tmp_path / "ct.zip", name, more), tmp_path / "out"
    assert main(["data", "chest-ct", "--zip", str(path), "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "images without mask" in out and "12" in out
    ours, theirs = ChestCT(folder, seed=3), ChestCT(ct, seed=3)
    assert ours.names == theirs.names and ours.without_mask == ["ID9_1.jpg"] and (ours[2][1] == theirs[2][1]).all()
    assert len(content_of(folder)) == 12 * 2 + 1 + 1  # pictures, the odd image, the table; no pickles


def test_unpacking_goes_on_where_it_was_cut(ct, tmp_path):
    path, folder = pack(ct, tmp_path / "ct.zip"), tmp_path / "out"
    unpack_chest_ct(path, folder)
    first, second, third = sorted((folder / "masks" / "masks").iterdir())[:3]
    whole = content_of(folder)
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    (folder / "train.csv").unlink()
    kept = third.stat().st_mtime_ns
    assert unpack_chest_ct(path, folder) == 25
    assert content_of(folder) == whole and third.stat().st_mtime_ns == kept


def test_a_zip_that_means_harm_leaves_its_folder_nowhere(ct, tmp_path):
    evil = ["../evil.jpg", "images/../../evil.jpg", str(tmp_path / "evil.jpg"), "images/images/../../../evil.jpg",
            "..\\evil.jpg", "images\\..\\..\\evil.jpg", "C:/evil.jpg", "images/images/..jpg", "../train.csv"]
    link = zipfile.ZipInfo("images/images/ID8_1.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    folder_link = zipfile.ZipInfo("images")
    folder_link.external_attr = (stat.S_IFLNK | 0o777) << 16
    (tmp_path / "in").mkdir()
    path = pack(ct, tmp_path / "in" / "ct.zip", more={**dict.fromkeys(evil, b"evil"), link: "/etc/passwd",
                                                      folder_link: "/tmp"})
    inside = tmp_path / "a" / "b" / "out"
    unpack_chest_ct(path, inside)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() and b"evil" in p.read_bytes()} \
        == {"in/ct.zip"}
    assert {p.name for p in tmp_path.iterdir()} == {"in", "a"}
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == {"out"}
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))
    assert (inside / "train.csv").read_bytes() == (ct / "train.csv").read_bytes()


def test_a_zip_bomb_is_not_unpacked(ct, tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", (ct / "train.csv").read_bytes())
        archive.writestr("images/images/ID1_1.jpg", bytes(21_000_000))
    with pytest.raises(ValueError, match=r"unpack to 21.0 MB.*nothing was unpacked"):
        unpack_chest_ct(path, tmp_path / "out")
    monkeypatch.setattr(chest_ct, "LARGEST", 10_000)  # many, each small
    with pytest.raises(ValueError, match="would unpack to"):
        unpack_chest_ct(pack(ct, tmp_path / "ct.zip"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_zip_that_lies_about_a_size_is_refused(ct, tmp_path):
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", (ct / "train.csv").read_bytes())
        archive.writestr("images/images/ID1_1.jpg", bytes(30_000_000))
    data = path.read_bytes()
    path.write_bytes(data.replace((30_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="no whole zip"):
        unpack_chest_ct(path, tmp_path / "out")
    assert not content_of(tmp_path / "out")


def test_wrong_zips_are_one_line(ct, tmp_path, capsys):
    def said(path, out=tmp_path / "out"):
        return complaint(capsys, "data", "chest-ct", "--zip", path, "--out", out)

    assert "does not exist" in said(tmp_path / "nowhere.zip")
    (tmp_path / "text.zip").write_text("<html>log in</html>")
    assert "no whole zip" in said(tmp_path / "text.zip")
    good = pack(ct, tmp_path / "good.zip").read_bytes()
    (tmp_path / "short.zip").write_bytes(good[: len(good) // 2])
    assert "no whole zip" in said(tmp_path / "short.zip")
    (tmp_path / "hole.zip").write_bytes(good[:20_000] + bytes(3000) + good[23_000:])
    assert "no whole zip" in said(tmp_path / "hole.zip")
    assert not (tmp_path / "out" / "train.csv").exists()
    (tmp_path / "empty").mkdir()
    assert "no train.csv" in said(pack(tmp_path / "empty", tmp_path / "empty.zip"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.csv").write_text("mine")
    assert "another train.csv" in said(tmp_path / "good.zip", tmp_path / "other")
    assert content_of(tmp_path / "other") == {"train.csv": b"mine"}


def test_kagglehub_is_asked_where_it_is_installed(ct, tmp_path, capsys, monkeypatch):
    command = ["data", "chest-ct", "--out", str(tmp_path / "out")]
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert "kagglehub is not installed" in complaint(capsys, *command)

    def refuse(handle):
        raise RuntimeError("401 Client Error\nmore lines")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=refuse))
    said = complaint(capsys, *command)
    assert "401 Client Error" in said and "--zip" in said
    asked = []
    fake = SimpleNamespace(dataset_download=lambda handle: asked.append(handle) or str(ct))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    assert main(command) == 0 and asked == ["polomarco/chest-ct-segmentation"]
    assert content_of(tmp_path / "out") == content_of(ct)


# ---- verify ----


def rows(folder: Path) -> dict[str, tuple[int, int]]:
    return {row.what: (row.whole, len(row.broken)) for row in verify(folder).rows}


@pytest.fixture
def coco_folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "coco"))


@pytest.fixture
def ct_folder(ct, tmp_path):
    return Path(shutil.copytree(ct, tmp_path / "ct"))


def test_verify_finds_nothing_where_nothing_is_wrong(coco_folder, ct_folder, capsys):
    assert rows(coco_folder) == {"train annotations": (1, 0), "train pictures": (14, 0), "val annotations": (1, 0),
                                 "val pictures": (5, 0), "opens as train": (11, 0), "opens as val": (4, 0)}
    found = rows(ct_folder)
    assert found["images with mask"] == (12, 0) and found["images without mask"] == (1, 0)
    assert found["opens as train"][0] + found["opens as val"][0] == 12
    before = content_of(coco_folder)
    assert main(["data", "verify", str(coco_folder)]) == main(["data", "verify", str(ct_folder)]) == 0
    assert content_of(coco_folder) == before
    out = capsys.readouterr().out
    assert "broken  what to do" in out and "train.csv names no mask for them" in out


def damage_coco(root: Path, what: str) -> None:
    path, annotations = root / "train2017" / "000000000001.jpg", root / "annotations" / "instances_train2017.json"
    if what == "missing image":
        path.unlink()
    elif what == "truncated image":
        path.write_bytes(path.read_bytes()[:-300])
    elif what == "image of another size":
        path.write_bytes(jpeg(1, (30, 40)))
    elif what == "broken JSON":
        annotations.write_text(annotations.read_text()[:-10])
    elif what == "outline that cannot be drawn":
        content = json.loads(annotations.read_text())
        content["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5, 1]]
        annotations.write_text(json.dumps(content))
    elif what == "no JSON":
        annotations.unlink()


@pytest.mark.parametrize(("what", "row", "word"), [
    ("missing image", "train pictures", "000000000001.jpg does not exist"),
    ("truncated image", "train pictures", "000000000001.jpg cannot be decoded"),
    ("image of another size", "train pictures", "000000000001.jpg is 30x40 pixels but"),
    ("broken JSON", "train annotations", "is not JSON"),
    ("outline that cannot be drawn", "train pictures", "annotation 1 has an outline"),
    ("no JSON", "train annotations", "instances_train2017.json does not exist"),
])
def test_verify_finds_what_is_broken_in_coco(coco_folder, capsys, what, row, word):
    damage_coco(coco_folder, what)
    assert rows(coco_folder)[row] == (13 if "pictures" in row else 0, 1)
    assert rows(coco_folder)["val pictures"] == (5, 0)
    assert main(["data", "verify", str(coco_folder)]) == 2
    out = capsys.readouterr().out
    assert word in out and "fetch them again" in out


def test_verify_lists_all_kinds_at_once(coco_folder):
    for what in ("missing image", "outline that cannot be drawn"):
        damage_coco(coco_folder, what)
    for path in (coco_folder / "val2017").iterdir():
        path.write_bytes(b"<html>")
    (coco_folder / "train2017" / "000000000002.jpg").unlink()
    assert rows(coco_folder) == {"train annotations": (1, 0), "train pictures": (12, 2), "val annotations": (1, 0),
                                 "val pictures": (0, 5)}


def damage_ct(root: Path, what: str) -> None:
    image, mask = (sorted((root / kind / kind).iterdir())[0] for kind in ("images", "masks"))
    table = root / "train.csv"
    if what == "missing image":
        image.unlink()
    elif what == "truncated image":
        image.write_bytes(image.read_bytes()[:-300])
    elif what == "mask of another size":
        picture = Image.open(mask)
        picture.resize((picture.width + 1, picture.height)).save(mask)
    elif what == "grey mask":
        Image.open(mask).convert("L").save(mask)
    elif what == "missing column":
        table.write_text(table.read_text().replace("MaskId", "Mask"))
    elif what == "no masks":
        shutil.rmtree(root / "masks")
    elif what == "strange name":
        table.write_text(table.read_text() + f"ID9_1.jpg,{mask.name}\nscan.jpg,{mask.name}\n")
        shutil.copy(image, root / "images" / "images" / "scan.jpg")


@pytest.mark.parametrize(("what", "row", "word"), [
    ("missing image", "images with mask", "does not exist"),
    ("truncated image", "images with mask", "cannot be decoded"),
    ("mask of another size", "images with mask", "pixels but"),
    ("grey mask", "images with mask", "no colour picture"),
    ("missing column", "train.csv", "no column 'MaskId'"),
    ("no masks", "train.csv", "masks does not exist"),
    ("strange name", "opens as train", "'scan.jpg' in train.csv tells no patient"),
])
def test_verify_finds_what_is_broken_in_chest_ct(ct_folder, capsys, what, row, word):
    damage_ct(ct_folder, what)
    whole, broken = rows(ct_folder)[row]
    assert broken == 1 and whole == (11 if row == "images with mask" else 0)
    assert main(["data", "verify", str(ct_folder)]) == 2
    assert word in capsys.readouterr().out


@pytest.fixture
def own_folder(tmp_path):
    root = tmp_path / "own"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("background\ncat\n")
    for i in range(5):
        (root / "images" / f"{i}.jpg").write_bytes(jpeg(i))
        Image.fromarray(np.full((30, 40), i % 2, np.uint8)).save(root / "masks" / f"{i}.png")
    return root


@pytest.mark.parametrize(("what", "row", "word"), [
    ("nothing", None, "masks without image"),
    ("missing mask", "images with mask", "masks/1.png does not exist"),
    ("truncated image", "images with mask", "1.jpg cannot be decoded"),
    ("mask of another size", "images with mask", "pixels but"),
    ("unknown class", "images with mask", "holds the value 7"),
    ("one class", "classes.txt, images/, masks/", "1 names"),
    ("list", "opens as train", "not in images/"),
    ("mask alone", None, "each needs an image of its name"),
])
def test_verify_reads_ones_own_folder(own_folder, capsys, what, row, word):
    mask = own_folder / "masks" / "1.png"
    if what == "missing mask":
        mask.unlink()
    elif what == "truncated image":
        (own_folder / "images" / "1.jpg").write_bytes(jpeg(1)[:-300])
    elif what == "mask of another size":
        Image.new("L", (41, 30)).save(mask)
    elif what == "unknown class":
        Image.new("L", (40, 30), 7).save(mask)
    elif what == "one class":
        (own_folder / "classes.txt").write_text("cat\n")
    elif what == "list":
        (own_folder / "train.txt").write_text("dog\n")
    elif what == "mask alone":
        shutil.copy(mask, own_folder / "masks" / "dog.png")
    assert main(["data", "verify", str(own_folder)]) == (2 if row else 0)
    assert word in capsys.readouterr().out
    if row:
        assert rows(own_folder)[row][1] == 1


def test_verify_says_what_no_data_set_is(tmp_path, capsys):
    assert "does not exist" in complaint(capsys, "data", "verify", tmp_path / "nowhere")
    assert "no layout known" in complaint(capsys, "data", "verify", tmp_path)


def test_verify_of_annotations_whose_pictures_were_left_out(coco_folder):
    shutil.rmtree(coco_folder / "train2017")
    assert rows(coco_folder) == {"train annotations": (1, 0), "val annotations": (1, 0), "val pictures": (5, 0),
                                 "opens as train": (3, 0), "opens as val": (1, 0)}


def test_real_data_is_whole(realdata):
    for name in ("coco", "chest_ct"):
        assert not verify(realdata / name).broken
