"""Metrics on drawings one can check by eye, and the report of a data set."""

import json
import time

import numpy as np
import pytest
import torch

from segformer_lite import threads
from segformer_lite.evaluation import Report, aligned_size, evaluate, metrics
from segformer_lite.evaluation import report as reports
from segformer_lite.models import Segmenter, upsample, upsampling


def matrix(label, prediction, classes):
    return metrics.confusion_matrix(torch.tensor(prediction), torch.tensor(label), classes).numpy()


def test_confusion_rows_are_labels_and_255_counts_nowhere():
    assert matrix([[0, 1, 255]], [[1, 1, 2]], 3).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_confusion_of_small_whole_numbers_does_not_overflow():
    label, prediction = torch.tensor([30, 255], dtype=torch.uint8), torch.tensor([9, 9], dtype=torch.uint8)
    counts = metrics.confusion_matrix(prediction, label, 81)
    assert counts.sum() == 1 and counts[30, 9] == 1


def test_absent_class_is_left_out_and_invented_class_is_zero():
    iou = metrics.iou_per_class(matrix([[0, 0, 1, 1]], [[0, 0, 1, 2]], 4))
    assert iou[:3].tolist() == [1.0, 0.5, 0.0] and np.isnan(iou[3])


@pytest.mark.parametrize(("label", "prediction"), [(2, 3), (0, 3), (0, 200), (3, 0), (200, 0), (-1, 0), (1, -1)])
def test_a_number_that_is_no_class_is_named(label, prediction):
    dtype = torch.uint8 if min(label, prediction) >= 0 else torch.int64
    maps = torch.full((4, 4), prediction, dtype=dtype), torch.full((4, 4), label, dtype=dtype)
    with pytest.raises(ValueError, match="none of the 3 classes"):
        metrics.confusion_matrix(*maps, 3)


def test_dice_follows_from_iou():
    confusion = np.random.default_rng(0).integers(1, 100, (5, 5))
    iou, dice = metrics.iou_per_class(confusion), metrics.dice_per_class(confusion)
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou))


def report_of(label, prediction, classes=3):
    confusion = matrix(label, prediction, classes)
    return Report([str(i) for i in range(classes)], confusion, np.zeros((2, classes), int), np.zeros((3, 5), int))


def test_report_means_with_and_without_background():
    report = report_of([[0, 0, 0, 0, 1, 1]], [[0, 0, 0, 1, 1, 1]])
    assert report.miou == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert report.miou_foreground == pytest.approx(2 / 3)
    assert report.dice == pytest.approx((6 / 7 + 4 / 5) / 2)
    assert report.pixel_accuracy == pytest.approx(5 / 6)
    assert report.per_class["1"]["recall"] == 1 and report.per_class["1"]["precision"] == pytest.approx(2 / 3)


def test_boundary_is_the_inner_band_and_the_picture_edge_counts():
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[0:6, 3:9] = True
    band = mask & metrics.boundaries(mask.long(), 1)
    expected = mask.clone()
    expected[1:5, 4:8] = False
    assert torch.equal(band, expected)


def inner_band(mask, d):
    """The band of one class by running sums: pixels with one outside of the mask in the square around them."""
    outside = torch.nn.functional.pad(~mask, (d, d, d, d), value=True).int()
    for axis in (-1, -2):
        running = torch.nn.functional.pad(outside.transpose(axis, -1).cumsum(-1), (1, 0))
        outside = (running[..., 2 * d + 1:] - running[..., : -2 * d - 1]).transpose(axis, -1)
    return mask & (outside > 0)


def test_boundary_counts_agree_with_repeated_erosion():
    torch.manual_seed(0)
    label = (torch.rand(1, 1, 9, 12) > 0.5).float()
    label = torch.nn.functional.interpolate(label, scale_factor=8)[0, 0].long()  # 72 x 96: d = 2
    prediction = label.roll(3, 0)
    assert metrics.boundary_distance(72, 96) == 2

    def band(mask):
        eroded = mask
        for _ in range(2):
            padded = torch.nn.functional.pad(eroded, (1, 1, 1, 1))
            eroded = torch.stack([padded[i:i + 72, j:j + 96] for i in range(3) for j in range(3)]).all(0)
        return mask & ~eroded

    counts = metrics.boundary_counts(prediction, label, 2)
    for c in (0, 1):
        p, q = band(prediction == c), band(label == c)
        assert counts[:, c].tolist() == [(p & q).sum().item(), (p | q).sum().item()]


@pytest.mark.parametrize(("side", "d"), [(64, 2), (128, 4), (256, 7), (512, 14)])
def test_boundary_distance_is_two_percent_of_the_diagonal(side, d):
    assert metrics.boundary_distance(side, side) == d


