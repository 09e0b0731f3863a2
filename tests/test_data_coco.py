"""COCO as label maps: painting, class choice, splits, cache, bad input, and the picture files of base.py."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from segformer_lite.data import CocoSegmentation, default_palette, open_dataset, read_image

REAL = os.environ.get("SEGFORMER_LITE_REALDATA")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
real = pytest.mark.skipif(not REAL, reason="SEGFORMER_LITE_REALDATA is not set: no real data to test on")

CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
PERSON, CAR, TOOTHBRUSH = 1, 3, 90


def box(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def crowd(region: np.ndarray) -> dict:
    """Uncompressed run lengths: column by column, starting with a count of zeros."""
    flat = region.T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(region.shape), "counts": np.diff([0, *changes, flat.size]).tolist()}


def annotation(image_id: int, category_id: int, segmentation, iscrowd: int = 0) -> dict:
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, "iscrowd": iscrowd}


def write_coco(
    root: Path, split: str, annotations: dict[int, list], size=(40, 30), categories=CATEGORIES
) -> Path:
    """One grey image per key, with these (category, segmentation, iscrowd) on it."""
    width, height = size
    (root / f"{split}2017").mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images = [{"id": i, "file_name": f"{i:012}.jpg", "width": width, "height": height} for i in annotations]
    for image in images:
        picture = Image.fromarray(np.full((height, width, 3), image["id"], dtype=np.uint8))
        picture.save(root / f"{split}2017" / image["file_name"])
    entries = [annotation(i, *a) for i, several in annotations.items() for a in several]
    content = {"images": images, "annotations": entries, "categories": categories}
    path = root / "annotations" / f"instances_{split}2017.json"
    path.write_text(json.dumps(content))
    return path


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGFORMER_LITE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Both splits; image 1 holds three objects, one on the other, image 2 nothing, image 3 a toothbrush."""
    stack = [(PERSON, box(5, 5, 10, 10)), (CAR, box(0, 0, 20, 20)), (TOOTHBRUSH, box(4, 4, 14, 14))]
    write_coco(tmp_path / "coco", "train", {1: stack, 2: [], 3: [(TOOTHBRUSH, box(1, 1, 5, 5))]})
    write_coco(tmp_path / "coco", "val", {8: [(CAR, box(0, 0, 9, 9))]})
    return tmp_path / "coco"


def test_item_is_an_image_and_a_mask(tiny):
    dataset = CocoSegmentation(tiny)
    image, mask = dataset[0]
    assert type(image) is tv_tensors.Image and image.dtype == torch.uint8 and image.shape == (3, 30, 40)
    assert type(mask) is tv_tensors.Mask and mask.dtype == torch.int64 and mask.shape == (30, 40)
    assert dataset.ignore_index == 255
    assert dataset.names == ["000000000001.jpg", "000000000003.jpg"]
    assert len(list(dataset)) == len(dataset) == 2


def test_labels_follow_the_order_of_category_ids(tiny):
    dataset = CocoSegmentation(tiny)
    assert dataset.classes == ["background", "person", "car", "toothbrush"]
    assert dataset[1][1].unique().tolist() == [0, 3]


def test_small_objects_lie_on_large_ones(tiny):
    mask = CocoSegmentation(tiny)[0][1]
    assert mask[7, 7] == 1 and mask[12, 12] == 3 and mask[17, 17] == 2 and mask[25, 25] == 0
    assert (mask == 1).sum() == 25 and (mask == 3).sum() == 100 - 25 and (mask == 2).sum() == 400 - 100


def test_crowds_are_ignored_and_lie_below_all_objects(tmp_path):
    region = np.zeros((30, 40), dtype=np.uint8)
    region[10:30, 20:40] = 1
    entries = [(PERSON, box(0, 8, 30, 28)), (PERSON, crowd(region), 1)]  # the object is larger than the crowd
    write_coco(tmp_path, "train", {1: entries, 2: entries})
    mask = CocoSegmentation(tmp_path)[0][1]
    assert mask[15, 25] == 1 and mask[15, 35] == 255 and mask[5, 35] == 0
    assert (mask == 255).sum() == 20 * 20 - 18 * 10


