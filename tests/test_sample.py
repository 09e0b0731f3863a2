"""The synthetic samples: layouts, exact labels, determinism, and that colour alone does not solve them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformer_lite.data.sample import MASK_JPEG, coco_scene, ct_slices, make_sample, outline, run_lengths

coco = pytest.importorskip("pycocotools.coco")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_sample("coco", tmp_path_factory.mktemp("sample") / "coco", count=180)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return make_sample("chest_ct", tmp_path_factory.mktemp("sample") / "chest_ct", count=120)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coco", "chest_ct"])
def test_same_seed_same_bytes_other_seed_other_bytes(kind, tmp_path):
    first, again = (files_of(make_sample(kind, tmp_path / name, count=24)) for name in "ab")
    assert first == again
    other = files_of(make_sample(kind, tmp_path / "c", count=24, seed=1))
    assert not set(first.values()) & set(other.values())


def test_finished_folder_is_kept_and_foreign_folder_is_refused(tmp_path):
    folder = make_sample("coco", tmp_path / "coco", count=12)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert make_sample("coco", str(folder), count=12) == folder
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    for other in ({"count": 13}, {"count": 12, "seed": 1}):
        with pytest.raises(ValueError, match="another sample"):
            make_sample("coco", folder, **other)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("do not touch")
    with pytest.raises(ValueError, match="something else"):
        make_sample("coco", mine, count=12)
    assert files_of(mine) == {"thesis.txt": b"do not touch"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coco", "mine"]
    with pytest.raises(ValueError, match="choose 'coco' or 'chest_ct'"):
        make_sample("cityscapes", tmp_path / "x")


def test_broken_run_leaves_nothing_and_empty_folder_is_filled(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    (tmp_path / "coco").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("segformer_lite.data.sample.annotate", stop)
        with pytest.raises(KeyboardInterrupt):
            make_sample("coco", tmp_path / "coco", count=12)
    assert [p.name for p in tmp_path.iterdir()] == ["coco"] and not files_of(tmp_path)
    assert (make_sample("coco", tmp_path / "coco", count=12) / "sample.json").is_file()


# ---- COCO ------------------------------------------------------------------------------------------------


def test_coco_layout(scenes):
    sizes = {}
    for split, count in (("train2017", 150), ("val2017", 30)):
        content = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text())
        assert set(content) == {"info", "licenses", "images", "annotations", "categories"}
        assert {p.name for p in (scenes / split).iterdir()} == {i["file_name"] for i in content["images"]}
        assert len(content["images"]) == count
        modes = set()
        for entry in content["images"]:
            assert entry["file_name"] == f"{entry['id']:012d}.jpg"
            with Image.open(scenes / split / entry["file_name"]) as image:
                assert image.size == (entry["width"], entry["height"]) and max(image.size) <= 208
                modes.add(image.mode)
        annotated = {a["image_id"] for a in content["annotations"]}
        sizes[split] = (modes, len(content["images"]) - len(annotated))
        for a in content["annotations"]:
            assert set(a) == {"segmentation", "area", "bbox", "iscrowd", "image_id", "category_id", "id"}
            assert isinstance(a["segmentation"], dict) == bool(a["iscrowd"])
        names = {c["id"]: c["name"] for c in content["categories"]}
        assert names == {
            1: "person",
            3: "car",
            9: "boat",
            13: "stop sign",
            16: "bird",
            17: "cat",
            28: "umbrella",
            38: "kite",
            59: "pizza",
            85: "clock",
        }
        if split == "train2017":
            assert {a["category_id"] for a in content["annotations"]} == set(names)
    annotations = json.loads((scenes / "annotations" / "instances_train2017.json").read_text())["annotations"]
    areas = np.array([a["area"] for a in annotations])
    assert areas.min() < 40 and areas.max() > 0.35 * 192 * 144  # from tiny to image-filling
    assert any(a["iscrowd"] for a in annotations) and any(
        len(a["segmentation"]) > 1 for a in annotations if not a["iscrowd"]
    )
    assert sizes["train2017"][0] == {"RGB", "L"} and sum(s[1] for s in sizes.values()) >= 4


def test_annotations_reproduce_the_drawn_masks(scenes):
    """What pycocotools rasterises from the files is what was drawn: IoU above 0.95, crowds exact."""
    splits = [coco.COCO(scenes / "annotations" / f"instances_{s}2017.json") for s in ("train", "val")]
    ids = sorted([*splits[0].imgs, *splits[1].imgs])
    compared = crowds = 0
    for index in range(0, len(ids), 3):
        api = next(s for s in splits if ids[index] in s.imgs)
        annotations = api.loadAnns(sorted(api.getAnnIds(ids[index])))
        _, instances = coco_scene(0, index)
        assert len(annotations) == len(instances)
        for annotation, instance in zip(annotations, instances, strict=True):
            drawn, read = instance.visible > 0.5, api.annToMask(annotation) > 0
            iou = (drawn & read).sum() / (drawn | read).sum()
            assert api.cats[annotation["category_id"]]["name"] == instance.name
            assert annotation["area"] == drawn.sum()
            if instance.iscrowd:
                assert iou == 1
                crowds += 1
            elif drawn.sum() > 100:
                assert iou > 0.95, (ids[index], instance.name, iou)
                compared += 1
    assert compared > 100 and crowds > 0


def test_visible_parts_do_not_overlap():
    for index in range(20):
        _, instances = coco_scene(3, index)
        assert not instances or (sum(i.visible > 0.5 for i in instances)).max() <= 1


def test_outline_keeps_holes_and_parts_and_run_lengths_count_columns():
    from pycocotools import mask as rle

    mask = np.zeros((40, 50), bool)
    mask[4:30, 5:30] = True
    mask[12:20, 10:22] = False  # a hole
    mask[33:39, 40:50] = True  # a second part, at the border
    polygons = outline(mask.astype(np.float32))
    assert len(polygons) == 2
    read = rle.decode(rle.merge(rle.frPyObjects(polygons, *mask.shape))) > 0
    assert (mask & read).sum() / (mask | read).sum() > 0.98
    assert run_lengths(np.array([[1, 0], [1, 1]], bool)) == [0, 2, 1, 1]
    assert run_lengths(np.array([[0, 1], [0, 1]], bool)) == [2, 2]


# ---- chest CT --------------------------------------------------------------------------------------------


def ct_labels(mask: np.ndarray) -> np.ndarray:
    """0 background, 1 lung, 2 heart, 3 trachea from a mask (H, W, 3) in the file's channel order."""
    red, green, blue = np.moveaxis(mask > 127, -1, 0)
    return np.select([red, green, blue], [3, 2, 1], 0)


