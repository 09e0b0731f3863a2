"""Training that starts from given weights: they arrive whole, a frozen encoder stays as it was, wrong ones are told."""

from dataclasses import replace

import pytest
import torch

import segformer_lite as sl
from segformer_lite.cli import main
from segformer_lite.training import checkpoint


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sl.data.make_sample("coco", tmp_path_factory.mktemp("sample") / "coco", count=24)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Weights as another program would leave them, of a network of 5 classes."""
    folder = tmp_path_factory.mktemp("source") / "weights"
    torch.manual_seed(7)
    sl.create_model("segformer_b0", 5, norm_eps=1e-5).save_pretrained(folder)
    return folder


def config(sample, folder, **changes):
    return sl.TrainConfig(**{"data": str(sample), "size": 64, "batch_size": 2, "steps": 2, "warmup": 0,
                             "precision": "fp32", "device": "cpu", "folder": str(folder), **changes})


def parts(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other, prefix: str) -> bool:
    names = [name for name in one if name.startswith(prefix)]
    return bool(names) and all(torch.equal(one[name], other[name]) for name in names)


def test_a_run_starts_from_the_weights_with_a_new_classifier(sample, source, tmp_path):
    given = sl.SegFormer.from_pretrained(source).state_dict()
    run = sl.train(config(sample, tmp_path / "run", weights=str(source), steps=0), progress=False)
    state = parts(run.model)
    assert same(state, given, "encoder.") and same(state, given, "decoder.fuse")
    assert state["decoder.classify.weight"].shape[0] == 11
    again = sl.train(config(sample, tmp_path / "again", weights=str(source), steps=0), progress=False)
    assert same(state, parts(again.model), "")  # the new classifier too is a function of the seed
    assert not same(state, parts(sl.train(config(sample, tmp_path / "scratch", steps=0), progress=False).model),
                    "encoder.")


def test_the_classifier_comes_along_where_the_classes_agree(sample, source, tmp_path):
    first = sl.train(config(sample, tmp_path / "first"), progress=False)
    second = sl.train(config(sample, tmp_path / "second", weights=str(first.folder), steps=0, seed=3), progress=False)
    assert same(parts(second.model), parts(first.model), "")


def test_a_frozen_encoder_stays_and_the_decoder_learns(sample, source, tmp_path):
    settings = config(sample, tmp_path / "run", weights=str(source), freeze_encoder=True)
    run = sl.train(settings, progress=False)
    given, state = sl.SegFormer.from_pretrained(source).state_dict(), parts(run.model)
    assert same(state, given, "encoder.") and not same(state, given, "decoder.fuse")
    free = sl.train(replace(settings, folder=str(tmp_path / "free"), freeze_encoder=False), progress=False)
    assert not same(parts(free.model), given, "encoder.")


def test_a_resumed_run_needs_the_weights_no_more_and_reaches_the_same_numbers(sample, source, tmp_path):
    settings = config(sample, tmp_path / "whole", weights=str(source), freeze_encoder=True, steps=4, checkpoint_every=2)
    whole = sl.train(settings, progress=False)
    broken = replace(settings, folder=str(tmp_path / "cut"))
    save, saved = checkpoint.save_checkpoint, []

    def stop_after_one(*arguments):
        save(*arguments)
        saved.append(1)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            sl.train(broken, progress=False)
        patch.undo()
        patch.setattr(checkpoint, "start_from", None)  # nothing may ask for the weights again
        resumed = sl.train(broken, resume=tmp_path / "cut", progress=False)
    assert saved and same(parts(resumed.model), parts(whole.model), "")


def test_weights_that_do_not_fit_are_one_line(sample, source, tmp_path):
    with pytest.raises(ValueError, match="another network than the one to train") as error:
        sl.train(config(sample, tmp_path / "a", weights=str(source), model="segformer_b1"), progress=False)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="another network"):
        sl.train(config(sample, tmp_path / "b", weights=str(source), model="unet"), progress=False)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        sl.train(config(sample, tmp_path / "c", weights=str(tmp_path / "nowhere")), progress=False)
    assert not any(tmp_path.iterdir())


def test_the_command_line_starts_from_weights(sample, source, tmp_path, capsys, recwarn):
    assert main(["train", "--data", str(sample), "--weights", str(source), "--freeze-encoder", "--size", "64",
                 "--steps", "1", "--batch-size", "2", "--device", "cpu", "--folder", str(tmp_path / "run")]) == 0
    given, (model, _) = sl.SegFormer.from_pretrained(source).state_dict(), sl.load_model(tmp_path / "run")
    assert same(parts(model), given, "encoder.") and not same(parts(model), given, "decoder.fuse")
    assert not [w for w in recwarn if "random" in str(w.message)]


def test_runs_from_before_a_setting_are_resumed_with_its_default(sample, tmp_path):
    import json

    assert main(["train", "--data", str(sample), "--size", "64", "--steps", "1", "--batch-size", "2", "--device", "cpu",
                 "--folder", str(tmp_path / "run")]) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    del settings["weights"], settings["freeze_encoder"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
