"""Whatever cuts a run (Ctrl-C, kill -9, a full disk, a bad picture, a loss of nan): one clear line, nothing broken."""

import errno
import importlib.util
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image

import segformer_lite as sl
from segformer_lite.cli import main
from segformer_lite.training import batches, checkpoint, loop


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sl.data.make_sample("coco", tmp_path_factory.mktemp("reliability") / "coco", count=12)


def config(sample, folder, **changes):
    return sl.TrainConfig(**{"data": str(sample), "size": 32, "batch_size": 2, "steps": 5, "warmup": 2,
                             "precision": "fp32", "checkpoint_every": 2, "device": "cpu", "folder": str(folder),
                             **changes})


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory):
    """A run that nothing cut."""
    return sl.train(config(sample, tmp_path_factory.mktemp("reliability") / "whole"), progress=False)


def before_step(monkeypatch, number, happen):
    """Let something happen just before the optimiser step of this number, counted from 1."""
    step, calls = loop.train_step, iter(range(1, 1000))

    def with_mishap(*arguments):
        if next(calls) == number:
            happen()
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", with_mishap)


def assert_same(run, whole):
    for (name, a), b in zip(run.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [e["loss"] for e in run.history] == [e["loss"] for e in whole.history]


def saved_step(folder):
    assert not list(folder.glob("*.part"))
    return checkpoint.load_checkpoint(folder / "checkpoint.pt")["step"]


def ctrl_c():
    """As a terminal sends it: to the loader's workers too."""
    for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
        os.kill(process.pid, signal.SIGINT)


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(sample, whole, tmp_path, monkeypatch, capfd, workers):
    settings = config(sample, tmp_path / "run", checkpoint_every=100, workers=workers)
    with monkeypatch.context() as patch:
        before_step(patch, 3, ctrl_c)
        with pytest.raises(KeyboardInterrupt, match=f"train --resume {tmp_path / 'run'}$"):
            sl.train(settings, progress=False)
    assert saved_step(tmp_path / "run") == 3 and capfd.readouterr().err.count("stopping after this step") == 1
    assert_same(sl.train(settings, resume=tmp_path / "run", progress=False), whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(sample, tmp_path, monkeypatch):
    before_step(monkeypatch, 4, lambda: (ctrl_c(), ctrl_c()))
    with pytest.raises(KeyboardInterrupt, match=f"from the last checkpoint.*--resume {tmp_path / 'run'}$"):
        sl.train(config(sample, tmp_path / "run"), progress=False)
    assert saved_step(tmp_path / "run") == 2


def test_ctrl_c_on_the_command_line_is_one_line_and_status_130(sample, tmp_path, monkeypatch, capsys):
    before_step(monkeypatch, 2, ctrl_c)
    assert main(["train", "--data", str(sample), "--size", "32", "--batch-size", "2", "--steps", "4", "--device", "cpu",
                 "--folder", str(tmp_path / "run")]) == 130
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("segformer-lite: stopped") and lines[-1].endswith(f"--resume {tmp_path / 'run'}")
    assert saved_step(tmp_path / "run") == 2


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nan_names_its_step_and_pictures_and_spares_the_checkpoint(sample, tmp_path, monkeypatch, what):
    seen, load = [], batches.Augmented.__getitem__
    names = sl.data.open_dataset(str(sample)).names

    def noting(self, pair):
        seen.append(names[pair[1]])
        return load(self, pair)

    monkeypatch.setattr(batches.Augmented, "__getitem__", noting)
    if what == "loss":
        loss = loop.segmentation_loss
        before_step(monkeypatch, 3, lambda: monkeypatch.setattr(
            loop, "segmentation_loss", lambda *a, **k: loss(*a, **k) * float("nan")))
    else:
        clip = torch.nn.utils.clip_grad_norm_

        def poisoned(parameters, norm):
            parameters = list(parameters)
            parameters[0].grad[0] = float("inf")
            return clip(parameters, norm)

        before_step(monkeypatch, 3, lambda: monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poisoned))
    with pytest.raises(ValueError, match=r"nan or inf at step 3, on .*lower lr \(it is 0.001\)") as caught:
        sl.train(config(sample, tmp_path / "run"), progress=False)
    assert f"on {', '.join(seen[4:6])}:" in str(caught.value) and "\n" not in str(caught.value)
    assert saved_step(tmp_path / "run") == 2
    content = checkpoint.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert all(value.isfinite().all() for value in content["model"].values())


def test_nan_is_found_before_ctrl_c_saves_it(sample, tmp_path, monkeypatch):
    loss = loop.segmentation_loss
    monkeypatch.setattr(loop, "segmentation_loss", lambda *a, **k: loss(*a, **k) * float("nan"))
    before_step(monkeypatch, 1, ctrl_c)
    with pytest.raises(ValueError, match="nan or inf at step 1"):
        sl.train(config(sample, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_in_the_middle_is_named_in_one_line(sample, tmp_path, workers):
    folder = tmp_path / "broken"
    shutil.copytree(sample, folder)
    train_set = sl.data.open_dataset(str(folder))
    [(_, index), _] = batches.StepBatches(len(train_set), 2, 6, seed=0).batch(3)
    path = train_set.image_paths[index]
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError) as caught:
        sl.train(config(folder, tmp_path / "run", workers=workers), progress=False)
    assert str(caught.value).startswith(f"{path} cannot be decoded") and "\n" not in str(caught.value)
    assert saved_step(tmp_path / "run") == 2


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_a_disk_that_takes_no_more_is_one_line_and_the_checkpoint_stays(sample, whole, tmp_path, monkeypatch, disk):
    folder, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        if disk == "full":  # files of 1 MB at most: the fourth step's checkpoint breaks off in the middle
            before_step(patch, 4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1])))
        else:
            before_step(patch, 4, lambda: patch.setattr(Path, "write_bytes", fail))
        try:
            with pytest.raises(OSError, match=f"^cannot write {folder / 'checkpoint.pt'} ") as caught:
                sl.train(config(sample, folder), progress=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    reason = {"full": "File too large", "read-only": "Read-only file system"}[disk]
    assert f"({reason})" in str(caught.value) and "\n" not in str(caught.value)
    assert saved_step(folder) == 2
    assert_same(sl.train(config(sample, folder), resume=folder, progress=False), whole)


def test_no_room_for_the_weights_is_one_line(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = sl.create_model("segformer_b0", 3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write .*m.safetensors .*File too large.*make room") as caught:
            sl.training.save_model(model, tmp_path / "m.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(sample, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert main(["train", "--data", str(sample), "--steps", "1", "--device", "cpu", "--folder",
                 str(tmp_path / "file" / "run")]) == 2
    assert f"cannot write {tmp_path / 'file' / 'run'}" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_log_cut_in_its_last_line_is_read_up_to_there(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 10, "loss": 2}\n{"step": 20, "loss": 1}\n{"step": 30, "lo')
    assert [entry["step"] for entry in checkpoint.read_log(tmp_path / "log.jsonl", 20)] == [10, 20]
    assert [entry["step"] for entry in checkpoint.read_log(tmp_path / "log.jsonl", 19)] == [10]


def test_every_validation_on_the_way_draws_the_live_pictures(sample, tmp_path, monkeypatch):
    seen, figures = [], plt.get_fignums()
    folder = tmp_path / "run"

    def look():
        seen.append({name: (folder / name).exists() for name in ("loss.png", "preview.png")})

    before_step(monkeypatch, 3, look)
    run = sl.train(config(sample, folder, eval_every=2), progress=False)
    assert seen == [{"loss.png": True, "preview.png": True}]
    assert [(e["step"], "miou" in e) for e in run.history] == [(2, True), (4, True), (5, False)]
    with Image.open(folder / "preview.png") as picture:
        assert picture.format == "PNG" and picture.width > 300 and len(picture.convert("RGB").getcolors(10**7)) > 1000
    assert plt.get_fignums() == figures and not list(folder.glob("*.part"))


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch, which Linux alone allows")
def test_kill_9_breaks_no_file_and_changes_no_number(tmp_path):
    path = Path(__file__).parents[1] / "benchmarks" / "kill_test.py"
    spec = importlib.util.spec_from_file_location("kill_test", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    killed = script.kill_test(5, tmp_path)
    assert len(killed) == 5 and any(0 < kill["step"] < 6 for kill in killed)
