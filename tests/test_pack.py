"""Packs: the source's items at base size, the same numbers in training, whole or not there at all."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys

import pytest
import torch

import segformer_lite as sl
from segformer_lite import threads
from segformer_lite.cli import main
from segformer_lite.data import PackedSegmentation, open_dataset, pack, pack_dataset, resize_short_side
from segformer_lite.data.verify import verify
from segformer_lite.training import batches

SIZE, COUNT = 48, 15  # of the sample's 16 pictures one shows nothing
FILES = {"pack.json", "images.bin", "labels.bin"}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sl.data.make_sample("coco", tmp_path_factory.mktemp("sample") / "coco", count=16)


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory):
    """A pack that no test changes."""
    return pack_dataset(sample, tmp_path_factory.mktemp("packs") / "whole", SIZE)


@pytest.fixture
def packed(whole, tmp_path):
    """A pack to be broken."""
    return shutil.copytree(whole, tmp_path / "broken")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- what is in it ----


@pytest.mark.parametrize("split", ["train", "val"])
def test_items_are_the_source_s_at_base_size(sample, whole, split):
    source, items = open_dataset(sample, split), open_dataset(whole, split)
    assert type(items) is PackedSegmentation and len(items) == len(source) > 1
    assert (items.names, items.classes, items.ignore_index) == (source.names, source.classes, 255)
    assert (items.palette == source.palette).all()
    shapes = set()
    for index in range(len(source)):
        image, label = resize_short_side(*source[index], SIZE)
        assert type(items[index][0]) is type(image) and type(items[index][1]) is type(label)
        assert torch.equal(items[index][0], image) and torch.equal(items[index][1], label)
        assert items[index][1].dtype == torch.int64 and (items.read_mask(index) == label.numpy()).all()
        shapes.add(tuple(label.shape))
    assert len(shapes) > 1 or split == "val"
    assert {path.name for path in whole.iterdir()} == FILES
    first, before = items[0][0], items[0][0].clone()
    first.zero_()  # an item is its reader's own
    assert torch.equal(items[0][0], before)


def test_chest_ct_and_a_choice_of_classes(sample, tmp_path):
    ct = sl.data.make_sample("chest_ct", tmp_path / "ct", count=27)
    folder = pack_dataset(ct, tmp_path / "ct-pack", 40, val_patients=open_dataset(ct, "val").patients[:1])
    assert open_dataset(folder, "val").names == open_dataset(
        ct, "val", val_patients=open_dataset(ct, "val").patients[:1]).names
    known = open_dataset(sample).classes[1:3]
    folder = pack_dataset(sample, tmp_path / "two", 40, classes=known[::-1])
    assert open_dataset(folder).classes == ["background", *known[::-1]]
    assert json.loads((folder / "pack.json").read_text())["options"] == {"classes": known[::-1]}


def test_limit_chooses_as_the_source_does(sample, whole):
    for seed in (0, 1):
        assert open_dataset(whole, limit=4, seed=seed).names == open_dataset(sample, limit=4, seed=seed).names
    with pytest.raises(ValueError, match="opens as PackedSegmentation, which has no 'classes': it takes limit, seed"):
        open_dataset(whole, classes=["dog"])


def config(data, folder="", **changes):
    return sl.TrainConfig(**{"data": str(data), "size": 32, "base_size": SIZE, "batch_size": 4, "steps": 3, "warmup": 2,
                             "precision": "fp32", "device": "cpu", "folder": str(folder), "augment": "segformer",
                             **changes})


@pytest.mark.parametrize("on_device", [False, True])
def test_batches_are_those_of_the_source(sample, whole, monkeypatch, on_device):
    monkeypatch.setattr(batches, "augments", lambda device: on_device)
    settings, found = config(sample), []
    for data in (sample, whole):
        train_set = open_dataset(data)
        order = batches.StepBatches(len(train_set), 4, 8, seed=0)  # two epochs and a half
        found.append(list(batches.load(train_set, order, settings, torch.device("cpu"))))
    for a, b in zip(*found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_no_resizing_at_the_pack_s_size(whole, monkeypatch):
    items = batches.Resized(open_dataset(whole), SIZE, seed=0)
    monkeypatch.setattr("torch.nn.functional.interpolate", lambda *_, **__: 1 / 0)
    assert min(items[0, 0][1].shape) == SIZE


def test_training_gives_the_source_s_losses_and_workers_copy_no_bytes(sample, whole, tmp_path):
    runs = [sl.train(config(data, tmp_path / str(workers), workers=workers), progress=False)
            for workers, data in enumerate((sample, whole))]
    assert runs[0].history[-1]["loss"] == runs[1].history[-1]["loss"]
    assert sl.evaluate(runs[1].model, open_dataset(whole, "val"), 32, progress=False).names
    dataset = open_dataset(whole)
    item = dataset[0]
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000 and torch.equal(pickle.loads(sent)[0][0], item[0])


# ---- cut, and gone on with ----


def cut_after(count, monkeypatch):
    """Packing breaks off at a picture; gives the list of calls."""
    calls, resize = [], pack.resize_short_side

    def counted(*arguments):
        calls.append(1)
        if count is not None and len(calls) > count:
            raise KeyboardInterrupt
        return resize(*arguments)

    monkeypatch.setattr(pack, "resize_short_side", counted)
    monkeypatch.setattr(threads, "AT_ONCE", 1)
    return calls


def cut_pack(sample, folder, count=9):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_after(count, patch)
        pack_dataset(sample, folder, SIZE)
    assert not folder.exists()
    return folder.with_name(folder.name + ".part")


def shorten(path, count):
    os.truncate(path, path.stat().st_size - count)


DAMAGES = {
    "none": lambda part: None,
    "journal": lambda part: shorten(part / "journal.jsonl", 5),
    "journal's last newline": lambda part: shorten(part / "journal.jsonl", 1),
    "no journal": lambda part: (part / "journal.jsonl").unlink(),
    "header": lambda part: os.truncate(part / "journal.jsonl", 20),
    "images": lambda part: shorten(part / "images.bin", 1),
    "no images": lambda part: (part / "images.bin").unlink(),
    "labels": lambda part: os.truncate(part / "labels.bin", 5000),
    "more images": lambda part: (part / "images.bin").open("ab").write(b"half a picture"),
    "zeros": lambda part: (part / "labels.bin").write_bytes(bytes((part / "labels.bin").stat().st_size)),
}
KEPT = {"none": 9, "more images": 9, "journal": 8, "journal's last newline": 8, "images": 8, "no journal": 0,
        "header": 0, "no images": 0, "labels": 1, "zeros": 0}


@pytest.mark.parametrize("damage", DAMAGES)
def test_goes_on_where_it_was_cut(sample, whole, tmp_path, monkeypatch, damage):
    part = cut_pack(sample, tmp_path / "pack")
    with pytest.raises(ValueError, match="no layout known"):
        open_dataset(part)
    DAMAGES[damage](part)
    calls = cut_after(None, monkeypatch)
    folder = pack_dataset(sample, tmp_path / "pack", SIZE)
    assert contents(folder) == contents(whole) and not part.exists()
    packed_now = len(calls)
    assert packed_now == COUNT - KEPT[damage]
    assert pack_dataset(sample, tmp_path / "pack", SIZE) == folder and len(calls) == packed_now  # it is there already


def test_cut_twice_at_the_same_place(sample, whole, tmp_path):
    for count in (5, 0, 4):
        part = cut_pack(sample, tmp_path / "pack", count)
        shorten(part / "journal.jsonl", 1)
    assert contents(pack_dataset(sample, tmp_path / "pack", SIZE)) == contents(whole)


def _killed(sample, folder, count):
    write, calls = pack._checksum, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments)

    pack._checksum, threads.AT_ONCE = counted, 1
    torch.set_num_threads(1)
    pack_dataset(sample, folder, SIZE)


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch, which Linux alone allows")
def test_goes_on_after_kill_9(sample, whole, tmp_path):
    for count in (3, 12):
        child = multiprocessing.get_context("fork").Process(target=_killed, args=(sample, tmp_path / "pack", count))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert len((tmp_path / "pack.part" / "journal.jsonl").read_text().splitlines()) == 1 + 12
    assert contents(pack_dataset(sample, tmp_path / "pack", SIZE)) == contents(whole)


def test_another_recipe_starts_over(sample, tmp_path):
    cut_pack(sample, tmp_path / "pack")
    folder = pack_dataset(sample, tmp_path / "pack", 40)
    assert {min(label.shape) for _, label in open_dataset(folder)} == {40} and not verify(folder).broken


def test_a_folder_that_is_taken_is_left_alone(sample, whole, tmp_path):
    before = contents(whole)
    for size, options in ((40, {}), (SIZE, {"limit": 3})):
        with pytest.raises(ValueError, match="is there already and is not this pack") as error:
            pack_dataset(sample, whole, size, **options)
        one_line(error)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="is there already"):
        pack_dataset(sample, tmp_path / "mine", SIZE)
    assert contents(whole) == before


def test_a_broken_picture_is_named_and_the_rest_kept(sample, tmp_path, monkeypatch):
    source = shutil.copytree(sample, tmp_path / "source")
    path = open_dataset(source).image_paths[6]
    good = path.read_bytes()
    path.write_bytes(good[:300])
    monkeypatch.setattr(threads, "AT_ONCE", 1)
    with pytest.raises(ValueError, match=f"{path.name} cannot be decoded") as error:
        pack_dataset(source, tmp_path / "pack", SIZE)
    one_line(error)
    assert not (tmp_path / "pack").exists()
    path.write_bytes(good)
    calls = cut_after(None, monkeypatch)
    assert not verify(pack_dataset(source, tmp_path / "pack", SIZE)).broken and len(calls) == COUNT - 6


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are Unix's")
def test_a_full_disk_is_one_line_and_gone_on_from(sample, whole, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(OSError, match="cannot write .*pack.part .*File too large.*goes on from here") as error:
            pack_dataset(sample, tmp_path / "pack", SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    one_line(error)
    assert not (tmp_path / "pack").exists()
    assert contents(pack_dataset(sample, tmp_path / "pack", SIZE)) == contents(whole)


# ---- damaged ----


def edit_index(folder, **changes):
    index = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize("damage, said", [
    (lambda f: os.truncate(f / "images.bin", 1000), "images.bin holds 1,000 bytes, but pack.json tells of"),
    (lambda f: (f / "labels.bin").open("ab").write(b"x"), "labels.bin holds"),
    (lambda f: (f / "labels.bin").unlink(), "labels.bin holds 0 bytes"),
    (lambda f: os.truncate(f / "pack.json", 500), "no whole index"),
    (lambda f: (f / "pack.json").write_text("[1]"), "no whole index"),
    (lambda f: (f / "pack.json").write_text('{"pictures": []}'), "no whole index"),
    (lambda f: edit_index(f, format=2), "has format 2, not 1"),
    (lambda f: edit_index(f, pictures=json.loads((f / "pack.json").read_text())["pictures"][:-1]), "images.bin holds"),
])
def test_damage_is_one_line_on_opening(packed, damage, said, capsys):
    damage(packed)
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=said) as error:
            open_dataset(packed, split)
        assert "pack again" in one_line(error)
    assert main(["data", "verify", str(packed)]) == 2
    assert said.split(",")[0] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["images.bin", "labels.bin"])
def test_verify_finds_one_changed_byte(packed, capsys, name):
    assert main(["data", "verify", str(packed)]) == 0
    table = capsys.readouterr().out
    assert "pack" in table and "opens as train" in table
    content = bytearray((packed / name).read_bytes())
    content[-1] ^= 1
    (packed / name).write_bytes(content)
    assert main(["data", "verify", str(packed)]) == 2
    last = open_dataset(packed, "val").names[-1]
    assert f"the bytes of {last} changed" in capsys.readouterr().out
    assert len(verify(packed).broken) == 1


def test_errors_in_words(sample, tmp_path):
    with pytest.raises(ValueError, match="size is 8: give a short side of 32 to 4096 px"):
        pack_dataset(sample, tmp_path / "pack", 8)
    with pytest.raises(FileNotFoundError, match="give the folder that"):
        PackedSegmentation(tmp_path)


# ---- the command ----


def test_command(sample, whole, tmp_path, capsys):
    assert main(["data", "pack", str(sample), "--size", str(SIZE), "--out", str(tmp_path / "pack")]) == 0
    said = capsys.readouterr().out
    size = sum((whole / name).stat().st_size for name in ("images.bin", "labels.bin"))
    assert f"{size:,} bytes" in said and "13 + 2 images" in said and "seconds" in said
    assert contents(tmp_path / "pack") == contents(whole)
    assert main(["data", "pack", str(sample), "--limit", "3", "--out", str(tmp_path / "three"), "--size", "40"]) == 0
    assert "3 + " in capsys.readouterr().out and len(open_dataset(tmp_path / "three")) == 3
    assert main(["data", "pack", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_command_says_how_to_go_on(sample, tmp_path, monkeypatch, capsys):
    cut_after(4, monkeypatch)
    assert main(["data", "pack", str(sample), "--size", str(SIZE), "--out", str(tmp_path / "pack")]) == 130
    assert "run the same command again and it goes on from here" in capsys.readouterr().err


# ---- real pictures ----


@pytest.mark.parametrize("name", ["coco", "coco_person", "chest_ct"])
def test_real_pictures(realdata, tmp_path, name):
    folder = pack_dataset(realdata / name, tmp_path / name, 64)
    assert not verify(folder).broken
    for split in ("train", "val"):
        source, items = open_dataset(realdata / name, split), open_dataset(folder, split)
        assert items.names == source.names
        image, label = resize_short_side(*source[len(source) // 2], 64)
        assert all(torch.equal(a, b) for a, b in zip(items[len(source) // 2], (image, label), strict=True))
