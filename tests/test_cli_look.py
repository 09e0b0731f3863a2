"""`predict` and `erf` as a person meets them: what is written says what the network saw, and nothing is lost."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import segformer_lite as sl
from segformer_lite.analysis import receptive_field
from segformer_lite.cli import main
from segformer_lite.evaluation import resize_for_model
from segformer_lite.training.checkpoint import save_model

CLASSES = ["background", "cat", "dog"]
PALETTE = [[60, 60, 60], [230, 159, 0], [86, 180, 233]]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A network without training, whose answers are not all alike."""
    folder = tmp_path_factory.mktemp("look") / "run"
    torch.manual_seed(1)
    model = sl.create_model("segformer_b0", 3)
    with torch.no_grad():
        model.decoder.classify.weight *= 20
    save_model(model, folder / "model.safetensors",
               {"model": "segformer_b0", "model_options": {}, "classes": CLASSES, "palette": PALETTE, "size": 64,
                "data": "sample-coco", "data_options": {}})
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("wide.png", (75, 150, 3)), ("high.jpg", (130, 90, 3))):
        blocks = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(size[1::-1], Image.Resampling.BICUBIC).save(folder / name)
    return folder


def test_areas_are_those_of_the_masks(run_folder, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(run_folder), str(pictures), "--out", str(out), "--device", "cpu"]) == 0
    assert f"2 of 2 pictures done: {out}" in capsys.readouterr().out
    told = json.loads((out / "areas.json").read_text())
    assert [(t["picture"], t["height"], t["width"]) for t in told] == [
        (str(pictures / "high.jpg"), 130, 90), (str(pictures / "wide.png"), 75, 150)]
    for entry in told:
        with Image.open(out / entry["mask"]) as mask:
            labels = np.asarray(mask)
            assert mask.getpalette()[:9] == sum(PALETTE, [])
        assert labels.shape == (entry["height"], entry["width"]) and len(entry["classes"]) > 1
        for name, area in entry["classes"].items():
            count = int((labels == CLASSES.index(name)).sum())
            assert area == {"id": CLASSES.index(name), "pixels": count, "share": round(count / labels.size, 6)}
        assert sum(area["pixels"] for area in entry["classes"].values()) == labels.size
        pixels = [area["pixels"] for area in entry["classes"].values()]
        assert pixels == sorted(pixels, reverse=True)


@pytest.mark.parametrize("command", ["predict", "erf"])
def test_one_bad_file_stops_nothing_and_is_named(command, run_folder, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes((pictures / "wide.png").read_bytes()[:60])
    (pictures / "text.jpg").write_text("no picture")
    out = tmp_path / "out"
    assert main([command, str(run_folder), str(pictures), "--out", str(out), "--device", "cpu"]) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 2 and "broken.png" in lines[0] and "text.jpg" in lines[1]
    assert "2 of 4 pictures done, 2 failed" in said.out
    told = json.loads((out / ("areas.json" if command == "predict" else "erf.json")).read_text())
    assert [t["picture"] for t in told] == [str(pictures / "high.jpg"), str(pictures / "wide.png")]
    assert not list(out.glob("*.part"))


def test_results_of_two_pictures_never_share_a_name(run_folder, pictures, tmp_path):
    shutil.copy(pictures / "wide.png", pictures / "high_overlay.png")  # the name of the other's overlay
    assert main(["predict", str(run_folder), str(pictures), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    names = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert len(names) == 6 and {"high.png", "high_overlay.png", "wide.png"} <= names
    with Image.open(tmp_path / "out" / "high_overlay.png") as overlay:
        assert overlay.mode == "RGB" and overlay.size == (90, 130)


def test_erf_writes_the_field_of_the_pixel_asked_for(run_folder, pictures, tmp_path):
    out = tmp_path / "out"
    assert main(["erf", str(run_folder), str(pictures / "wide.png"), "--layer", "stage2", "--pixel", "60", "40",
                 "--out", str(out), "--device", "cpu"]) == 0
    told, = json.loads((out / "erf.json").read_text())
    image = torch.from_numpy(np.array(Image.open(pictures / "wide.png"))).permute(2, 0, 1)
    seen = resize_for_model(image, 64)
    assert told["seen_at"] == list(seen.shape[-2:])
    pixel = (60 * seen.shape[1] // 75, 40 * seen.shape[2] // 150)
    model, _ = sl.load_model(run_folder)
    field = receptive_field(model, seen[None], "stage2", pixel)
    for name in ("area", "anisotropy", "log_area"):
        assert told[name] == pytest.approx(field.measures()[name], rel=1e-2)
    assert told["pixel"] == list(pixel) and told["layer"] == "stage2" and told["scalar"] == "sum of ReLU"
    assert told["centre_share"] == pytest.approx(field.centre_share(), rel=1e-3)
    with Image.open(out / told["figure"]) as figure:
        assert figure.format == "PNG" and figure.width > 500


def test_erf_takes_the_centre_and_a_class(run_folder, pictures, tmp_path):
    assert main(["erf", str(run_folder), str(pictures / "high.jpg"), "--layer", "decoder", "--scalar", "logit 2",
                 "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    told, = json.loads((tmp_path / "out" / "erf.json").read_text())
    assert told["scalar"] == "logit 2" and told["pixel"] == [n // 2 for n in told["seen_at"]]


@pytest.mark.parametrize(("arguments", "says"), [
    (["--layer", "stage9"], "no layer 'stage9'"),
    (["--layer", "encoder"], "not one map"),
    (["--pixel", "75", "0"], "--pixel 75 0 lies outside the picture of 75 x 150 px"),
    (["--pixel", "-1", "0"], "outside the picture"),
    (["--scalar", "median"], "no scalar 'median'"),
    (["--layer", "decoder", "--scalar", "logit 3"], "no class 3"),
])
def test_wrong_requests_are_one_line(arguments, says, run_folder, pictures, tmp_path, capsys):
    assert main(["erf", str(run_folder), str(pictures / "wide.png"), "--out", str(tmp_path / "out"), "--device", "cpu",
                 *arguments]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("segformer-lite: ") and says in line
    assert not list(tmp_path.glob("out/*"))


def test_a_layer_that_is_not_there_is_said_once_for_all_pictures(run_folder, pictures, tmp_path, capsys):
    assert main(["erf", str(run_folder), str(pictures), "--layer", "stage9", "--out", str(tmp_path / "out"),
                 "--device", "cpu"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("command", ["predict", "erf"])
def test_pictures_that_are_not_there_are_one_line(command, run_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path, says in ((tmp_path / "no.jpg", "no such picture"), (tmp_path / "empty", "no pictures in")):
        assert main([command, str(run_folder), str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
        line, = capsys.readouterr().err.splitlines()
        assert says in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "erf"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"example: segformer-lite {command}" in capsys.readouterr().out
