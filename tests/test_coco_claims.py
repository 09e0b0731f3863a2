"""The benchmark of chapter 09: what is compared differs in one thing only, and a tiny run writes all it promises."""

import json
import sys
from pathlib import Path

import pytest
import torch

import segformer_lite as sl

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import coco_claims

    return coco_claims


def key_of_token(layer, row, column):
    """Which keys of an 8 x 8 map change with one token."""
    keys, x = [], torch.zeros(1, 8, 8, 16)
    x[0, row, column] = 1
    layer.k.register_forward_hook(lambda module, inputs, output: keys.append(output[0]))
    layer(torch.zeros_like(x)), layer(x)
    return (keys[0] != keys[1]).any(-1).nonzero().flatten().tolist()


def test_blocks_are_the_strips_on_squares(claims):
    torch.manual_seed(0)
    strips, blocks = claims.Strips(16, 2, 4), claims.Blocks(16, 2, 4)
    blocks.load_state_dict(strips.state_dict())
    for row in range(8):
        for column in range(8):
            assert key_of_token(strips, row, column) == [(8 * row + column) // 16]
            assert key_of_token(blocks, row, column) == [2 * (row // 4) + column // 4]
    x = torch.randn(2, 8, 8, 16)
    assert torch.equal(strips(x), strips.train()(x))  # no dropout
    # One query against the keys by hand: the output stands where its query stood.
    squares = x.view(2, 2, 4, 2, 4, 16).transpose(2, 3).reshape(2, 4, 256)
    q, k, v = (y.view(2, -1, 2, 8).transpose(1, 2) for y in (blocks.q(x), blocks.k(squares), blocks.v(squares)))
    wanted = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(blocks(x), blocks.proj(wanted))


def test_a_tiny_run_writes_every_network_size_and_seed(claims, tmp_path, monkeypatch, capsys):
    root = sl.data.make_sample("coco", tmp_path / "scenes", count=12)
    monkeypatch.setenv("SEGFORMER_LITE_RUNS", str(tmp_path / "runs"))
    arguments = ["--data", str(root), "--size", "32", "--steps", "1", "--seeds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(claims, "RATES", claims.RATES[1:])  # one rate: nothing to choose, less to train
    monkeypatch.setattr(sys, "argv", ["coco_claims.py", *arguments])
    claims.main()
    content = json.loads((tmp_path / "coco-claims.json").read_text())
    assert list(content["results"]) == list(content["titles"]) == list(content["costs"]) == list(content["rates"])
    assert content["settings"]["data"] == "scenes" and "/" not in content["command"].removeprefix("python benchmarks/")
    for (run,) in content["results"].values():
        regions, found, pixels, right, _ = torch.tensor(run["sizes"]).T
        assert len(regions) == 5 and regions.sum() > 0 and (found <= regions).all() and (right <= pixels).all()
        assert len(run["iou"]) == len(content["classes"]) and 0 <= run["miou"] <= 1
    same = content["costs"]["b0-strips"] == content["costs"]["b0-blocks"]
    assert same and content["costs"]["b0-weights"] == content["costs"]["b0"]
    assert (tmp_path / "coco-claims.png").stat().st_size > 10_000
