"""Loss, schedule, the loop: resuming to the same numbers, files that are whole or absent, comparisons."""

import json
import os
import signal
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import segformer_lite as sl
from segformer_lite.models import upsampling
from segformer_lite.training import checkpoint, class_weights, dice_loss, loop, segmentation_loss
from segformer_lite.training.batches import one_line_errors
from segformer_lite.training.device import choose_device, mixed_precision
from segformer_lite.training.schedule import make_optimizer, poly_with_warmup


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sl.data.make_sample("coco", tmp_path_factory.mktemp("sample") / "coco", count=24)


def config(sample, folder, **changes):
    return sl.TrainConfig(**{"data": str(sample), "size": 64, "batch_size": 4, "steps": 6, "warmup": 2,
                             "precision": "fp32", "checkpoint_every": 2, "device": "cpu", "folder": str(folder),
                             **changes})


def test_loss_is_the_mean_over_valid_pixels_at_label_resolution():
    logits = torch.zeros(2, 4, 3, 3, requires_grad=True)
    labels = torch.full((2, 12, 12), 255)
    labels[0, :2] = 1
    assert segmentation_loss(logits, labels).item() == pytest.approx(torch.tensor(4.0).log().item())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [3, 70])  # few and many: two layouts
@pytest.mark.parametrize("pictures", [0.01, 0.2, 0.8, 2, 1000])  # a line, some, a picture in two strips, two, all
@pytest.mark.parametrize("size", [(5, 6), (20, 24), (31, 7), (1, 1)])  # of logits: smaller, as large, larger, one
def test_loss_part_by_part_is_the_loss_of_the_whole(size, pictures, classes, weighted, monkeypatch):
    monkeypatch.setattr(upsampling, "PART", int(pictures * classes * 20 * 24))
    logits = torch.randn(3, classes, *size, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, classes, (3, 20, 24))
    labels[1, 5:] = 255
    weights = torch.rand(classes).tolist() if weighted else None
    upsampled = torch.nn.functional.interpolate(logits, (20, 24), mode="bilinear")
    each = torch.nn.functional.cross_entropy(upsampled, labels, weights and logits.new_tensor(weights),
                                             ignore_index=255, reduction="sum")
    whole, (gradient,) = each / (labels != 255).sum(), torch.autograd.grad(each, logits)
    loss = segmentation_loss(logits, labels, class_weights=weights)
    (3 * loss).backward()
    assert loss.item() == pytest.approx(whole.item())
    assert torch.allclose(logits.grad, 3 * gradient / (labels != 255).sum())
    with torch.no_grad():
        assert segmentation_loss(logits, labels, class_weights=weights).item() == pytest.approx(whole.item())


def test_loss_of_nothing_labelled_is_zero_not_nan():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 12, 12), 255))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_class_weights_multiply_the_pixels_of_a_class():
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    labels[0, :4] = 255
    each = torch.nn.functional.cross_entropy(logits, labels.clamp(max=2), reduction="none")
    weights = torch.tensor([1.0, 0.0, 3.0])
    valid = labels != 255
    expected = (each * weights[labels.clamp(max=2)])[valid].sum() / valid.sum()
    assert segmentation_loss(logits, labels, class_weights=[1, 0, 3]).item() == pytest.approx(expected.item())


def test_weights_of_classes_follow_the_root_of_their_share_and_mean_one():
    weights = class_weights([900, 0, 90, 10])
    assert weights[1] == 0 and weights[2] / weights[0] == pytest.approx(10**0.5, rel=1e-3)
    assert np.dot(weights, [0.9, 0, 0.09, 0.01]) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="no class has a pixel"):
        class_weights([0, 0])


def test_dice_loss_by_hand():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, :, :2], labels[0, 3] = 1, 255  # three rows count: six pixels of each class
    right = torch.nn.functional.one_hot(labels.clamp(max=1), 3).permute(0, 3, 1, 2) * 100.0
    assert dice_loss(right, labels).item() == pytest.approx(0, abs=1e-6)
    even = torch.zeros(1, 3, 4, 4)  # a third of each class everywhere: overlap 2 of sizes 4 + 6, and 0 of 4 + 0
    assert dice_loss(even, labels).item() == pytest.approx(1 - (5 / 11 + 5 / 11 + 1 / 5) / 3)
    total = segmentation_loss(even, labels, dice_weight=0.5)
    assert total.item() == pytest.approx(segmentation_loss(even, labels).item() + dice_loss(even, labels).item() / 2)


