"""What training costs in operations and memory, which no machine's mood changes; and the `bench` command."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import segformer_lite as sl
from segformer_lite import cli, cli_bench
from segformer_lite.analysis import macs, speed
from segformer_lite.training import TrainConfig, make_optimizer
from segformer_lite.training.loop import train_step

CPU = torch.device("cpu")
MB = 2**20


def training_step(model, size, batch, classes):
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(0, classes, (batch, size, size))
    optimizer, scaler = make_optimizer(model, 1e-4), torch.amp.GradScaler("cpu", enabled=False)
    return lambda: train_step(model, optimizer, scaler, images, labels, 1.0, TrainConfig(), torch.float32)


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture(scope="module")
def b0():
    torch.manual_seed(0)
    return sl.create_model("segformer_b0", 150)


def test_operations_of_a_forward_pass(b0):
    assert speed.flops(speed.inference(b0, torch.randn(1, 3, 64, 96), torch.float32)) == 2 * macs(b0, (64, 96))


def test_memory_of_a_step_holds_no_logits_at_label_resolution(b0):
    full = 4 * 150 * 256 * 256 * 4 / MB  # of four pictures; the plain loss holds three such tensors at its worst
    peak = speed.peak_memory(training_step(b0, 256, 4, 150), b0) / MB
    assert peak < 290, "a training step of four pictures of 256 px takes 277 MB, AdamW's means included"

    def plain():
        logits = sl.models.upsample(b0.train()(torch.randn(4, 3, 256, 256)), (256, 256))
        torch.nn.functional.cross_entropy(logits, torch.randint(0, 150, (4, 256, 256))).backward()

    assert speed.peak_memory(plain, b0) / MB > peak + full


def test_a_step_makes_eleven_tensors_as_large_as_the_logits(b0):
    class Made(TorchDispatchMode):
        sizes = []

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            self.sizes += [x.numel() for x in tree_leaves(result)
                           if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given]
            return result

    step = training_step(b0, 256, 2, 150)
    with Made() as made:
        step()
    # Of the decoder's four maps at 1/4 and their batch norm, forward; of norm, ReLU, dropout, classifier, backward;
    # the logits and their gradient. At label resolution there is none.
    assert sum(size >= 2 * 150 * 64 * 64 for size in made.sizes) == 11


def test_training_takes_two_fifths_of_the_memory_that_transformers_takes(b0):
    pytest.importorskip("transformers", reason="the peer of the speed figures")
    theirs = speed.peers("b0", b0)["transformers"]
    images, labels = torch.randn(4, 3, 256, 256), torch.randint(0, 150, (4, 256, 256))
    peer = speed.peak_memory(speed.plain_training_step(theirs, images, labels, torch.float32), theirs)
    assert speed.peak_memory(training_step(b0, 256, 4, 150), b0) < 0.4 * peer


def test_peak_memory_follows_tensors_until_they_die():
    def function():
        a = torch.empty(10 * MB, dtype=torch.uint8)
        b = a + 1
        del a
        return b + 1

    assert speed.peak_memory(function, torch.nn.Linear(1, 1)) / MB == pytest.approx(20, abs=0.1)


def test_peak_memory_counts_what_the_first_call_leaves_behind():
    kept = []

    def function():
        torch.empty(20 * MB, dtype=torch.uint8)
        if not kept:  # as an optimiser makes its means after the first backward pass
            kept.append(torch.empty(10 * MB, dtype=torch.uint8))

    assert speed.peak_memory(function, torch.nn.Linear(1, 1)) / MB == pytest.approx(30, abs=0.1)


def test_traffic_counts_what_operations_take_and_give_and_views_for_nothing():
    x = torch.zeros(250, 1000)  # a million bytes
    cases = [(lambda: x + 1, 2), (lambda: x.add_(1), 2), (lambda: x.T.reshape(500, 500), 2), (lambda: x[:100].T, 0),
             (lambda: torch.zeros(250, 1000), 1), (lambda: torch.empty(250, 1000), 0), (lambda: x @ x.T, 2.25),
             (lambda: x[:, :1].expand(250, 1000) + x, 2.001)]
    assert [speed.traffic(function) / 1e6 for function, _ in cases] == [pytest.approx(size) for _, size in cases]


def test_traffic_and_memory_of_a_forward_pass(b0):
    b0.zero_grad()  # other tests train it
    forward = speed.inference(b0, torch.randn(8, 3, 256, 256), torch.float32)
    assert speed.traffic(forward) < 1.55e9, "it takes 1.50 GB"
    assert speed.peak_memory(forward, b0) < 110 * MB, "it takes 105 MB"


GLIBC = tuple(int(number) for number in platform.libc_ver()[1].split(".")) if platform.libc_ver()[0] == "glibc" else ()


@pytest.mark.skipif(GLIBC < (2, 36), reason="only glibc is asked, and older ones refuse")
def test_freed_memory_is_kept():
    script = """if True:
        import resource, sys, torch
        from segformer_lite.memory import keep_freed_memory
        if sys.argv[1] == "kept":
            keep_freed_memory()
        convolve, image = torch.nn.Conv2d(3, 48, 3, padding=1), torch.rand(1, 3, 512, 512)  # to 48 MiB
        for _ in range(12):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            with torch.inference_mode():
                convolve(image)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    asked = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    pages = {kind: int(subprocess.run([sys.executable, "-c", script, kind], check=True, capture_output=True, text=True,
                                      env=asked).stdout) for kind in ("kept", "given back")}
    # Not from the second pass on: an aligned block asks for a little more than it holds, so one given back is too short
    # for the same again while a small block lies behind it. After two of these the heap grows no more.
    assert pages["kept"] < 10 < pages["given back"], pages