def test_packed_and_plain_run_lengths_agree(tmp_path):
    from pycocotools import mask as coco_mask

    region = np.zeros((30, 40), dtype=np.uint8)
    region[3:9, 5:30] = 1
    packed = coco_mask.encode(np.asfortranarray(region))
    packed["counts"] = packed["counts"].decode()
    write_coco(tmp_path, "train", {1: [(CAR, packed)], 2: [(CAR, crowd(region))]})
    write_coco(tmp_path, "val", {3: [(CAR, packed)]})
    for _, mask in CocoSegmentation(tmp_path):
        np.testing.assert_array_equal(mask.numpy(), 2 * region)


def test_several_parts_belong_to_one_object_and_lines_to_none(tmp_path):
    parts = [[0, 29, 39, 29], *box(0, 0, 5, 5), *box(20, 20, 25, 25)]
    write_coco(tmp_path, "train", {1: [(CAR, parts)]})
    write_coco(tmp_path, "val", {2: [(CAR, parts)]})
    mask = CocoSegmentation(tmp_path)[0][1]
    assert (mask == 2).sum() == 50 and mask[2, 2] == 2 and mask[22, 22] == 2


def test_class_subset(tiny):
    dataset = CocoSegmentation(tiny, classes=["toothbrush", "person"])
    assert dataset.classes == ["background", "toothbrush", "person"]
    mask = dataset[0][1]
    assert mask[7, 7] == 2 and mask[12, 12] == 1 and mask[17, 17] == 0  # the car is background
    assert CocoSegmentation(tiny, classes=["person"]).names == ["000000000001.jpg"]
    hidden = CocoSegmentation(tiny, classes=["car"])[0][1]
    assert hidden[7, 7] == 0 and hidden[17, 17] == 1  # what covers the car is not car


def test_categories_of_one_name_are_one_class_and_background_is_none(tmp_path):
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "background"}, {"id": 3, "name": "cat"}]
    outlines = [(i, box(10 * i, 2, 10 * i + 5, 8), 0) for i in (1, 2, 3)]
    write_coco(tmp_path, "train", {1: outlines, 2: outlines}, categories=categories)
    data = CocoSegmentation(tmp_path, "train")
    assert data.classes == ["background", "cat"]
    assert [int(data[0][1][5, 10 * i + 2]) for i in (1, 2, 3)] == [1, 0, 1]


def test_crowds_of_other_classes_are_background(tmp_path):
    region = np.ones((30, 40), dtype=np.uint8)
    entries = [(PERSON, box(0, 0, 5, 5)), (CAR, crowd(region), 1)]
    write_coco(tmp_path, "train", {1: entries})
    write_coco(tmp_path, "val", {2: entries})
    assert CocoSegmentation(tmp_path, classes=["person"])[0][1].unique().tolist() == [0, 1]
    assert CocoSegmentation(tmp_path)[0][1].unique().tolist() == [1, 255]


def test_images_without_objects(tiny):
    assert len(CocoSegmentation(tiny, keep_empty=True)) == 3
    assert len(CocoSegmentation(tiny, keep_empty=True, classes=["person"])) == 3
    with pytest.raises(ValueError, match="no val image with an object of the classes"):
        CocoSegmentation(tiny, split="val", classes=["person"])


def test_both_splits_there(tiny):
    assert CocoSegmentation(tiny, split="val").names == ["000000000008.jpg"]


def many(root: Path) -> Path:
    write_coco(root, "val", {i: [(PERSON if i % 2 else CAR, box(1, 1, 9, 9))] for i in range(100, 140)})
    return root


def test_one_folder_is_divided(tmp_path):
    many(tmp_path)
    train, val = (set(CocoSegmentation(tmp_path, split).names) for split in ("train", "val"))
    assert len(train) == 34 and len(val) == 6 and not train & val
    assert set(CocoSegmentation(tmp_path, "val", seed=0).names) == val
    assert set(CocoSegmentation(tmp_path, "val", seed=1).names) != val
    persons = set(CocoSegmentation(tmp_path, "train", classes=["person"]).names)
    assert persons < train  # choosing classes moves no image to the other side


def test_json_without_its_images_does_not_count_as_a_split(tmp_path):
    many(tmp_path)
    source = tmp_path / "annotations" / "instances_val2017.json"
    (tmp_path / "annotations" / "instances_train2017.json").write_bytes(source.read_bytes())
    assert len(CocoSegmentation(tmp_path, "train")) == 34


