"""Chest CT: channels and their priority, the split by patient, pairs from train.csv, bad input."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from segformer_lite.data import ChestCT, open_dataset

REAL = os.environ.get("SEGFORMER_LITE_REALDATA")
real = pytest.mark.skipif(not REAL, reason="SEGFORMER_LITE_REALDATA is not set: no real data to test on")

RED, GREEN, BLUE = 0, 1, 2
LUNG, HEART, TRACHEA = 1, 2, 3


def mask_picture(size=(64, 48)) -> np.ndarray:
    """Lung left, heart over its right part, trachea over both, in blocks that JPEG keeps apart."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, 0:32, BLUE] = 255
    pixels[:, 16:48, GREEN] = 255
    pixels[16:32, 16:32, RED] = 255
    return pixels


def write_ct(root: Path, slices: dict[str, list[int]], doubled: bool = True) -> Path:
    """patient -> slice numbers, in the order in which train.csv shall name them."""
    images, masks = (root / name / (name if doubled else "") for name in ("images", "masks"))
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    rows = ["ImageId,MaskId"]
    for patient, numbers in slices.items():
        for number in numbers:
            names = f"{patient}_{number}.jpg", f"{patient}_mask_{number}.jpg"
            rows.append(",".join(names))
            Image.new("RGB", (64, 48), (number, number, number)).save(images / names[0])
            Image.fromarray(mask_picture()).save(masks / names[1], quality=95, subsampling=0)
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_ct(tmp_path / "ct", {f"ID{i:03}": [100, 20, 3] for i in range(10)})


def test_item_classes_and_priority(tiny):
    dataset = ChestCT(tiny)
    image, mask = dataset[0]
    assert type(image) is tv_tensors.Image and image.dtype == torch.uint8 and image.shape == (3, 48, 64)
    assert type(mask) is tv_tensors.Mask and mask.dtype == torch.int64 and mask.shape == (48, 64)
    assert dataset.classes == ["background", "lung", "heart", "trachea"]
    assert mask[8, 8] == LUNG and mask[8, 24] == HEART and mask[24, 24] == TRACHEA and mask[8, 40] == HEART
    assert mask[8, 56] == 0
    assert (mask == TRACHEA).sum() == 256


def test_palette_is_blue_green_red(tiny):
    palette = ChestCT(tiny).palette
    assert palette.shape == (4, 3) and palette.dtype == np.uint8
    assert palette[1:].argmax(axis=1).tolist() == [BLUE, GREEN, RED]


@pytest.mark.parametrize(("threshold", "counts"), [(127, [0, 0, 1, 1]), (239, [0, 0, 0, 1]), (50, [0, 1, 1, 1])])
def test_threshold_is_exclusive(tiny, threshold, counts):
    dataset = ChestCT(tiny, threshold=threshold)
    levels = np.zeros((48, 64, 3), dtype=np.uint8)
    levels[..., BLUE] = np.repeat([0, 100, 200, 255], 16)
    Image.fromarray(levels).save(dataset.mask_paths[0], format="PNG")  # exact values under a .jpg name
    assert dataset[0][1][0, [0, 16, 32, 48]].tolist() == counts
    levels[..., BLUE] = threshold
    Image.fromarray(levels).save(dataset.mask_paths[0], format="PNG")
    assert dataset[0][1].sum() == 0


def test_slices_follow_the_body_not_the_alphabet(tiny):
    names = ChestCT(tiny, val_patients=["ID009"]).names
    assert names[:4] == ["ID000_3.jpg", "ID000_20.jpg", "ID000_100.jpg", "ID001_3.jpg"]


def test_split_keeps_patients_apart(tiny):
    train, val = ChestCT(tiny, "train"), ChestCT(tiny, "val")
    assert len(set(train.patients)) == 8 and len(set(val.patients)) == 2
    assert not set(train.patients) & set(val.patients)
    assert len(train) + len(val) == 30
    for dataset in (train, val):
        assert [name.split("_")[0] for name in dataset.names] == dataset.patients


def test_split_depends_on_the_seed_alone(tiny):
    chosen = [tuple(sorted(set(ChestCT(tiny, "val", seed=seed).patients))) for seed in range(6)]
    assert chosen == [tuple(sorted(set(ChestCT(tiny, "val", seed=seed).patients))) for seed in range(6)]
    assert len(set(chosen)) > 3
    assert len(set(ChestCT(tiny, "val", val_share=0.5).patients)) == 5


def test_each_side_gets_a_patient(tmp_path):
    root = write_ct(tmp_path, {"ID1": [1], "ID2": [1]})
    for share in (0.01, 0.99):
        assert len(ChestCT(root, "train", val_share=share)) == len(ChestCT(root, "val", val_share=share)) == 1


def test_val_patients_override(tiny):
    assert set(ChestCT(tiny, "val", val_patients=["ID003", "ID007"]).patients) == {"ID003", "ID007"}
    train = set(ChestCT(tiny, "train", val_patients=["ID003", "ID007"]).patients)
    assert len(train) == 8 and "ID003" not in train
    assert set(ChestCT(tiny, "val", val_patients="ID003").patients) == {"ID003"}


def test_split_by_slice_is_explicit(tmp_path):
    root = write_ct(tmp_path, {"ID1": list(range(10))})
    with pytest.raises(ValueError, match=r"one patient only \(ID1\).*split_by='slice'"):
        ChestCT(root)
    train, val = (ChestCT(root, split, split_by="slice") for split in ("train", "val"))
    assert len(train) == 8 and len(val) == 2 and not set(train.names) & set(val.names)