def test_a_small_region_moves_dice_more_than_cross_entropy():
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[0, :2, :2] = 1
    logits = torch.zeros(1, 2, 32, 32, requires_grad=True)
    shares = []
    for loss in (segmentation_loss, dice_loss):
        (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
        shares.append((gradient[0, 1, :2, :2].abs().sum() / gradient[0, 1].abs().sum()).item())
    assert shares[0] < 0.01 and shares[1] > 4 * shares[0]


def test_loss_settings_reach_the_run(sample, tmp_path):
    plain = sl.train(config(sample, tmp_path / "plain", steps=2), progress=False)
    other = sl.train(config(sample, tmp_path / "other", steps=2, class_weights=np.full(11, 2.0)), progress=False)
    assert other.history[0]["loss"] == pytest.approx(2 * plain.history[0]["loss"], rel=0.05)
    dice = sl.train(config(sample, tmp_path / "dice", steps=2, dice_weight=1.0), progress=False)
    assert dice.history[0]["loss"] > plain.history[0]["loss"] + 0.5
    with pytest.raises(ValueError, match="holds 3 weights, but .* has 11 classes"):
        sl.train(config(sample, tmp_path / "wrong", class_weights=[1, 2, 3]), progress=False)
    with pytest.raises(ValueError, match="finite and not negative"):
        config(sample, tmp_path / "wrong", class_weights=[1, -2])


def test_optimizer_groups():
    model = sl.create_model("segformer_b0", 5)
    optimizer = make_optimizer(model, lr=1e-3)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(rates) == len(list(model.parameters()))
    block = model.encoder.stages[1].blocks[0]
    assert rates[id(block.norm1.bias)] == (1e-3, 0) and rates[id(block.ffn.fc1.weight)] == (1e-3, 0.01)
    assert rates[id(model.decoder.norm.weight)] == (pytest.approx(1e-2), 0)
    assert rates[id(model.decoder.classify.weight)] == (pytest.approx(1e-2), 0.01)


def test_schedule_warms_up_then_falls_to_zero():
    factors = [poly_with_warmup(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(1e-6) and factors[5] == 0.5 and factors[10] == 1 and factors[100] == 0
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))


def test_every_epoch_sees_every_image_once_in_another_order():
    batches = list(loop.StepBatches(10, 4, 10, seed=0))
    order = [index for batch in batches for _, index in batch]
    assert all(sorted(order[k:k + 10]) == list(range(10)) for k in (0, 10, 20)) and order[:10] != order[10:20]
    assert list(loop.StepBatches(10, 4, 10, seed=0, start=7)) == batches[7:]
    assert list(loop.StepBatches(10, 4, 10, seed=1)) != batches


def test_a_run_leaves_whole_files_and_its_network_loads(sample, tmp_path):
    run = sl.train(config(sample, tmp_path / "run", steps=10), progress=False)
    names = {p.name for p in run.folder.iterdir()}
    assert names == {"config.json", "log.jsonl", "loss.png", "checkpoint.pt", "model.safetensors", "report.json"}
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log] == [10] and log == run.history
    model, description = sl.load_model(run.folder)
    assert description["classes"][0] == "background" and description["size"] == 64
    assert model.classes == description["classes"] == list(sl.data.open_dataset(sample).classes)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(model.predict(images), run.model.predict(images))


def test_resuming_gives_the_numbers_of_an_unbroken_run(sample, tmp_path, monkeypatch):
    whole = sl.train(config(sample, tmp_path / "whole"), progress=False)

    class Cut(Exception):
        pass

    step = loop.train_step
    steps = iter(range(100))

    def cut_before_the_fourth(*arguments):
        if next(steps) == 3:
            raise Cut
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", cut_before_the_fourth)
    with pytest.raises(Cut):
        sl.train(config(sample, tmp_path / "cut"), progress=False)
    monkeypatch.setattr(loop, "train_step", step)
    torch.rand(3)  # the caller's generator must not matter
    resumed = sl.train(config(sample, tmp_path / "cut"), resume=tmp_path / "cut", progress=False)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [e["loss"] for e in whole.history] == [e["loss"] for e in resumed.history]