def test_chest_ct_layout(phantoms):
    rows = list(csv.DictReader((phantoms / "train.csv").open()))
    assert set(rows[0]) == {"ImageId", "MaskId"}
    images = {p.name for p in (phantoms / "images" / "images").iterdir()}
    masks = {p.name for p in (phantoms / "masks" / "masks").iterdir()}
    assert len(images) == 120 and {r["ImageId"] for r in rows} < images and {r["MaskId"] for r in rows} == masks
    for row in rows:
        patient, number = row["ImageId"].removesuffix(".jpg").split("_")
        assert len(patient) == 25 and patient.startswith("ID") and patient[2:].isdigit() and str(int(number)) == number
        assert row["MaskId"] == f"{patient}_mask_{number}.jpg"
    assert len({r["ImageId"].split("_")[0] for r in rows}) == 12
    brightness = {}
    for row in rows:
        image = Image.open(phantoms / "images" / "images" / row["ImageId"])
        assert image.mode == "L" and image.size == (256, 256)
        brightness.setdefault(row["ImageId"].split("_")[0], []).append(np.asarray(image).mean())
    means = [np.mean(v) for v in brightness.values()]
    assert max(means) > 1.5 * min(means)  # patients differ in window and contrast


def test_chest_ct_anatomy_and_jpeg_masks(tmp_path):
    """From neck to belly: windpipe above, heart below, lungs between; JPEG at threshold one half."""
    for patient in (0, 5):
        slices = list(ct_slices(0, patient, 20))
        shares = np.array(
            [(np.asarray(mask) > 127).mean((0, 1)) for _, mask in slices]
        )  # (20, 3): trachea, heart, lung
        z = np.linspace(0, 1, 20)
        assert (shares[z < 0.45, 0] > 0).all() and (shares[z > 0.55, 0] == 0).all()
        assert (shares[z < 0.4, 1] == 0).all() and shares[(z > 0.55) & (z < 0.75), 1].min() > 0.02
        assert shares[(z > 0.2) & (z < 0.7), 2].min() > 0.05 and shares[-1, 2] < 0.03
        assert np.abs(np.diff(shares[:, 2])).max() < 0.09  # changes smoothly from slice to slice
        for _, mask in slices:
            mask.save(tmp_path / "mask.jpg", **MASK_JPEG)
            drawn, read = np.asarray(mask), np.asarray(Image.open(tmp_path / "mask.jpg"))
            for channel in range(3):
                a, b = drawn[..., channel] > 127, read[..., channel] > 127
                if a.sum() > 100:
                    assert (a & b).sum() / (a | b).sum() > 0.9
            if drawn.any():
                assert len(np.unique(read)) > 20  # artefacts, as in the real masks