def test_limit(tiny):
    few = ChestCT(tiny, limit=5)
    assert len(few) == len(few.patients) == len(few.mask_paths) == 5
    assert few.names == ChestCT(tiny, limit=5).names != ChestCT(tiny, limit=5, seed=3).names
    image, _ = few[2]
    assert abs(int(image[0, 0, 0]) - int(few.names[2].split("_")[1].split(".")[0])) <= 2


def test_folders_may_be_single(tmp_path):
    root = write_ct(tmp_path, {"ID1": [1], "ID2": [5]}, doubled=False)
    assert ChestCT(root, val_patients=["ID1"]).names == ["ID2_5.jpg"]
    assert ChestCT(root, val_patients=["ID1"])[0][1].max() == TRACHEA


def test_images_without_mask_are_reported_not_invented(tiny):
    Image.new("RGB", (64, 48)).save(tiny / "images" / "images" / "ID000_7.jpg")
    for split in ("train", "val"):
        dataset = ChestCT(tiny, split)
        assert dataset.without_mask == ["ID000_7.jpg"] and "ID000_7.jpg" not in dataset.names


# ---- bad input: one line that names the place ----


def fails(root: Path, error: type, *words: str, index: int | None = None, **options) -> None:
    with pytest.raises(error) as caught:
        dataset = ChestCT(root, **options)
        if index is not None:
            dataset[index]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_unknown_choices(tiny):
    fails(tiny, ValueError, "ID042", "ID000", "ID009", val_patients=["ID003", "ID042"])
    fails(tiny, ValueError, "'test'", split="test")
    fails(tiny, ValueError, "'row'", "'slice'", split_by="row")
    fails(tiny, ValueError, "val_patients", split_by="slice", val_patients=["ID003"])
    fails(tiny, ValueError, "no slice is left for 'train'", val_patients=[f"ID{i:03}" for i in range(10)])
    fails(tiny, ValueError, "val_share is 1.5", val_share=1.5)


def test_missing_files(tiny, tmp_path):
    fails(tmp_path / "nowhere", FileNotFoundError, "nowhere", "train.csv, images/images/ and masks/masks/")
    mask = tiny / "masks" / "masks" / "ID004_mask_20.jpg"
    mask.unlink()
    fails(tiny, FileNotFoundError, "1 of 3 masks", str(mask), split="val", val_patients=["ID004"])
    (tiny / "images" / "images" / "ID004_3.jpg").unlink()
    fails(tiny, FileNotFoundError, "1 of 3 images", "ID004_3.jpg", split="val", val_patients=["ID004"])
    (tiny / "train.csv").unlink()
    fails(tiny, FileNotFoundError, "train.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ImageId,Mask\nID1_1.jpg,ID1_mask_1.jpg\n", ["no column 'MaskId'", "ImageId,Mask"]),
        ("", ["no column 'ImageId'"]),
        ("ImageId,MaskId\n", ["no rows"]),
        ("ImageId,MaskId\nID1_1.jpg,ID1_mask_1.jpg\nID1_2.jpg\n", ["row 2"]),
        ("ImageId,MaskId\nscan.jpg,mask.jpg\n", ["'scan.jpg'", "ID0001_12.jpg"]),
    ],
)
def test_bad_tables(tiny, text, words):
    (tiny / "train.csv").write_text(text)
    fails(tiny, ValueError, "train.csv", *words)


def test_table_with_a_byte_order_mark_and_more_columns(tiny):
    lines = (tiny / "train.csv").read_text().splitlines()
    text = "\n".join(f"{line},{number}" for number, line in enumerate(lines))
    (tiny / "train.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert len(ChestCT(tiny)) == 24


def test_mask_of_another_size(tiny):
    dataset = ChestCT(tiny)
    Image.new("RGB", (64, 40)).save(dataset.mask_paths[0])
    fails(tiny, ValueError, str(dataset.image_paths[0]), "64x48", str(dataset.mask_paths[0]), "64x40", index=0)


def test_grey_and_truncated_masks(tiny):
    path = ChestCT(tiny).mask_paths[0]
    Image.new("L", (64, 48)).save(path)
    fails(tiny, ValueError, str(path), "no colour picture", index=0)
    Image.fromarray(mask_picture()).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    fails(tiny, ValueError, str(path), "cut short", index=0)


def test_open_dataset_knows_chest_ct(tiny):
    assert isinstance(open_dataset(tiny, "val", val_patients=["ID001"]), ChestCT)


# ---- real data ----


@real
def test_real_slices():
    dataset = open_dataset(Path(REAL) / "chest_ct", "train", val_patients=["ID99999000000000000000001"])
    assert len(dataset) == 27 and dataset.without_mask == []
    counts = sum(torch.bincount(mask.flatten(), minlength=4) for _, mask in dataset).double()
    share = (counts / counts.sum() * 100).tolist()
    assert share[LUNG] == pytest.approx(12.6, abs=2.5)
    assert share[HEART] == pytest.approx(1.2, abs=0.6)
    assert share[TRACHEA] == pytest.approx(0.33, abs=0.12)
    numbers = [int(name.split("_")[1].split(".")[0]) for name in dataset.names[2:]]
    assert numbers == sorted(numbers) and numbers[-1] == 327


@real
def test_real_heart_lies_between_the_lungs():
    dataset = ChestCT(Path(REAL) / "chest_ct", "train", val_patients=["ID99999000000000000000001"])
    image, mask = max((dataset[i] for i in range(len(dataset))), key=lambda item: int((item[1] == HEART).sum()))
    columns = [torch.nonzero(mask == label)[:, 1].float().mean() for label in (LUNG, HEART)]
    assert abs(columns[0] - columns[1]) < 80
    assert image[0][mask == LUNG].float().mean() < image[0][mask == HEART].float().mean() - 20  # air is dark