def test_connected_components_are_4_connected():
    mask = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 1]], dtype=bool)
    regions = metrics.connected_components(mask)
    assert regions.max() == 4 and np.array_equal(regions > 0, mask)
    assert regions[0, 0] == regions[1, 1] != regions[2, 0]
    assert np.unique(metrics.connected_components(np.ones((5, 7), bool))).tolist() == [1]
    assert np.unique(metrics.connected_components(np.zeros((5, 7), bool))).tolist() == [0]


def test_connected_components_follow_a_spiral():
    mask = np.ones((41, 41), bool)
    for k in range(1, 20, 2):  # rings, each cut open at one place
        mask[k, k:41 - k] = mask[40 - k, k:41 - k] = mask[k:41 - k, k] = mask[k:41 - k, 40 - k] = False
        mask[k, k + 1] = True
    assert metrics.connected_components(mask).max() == 1


def test_connected_components_agree_with_a_flood_fill():
    mask = np.random.default_rng(0).random((40, 50)) < 0.6
    regions = metrics.connected_components(mask)
    for number in range(1, regions.max() + 1):
        seen = set()
        waiting = [tuple(np.argwhere(regions == number)[0])]
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < 40 and 0 <= x < 50 and mask[y, x] and (y, x) not in seen:
                seen.add((y, x))
                waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        assert seen == set(map(tuple, np.argwhere(regions == number)))


def test_size_counts_bin_regions_and_count_found_ones():
    label = torch.zeros(100, 120, dtype=torch.int64)  # small below 40 px, large from 360 px
    label[0:4, 0:4] = 1  # small, found
    label[20:26, 20:26] = 1  # small (36 px), a third right
    label[50:60, 0:10] = 2  # medium, missed
    label[60:100, 60:100] = 2  # large, all right
    prediction = torch.zeros_like(label)
    prediction[0:4, 0:4] = 1
    prediction[20:26, 20:22] = 1
    prediction[60:100, 60:100] = 2
    assert metrics.size_counts(prediction, label).tolist() == [[2, 1, 52, 28, 0], [1, 0, 100, 0, 0],
                                                               [1, 1, 1600, 1600, 0]]
    halves = metrics.size_counts(prediction, label, bins={"below": (0, 0.1), "above": (0.1, 1.01)})
    assert halves.tolist() == [[3, 1, 152, 28, 0], [1, 1, 1600, 1600, 0]]


def test_wrong_pixels_count_for_the_regions_that_their_blob_touches():
    label = torch.zeros(100, 120, dtype=torch.int64)
    label[0:4, 0:4] = 1  # small
    label[0:40, 20:60] = 1  # large, bridged to the small one by a blob that is too wide
    label[60:100, 60:100] = 2  # large
    label[50:60, 60:100] = 255
    prediction = torch.where(label == 255, 2, label)  # what is predicted there is neither right nor wrong
    prediction[0:2, 4:20] = 1  # the bridge, 32 px
    prediction[70:72, 0:10] = 1  # touches no region: wrong for none
    prediction[90:100, 100:110] = 2  # 100 px too many
    prediction[98:100, 60:90] = 1  # 60 px missed, wrong for class 1, of which no region touches them
    counts = metrics.size_counts(prediction, label)
    assert counts.tolist() == [[1, 1, 16, 16, 32], [0] * 5, [2, 2, 3200, 3140, 132]]


def region_by_region(prediction, label):
    """`size_counts` as its docstring says it, a class and a region at a time."""
    counts = np.zeros((3, 5), int)
    for c in set(np.unique(label)) - {0, 255}:
        predicted = (prediction == c) & (label != 255)
        regions, blobs = metrics.connected_components(label == c), metrics.connected_components(predicted)
        for number in range(1, regions.max() + 1):
            region = regions == number
            area, right = region.sum(), (region & predicted).sum()
            wrong = np.isin(blobs, blobs[region & predicted]) & (label != c)
            row = [low <= area / label.size < high for low, high in metrics.SIZE_BINS.values()].index(True)
            counts[row] += (1, 2 * right >= area, area, right, wrong.sum())
    return counts


@pytest.mark.parametrize("seed", range(12))
def test_all_classes_at_once_count_what_each_counts_alone(seed):
    generator = torch.Generator().manual_seed(seed)

    def some(height=60, width=84):
        coarse = torch.randint(0, 5, (1, 1, 5 + seed, 7), generator=generator).float()
        whole = torch.nn.functional.interpolate(coarse, (height, width))[0, 0]
        return whole.to(torch.uint8 if seed % 2 else torch.int64)

    label, prediction = some(), some()
    prediction = torch.where(torch.rand(60, 84, generator=generator) < 0.5, label, prediction)
    label[torch.rand(60, 84, generator=generator) < 0.1 * (seed % 3)] = 255
    valid, d = label != 255, metrics.boundary_distance(60, 84)
    counts = metrics.boundary_counts(prediction, label, 5)
    for c in range(5):
        p, q = (inner_band((of == c) & valid, d) for of in (prediction, label))
        assert counts[:, c].tolist() == [(p & q).sum().item(), (p | q).sum().item()]
    expected = region_by_region(prediction.numpy(), label.numpy())
    assert expected[:, 0].sum() > 5 and np.array_equal(metrics.size_counts(prediction, label), expected)


