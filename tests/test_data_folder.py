"""Own images in two folders, and how a data set's layout is recognised."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

import segformer_lite.data as data
from segformer_lite.data import ChestCT, CocoSegmentation, FolderSegmentation, open_dataset

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools


def write_folder(root: Path, count: int = 10, size=(20, 14)) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("background\ncat\n\ndog \n")
    for i in range(count):
        suffix = ".png" if i % 2 else ".jpg"
        Image.new("RGB", size, (i, i, i)).save(root / "images" / f"pet{i}{suffix}")
        labels = np.zeros((size[1], size[0]), dtype=np.uint8)
        labels[2:5, 3:9] = 1 + i % 2
        labels[-1] = 255
        mask = Image.fromarray(labels)
        if i % 3 == 0:
            mask.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0] + 759 * [9])  # colours that are no class ids
        mask.save(root / "masks" / f"pet{i}.png")
    return root


@pytest.fixture
def pets(tmp_path) -> Path:
    return write_folder(tmp_path / "pets")


def test_items_and_classes(pets):
    dataset = FolderSegmentation(pets)
    assert dataset.classes == ["background", "cat", "dog"] and dataset.palette.shape == (3, 3)
    for name, (image, mask) in zip(dataset.names, dataset, strict=True):
        number = int(name[3])
        assert type(image) is tv_tensors.Image and image.shape == (3, 14, 20) and image.dtype == torch.uint8
        assert type(mask) is tv_tensors.Mask and mask.shape == (14, 20) and mask.dtype == torch.int64
        assert mask[3, 5] == 1 + number % 2 and mask[0, 0] == 0 and mask[13, 0] == 255
        assert abs(int(image[0, 0, 0]) - number) <= 1


def test_seeded_split(pets):
    train, val = (FolderSegmentation(pets, split).names for split in ("train", "val"))
    assert len(train) == 8 and len(val) == 2 and not set(train) & set(val)
    assert FolderSegmentation(pets, "val").names == val
    assert any(FolderSegmentation(pets, "val", seed=seed).names != val for seed in range(1, 5))
    assert len(FolderSegmentation(pets, "val", val_share=0.5)) == 5
    assert len(FolderSegmentation(pets, limit=3)) == 3


def test_lists_decide_the_split(pets):
    (pets / "val.txt").write_text("pet4\npet1.png\n")
    assert FolderSegmentation(pets, "val").names == ["pet1.png", "pet4.jpg"]
    assert len(FolderSegmentation(pets, "train")) == 8
    (pets / "train.txt").write_text("pet0\n")
    assert FolderSegmentation(pets, "train").names == ["pet0.jpg"]


def fails(root: Path, error: type, *words: str, index: int | None = None, **options) -> None:
    with pytest.raises(error) as caught:
        dataset = FolderSegmentation(root, **options)
        if index is not None:
            dataset[index]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_bad_lists(pets):
    (pets / "val.txt").write_text("pet1\nhorse\n")
    fails(pets, ValueError, "val.txt", "'horse'")
    (pets / "val.txt").write_text("pet1\n")
    (pets / "train.txt").write_text("pet1\npet2\n")
    fails(pets, ValueError, "pet1.png", "both train.txt and val.txt")
    (pets / "train.txt").write_text("")
    fails(pets, ValueError, "no image for split 'train'")


def test_missing_parts(pets):
    fails(pets, ValueError, "'all'", split="all")
    (pets / "masks" / "pet3.png").unlink()
    (pets / "masks" / "pet5.png").unlink()
    (pets / "val.txt").write_text("pet1\n")
    fails(pets, FileNotFoundError, "2 of 9 masks", str(pets / "masks" / "pet3.png"))
    (pets / "classes.txt").unlink()
    fails(pets, FileNotFoundError, "classes.txt")


@pytest.mark.parametrize("names", ["background\n", "background\ncat\ncat\n", "\n".join(map(str, range(256)))])
def test_bad_class_names(pets, names):
    (pets / "classes.txt").write_text(names)
    fails(pets, ValueError, "classes.txt", "expected 2 to 255")


def test_mask_values_beyond_the_classes(pets):
    path = FolderSegmentation(pets).mask_paths[0]
    Image.new("L", (20, 14), 3).save(path)
    fails(pets, ValueError, str(path), "value 3", "0..2", index=0)
    Image.new("L", (20, 14), 254).save(path)
    fails(pets, ValueError, str(path), "value 254", index=0)


def test_masks_of_another_kind(pets):
    dataset = FolderSegmentation(pets)
    path = dataset.mask_paths[0]
    Image.new("RGB", (20, 14)).save(path)
    fails(pets, ValueError, str(path), "mode RGB", index=0)
    Image.new("L", (21, 14)).save(path)
    fails(pets, ValueError, str(dataset.image_paths[0]), "20x14", str(path), "21x14", index=0)


def test_two_images_of_one_name(pets):
    Image.new("RGB", (20, 14)).save(pets / "images" / "pet0.png")
    fails(pets, ValueError, "'pet0'", str(pets / "images"))


def test_open_dataset_recognises_layouts(pets, tmp_path):
    assert isinstance(open_dataset(pets, "val", val_share=0.5), FolderSegmentation)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"other has no layout.*instances_\*\.json.*train\.csv.*classes\.txt"):
        open_dataset(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="sample-coco, sample-chest-ct, coco, chest_ct"):
        open_dataset("cocoo")


def test_names_stand_for_folders_of_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGFORMER_LITE_DATA", str(tmp_path / "here"))
    for name in ("coco", "chest_ct"):
        with pytest.raises(FileNotFoundError, match=f"here/{name} does not exist: data/README.md"):
            open_dataset(name)
    write_folder(tmp_path / "here" / "coco")
    assert len(open_dataset("coco")) == 8
    monkeypatch.delenv("SEGFORMER_LITE_DATA")
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "data" / "chest_ct", count=5)
    assert len(open_dataset("chest_ct")) == 4
    (tmp_path / "course.py").touch()  # the course's folder is found from below too
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert len(open_dataset("chest_ct")) == 4


@pytest.mark.parametrize(
    ("name", "place", "kind"),
    [("sample-coco", "coco", CocoSegmentation), ("sample-chest-ct", "chest_ct", ChestCT)],
)
def test_samples_are_made_on_first_use(tmp_path, monkeypatch, name, place, kind):
    calls = []

    def make_small_sample(layout: str, folder: Path) -> Path:
        calls.append(layout)
        return original(layout, folder, count=24)

    original = data.make_sample
    monkeypatch.setattr(data, "make_sample", make_small_sample)
    monkeypatch.setenv("SEGFORMER_LITE_DATA", str(tmp_path))
    monkeypatch.setenv("SEGFORMER_LITE_CACHE", str(tmp_path / "cache"))
    train, val = open_dataset(name), open_dataset(name, "val")
    assert calls == [place] and (tmp_path / "sample" / place).is_dir()
    assert type(train) is type(val) is kind and not set(train.names) & set(val.names)
    for dataset in (train, val):
        labels = torch.cat([mask.unique() for _, mask in dataset]).unique().tolist()
        assert len(labels) > 2 and {0} < set(labels) <= {*range(len(dataset.classes)), 255}
