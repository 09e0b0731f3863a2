"""What the first cell of a chapter sets, and which run a chapter shows in full mode."""

import json
import os

import pytest
import torch

from segformer_lite.course.setup import setup


def test_the_same_seed_gives_the_same_draws_and_one_line_says_the_mode(capsys, monkeypatch):
    monkeypatch.setenv("SEGFORMER_TEST", "1")
    monkeypatch.setenv("SEGFORMER_LITE_MODE", "full")
    session, first = setup(seed=3), torch.rand(2)
    setup(seed=3)
    assert torch.equal(torch.rand(2), first) and session.full and session.device.type == "cpu"
    assert setup("fast").mode == "fast"  # what is said in the cell counts more than the environment
    assert capsys.readouterr().out.splitlines()[0] == "full mode, seed 3, on cpu"
    with pytest.raises(ValueError, match="mode is 'quick'"):
        setup("quick")


@pytest.mark.parametrize("by_variable", [True, False])
def test_full_mode_shows_the_newest_finished_run_of_the_preset(tmp_path, monkeypatch, by_variable):
    (tmp_path / "course.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGFORMER_LITE_RUNS", raising=False)
    runs = tmp_path / ("elsewhere" if by_variable else "runs")
    if by_variable:
        monkeypatch.setenv("SEGFORMER_LITE_RUNS", str(runs))
    full = setup("full")
    assert full.newest_run("report-coco") is None
    for age, (name, preset) in enumerate([("c", "report-chest-ct"), ("b", "report-coco"), ("a", "report-coco")]):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text(json.dumps({"name": preset}))
        (runs / name / "report.json").write_text("{}")
        os.utime(runs / name / "report.json", (1000 - age, 1000 - age))
    (runs / "e").mkdir()
    (runs / "e" / "report.json").write_text("{}")  # of a network from elsewhere: `evaluate --out`
    (runs / "d").mkdir()
    (runs / "d" / "config.json").write_text(json.dumps({"name": "report-coco"}))  # begun, not finished
    assert full.newest_run("report-coco") == runs / "b"
    assert setup("fast").newest_run("report-coco") is None
