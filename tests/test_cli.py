"""The command line as a person meets it: results named, bad input in one clear line, exit 2, nothing lost."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import segformer_lite as sl
from segformer_lite import cli
from segformer_lite.cli import build_parser, main


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sl.data.make_sample("coco", tmp_path_factory.mktemp("cli") / "coco", count=24)


@pytest.fixture(scope="module")
def run_folder(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    status = main(["train", "--data", str(sample), "--size", "64", "--steps", "2", "--batch-size", "2", "--folder",
                   str(folder), "--device", "cpu"])
    assert status == 0
    return folder


def complaint(capsys, *argv) -> str:
    """The one line that a failing command says."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segformer-lite: ")]
    assert len(lines) == 1
    return lines[0]


def test_train_leaves_a_figure_and_a_report_and_says_how_to_go_on(sample, tmp_path, capsys):
    assert main(["train", "--data", str(sample), "--size", "64", "--steps", "1", "--batch-size", "2", "--folder",
                 str(tmp_path / "run"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "miou" in out and str(tmp_path / "run" / "figure.png") in out and "segformer-lite predict" in out
    with Image.open(tmp_path / "run" / "figure.png") as picture:
        assert picture.width > 500
    assert {"figure.png", "report.txt", "report.json", "loss.png"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_resume_of_a_finished_run_changes_nothing(run_folder):
    before = (run_folder / "model.safetensors").read_bytes()
    assert main(["train", "--resume", str(run_folder)]) == 0
    assert (run_folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("change", [{"model_options": 5}, {"model_options": [1]}, {"data_options": 5}, {"lr": "much"}])
def test_settings_of_a_run_that_are_none_are_one_line(change, tmp_path, capsys):
    settings = sl.TrainConfig().as_dict() | change
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert len(complaint(capsys, "train", "--resume", tmp_path)) > 40


def test_evaluate_gives_the_report_of_the_run(run_folder, tmp_path, capsys):
    assert main(["evaluate", str(run_folder), "--out", str(tmp_path / "r.json"), "--device", "cpu"]) == 0
    ours, theirs = (json.loads(p.read_text()) for p in (tmp_path / "r.json", run_folder / "report.json"))
    assert ours == theirs


def test_resuming_takes_no_other_settings_and_steps_come_before_epochs(run_folder, capsys, monkeypatch):
    for flag, value in (("--preset", "sample-coco"), ("--folder", "elsewhere")):
        assert "leave out --preset and --folder" in complaint(capsys, "train", "--resume", run_folder, flag, value)

    asked = []
    monkeypatch.setattr(cli, "train", lambda config, *_, **__: asked.append(config) or SimpleNamespace(report=None))
    assert main(["train", "--preset", "report-coco", "--steps", "7"]) == 0
    assert main(["train", "--preset", "report-coco"]) == 0
    assert [(config.steps, config.epochs) for config in asked] == [(7, None), (1000, 100)]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_full_memory_is_one_line(capsys, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(cli, "train", full)
    assert "memory is full: use smaller pictures" in complaint(capsys, "train", "--preset", "sample-coco")


@pytest.mark.parametrize("more, expected", [
    ([], {"classes": ["cat"], "limit": 9}), (["--limit", "3"], {"classes": ["cat"], "limit": 3}),
    (["--data", "the/same"], {"classes": ["cat"], "limit": 9}), (["--data", "another"], {})], ids=str)
def test_evaluate_keeps_the_options_of_the_runs_own_data(monkeypatch, capsys, more, expected):
    """Else a run would be asked about pictures that it was trained on."""
    seen = []
    description = {"data": "the/same", "data_options": {"classes": ["cat"], "limit": 9}, "size": 64}
    monkeypatch.setattr(cli.cli_look, "load_network", lambda arguments: (None, description))
    monkeypatch.setattr(cli.data, "open_dataset", lambda data, split, **options: seen.append(options))
    monkeypatch.setattr(cli, "evaluate", lambda *arguments, **options: "the report")
    assert main(["evaluate", "run", *more]) == 0 and seen == [expected]


def test_an_error_without_words_is_named(monkeypatch, capsys):
    def fail(arguments):
        raise TimeoutError

    monkeypatch.setattr(cli, "run_evaluate", fail)
    assert complaint(capsys, "evaluate", "run") == "segformer-lite: TimeoutError"


def test_results_in_a_folder_among_the_pictures_are_no_pictures(run_folder, sample, tmp_path, capsys):
    shutil.copy(sorted((sample / "val2017").iterdir())[0], tmp_path / "a.jpg")
    for _ in range(2):
        assert main(["predict", str(run_folder), str(tmp_path), "--out", str(tmp_path / "masks")]) == 0
        assert "1 of 1 pictures done" in capsys.readouterr().out


def test_predict_writes_masks_and_overlays_and_one_bad_file_stops_nothing(run_folder, sample, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    source = sorted((sample / "val2017").iterdir())[0]
    shutil.copy(source, pictures / "a.jpg")
    shutil.copy(source, pictures / "sub" / "a.jpg")
    Image.open(source).convert("CMYK").save(pictures / "cmyk.jpg")
    (pictures / "bad.jpg").write_bytes(source.read_bytes()[:700])
    assert "bad.jpg" in complaint(capsys, "predict", run_folder, pictures, "--out", tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"{n}{s}.png" for n in ("a", "a-2", "cmyk") for s in ("", "_overlay")} | {"areas.json"}
    with Image.open(tmp_path / "out" / "a.png") as mask, Image.open(source) as picture:
        assert mask.mode == "P" and mask.size == picture.size and np.asarray(mask).max() < 11


def test_predict_never_writes_among_the_pictures(run_folder, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    before = (tmp_path / "photo.png").read_bytes()
    assert "choose another folder" in complaint(capsys, "predict", run_folder, tmp_path, "--out", tmp_path)
    assert (tmp_path / "photo.png").read_bytes() == before


def test_bad_input_is_one_clear_line(run_folder, sample, tmp_path, capsys):
    """Missing folder, no COCO file, unknown class, truncated JPEG, missing image, wrong CSV, wrong classes."""
    def train(data, *more):
        return complaint(capsys, "train", "--data", data, "--steps", 1, "--batch-size", 2, "--size", 64,
                         "--device", "cpu", "--folder", tmp_path / "never", *more)

    assert "nowhere" in train(tmp_path / "nowhere")
    assert "unicorn" in train(sample, "--classes", "unicorn")

    broken = tmp_path / "broken"
    shutil.copytree(sample, broken)
    annotations = broken / "annotations" / "instances_train2017.json"
    whole = annotations.read_text()
    annotations.write_text("<html>")
    assert "instances_train2017.json" in train(broken)
    annotations.write_text('{"a": 1}')
    assert "instances_train2017.json" in train(broken)
    annotations.write_text(whole)
    images = sorted((broken / "train2017").iterdir())
    for image in images:  # truncated, all of them: the first one that is read is named
        image.write_bytes(image.read_bytes()[: 600])
    assert ".jpg" in train(broken)
    images[0].unlink()
    assert images[0].name in train(broken)

    ct = sl.data.make_sample("chest_ct", tmp_path / "ct", count=24)
    (ct / "train.csv").write_text("ImageId,Mask\na.jpg,b.jpg\n")
    assert "MaskId" in train(ct)
    assert not (tmp_path / "never").exists() or not any((tmp_path / "never").glob("*.pt"))

    content = json.loads((sample / "annotations" / "instances_val2017.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    some = names[content["annotations"][0]["category_id"]]
    assert "11 classes" in complaint(capsys, "evaluate", run_folder, "--data", sample, "--classes", some)
    assert "no weights" in complaint(capsys, "evaluate", tmp_path)
    assert "nothing to resume from" in complaint(capsys, "train", "--resume", tmp_path / "nowhere")
    half = tmp_path / "half"
    shutil.copytree(run_folder, half)
    (half / "checkpoint.pt").write_bytes((run_folder / "checkpoint.pt").read_bytes()[:10_000])
    assert "not a whole checkpoint" in complaint(capsys, "train", "--resume", half)
    assert "no such picture" in complaint(capsys, "predict", run_folder, tmp_path / "x.jpg", "--out", tmp_path / "o")


def test_every_command_has_help_with_an_example(capsys):
    for command in ("data", "train", "evaluate", "predict", "doctor"):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([command, "--help"])
        assert stop.value.code == 0 and "example: segformer-lite" in capsys.readouterr().out