# ---- baselines -------------------------------------------------------------------------------------------


def lookup_iou(
    train: list[tuple[np.ndarray, np.ndarray]], val: list[tuple[np.ndarray, np.ndarray]], classes: int
) -> np.ndarray:
    """IoU per class on val of the table colour (4 bits a channel) -> class that fits train best."""

    def bins(image: np.ndarray) -> np.ndarray:
        red, green, blue = np.moveaxis(image.astype(int) // 16, -1, 0)
        return (red * 256 + green * 16 + blue).ravel()

    votes = np.zeros((4096, classes))
    for image, label in train:
        keep = label.ravel() < classes
        np.add.at(votes, (bins(image)[keep], label.ravel()[keep]), 1)
    table, matrix = votes.argmax(1), np.zeros((classes, classes))
    for image, label in val:
        keep = label.ravel() < classes
        np.add.at(matrix, (label.ravel()[keep], table[bins(image)[keep]]), 1)
    return matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())


def test_colour_does_not_solve_the_coco_sample(scenes):
    def read(split: str) -> list[tuple[np.ndarray, np.ndarray]]:
        api = coco.COCO(scenes / "annotations" / f"instances_{split}2017.json")
        order, pairs = {i: n for n, i in enumerate(sorted(api.cats), 1)}, []
        for image_id, entry in api.imgs.items():
            label = np.zeros((entry["height"], entry["width"]), int)
            for a in sorted(api.imgToAnns[image_id], key=lambda a: (-a["iscrowd"], -a["area"])):
                label[api.annToMask(a) > 0] = 255 if a["iscrowd"] else order[a["category_id"]]
            pairs.append((np.asarray(Image.open(scenes / f"{split}2017" / entry["file_name"]).convert("RGB")), label))
        return pairs

    train, val = read("train"), read("val")
    iou = lookup_iou(train, val, 11)
    background = np.mean(np.concatenate([label[label < 255] for _, label in val]) == 0)
    print(f"\nCOCO sample: lookup mIoU {iou.mean():.3f} {iou.round(2)}")
    print(f"majority-class mIoU {background / 11:.3f}, background share {background:.2f}")
    assert iou.mean() < 0.2 and background < 0.85


def test_intensity_does_not_solve_the_ct_sample(phantoms):
    pairs = {}
    for row in csv.DictReader((phantoms / "train.csv").open()):
        image = np.asarray(Image.open(phantoms / "images" / "images" / row["ImageId"]).convert("RGB"))
        mask = np.asarray(Image.open(phantoms / "masks" / "masks" / row["MaskId"]))
        pairs.setdefault(row["ImageId"].split("_")[0], []).append((image, ct_labels(mask)))
    patients = sorted(pairs)
    iou = lookup_iou(sum((pairs[p] for p in patients[2:]), []), sum((pairs[p] for p in patients[:2]), []), 4)
    print(f"\nCT sample: lookup mIoU {iou.mean():.3f} {iou.round(2)}")
    assert iou[2] < 0.35 and iou[3] < 0.35 and iou[1] < 0.6