class FromRed(Segmenter):
    """Reads the class off the red channel, so that evaluation itself is under test."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        red = ((x[:, 0] * 0.229 + 0.485) * 255).round()
        return torch.stack([-(red - 100 * k).abs() for k in range(3)], dim=1) + 0 * self.anchor


class Drawings(torch.utils.data.Dataset):
    classes, ignore_index = ["background", "a", "b"], 255

    def __len__(self):
        return 5

    def __getitem__(self, i):
        size = (40, 60) if i % 2 else (50, 40)
        label = torch.randint(0, 3, size, generator=torch.Generator().manual_seed(i))
        image = torch.stack([label * 100] * 3).to(torch.uint8)
        label[0, :5] = 255
        return image, label


def test_evaluate_counts_every_valid_pixel_once_whatever_the_shapes(tmp_path):
    model = FromRed().train()
    report = evaluate(model, Drawings(), progress=False, batch_size=2)
    assert report.confusion.sum() == 3 * 50 * 40 + 2 * 40 * 60 - 25
    assert report.miou == report.pixel_accuracy == report.boundary_iou == 1 and model.training
    assert report.per_size["small"]["found"] == report.per_size["small"]["iou"] == 1
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["miou"] == 1
    assert "pixel_accuracy 1.000" in str(report)


def test_pictures_of_many_shapes_do_not_all_wait_in_memory(monkeypatch):
    class Many(Drawings):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            made.append(i)
            label = torch.zeros(40 + i, 40, dtype=torch.int64)
            return torch.zeros(3, 40 + i, 40, dtype=torch.uint8), label

    made, behind = [], []
    stack = reports._stack
    monkeypatch.setattr(threads, "AT_ONCE", 1)
    monkeypatch.setattr(reports, "MOST_WAITING", 2)
    monkeypatch.setattr(reports, "_stack", lambda group: behind.append(len(made) - len(behind)) or stack(group))
    counts = evaluate(FromRed(), Many(), progress=False, batch_size=4).confusion
    assert counts.sum() == sum(40 * (40 + i) for i in range(40))
    assert max(behind[:33]) == 8 and len(behind) == 40


@pytest.mark.parametrize("large", [False, True])
def test_pictures_are_counted_side_by_side_but_large_ones_one_at_a_time(large, monkeypatch):
    class Many(Drawings):
        def __len__(self):
            return 12

    expected = evaluate(FromRed(), Many(), progress=False)
    size_counts, inside, most = metrics.size_counts, [], []

    def slow(*args):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return size_counts(*args)

    monkeypatch.setattr(metrics, "size_counts", slow)
    monkeypatch.setattr(reports, "COUNTED", 2)
    monkeypatch.setattr(reports, "LARGE", 1999 if large else 2400)
    report = evaluate(FromRed(), Many(), progress=False)
    assert max(most) == (1 if large else 2) and len(most) == 12
    assert np.array_equal(report.confusion, expected.confusion) and report.losses == expected.losses
    assert np.array_equal(report.boundary, expected.boundary) and np.array_equal(report.sizes, expected.sizes)


@pytest.mark.parametrize("classes", [3, 81])
@pytest.mark.parametrize("part", [1, 500, 2**20])
def test_losses_are_those_of_the_whole_picture_at_the_labels_resolution(part, classes, monkeypatch):
    monkeypatch.setattr(upsampling, "PART", part)
    logits, label = torch.randn(classes, 5, 7), torch.randint(0, classes, (20, 24))
    label[3:9] = 255
    whole = torch.nn.functional.cross_entropy(upsample(logits[None], (20, 24)), label[None], ignore_index=255)
    assert reports._cross_entropy(logits, label, 255).item() == pytest.approx(whole.item(), rel=1e-5)
    assert reports._cross_entropy(logits, torch.full((20, 24), 255), 255).item() == 0


def test_evaluate_names_a_label_that_is_no_class():
    class Wrong(Drawings):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            label[10, 10] = 200
            return image, label

    with pytest.raises(ValueError, match="none of the 3 classes"):
        evaluate(FromRed(), Wrong(), progress=False)


def test_evaluate_refuses_another_number_of_classes():
    model = FromRed()
    model.num_classes = 21
    with pytest.raises(ValueError, match="21 classes but the data set has 3"):
        evaluate(model, Drawings(), progress=False)


def test_aligned_size_keeps_aspect_on_multiples_of_32():
    assert aligned_size(480, 640, 256) == (256, 352)
    assert aligned_size(1000, 100, 64) == (640, 64)
    assert all(side % 32 == 0 for side in aligned_size(333, 517, 128))