def test_workers_change_no_number(sample, tmp_path):
    runs = [sl.train(config(sample, tmp_path / str(n), workers=n, steps=3), progress=False) for n in (0, 1)]
    assert runs[0].history[-1]["loss"] == runs[1].history[-1]["loss"]


def test_resume_refuses_other_settings_and_a_second_run_in_one_folder(sample, tmp_path):
    first = config(sample, tmp_path / "run", steps=2)
    sl.train(first, progress=False)
    with pytest.raises(ValueError, match="run with lr = 0.001, not 0.5"):
        sl.train(replace(first, lr=0.5), resume=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="already holds a run"):
        sl.train(first, progress=False)


def test_a_run_goes_on_where_another_precision_was_used(sample, tmp_path):
    first = config(sample, tmp_path / "run", precision="auto", steps=2)
    sl.train(first, progress=False)
    content = checkpoint.load_checkpoint(tmp_path / "run" / checkpoint.CHECKPOINT)
    assert content["scaler"] == {}  # as a CPU leaves it; a GPU without bf16 has a scaler with numbers
    trainer = loop.Training.__new__(loop.Training)
    model = sl.create_model("segformer_b0", 11)
    trainer.folder, trainer.settings, trainer.model = tmp_path / "run", content["settings"], model
    trainer.optimizer = make_optimizer(model, first.lr)
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)
    trainer._resume()
    assert trainer.done == 2


