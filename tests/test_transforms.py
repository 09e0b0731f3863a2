"""Augmentation: image and labels stay together, padding is ignored, chance is seeded, colours have limits."""

import colorsys

import pytest
import torch
from torchvision import tv_tensors

from segformer_lite.data import augmentation, resize_short_side
from segformer_lite.data.transforms import MEAN_COLOUR, PhotometricDistortion, RandomScale, VariedCrop, resize

NAMES = ["none", "flip", "pspnet", "segformer"]


def disc_scene(height: int = 90, width: int = 120) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """A white disc, label 1, on black: brightness tells what the label should be."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (y - 40) ** 2 + (x - 70) ** 2 < 25**2
    return tv_tensors.Image((255 * disc).to(torch.uint8).expand(3, -1, -1).clone()), tv_tensors.Mask(disc.long())


def noise(height: int = 80, width: int = 100, classes: int = 4) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return tv_tensors.Image(image), tv_tensors.Mask(torch.randint(0, classes, (height, width), generator=generator))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(90, 120), (64, 64), (20, 200), (33, 7)])
def test_types_shapes_and_values(name, shape):
    transform = augmentation(name, 64)
    for seed in range(8):
        torch.manual_seed(seed)
        image, mask = transform(*noise(*shape))
        assert type(image) is tv_tensors.Image and image.dtype == torch.uint8 and image.shape == (3, 64, 64)
        assert type(mask) is tv_tensors.Mask and mask.dtype == torch.int64 and mask.shape == (64, 64)
        assert set(mask.unique().tolist()) <= {0, 1, 2, 3, 255}


@pytest.mark.parametrize("name", NAMES)
def test_labels_stay_on_their_pixels(name):
    agreements = []
    for seed in range(40):
        torch.manual_seed(seed)
        image, mask = augmentation(name, 80)(*disc_scene())
        labelled = mask != 255
        bright = image.float().mean(dim=0)
        if (mask == 1).sum() > 50 and (mask == 0).sum() > 50:
            middle = (bright[mask == 1].median() + bright[mask == 0].median()) / 2
            agreements.append(((bright > middle) == (mask == 1))[labelled].float().mean().item())
    assert len(agreements) > 25
    assert min(agreements) > 0.98 and sum(agreements) / len(agreements) > 0.992


@pytest.mark.parametrize("name", ["flip", "pspnet", "segformer"])
def test_chance_is_seeded_by_torch_alone(name):
    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        image, mask = augmentation(name, 48)(*noise())
        return torch.cat([image.flatten().long(), mask.flatten()])

    assert torch.equal(run(3), run(3))
    assert len({tuple(run(seed).tolist()) for seed in range(5)}) == 5


def test_none_is_the_centre():
    image, mask = noise(80, 100)
    transform = augmentation("none", 64)
    out_image, out_mask = transform(image, mask)
    assert torch.equal(out_image, image[:, 8:72, 18:82]) and torch.equal(out_mask, mask[8:72, 18:82])
    assert torch.equal(transform(image, mask)[0], out_image)


def test_padding_is_mean_colour_and_ignored():
    image, mask = noise(20, 100)
    out_image, out_mask = augmentation("none", 64)(image, mask)
    assert torch.equal(out_mask[22:42], mask[:, 18:82]) and torch.equal(out_image[:, 22:42], image[:, :, 18:82])
    for rows in (slice(0, 22), slice(42, 64)):
        assert (out_mask[rows] == 255).all()
        assert out_image[:, rows].flatten(1).unique(dim=1).flatten().tolist() == list(MEAN_COLOUR)


def grow(region: torch.Tensor, pixels: int) -> torch.Tensor:
    return torch.nn.functional.max_pool2d(region[None].float(), 2 * pixels + 1, 1, pixels)[0] > 0


@pytest.mark.parametrize("name", ["flip", "pspnet"])
def test_what_is_padded_is_ignored_and_nothing_else(name):
    image = tv_tensors.Image(torch.zeros(3, 40, 40, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(40, 40, dtype=torch.int64))
    padded = 0
    for seed in range(20):
        torch.manual_seed(seed)
        out_image, out_mask = augmentation(name, 64)(image, mask)
        inside = out_mask == 1
        assert (inside | (out_mask == 255)).all()
        beyond = ~grow(inside, 7)  # blur and rotation mix the colours along the border
        edge = torch.ones(64, 64, dtype=torch.bool)
        edge[1:-1, 1:-1] = False  # the picture may end where the crop does
        assert (out_image[:, ~grow(~inside | edge, 7)] == 0).all()
        assert all((out_image[channel, beyond] == value).all() for channel, value in enumerate(MEAN_COLOUR))
        padded += int(beyond.sum())
    assert padded > 3000


def test_resize_keeps_the_centres_of_image_and_mask_together():
    for factor in (0.2, 0.25, 0.37, 0.7, 2.0, 2.6):
        image, mask = disc_scene()
        height, width = round(90 * factor), round(120 * factor)
        image, mask = resize(image, height, width), resize(mask, height, width)
        weights = image[0].double()
        for axis in (0, 1):
            place = torch.arange(mask.shape[axis]).double().view([-1, 1] if axis == 0 else [1, -1])
            of_image = (place * weights).sum() / weights.sum()
            of_mask = (place * mask).sum() / mask.sum()
            assert abs(of_image - of_mask) < 0.15  # pixels of the result


def test_resize_short_side():
    image, mask = resize_short_side(*noise(80, 100), 40)
    assert image.shape == (3, 40, 50) and mask.shape == (40, 50)
    image, mask = resize_short_side(*noise(100, 80), 120)
    assert image.shape == (3, 150, 120) and mask.shape == (150, 120)
    assert type(image) is tv_tensors.Image and type(mask) is tv_tensors.Mask
    assert mask.dtype == torch.int64 and set(mask.unique().tolist()) == {0, 1, 2, 3}


def test_random_scale_is_even_between_its_ends():
    scale = RandomScale(0.5, 2.0)
    torch.manual_seed(0)
    sides = [scale(*noise(100, 200))[0].shape[1:] for _ in range(300)]
    assert all(abs(width - 2 * height) <= 1 for height, width in sides)
    factors = torch.tensor([height / 100 for height, _ in sides])
    assert factors.min() < 0.52 and factors.max() > 1.98 and abs(factors.mean() - 1.25) < 0.08


def test_half_of_the_pictures_are_mirrored():
    image = tv_tensors.Image(torch.arange(64, dtype=torch.uint8).expand(3, 64, 64).clone())
    mask = tv_tensors.Mask(torch.arange(64).expand(64, 64).clone())
    torch.manual_seed(0)
    out = [augmentation("flip", 32)(image, mask)[1] for _ in range(200)]
    mirrored = [bool(row[(row != 255)][0] > row[(row != 255)][-1]) for row in (m[m.shape[0] // 2] for m in out)]
    assert 70 < sum(mirrored) < 130


def test_varied_crop_avoids_one_class_alone():
    image = tv_tensors.Image(torch.zeros(3, 100, 100, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.zeros(100, 100, dtype=torch.int64))
    mask[:, 70:] = 1
    mask[:, :20] = 255  # unlabelled pixels are no class

    def share_of_largest(crop) -> float:
        labels = crop(image, mask)[1].flatten()
        counts = torch.bincount(labels[labels != 255], minlength=2)
        return (counts.max() / counts.sum()).item()

    torch.manual_seed(0)
    varied = [share_of_largest(VariedCrop(40)) for _ in range(100)]
    plain = [share_of_largest(VariedCrop(40, tries=1)) for _ in range(100)]
    assert sum(share < 0.75 for share in varied) >= 97
    assert sum(share < 0.75 for share in plain) < 70


def test_varied_crop_takes_what_there_is():
    image, _ = noise(50, 50)
    for value in (0, 255):
        mask = tv_tensors.Mask(torch.full((50, 50), value))
        assert VariedCrop(32)(image, mask)[1].unique().tolist() == [value]


# ---- colours ----


def test_distortion_changes_the_image_alone():
    image, mask = noise()
    torch.manual_seed(0)
    results = [PhotometricDistortion()(image, mask) for _ in range(160)]
    assert all(torch.equal(out_mask, mask) for _, out_mask in results)
    untouched = sum(torch.equal(out_image, image) for out_image, _ in results)
    assert 2 <= untouched <= 22  # four coins: one in sixteen


def test_distortion_draws_each_step_half_of_the_time_within_its_limits():
    torch.manual_seed(0)
    draws = [PhotometricDistortion().make_params([])["steps"] for _ in range(400)]
    limits = {"brightness": (-32 / 255, 32 / 255), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in limits.items():
        amounts = [amount for steps in draws for step, amount in steps if step == name]
        assert 150 < len(amounts) < 250
        assert (low <= min(amounts) < low + 0.05 * (high - low) and high - 0.05 * (high - low) < max(amounts) <= high)
    orders = [[step for step, _ in steps] for steps in draws if len(steps) == 4]
    last = sum(order[-1] == "contrast" for order in orders)
    assert 0.25 < last / len(orders) < 0.75
    assert all(order[0] == "brightness" for order in orders)


def pixel(*colour: float) -> torch.Tensor:
    return torch.tensor(colour).view(3, 1, 1)


@pytest.mark.parametrize("colour", [(0.2, 0.6, 0.4), (0.9, 0.1, 0.1), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_saturation_is_that_of_hsv(colour, factor):
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)
    got = PhotometricDistortion.saturation(pixel(*colour), factor).flatten().tolist()
    assert got == pytest.approx(expected, abs=1e-5)


def test_hue_turns_the_colour_circle():
    hue, saturation, value = colorsys.rgb_to_hsv(0.2, 0.6, 0.4)
    expected = colorsys.hsv_to_rgb(hue + 0.1, saturation, value)
    assert PhotometricDistortion.hue(pixel(0.2, 0.6, 0.4), 0.1).flatten().tolist() == pytest.approx(expected, abs=1e-3)


def test_steps_are_clipped_one_by_one():
    image = tv_tensors.Image(torch.tensor([250, 100, 10], dtype=torch.uint8).view(3, 1, 1))
    out = PhotometricDistortion().transform(image, {"steps": [("brightness", 0.1), ("contrast", 0.5)]})
    assert out.flatten().tolist() == [round(255 * 0.5), round((100 + 25.5) * 0.5), round((10 + 25.5) * 0.5)]


def test_unknown_name():
    with pytest.raises(ValueError, match="'fliip' is unknown: choose one of none, flip, pspnet, segformer"):
        augmentation("fliip", 64)