def test_limit_is_a_seeded_choice_in_order(tmp_path):
    many(tmp_path)
    ten = CocoSegmentation(tmp_path, limit=10).names
    assert len(ten) == 10 and ten == sorted(ten) and ten == CocoSegmentation(tmp_path, limit=10).names
    assert ten != CocoSegmentation(tmp_path, limit=10, seed=1).names
    assert set(ten) < set(CocoSegmentation(tmp_path, limit=20).names)
    assert len(CocoSegmentation(tmp_path, limit=1000)) == 34
    with pytest.raises(ValueError, match="limit is 0"):
        CocoSegmentation(tmp_path, limit=0)


# ---- the cache ----


def cached_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.*"))


def test_maps_are_read_from_the_cache(tiny, tmp_path):
    painted = CocoSegmentation(tiny)[0][1]
    (path,) = cached_files(tmp_path / "cache")
    assert path.name == "1.png" and Image.open(path).mode == "L"
    assert torch.equal(CocoSegmentation(tiny)[0][1], painted)
    Image.fromarray(np.full((30, 40), 3, dtype=np.uint8)).save(path)
    assert CocoSegmentation(tiny)[0][1].unique().tolist() == [3]


def test_cache_knows_what_a_map_depends_on(tiny, monkeypatch):
    def mask(**options):
        return CocoSegmentation(tiny, **options)[0][1]

    assert mask()[17, 17] == 2
    assert mask(classes=["car"])[17, 17] == 1
    assert mask(classes=["person", "car"])[7, 7] == 1
    assert mask(classes=["car", "person"])[7, 7] == 2
    path = tiny / "annotations" / "instances_train2017.json"
    stamp = path.stat()
    path.write_text(path.read_text().replace('"category_id": 3', '"category_id": 1'))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # same size, same time, other content
    assert mask()[17, 17] == 1
    monkeypatch.setattr("segformer_lite.data.coco.PAINTING_VERSION", 10**6)
    monkeypatch.setattr("segformer_lite.data.coco.paint", lambda *_: np.full((30, 40), 2, dtype=np.uint8))
    assert mask()[0, 0] == 2


@pytest.mark.parametrize("damage", ["cut", "foreign", "other size", "other mode"])
def test_damaged_cache_is_painted_again(tiny, tmp_path, damage):
    painted = CocoSegmentation(tiny)[0][1]
    (path,) = cached_files(tmp_path / "cache")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "foreign":
        path.write_text("no picture")
    elif damage == "other size":
        Image.new("L", (40, 31)).save(path)
    else:
        Image.new("RGB", (40, 30)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert torch.equal(CocoSegmentation(tiny)[0][1], painted)
    assert np.array_equal(np.array(Image.open(path)), painted.numpy())
    assert cached_files(tmp_path / "cache") == [path]  # nothing half-written is left


def test_a_cache_that_cannot_be_written_warns_once(tiny, tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    dataset = CocoSegmentation(tiny, cache=tmp_path / "file")
    with pytest.warns(UserWarning, match="SEGFORMER_LITE_CACHE") as caught:
        assert dataset[0][1][7, 7] == 1
        assert dataset[1][1].unique().tolist() == [0, 3]
    assert [w.category for w in caught].count(UserWarning) == 1


def test_cache_argument_comes_before_the_environment(tiny, tmp_path):
    CocoSegmentation(tiny, cache=tmp_path / "mine")[0]
    assert cached_files(tmp_path / "mine") and not (tmp_path / "cache").exists()


# ---- bad input: one line that names the place ----


def fails(root: Path, error: type, *words: str, index: int | None = None, **options) -> None:
    with pytest.raises(error) as caught:
        dataset = CocoSegmentation(root, **options)
        if index is not None:
            dataset[index]
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_missing_root(tmp_path):
    fails(tmp_path / "nowhere", FileNotFoundError, "nowhere", "does not exist", "annotations/instances_train2017.json")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", FileNotFoundError, "holds no COCO data", "train2017/")


def test_unknown_split(tiny):
    fails(tiny, ValueError, "'test'", "'train' or 'val'", split="test")


def test_unknown_class(tiny):
    fails(tiny, ValueError, "'persom'", "did you mean 'person'", classes=["persom"])
    fails(tiny, ValueError, "'qqq'", "person, car, toothbrush", classes=["qqq"])
    fails(tiny, ValueError, "twice", classes=["car", "car"])


def test_missing_images(tiny):
    (tiny / "train2017" / "000000000003.jpg").unlink()
    fails(tiny, FileNotFoundError, "1 of 2 images", "instances_train2017.json", "000000000003.jpg")
    CocoSegmentation(tiny, split="val")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("annotations"), ["no COCO instances file", "'annotations'"]),
        (lambda c: c["annotations"][1].update(category_id=7), ["annotations[1]", "category_id 7", "1, 3, 90"]),
        (lambda c: c["annotations"][2].update(image_id=77), ["annotations[2]", "image_id 77"]),
        (lambda c: c["annotations"][0].pop("category_id"), ["annotations[0]", "'category_id'"]),
        (lambda c: c["annotations"][0].update(segmentation=[]), ["annotations[0]", "outline"]),
        (lambda c: c["images"][1].pop("width"), ["images[1]", "'width'"]),
        (lambda c: c["images"][1].update(id="a/b"), ["images[1]", "'a/b'", "whole number"]),
        (lambda c: c["images"][1].update(id=1), ["same id"]),
        (lambda c: c["categories"].extend({"id": i, "name": str(i)} for i in range(100, 360)), ["254"]),
    ],
)
def test_files_that_are_no_instances_json(tiny, change, words):
    path = tiny / "annotations" / "instances_train2017.json"
    edit(path, change)
    fails(tiny, ValueError, str(path), *words)