def test_a_run_goes_on_where_weights_lie_otherwise_in_memory(sample, tmp_path):
    """On a GPU they are channels last, on a CPU not; AdamW's kernels walk through memory, and want its means alike."""
    first = config(sample, tmp_path / "run", steps=2)
    sl.train(first, progress=False)
    file = tmp_path / "run" / checkpoint.CHECKPOINT
    content = torch.load(file, weights_only=True)
    for state in content["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].ndim == 4:
                state[name] = state[name].to(memory_format=torch.channels_last)
    torch.save(content, file)
    trainer = loop.Training(first, tmp_path / "run", False, torch.device("cpu"))
    for parameter, state in trainer.optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()
    saved = [state["exp_avg"] for state in content["optimizer"]["state"].values()]
    for before, after in zip(saved, trainer.optimizer.state.values(), strict=True):
        assert torch.equal(before, after["exp_avg"])


def test_a_compiled_run_gives_the_same_numbers_and_plain_files(sample, tmp_path, monkeypatch):
    compile, modes = torch.compile, []

    def without_a_compiler(network, mode):  # the same graphs, run by torch itself
        modes.append(mode)
        return compile(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    plain = sl.train(config(sample, tmp_path / "plain", steps=3), progress=False)
    other = config(sample, tmp_path / "compiled", steps=3, compile="reduce-overhead")
    compiled = sl.train(other, progress=False)
    assert modes == ["reduce-overhead"]
    for before, after in zip(plain.history, compiled.history, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-3)
    assert list(sl.load_model(tmp_path / "compiled")[0].state_dict()) == list(plain.model.state_dict())
    sl.train(replace(other, compile=None), resume=tmp_path / "compiled", progress=False)  # and goes on without


def test_a_machine_without_a_compiler_is_one_line(sample, tmp_path, monkeypatch):
    def fails(network, mode):
        def backend(graph, inputs):
            raise OSError("no C++ compiler found")

        return compile(network, backend=backend)

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(ValueError, match="torch.compile does not work here .*no C.. compiler.*train without compile"):
        sl.train(config(sample, tmp_path / "run", steps=1, compile="default"), progress=False)


def test_settings_in_a_file_are_those_that_are_read_back(tmp_path):
    options = {"rates": (1, 2, 3), "ffn": partial(sl.MixFFN), "attention": sl.EfficientSelfAttention}
    settings = sl.TrainConfig(data=tmp_path, model_options=options).as_dict()
    assert settings == json.loads(json.dumps(settings))
    assert settings["data"] == str(tmp_path) and settings["model_options"]["rates"] == [1, 2, 3]
    assert settings["model_options"]["ffn"] == "own class partial"


def test_a_presets_options_stay_as_they_are():
    sl.TrainConfig.preset("report-coco").data_options["limit"] = 5
    assert sl.TrainConfig.preset("report-coco").data_options["limit"] == 50_000


def test_pictures_are_kept_in_memory_only_where_every_process_has_room():
    from segformer_lite.training.batches import MEMORY_LIMIT, Resized

    count = int(0.6 * MEMORY_LIMIT / (96**2 * 4 * 4 / 3))
    assert Resized(range(count), 96, 0).keep and not Resized(range(count), 96, 0, copies=2).keep


@pytest.mark.parametrize("damage", ["half", "empty", "text", "pickle", "foreign"])
def test_a_broken_checkpoint_is_one_line_and_nothing_is_lost(sample, tmp_path, damage):
    settings = config(sample, tmp_path / "run", steps=2)
    sl.train(settings, progress=False)
    path = tmp_path / "run" / checkpoint.CHECKPOINT
    whole = path.read_bytes()
    if damage == "pickle":  # a stranger's file must not run code
        import pickle

        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "was_here"), "w"))

        path.write_bytes(pickle.dumps(Evil()))
    elif damage == "foreign":
        torch.save({"step": 1, "settings": {}}, path)
    else:
        path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"<html>404</html>"}[damage])
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"not a whole checkpoint.*without --resume") as caught:
        sl.train(settings, resume=tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "was_here").exists()
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_broken_weights_are_one_line(tmp_path):
    model = sl.create_model("segformer_b0", 3)
    description = {"model": "segformer_b0", "model_options": {}, "classes": ["a", "b", "c"]}
    sl.training.save_model(model, tmp_path / "m.safetensors", description)
    assert sl.load_model(tmp_path / "m.safetensors")[1] == description
    sl.training.save_model(model, tmp_path / "wrong.safetensors", {**description, "classes": ["a", "b"]})
    with pytest.raises(ValueError, match="does not fit segformer_b0 with 2 classes"):
        sl.load_model(tmp_path / "wrong.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        sl.load_model(tmp_path / "half.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights"):
        sl.load_model(tmp_path)


def test_a_crash_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    model = sl.create_model("segformer_b0", 3)
    description = {"model": "segformer_b0", "model_options": {}, "classes": ["a", "b", "c"]}
    sl.training.save_model(model, tmp_path / "m.safetensors", description)
    old = (tmp_path / "m.safetensors").read_bytes()

    def crash(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        sl.training.save_model(model, tmp_path / "m.safetensors", description)
    assert (tmp_path / "m.safetensors").read_bytes() == old


def test_own_blocks_train_and_say_so_when_loaded_without(sample, tmp_path):
    class Plain(sl.MixFFN):
        def forward(self, x):
            return self.fc2(self.fc1(x).relu())

    run = sl.train(config(sample, tmp_path / "run", steps=1, model_options={"ffn": Plain}), progress=False)
    assert sl.load_model(run.folder, ffn=Plain)[0].encoder.stages[0].blocks[0].ffn.__class__ is Plain
    with pytest.raises(ValueError, match="ffn.*Plain"):
        sl.load_model(run.folder)


def test_an_own_class_with_other_code_is_another_class(sample, tmp_path):
    class Narrow(sl.MixFFN):
        def forward(self, x):
            return super().forward(x)

    first = Narrow

    class Narrow(sl.MixFFN):
        def forward(self, x):
            return 2 * super().forward(x)

    notes = [sl.TrainConfig(model_options={"ffn": own}).as_dict()["model_options"]["ffn"] for own in (first, Narrow)]
    assert notes[0] != notes[1] and notes[0].split()[:3] == notes[1].split()[:3]
    sl.train(config(sample, tmp_path / "run", steps=1, model_options={"ffn": first}), progress=False)
    with pytest.raises(ValueError, match="was run with model_options = "):
        sl.train(config(sample, tmp_path / "run", steps=1, model_options={"ffn": Narrow}), tmp_path / "run", False)


def test_compare_trains_each_seed_once_and_tells_means(sample, tmp_path):
    configs = {"plain": config(sample, ""), "slow": config(sample, "", lr=1e-5)}
    table = sl.compare(configs, seeds=2, folder=tmp_path / "c", progress=False)
    assert all(len(v) == 2 for v in table.values().values()) and "±" in str(table)
    mean, sd = table.mean_sd()["plain"]
    values = table.values()["plain"]
    assert mean == pytest.approx(sum(values) / 2) and sd == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    seeds = [json.loads((tmp_path / "c/slow" / name / "config.json").read_text())["seed"] for name in "01"]
    assert seeds == [0, 1]
    again = sl.compare(configs, seeds=2, folder=tmp_path / "c", progress=False)
    assert again.results == table.results
    assert len((tmp_path / "c/plain/0/log.jsonl").read_text().splitlines()) == 1


def test_compare_under_torchrun_is_one_line(monkeypatch, tmp_path):
    """There the first process alone has a report; said before anything is trained."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ValueError, match="start it without torchrun$"):
        sl.compare({"a": sl.TrainConfig()}, folder=tmp_path, progress=False)


def test_settings_are_checked_in_words():
    with pytest.raises(ValueError, match="no preset 'coco'; there are sample-coco"):
        sl.TrainConfig.preset("coco")
    with pytest.raises(ValueError, match="no setting 'stepz'"):
        sl.TrainConfig.preset("sample-coco", stepz=3)
    with pytest.raises(ValueError, match="precision"):
        sl.TrainConfig(precision="int8")
    with pytest.raises(ValueError, match="compile is None or one of default, reduce-overhead"):
        sl.TrainConfig(compile="fast")
    with pytest.raises(ValueError, match="at least 32"):
        sl.TrainConfig(size=16)
    for weights in ([1, float("nan")], [1, -1.0]):
        with pytest.raises(ValueError, match="class_weights must be finite and not negative"):
            sl.TrainConfig(class_weights=weights)


def test_attention_on_a_cpu_in_bf16_is_fused_for_large_pictures_alone():
    query = torch.randn(1, 2, 16, 32, dtype=torch.bfloat16, requires_grad=True)
    for side, fused in ((256, False), (257, True)):
        with mixed_precision(torch.empty(1, 3, side, 256), torch.bfloat16):
            out = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        assert ("Flash" in type(out.grad_fn).__name__) == fused, (side, out.grad_fn)


@pytest.mark.parametrize("device", ["cuda:9", "xpu", "meta", "gpu", "mps:7"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device):
    with pytest.raises(ValueError, match=f"torch finds no device '{device}' on this machine; it has cpu"):
        choose_device(device)


def test_a_gpu_for_which_torch_has_no_kernels_is_not_chosen(monkeypatch):
    def ones(*size, device=None):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", ones)
    assert choose_device().type == "cpu"
    with pytest.raises(ValueError, match="no device 'cuda'"):
        choose_device("cuda")


def test_each_process_asks_a_gpu_of_its_own_and_one_on_the_cpu_none(monkeypatch):
    asked = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", lambda *size, device=None: asked.append(device) or torch.full((1,), 1.0))
    assert choose_device("cpu").type == "cpu" and not asked
    assert choose_device().type == "cuda" and set(asked) == {"cuda:1"}


def test_report_presets_are_the_reports_settings():
    coco, ct = sl.training.PRESETS["report-coco"], sl.training.PRESETS["report-chest-ct"]
    assert (coco.size, coco.epochs, coco.data_options["limit"], coco.augment) == (256, 100, 50_000, "pspnet")
    assert (ct.size, ct.epochs, ct.data_options["limit"]) == (512, 50, 15_000)


def test_steps_that_are_asked_for_come_before_a_presets_epochs():
    preset = sl.TrainConfig.preset("report-coco", steps=5)
    assert preset.steps == 5 and preset.epochs is None
    assert preset.name == "report-coco" and sl.TrainConfig.preset("report-coco", steps=5, epochs=2).epochs == 2


def test_fewer_pictures_than_processes_is_one_line(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.distributed, "processes", lambda: 5)
    with pytest.raises(ValueError, match="batch_size is 4, but torchrun started 5 processes"):
        sl.train(config(sample, tmp_path / "run"), progress=False)


def test_an_unknown_augmentation_leaves_no_folder(sample, tmp_path):
    with pytest.raises(ValueError, match="'upside'"):
        sl.train(config(sample, tmp_path / "run", augment="upside"), progress=False)
    assert not (tmp_path / "run").exists()


class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="what ends a worker from outside differs elsewhere")
def test_a_worker_that_was_ended_from_outside_is_one_line():
    with pytest.raises(OSError, match="a process that loads data was ended from outside"):
        list(one_line_errors(torch.utils.data.DataLoader(Deadly(), num_workers=1)))