def test_every_command_but_bench_keeps_freed_memory(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: asked.append(True))
    cli.main(["bench", "--sizes", "1"])
    assert not asked, "bench measures what users of other packages have"
    for number, command in enumerate(("evaluate nowhere", "train --resume nowhere", "data verify nowhere"), start=1):
        cli.main(command.split())
        assert len(asked) == number


def test_turns_are_taken_one_after_the_other_and_compared_in_pairs():
    order = []

    def work(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)
        return run

    timing = speed.take_turns({"slow": work("slow", 0.02), "fast": work("fast", 0.002)}, turns=3)
    assert order == ["slow", "fast"] * 4  # the first turn warms up
    low, middle, high = timing.ratio("slow", "fast")
    assert 1 < low <= middle <= high and timing.median("slow") >= 0.02


def test_bench_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "new" / "speed.json"
    assert cli.main(["bench", "--sizes", "32", "--batches", "1", "--turns", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "inference fp32" in printed and "training  fp32" in printed and "MB" in printed
    content = json.loads(out.read_text())
    assert [row["work"] for row in content["rows"]] == ["inference", "training"]
    assert all(len(row["ms"]["segformer_lite"]) == 2 for row in content["rows"])
    assert content["rows"][1]["peak_mb"]["segformer_lite"] > 4 * 4 * 3_752_694 / MB  # weights, gradients, two means
    assert content["rows"][0]["gflop"] == pytest.approx(
        2 * macs(sl.create_model("segformer_b0", 150), 32) / 1e9, abs=0.01)


def test_bench_compares_only_networks_that_agree(monkeypatch, capsys):
    monkeypatch.setattr(speed, "peers", lambda variant, ours: {"transformers": sl.create_model("segformer_b0", 150)})
    assert cli.main(["bench", "--sizes", "32", "--batches", "1", "--turns", "1"]) == 2
    assert "logits differ" in capsys.readouterr().err


def test_a_compiled_peer_keeps_its_own_loss(monkeypatch):
    class Peer(torch.nn.Module):
        def forward(self, x, labels=None):
            return SimpleNamespace(logits=x, loss=x.mean())

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network, mode: compiled.append((network, mode)) or network)
    peer = Peer()
    found = cli_bench.compile_network(speed.Logits(peer), "default")
    assert isinstance(found, speed.Logits) and compiled == [(peer, "default")]


def test_bench_names_peers_that_are_missing(monkeypatch, capsys):
    monkeypatch.setattr(speed, "peers", lambda variant, ours: {"transformers": "not installed"})
    assert cli.main(["bench", "--sizes", "32", "--batches", "1", "--turns", "1", "--work", "inference"]) == 0
    assert "transformers: not installed, left out" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--sizes", "16"], ["--batches", "0"], ["--turns", "0"]])
def test_bench_refuses_in_one_line(wrong, capsys):
    assert cli.main(["bench", *wrong]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_line_tells_the_memory_share():
    row = {"work": "training", "precision": "fp32", "size": 64, "batch": 2, "ms": {"segformer_lite": [1.0, 2.0, 3.0]},
           "peak_mb": {"segformer_lite": 10, "peer": 40}, "times_faster_than": {"peer": [1.0, 2.0, 3.0]},
           "share_of_matrix_product": 0.25, "share_of_copy": 0.5}
    assert "2.00 (1.00-3.00) times as fast as peer, memory 0.25 of its" in cli_bench.line(row)


def test_synthetic_coco_is_opened_the_same_by_both(benchmarks, tmp_path):
    import coco_index
    from pycocotools.coco import COCO

    size = coco_index.draw(tmp_path / "coco", pictures=20, outlines=60)
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    assert size == path.stat().st_size
    theirs, ours = COCO(str(path)), sl.data.open_dataset(tmp_path / "coco", "train", keep_empty=True)
    mine = dict(zip((image["id"] for image in ours.images), map(len, ours.annotations), strict=True))
    assert sum(mine.values()) and mine == {i: len(theirs.imgToAnns[i]) for i in mine}
    seconds, peak, kept = coco_index.measure(tmp_path / "coco", "segformer_lite, persons")
    assert 0 < seconds < 60 and -0.1 < kept <= peak and kept < 1


def test_time_covered_counts_overlaps_once(benchmarks):
    from report_presets import covered

    assert covered([(5, 6), (0, 2), (1, 3), (1, 2), (8, 8)]) == 4  # 0 to 3 and 5 to 6


def test_a_profile_leaves_out_what_only_names_a_span(benchmarks):
    from report_presets import profiled

    x = torch.randn(64, 64)

    def work():
        with torch.profiler.record_function("a whole step"):
            x @ x
            time.sleep(0.2)

    seconds, slowest = profiled(work, torch.device("cpu"))
    assert seconds < 0.1 and "mm" in "".join(slowest) and "a whole step" not in slowest


def test_a_gpus_kernels_are_named_shortly_and_counted_by_the_clock(benchmarks, monkeypatch):
    import report_presets

    def event(name, start, end, kind="CUDA", named=False):
        span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=name, time_range=span, device_type=getattr(torch.autograd.DeviceType, kind),
                               is_user_annotation=named, self_cpu_time_total=10**9)

    class Profile:
        def __init__(self, activities):
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        __enter__, __exit__ = lambda self: self, lambda self, *error: None

        def events(self):
            return [event("void at::native::vectorized_elementwise_kernel<4, at::native::Gelu>(int, char*)", 0, 6e5),
                    event("void at::native::(anonymous namespace)::CatArrayBatchedCopy<2>(float*)", 5e5, 7e5),
                    event("Memcpy HtoD (Pinned -> Device)", 8e5, 9e5),
                    event("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>(Params)", 9e5, 1e6),
                    event("Optimizer.step#AdamW.step", 0, 5e6, named=True),
                    event("cudaDeviceSynchronize", 0, 5e6, kind="CPU")]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    seconds, slowest = report_presets.profiled(lambda: None, torch.device("cuda", 0))
    assert seconds == pytest.approx(0.9)  # 0 to 0.7 and 0.8 to 1
    assert slowest == {"vectorized_elementwise_kernel": 0.6, "CatArrayBatchedCopy": 0.2, "Memcpy HtoD": 0.1,
                       "cutlass_80_tensorop_bf16_s16816gemm": 0.1}


def test_the_table_of_speeds_has_every_case_of_its_files(benchmarks, tmp_path):
    import speed_table

    results = Path(__file__).parents[1] / "docs" / "results"
    assert (results / "speed.md").read_text(encoding="utf-8") == speed_table.page(results)
    content = json.loads((results / "speed.json").read_text(encoding="utf-8"))
    row = content["rows"][0]
    row["times_faster_than"] = {"transformers": [2, 3, 4]}  # the only peer that was installed
    row["peak_mb"] = {"segformer_lite": 10, "transformers": 40}
    row["ms"]["segformer_lite"] = [2.5, 2.63, 3]
    (tmp_path / "cuda-speed.json").write_text(json.dumps(content | {"device": "a card", "rows": [row]}))
    page = speed_table.page(tmp_path)
    assert "| 3.00 (2.00 to 4.00), 0.25 |  |  |" in page and "a card" in page and "| 2.63 |" in page


def test_a_bench_that_is_stopped_keeps_what_it_has_measured(monkeypatch, tmp_path):
    rows = iter([{"work": "training", "precision": "fp32", "size": 256, "batch": 1, "times_faster_than": {}}])
    monkeypatch.setattr(cli_bench.speed, "peers", lambda *networks: {})
    monkeypatch.setattr(cli_bench.speed, "ceilings", lambda *device: (1e9, 1e9))
    monkeypatch.setattr(cli_bench, "line", str)

    def measure(*case):
        try:
            return next(rows)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(cli_bench, "measure", measure)
    assert cli.main(["bench", "--out", str(tmp_path / "speed.json")]) == 130
    assert len(json.loads((tmp_path / "speed.json").read_text())["rows"]) == 1


def test_the_gpu_script_ends_within_its_minutes(benchmarks, monkeypatch, capsys):
    import gpu

    clock, given, takes = [0.0], [], [10, 1000, 1000, 20]  # seconds that the four parts would take

    def run(command, cwd, timeout):
        given.append(timeout)
        needs = takes[len(given) - 1]
        clock[0] += min(needs, timeout)
        if needs > timeout:
            raise gpu.subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=run, TimeoutExpired=gpu.subprocess.TimeoutExpired))
    assert gpu.main() == 0
    assert given == pytest.approx([120, *[470 / 3] * 3])  # what the first leaves, the others share
    out = capsys.readouterr().out
    assert out.count("STOPPED") == 2 and out.count("ended") == 2


