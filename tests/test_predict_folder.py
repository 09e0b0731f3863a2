"""`predict` on a folder as people have them: many formats, some files broken; one bad file stops nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import segformer_lite as sl
from segformer_lite.cli import main
from segformer_lite.training.checkpoint import save_model

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
WHOLE = 36


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "run"
    torch.manual_seed(1)
    save_model(sl.create_model("segformer_b0", 3), folder / "model.safetensors",
               {"model": "segformer_b0", "model_options": {}, "classes": ["background", "cat", "dog"], "size": 32,
                "palette": [[60, 60, 60], [230, 159, 0], [86, 180, 233]], "data": "sample-coco", "data_options": {}})
    return folder


@pytest.fixture
def inbox(tmp_path, monkeypatch):
    """36 pictures of 15 kinds in two folders, five files that are no picture, and a folder with a picture's name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import fuzz

    sys.modules.pop("fuzz")
    folder = tmp_path / "inbox"
    fuzz.write_pictures(folder, WHOLE - 6, np.random.default_rng(0))
    fuzz.write_pictures(folder / "more", 6, np.random.default_rng(1))
    whole = (folder / "0000-rgb.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.jpg").write_bytes((folder / "0001-rgb.jpg").read_bytes()[:300])
    (folder / "empty.webp").write_bytes(b"")
    (folder / "notes.png").write_text("a text that was saved under the wrong name")
    (folder / "cut.tiff").write_bytes((folder / "0007-deep.tiff").read_bytes()[:60])
    (folder / "album.jpg").mkdir()
    (folder / "readme.txt").write_text("no picture, and does not say it is one")
    return folder


def test_a_mixed_folder(run_folder, inbox, tmp_path, capsys, recwarn):
    before = {path: path.read_bytes() for path in inbox.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    assert main(["predict", str(run_folder), str(inbox), "--out", str(out), "--device", "cpu"]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert all(line.startswith("segformer-lite: ") for line in lines)
    assert sorted(line.split("inbox/")[1].split()[0] for line in lines) == [
        "cut.jpg", "cut.png", "cut.tiff", "empty.webp", "notes.png"]
    assert f"{WHOLE} of {WHOLE + 5} pictures done, 5 failed: {out}" in said.out
    assert not recwarn.list

    told = json.loads((out / "areas.json").read_text())
    assert len(told) == WHOLE and not list(out.glob("*.part"))
    for entry in told:
        with Image.open(entry["picture"]) as picture, Image.open(out / entry["mask"]) as mask:
            assert mask.size == ImageOps.exif_transpose(picture).size and np.asarray(mask).max() < 3
        with Image.open(out / entry["mask"].replace(".png", "_overlay.png")) as overlay:
            assert overlay.mode == "RGB"
    assert len({entry["mask"] for entry in told}) == WHOLE  # the same names in two folders do not meet
    assert len(list(out.iterdir())) == 2 * WHOLE + 1
    assert before == {path: path.read_bytes() for path in inbox.rglob("*") if path.is_file()}


def test_a_thread_of_a_picture_is_refused_before_memory_is_full(run_folder, tmp_path, capsys):
    """One row of pixels, seen at a short side of 32, would be a picture of a million pixels and more."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (60_000, 1)).save(tmp_path / "in" / "line.png")
    Image.new("RGB", (50, 40)).save(tmp_path / "in" / "whole.png")
    assert main(["predict", str(run_folder), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--size", "512",
                 "--device", "cpu"]) == 2
    said = capsys.readouterr()
    line, = said.err.splitlines()
    assert "line.png" in line and "1 x 60000 px" in line and "1 of 2 pictures done, 1 failed" in said.out


def test_all_whole_is_status_0_and_none_whole_writes_no_table(run_folder, tmp_path, capsys):
    for name, status in (("good", 0), ("bad", 2)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (50, 40)).save(tmp_path / name / "a.png")
        if name == "bad":
            (tmp_path / name / "a.png").write_bytes(b"GIF89a")
        out = tmp_path / f"{name}-out"
        assert main(["predict", str(run_folder), str(tmp_path / name), "--out", str(out), "--device", "cpu"]) == status
        assert (out / "areas.json").exists() == (name == "good")
