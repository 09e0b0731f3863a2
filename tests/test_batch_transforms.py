"""Augmentation of whole batches: what single pictures get, as often, and depending on no other picture."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

import segformer_lite as sl
from segformer_lite.data import BatchAugmentation, augmentation, batch_transforms
from segformer_lite.data.batch_transforms import CHANCES, chances, on_canvas
from segformer_lite.data.transforms import COLOURS, FILL, MEAN_COLOUR, PhotometricDistortion, resize
from segformer_lite.training import batches, loop

NAMES = ["none", "flip", "pspnet", "segformer"]
SIDE = 48
DRAWS = 400


def blocks(height: int = 60, width: int = 72, lopsided: bool = False):
    """Eight by eight blocks, each of a label and a colour of its own: brighter to the right, greener below.

    lopsided: the left two thirds are one class, as background often is.
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    across, down = x * 8 // width, y * 8 // height
    image = torch.stack([30 + 25 * across, 20 + 28 * down, 200 - 8 * (across + down)]).to(torch.uint8)
    labels = 8 * down + across
    return image, torch.where(3 * x < 2 * width, 0, labels) if lopsided else labels


def noise(height: int, width: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return image, torch.randint(0, 4, (height, width), generator=generator)


def in_batch(name, pictures, rows, size=SIDE):
    items = [(image, label.to(torch.uint8), row) for (image, label), row in zip(pictures, rows, strict=True)]
    return BatchAugmentation(name, size)(*on_canvas(items))


def one_by_one(name, picture, draws, size=SIDE):
    transform, results = augmentation(name, size), []
    for seed in range(draws):
        torch.manual_seed(seed)
        results.append(transform(tv_tensors.Image(picture[0]), tv_tensors.Mask(picture[1])))
    return tuple(torch.stack([item.as_subclass(torch.Tensor) for item in part]) for part in zip(*results, strict=True))


# ---- the same numbers, given the same factor, place, angle and colours ----


def row(**given) -> torch.Tensor:
    """Chances that leave a picture alone, except for those given by their column."""
    values = torch.full((CHANCES,), 0.9, dtype=torch.float64)
    for column, value in given.items():
        values[int(column[1:])] = value
    return values


@pytest.mark.parametrize("factor", [0.5, 0.63, 0.77, 1.0, 1.31, 2.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_scale_crop_and_mirror_are_those_of_single_pictures(factor, mirrored):
    image, label = noise(71, 83)
    image = F.gaussian_blur(image, 5, 1.0)
    first = 6 + 2 * len(COLOURS)
    chance = row(c2=(factor - 0.5) / 1.5, c4=0.1 if mirrored else 0.9, **{f"c{first}": 0.3, f"c{first + 1}": 0.6})
    got, got_label = in_batch("flip", [noise(90, 60), (image, label)], [chances(1), chance])

    height, width = round(71 * factor), round(83 * factor)
    room = height - SIDE, width - SIDE
    top, left = (min(r, 0) + int(u * (abs(r) + 1)) for r, u in zip(room, (0.3, 0.6), strict=True))
    for kind, item, found, wrong in ((tv_tensors.Image, image, got[1], 1), (tv_tensors.Mask, label, got_label[1], 0)):
        expected = F.pad(resize(kind(item), height, width), [SIDE] * 4, fill=FILL[kind])
        expected = F.crop(expected, top + SIDE, left + SIDE, SIDE, SIDE)
        expected = (F.hflip(expected) if mirrored else expected).as_subclass(torch.Tensor)
        apart = (expected.int() - found.int()).abs() > wrong  # labels on the very border of two may be either
        assert apart.float().mean() <= (0 if kind is tv_tensors.Image else 0.02)


@pytest.mark.parametrize("degrees", [-10.0, 3.0, 7.5])
def test_rotation_is_that_of_single_pictures(degrees):
    image, label = blocks()
    angle = torch.tensor([0.0, degrees])
    canvas = on_canvas([(*noise(90, 50), row()), (image, label, row())])
    turned, labels = batch_transforms.rotate(*canvas[:3], angle)
    expected = F.rotate(image, degrees, InterpolationMode.BILINEAR, fill=list(MEAN_COLOUR))
    assert torch.equal(labels[1, :60, :72], F.rotate(label[None], degrees, fill=255)[0].to(torch.uint8))
    apart = (turned[1, :, :60, :72].int() - expected.int()).abs() > 1
    outside = (labels[1:, :60, :72] == 255).float()
    near = [torch.nn.functional.max_pool2d(part, 3, 1, 1)[0] > 0 for part in (outside, 1 - outside)]
    edge = near[0] & near[1]  # there torchvision lets the fill weigh twice
    assert not (apart & ~edge)[:, 1:-1, 1:-1].any() and (outside[0].bool() & ~edge).any()
    assert torch.equal(turned[0, :, :, :50], noise(90, 50)[0])


def test_blur_is_that_of_single_pictures():
    image, _ = noise(48, 60)
    assert (batch_transforms.blur(image[None])[0].int() - F.gaussian_blur(image, 5, 1.1).int()).abs().max() <= 1


def test_colours_are_those_of_single_pictures():
    images = torch.stack([noise(20, 30, seed)[0] for seed in range(31)])
    rows = torch.stack([*map(chances, range(30)), row()])
    got = batch_transforms.distort(images, rows[:, 6:14], rows[:, 5] < 0.5)
    orders = set()
    for image, chance, found in zip(images, rows.tolist(), got, strict=True):
        steps = {name: low + (high - low) * chance[7 + 2 * i] for i, (name, (low, high)) in enumerate(COLOURS.items())
                 if chance[6 + 2 * i] < 0.5}
        names = ["brightness", "saturation", "hue", "contrast"] if chance[5] < 0.5 else list(COLOURS)
        order = [(name, steps[name]) for name in names if name in steps]
        orders.add(tuple(name for name, _ in order))
        expected = PhotometricDistortion().transform(tv_tensors.Image(image), {"steps": order})
        assert (expected.as_subclass(torch.Tensor).int() - found.int()).abs().max() <= 1
        assert order or torch.equal(found, image)
    assert len(orders) > 10 and () in orders


@pytest.mark.parametrize("shape", [(60, 72), (33, 90), (47, 49), (20, 31)])
def test_none_is_the_same_centre(shape):
    picture = noise(*shape)
    image, label = one_by_one("none", picture, 1)
    got, got_label = in_batch("none", [noise(95, 80), picture], [chances(0), chances(1)])
    assert torch.equal(got[1], image[0]) and torch.equal(got_label[1], label[0])


# ---- the same distribution ----


def statistics(images, labels) -> dict[str, torch.Tensor]:
    """Figures of each draw that tell scale, place, angle, mirror, padding, classes, colours and sharpness."""
    inside = labels != 255
    across, down = (torch.where(inside, part, 0).double() for part in (labels % 8, labels // 8))
    count = inside.flatten(1).sum(1).clamp(min=1)
    place = torch.arange(labels.shape[1]).double() - labels.shape[1] / 2 + 0.5

    def mean(values):
        return values.flatten(1).sum(1) / count

    def slope(values, along):
        along = along.expand_as(values)
        centred = torch.where(inside, along - mean(torch.where(inside, along, 0))[:, None, None], 0)
        return (centred * values).flatten(1).sum(1) / centred.square().flatten(1).sum(1).clamp(min=1)

    pixels = images.double()
    sharp = (pixels[..., 1:] - pixels[..., :-1]).abs().mean((1, 2, 3))
    found = {"padding": 1 - inside.double().mean((1, 2)), "mirror": (slope(across, place) > 0).double(),
             "scale": slope(across, place).abs(), "height": slope(down, place[:, None]), "sharpness": sharp,
             "angle": slope(across, place[:, None]), "column": mean(across), "row": mean(down)}
    found |= {f"class {k}": (labels == k).double().mean((1, 2)) for k in (0, 9, 36, 63)}
    found |= {f"mean {c}": pixels[:, c].mean((1, 2)) for c in range(3)}
    found |= {f"spread {c}": pixels[:, c].std((1, 2)) for c in range(3)}
    return found


def farthest(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far apart two samples' distribution functions lie at most (Kolmogorov and Smirnov)."""
    both = torch.cat([a, b]).sort().values
    shares = [torch.searchsorted(sample.sort().values, both, right=True) / len(sample) for sample in (a, b)]
    return (shares[0] - shares[1]).abs().max().item()


@pytest.mark.parametrize("name", ["flip", "pspnet", "segformer"])
@pytest.mark.parametrize("lopsided", [False, True])
def test_distribution_is_that_of_single_pictures(name, lopsided):
    picture = blocks(lopsided=lopsided)
    single = statistics(*one_by_one(name, picture, DRAWS))
    whole = statistics(*in_batch(name, DRAWS * [picture], [chances(10_000 + seed) for seed in range(DRAWS)]))
    for figure, a in single.items():
        b = whole[figure]
        error = ((a.var() + b.var()) / DRAWS).sqrt()
        assert (a.mean() - b.mean()).abs() <= 3.5 * error + 1e-3 * a.abs().mean(), figure
        assert farthest((a * 1e3).round(), (b * 1e3).round()) < 1.95 * (2 / DRAWS) ** 0.5, figure  # one in a thousand


def test_draws_reach_both_ends_evenly():
    rows = torch.stack([chances(seed) for seed in range(2000)])
    assert rows.shape == (2000, CHANCES) and rows.min() >= 0 and rows.max() < 1
    assert (rows.mean(0) - 0.5).abs().max() < 0.03 and (rows.std(0) - 12**-0.5).abs().max() < 0.02
    sizes = torch.tensor([[12, 7]]).expand(2000, 2)
    corners = BatchAugmentation("flip", 10).corners(sizes, rows[:, 14:].view(-1, 10, 2))
    assert corners[..., 0].unique().tolist() == [0, 1, 2] and corners[..., 1].unique().tolist() == [-3, -2, -1, 0]


@pytest.mark.parametrize("name, column", [("pspnet", 0), ("pspnet", 3), ("flip", 4), ("segformer", 5),
                                          *(("segformer", column) for column in (6, 8, 10, 12))])
def test_every_coin_falls_at_one_half(name, column):
    colours = {"c8": 0.2, "c10": 0.2} if column == 5 else {}  # an order needs two steps
    pictures, values = 4 * [blocks()], (0.0, 0.499, 0.501, 0.999)
    images, _ = in_batch(name, pictures, [row(**{**colours, f"c{column}": value}) for value in values])
    assert torch.equal(images[0], images[1]) and torch.equal(images[2], images[3])
    assert not torch.equal(images[1], images[2])


# ---- image and labels together ----


@pytest.mark.parametrize("name", ["none", "flip", "pspnet"])
def test_labels_stay_on_their_pixels(name):
    pictures = [blocks(120, 144), blocks(180, 100), blocks(80, 80)] * 20
    images, labels = in_batch(name, pictures, [chances(seed) for seed in range(60)])
    known = labels.clamp(max=63)
    colours = torch.stack([30 + 25 * (known % 8), 20 + 28 * (known // 8), 200 - 8 * (known % 8 + known // 8)], 1)
    around = torch.nn.functional.pad(labels[:, None].float(), [4] * 4, mode="replicate")
    same = torch.nn.functional.max_pool2d(around, 9, 1) == -torch.nn.functional.max_pool2d(-around, 9, 1)
    same &= labels[:, None] != 255
    edge = torch.nn.functional.pad(torch.ones(SIDE - 8, SIDE - 8), [4] * 4) > 0  # a picture may end where the crop does
    assert (same & edge).sum() > 5000
    assert ((images.int() - colours).abs() <= 1)[(same & edge).expand_as(images)].all()


@pytest.mark.parametrize("name", NAMES)
def test_outside_is_mean_colour_without_label_whatever_the_canvas_holds(name):
    items = [(torch.zeros(3, 40, 40, dtype=torch.uint8), torch.ones(40, 40, dtype=torch.uint8), chances(seed))
             for seed in range(40)]
    wide = torch.full((3, 100, 120), 255, dtype=torch.uint8), torch.full((100, 120), 7, dtype=torch.uint8), chances(0)
    images, labels, sizes, rows = on_canvas([*items, wide])
    images[:40, :, 40:], images[:40, :, :, 40:], labels[:40, 40:], labels[:40, :, 40:] = 255, 255, 7, 7
    images, labels = (part[:40] for part in BatchAugmentation(name, 64)(images, labels, sizes, rows))
    assert set(labels.unique().tolist()) == {1, 255}
    if name != "segformer":  # its colours reach the padding as well
        beyond = -torch.nn.functional.max_pool2d(-(labels == 255)[:, None].float(), 15, 1, 7) > 0
        assert beyond.sum() > 2000
        assert all((images[:, c][beyond[:, 0]] == value).all() for c, value in enumerate(MEAN_COLOUR))
        assert images.max() <= max(MEAN_COLOUR)


# ---- one picture's chances are its own ----


@pytest.mark.parametrize("name", NAMES)
def test_a_share_of_a_batch_gets_the_same_numbers(name):
    pictures = [noise(60, 72), noise(100, 50), noise(40, 130), noise(55, 55)]
    rows = [chances(seed) for seed in range(4)]
    images, labels = in_batch(name, pictures, rows)
    for part in ([0, 2], [3], [1, 3]):
        share, share_labels = in_batch(name, [pictures[i] for i in part], [rows[i] for i in part])
        assert torch.equal(share, images[part]) and torch.equal(share_labels, labels[part])
    assert name == "none" or not torch.equal(in_batch(name, pictures, rows[::-1])[0], images)


def test_types_and_unknown_names():
    images, labels = in_batch("segformer", [noise(60, 72)], [chances(0)])
    assert images.dtype == torch.uint8 and images.shape == (1, 3, SIDE, SIDE)
    assert labels.dtype == torch.int64 and labels.shape == (1, SIDE, SIDE)
    with pytest.raises(ValueError, match="'fliip' is unknown"):
        BatchAugmentation("fliip", 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_cpu_s_numbers(name):
    batch = on_canvas([(*noise(60 + seed, 90 - seed), chances(seed)) for seed in range(16)])
    here, there = BatchAugmentation(name, SIDE)(*batch), BatchAugmentation(name, SIDE)(*(x.cuda() for x in batch))
    off = (here[0].int() - there[0].cpu().int()).abs()
    # A place between two pixels may fall to the other one: a division is another product there.
    assert (off > 1).float().mean() < 1e-3 and (here[1] != there[1].cpu()).float().mean() < 1e-3


# ---- in training ----


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return sl.data.make_sample("coco", tmp_path_factory.mktemp("sample") / "coco", count=12)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(batches, "augments", lambda device: True)


def config(sample, folder="", **changes):
    return sl.TrainConfig(**{"data": str(sample), "size": 32, "base_size": 48, "batch_size": 4, "steps": 4, "warmup": 2,
                             "precision": "fp32", "checkpoint_every": 2, "device": "cpu", "folder": str(folder),
                             **changes})


@pytest.mark.parametrize("augment", NAMES)
def test_the_loader_gives_whole_batches_in_shares(sample, as_on_a_gpu, augment):
    settings, train_set, cpu = config(sample, augment=augment), sl.data.open_dataset(str(sample)), torch.device("cpu")
    order = dict(length=len(train_set), batch_size=4, steps=3, seed=0)
    whole = list(batches.load(train_set, batches.StepBatches(**order), settings, cpu))
    shares = [list(batches.load(train_set, batches.StepBatches(**order, rank=rank, processes=2), settings, cpu))
              for rank in (0, 1)]
    assert len(whole) == 3
    for step, pair in enumerate(whole):
        for number, item in enumerate(pair):
            assert torch.equal(item[0::2], shares[0][step][number]) and torch.equal(item[1::2], shares[1][step][number])
    items = batches.Resized(train_set, 32, seed=0)
    assert torch.equal(items[0, 1][2], items[0, 1][2]) and not torch.equal(items[0, 1][2], items[12, 1][2])


def test_a_run_is_resumed_to_the_same_numbers_with_any_workers(sample, tmp_path, as_on_a_gpu, monkeypatch):
    whole = sl.train(config(sample, tmp_path / "whole", workers=1), progress=False)
    step, steps = loop.train_step, iter(range(10))

    def cut_before_the_fourth(*arguments):
        if next(steps) == 3:
            raise InterruptedError
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", cut_before_the_fourth)
        with pytest.raises(InterruptedError):
            sl.train(config(sample, tmp_path / "cut"), progress=False)
    resumed = sl.train(config(sample, tmp_path / "cut"), resume=tmp_path / "cut", progress=False)
    assert [e["loss"] for e in whole.history] == [e["loss"] for e in resumed.history]


def test_only_a_gpu_augments_itself():
    assert batches.augments(torch.device("cuda", 1)) and not batches.augments(torch.device("cpu"))