def test_report_presets_writes_a_row_for_each_network(benchmarks, monkeypatch, tmp_path):
    import report_presets

    monkeypatch.setattr(report_presets, "NETWORKS", ("segformer_b0",))
    monkeypatch.setattr(report_presets, "PRESETS", {"report-coco": (1000, 300, 81, (480, 640))})
    arguments = ["--steps", "1", "--pictures", "2", "--batch-size", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["report_presets.py", *arguments])
    judged, to_judge = [], report_presets.seconds_to_judge

    def seconds_to_judge(model, held_out, config):
        judged.extend([len(held_out), to_judge(model, held_out, config)])
        return judged[1]

    monkeypatch.setattr(report_presets, "seconds_to_judge", seconds_to_judge)
    report_presets.main()
    content = json.loads((tmp_path / "report-presets.json").read_text())
    row, = content["rows"]
    assert row["hours"] == pytest.approx(1000 * 100 / row["pictures_per_second"] / 3600, rel=0.05)
    assert "--steps 1" in content["command"]
    assert judged[0] == 2 and row["validation_hours"] == pytest.approx(10 * 300 * judged[1] / 3600, abs=1e-3)
    assert set(row["hours_at_least"]) == {"product", "copy"} and 0 < max(row["hours_at_least"].values()) < row["hours"]
    shares = list(row["slowest"].values())
    assert len(shares) == 8 and shares == sorted(shares, reverse=True) and 0.3 < sum(shares) <= 1
    assert (tmp_path / "report-presets.png").stat().st_size > 10_000
    monkeypatch.setattr(torch, "compile", lambda model, mode: model)
    monkeypatch.setattr("sys.argv", ["report_presets.py", "--compile", "default", *arguments])
    report_presets.main()  # fused code copies less than the operations that it is made of: that is no floor of it
    row, = json.loads((tmp_path / "report-presets-compiled.json").read_text())["rows"]
    assert set(row["hours_at_least"]) == {"product"} and row["compiled"] == "default"


