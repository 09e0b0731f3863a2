"""Several processes take the steps of one: the same pictures, the same gradients, one set of files."""

import json
import multiprocessing
import os
import signal
import socket
import sys

import pytest
import torch

import segformer_lite as sl
from segformer_lite.models.variants import ReportDecoder
from segformer_lite.training import batches, checkpoint, distributed, loop
from segformer_lite.training.schedule import make_optimizer

pytestmark = pytest.mark.skipif(sys.platform != "linux",
                                reason="forks a process that has loaded torch, which Linux alone allows")
CPU = torch.device("cpu")
# Batch norm would differ: on a CPU each process normalises by its own share. Dropped paths would differ too.
SAME_ANYWHERE = {"decoder": ReportDecoder, "drop_path": 0.0}


def _child(rank, processes, port, out, work, arguments):
    os.environ.update(TORCHELASTIC_RUN_ID="test", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.save(work(*arguments), out / f"{rank}.pt")


def in_processes(work, out, *arguments, processes=2):
    """What `work(*arguments)` gives in each of several processes, started as torchrun starts them."""
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=_child, args=(rank, processes, port, out, work, arguments))
               for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    codes = [process.exitcode for process in started]
    for process in started:
        if process.is_alive():
            process.kill()
    assert codes == [0] * processes, codes
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def batch_of_five():
    """Images (5, 3, 32, 32) and labels: the pictures at even places are labelled all over, the others hardly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (5, 32, 32), generator=generator)
    labels[1::2, 3:] = 255
    return images, labels


def gradients(own_mean=False):
    """This process's gradients, loss and gradient norm of one step on its share of the batch, and the share's pixels.

    own_mean: divide by the share's own pixels, the mistake that the shared count is there to avoid.
    """
    torch.manual_seed(distributed.rank())  # the first process's weights are handed to all
    model = sl.create_model("segformer_b0", 4, **SAME_ANYWHERE)
    optimizer, scaler = make_optimizer(model, 1e-3), torch.amp.GradScaler("cpu", enabled=False)
    images, labels = (x[distributed.rank()::distributed.processes()] for x in batch_of_five())
    count, _ = distributed.agree(labels, stop=False)
    loss, norm = loop.train_step(distributed.parallel(model, CPU), optimizer, scaler, images, labels, 1.0,
                                 sl.TrainConfig(clip=1e9, class_weights=[1, 2, 1, 1]), torch.float32,
                                 None if own_mean else count)
    found = {name: p.grad for name, p in model.named_parameters()}
    return found, distributed.mean(loss), norm, int((labels != 255).sum())


def both_ways():
    with distributed.joined(CPU):
        return gradients(), gradients(own_mean=True)


def farthest(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_gradients_are_those_of_one_process_on_the_whole_batch(tmp_path):
    whole, loss, norm, valid = gradients()
    for rank, (shared, own) in enumerate(in_processes(both_ways, tmp_path / "out")):
        part, part_loss, part_norm, pixels = shared
        assert pixels == (3 * 32 * 32, 2 * 3 * 32)[rank] and valid == 3 * 32 * 32 + 2 * 3 * 32
        assert farthest(part, whole) < 1e-5
        assert part_loss.item() == pytest.approx(loss.item(), abs=1e-5)
        assert part_norm.item() == pytest.approx(norm.item(), rel=1e-4)
        assert farthest(own[0], whole) > 1e-2, "these shares would not show a wrong mean"


def test_nothing_labelled_anywhere_gives_a_loss_of_zero():
    total = loop.segmentation_loss(torch.randn(1, 4, 8, 8), torch.full((1, 32, 32), 255), count=1 / 2)
    assert total.item() == 0


def test_processes_share_each_batch_out():
    whole = batches.StepBatches(10, 5, 8, seed=3, start=2)
    shares = [list(batches.StepBatches(10, 5, 8, seed=3, start=2, rank=rank, processes=3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert sorted(sum(parts, [])) == batch and [len(p) for p in parts] == [2, 2, 1]


def config(sample, folder, **changes):
    return sl.TrainConfig(**{"data": str(sample), "size": 32, "batch_size": 5, "steps": 4, "warmup": 2, "lr": 1e-4,
                             "precision": "fp32", "device": "cpu", "folder": str(folder), "eval_every": 2,
                             "model_options": SAME_ANYWHERE, **changes})


def trained(settings, resume=None):
    run = sl.train(settings, resume, progress=False)
    return [e["loss"] for e in run.history], [e.get("miou") for e in run.history], run.report is not None


def test_a_run_of_two_processes_is_the_run_of_one(tmp_path):
    sample = sl.data.make_sample("coco", tmp_path / "coco", count=12)
    losses, mious, _ = trained(config(sample, tmp_path / "one"))
    first, second = in_processes(trained, tmp_path / "out", config(sample, tmp_path / "two"))
    assert first[0] == second[0] == pytest.approx(losses, abs=2e-4)
    assert first[1][0] == pytest.approx(mious[0], abs=0.02) and second[1] == [None] * 2
    assert first[2] and not second[2]
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [2, 4]


def stopped(settings):
    """Ctrl-C in the second process alone, before its second step."""
    step, calls = loop.train_step, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 1 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    loop.train_step = interrupted
    try:
        sl.train(settings, progress=False)
    except KeyboardInterrupt as stop:
        return str(stop)


def test_ctrl_c_in_one_process_stops_all_and_one_process_can_go_on(tmp_path):
    sample = sl.data.make_sample("coco", tmp_path / "coco", count=12)
    settings = config(sample, tmp_path / "run", eval_every=0)
    messages = in_processes(stopped, tmp_path / "out", settings)
    assert all(f"--resume {tmp_path / 'run'}" in message for message in messages)
    assert checkpoint.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 2
    losses, *_ = trained(settings, tmp_path / "run")
    unbroken, *_ = trained(config(sample, tmp_path / "one", eval_every=0))
    assert losses == pytest.approx(unbroken, abs=2e-4)