@pytest.mark.parametrize("content", [b'{"images": [', b"\x89PNG\xff", b"[1, 2]", b'{"images": [3]}'])
def test_files_that_are_no_json(tiny, content):
    path = tiny / "annotations" / "instances_train2017.json"
    path.write_bytes(content)
    fails(tiny, ValueError, str(path))


@pytest.mark.parametrize(
    ("outline", "word"),
    [
        ([[1, 1, 5, 1, 5, 5, 1]], "x and a y"),
        ({"size": [9, 9], "counts": [81]}, "run lengths are for [9, 9]"),
        ([["a"] * 6], "cannot be drawn"),
        ({"counts": [81]}, "cannot be drawn"),
    ],
)
def test_outlines_that_cannot_be_drawn(tiny, outline, word):
    path = tiny / "annotations" / "instances_train2017.json"
    edit(path, lambda c: c["annotations"][0].update(segmentation=outline, id=4711))
    fails(tiny, ValueError, str(path), "annotation 4711", word, index=0)


def test_image_of_another_size_than_the_json_says(tiny):
    path = tiny / "train2017" / "000000000001.jpg"
    Image.new("RGB", (41, 30)).save(path)
    fails(tiny, ValueError, str(path), "41x30", "40x30", "instances_train2017.json", index=0)


def test_truncated_and_foreign_images(tiny):
    path = tiny / "train2017" / "000000000001.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    fails(tiny, ValueError, str(path), "cut short", index=0)
    path.write_text("<html>404</html>")
    fails(tiny, ValueError, str(path), "is no picture", index=0)


# ---- picture files ----