def test_a_run_of_the_reports_presets_is_validated_eight_and_five_times(benchmarks):
    from report_presets import PRESETS, validations

    assert [validations(PRESETS[name][0], sl.TrainConfig.preset(name)) for name in PRESETS] == [8, 5]


def test_a_smaller_card_gets_half_the_batch_until_it_fits(benchmarks, monkeypatch):
    import report_presets

    shares, tried = [], []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, number: shares.append(
        (share, number.__index__())))  # the real one takes no device without a number

    def measure(preset, network, batch_size, args, device):
        tried.append(batch_size)
        if batch_size > 32:
            raise torch.OutOfMemoryError
        if batch_size > 16:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        if network == "broken":
            raise RuntimeError("shapes do not match")
        return {"batch_size": batch_size}

    monkeypatch.setattr(report_presets, "measure", measure)
    found = report_presets.largest_that_fits("report-coco", "unet", 8, SimpleNamespace(batch_size=None),
                                             torch.device("cuda"))
    assert found == {"card_gb": 8, "batch_size": 16} and tried == [64, 32, 16]
    assert shares == [(7.5 / 80, 0), (1.0, 0)]
    with pytest.raises(RuntimeError, match="shapes"):
        report_presets.largest_batch("report-coco", "broken", SimpleNamespace(batch_size=16), torch.device("cuda"))


def test_everything_for_a_gpu_is_asked_for_in_words_that_are_understood(benchmarks, monkeypatch, capsys):
    import gpu
    import report_presets

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2 and "no CUDA GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run = []
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, cwd, timeout: run.append(command[1:]) or SimpleNamespace(
        returncode=len(run) == 2))
    assert gpu.main() == 1 and capsys.readouterr().out.count("FAILED") == 1
    assert gpu.main(["0", "four"]) == 2 and "no part 'four'" in capsys.readouterr().err
    four = run.copy()
    assert gpu.main(["2", "0"]) == 0 and run[4:] == [four[2], four[0]]
    run[4:] = []
    monkeypatch.setattr(cli_bench, "run_bench", lambda arguments: run.append(arguments.out.name))
    monkeypatch.setattr(report_presets, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(report_presets, "rows", lambda args, device: [{}])
    monkeypatch.setattr(report_presets, "write", lambda path, content: run.append(path.name))
    monkeypatch.setattr(report_presets, "save", lambda figure, path: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    for part in run[:]:
        if part[0] == "-m":
            assert cli.main(part[2:]) == 0
        else:
            monkeypatch.setattr("sys.argv", part)
            report_presets.main()
    assert run[4:] == ["cuda-speed.json", "cuda-speed-compiled.json", "report-presets.json",
                       "report-presets-compiled.json"]