def corner(size=(24, 16)) -> np.ndarray:
    """Black, with a red block at the top left."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:8, :8, 0] = 255
    return pixels


def is_red(picture: Image.Image, x: int, y: int) -> bool:
    red, green, blue = picture.getpixel((x, y))
    return red > 200 and green < 60 and blue < 60


def test_grey_palette_and_cmyk(tmp_path):
    path = tmp_path / "picture"
    Image.fromarray(corner()).convert("P").save(path, format="PNG")
    assert is_red(read_image(path), 3, 3) and not is_red(read_image(path), 20, 3)
    Image.fromarray(corner()).convert("CMYK").save(path, format="JPEG", quality=95)
    assert Image.open(path).mode == "CMYK"
    assert is_red(read_image(path), 3, 3) and read_image(path).getpixel((20, 12)) == (0, 0, 0)
    Image.fromarray(np.full((4, 6), 90, dtype=np.uint8)).save(path, format="PNG")
    assert read_image(path).getpixel((5, 3)) == (90, 90, 90)


def test_transparent_pixels_show_white(tmp_path):
    path = tmp_path / "picture.png"
    palette = Image.fromarray(corner()).quantize(4)
    hidden = palette.getpixel((3, 3))
    palette.save(path, transparency=hidden)
    assert read_image(path).getpixel((3, 3)) == (255, 255, 255)
    assert read_image(path).getpixel((20, 12)) == (0, 0, 0)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    assert read_image(path).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_contrast(tmp_path):
    path = tmp_path / "picture.png"
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(path)
    assert [read_image(path).getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point"):
        read_image(tmp_path / "float.tif")


@pytest.mark.parametrize(("orientation", "where"), [(3, (20, 12)), (6, (12, 3)), (8, (3, 20))])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_turned_pictures_are_turned_back(tmp_path, orientation, where, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(corner()).save(path, exif=exif)
    picture = read_image(path)
    assert picture.size == ((24, 16) if orientation == 3 else (16, 24))
    assert is_red(picture, *where) and not is_red(picture, 3, 3)


def test_labels_decide_whether_a_turned_picture_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "picture.jpg"
    Image.fromarray(corner()).save(path, exif=exif)
    upright, stored = read_image(path, size=(16, 24)), read_image(path, size=(24, 16))
    assert upright.size == (16, 24) and is_red(upright, 12, 3)
    assert stored.size == (24, 16) and is_red(stored, 3, 3)
    with pytest.raises(ValueError, match="16x24 pixels but its mask is 20x20"):
        read_image(path, size=(20, 20))


def test_missing_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg does not exist"):
        read_image(tmp_path / "gone.jpg")


def test_palette_is_distinct_even_without_red_or_green_cones():
    palette = default_palette(81)
    assert palette.shape == (81, 3) and palette.dtype == np.uint8
    assert palette[0].max() < 60 and palette[1:].max(axis=1).min() > 60
    assert len(np.unique(palette, axis=0)) == 81
    assert np.array_equal(default_palette(5), palette[:5])
    # Without one cone, reds and greens of one lightness look alike: dark-light and blue-yellow are left.
    dichromat = np.stack([palette @ [0.3, 0.7, 0.0], palette[:, 2]], axis=1)
    gaps = np.linalg.norm(dichromat[:, None] - dichromat[None], axis=-1) + 1e6 * np.eye(81)
    assert gaps[:8, :8].min() > 40 and gaps[:12, :12].min() > 30
    everyone = np.linalg.norm(palette[:, None].astype(float) - palette[None], axis=-1) + 1e6 * np.eye(81)
    assert everyone.min() > 12


def test_open_dataset_knows_coco(tiny):
    assert isinstance(open_dataset(tiny, "val"), CocoSegmentation)
    assert open_dataset(str(tiny), classes=["person"]).classes == ["background", "person"]


# ---- real data ----


@real
def test_real_maps_agree_with_the_panoptic_things():
    root = Path(REAL) / "coco"
    dataset = CocoSegmentation(root, keep_empty=True)
    position = {image["id"]: index for index, image in enumerate(dataset.images)}
    panoptic = json.loads((root / "annotations" / "panoptic_train2017.json").read_text())
    things = {category["id"] for category in panoptic["categories"] if category["isthing"]}
    assert len(dataset.classes) == 81 and things == set(dataset.label_of_category)
    for entry in panoptic["annotations"][::8]:
        colours = np.array(Image.open(root / "annotations" / "panoptic_train2017" / entry["file_name"]))
        segment_ids = colours.astype(int) @ [1, 256, 256**2]
        expected = np.zeros(segment_ids.shape, dtype=int)
        for segment in entry["segments_info"]:
            if segment["category_id"] in things:
                label = 255 if segment["iscrowd"] else dataset.label_of_category[segment["category_id"]]
                expected[segment_ids == segment["id"]] = label
        mask = dataset[position[entry["image_id"]]][1].numpy()
        counted = (mask != 255) & (expected != 255)
        assert counted.mean() > 0.5
        assert (mask == expected)[counted].mean() >= 0.999, entry["file_name"]


@real
def test_real_splits():
    train, val = (CocoSegmentation(Path(REAL) / "coco", split, cache="unused") for split in ("train", "val"))
    assert (len(train), len(val)) == (254, 124)
    assert (train.classes[1], train.classes[80]) == ("person", "toothbrush")


@real
def test_real_persons_alone():
    root = Path(REAL) / "coco_person"
    train, val = (open_dataset(root, split) for split in ("train", "val"))
    assert train.classes == ["background", "person"] and not set(train.names) & set(val.names)
    assert (len(train), len(val)) == (477, 84)
    grey = next(i for i in range(len(train)) if Image.open(train.image_paths[i]).mode == "L")
    image, mask = train[grey]
    assert image.shape == (3, *mask.shape) and torch.equal(image[0], image[2])
    share = torch.stack([(val[i][1] == 1).float().mean() for i in range(10)])
    assert (share > 0).all() and (share < 1).all()
