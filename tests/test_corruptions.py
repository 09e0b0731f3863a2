"""The 16 corruptions, the score made of them, and the two CT artefacts."""

import pytest
import torch
import torch.nn.functional as F

import segformer_lite as sl
from segformer_lite.analysis import corruptions as C
from segformer_lite.analysis import ct_shifts
from segformer_lite.analysis.corruptions import CORRUPTIONS, FAMILIES, Corrupted, corrupt, counted, robustness

NAMES = list(CORRUPTIONS)
NO_CHANCE = {"defocus_blur", "gaussian_blur", "brightness", "contrast", "saturate", "jpeg_compression"}


@pytest.fixture(scope="module")
def dataset():
    return sl.data.open_dataset("sample-coco", "val")


@pytest.fixture(scope="module")
def scene(dataset) -> torch.Tensor:
    return dataset[3][0].as_subclass(torch.Tensor)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).pow(2).mean().sqrt().item()


def colour(*rgb: int) -> torch.Tensor:
    """A picture of one colour."""
    return torch.tensor(rgb, dtype=torch.uint8)[:, None, None].expand(3, 32, 32).contiguous()


def test_there_are_sixteen_in_four_families_of_four():
    assert [len(names) for names in FAMILIES.values()] == [4] * 4
    assert sorted(NAMES) == sorted(name for names in FAMILIES.values() for name in names)
    assert all(len(settings) == 5 for _, settings in CORRUPTIONS.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (33, 70), (65, 40)])
def test_any_picture_from_32_px_keeps_its_type_and_shape(name, size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    before = image.clone()
    for severity in (0, 1, 5):
        for made_for in (None, 1024):
            corrupted = corrupt(image, name, severity, made_for=made_for)
            assert corrupted.dtype == torch.uint8 and corrupted.shape == image.shape
    assert torch.equal(image, before), "the picture that was handed in has changed"
    assert torch.equal(corrupt(image, name, 0), image)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_nothing_else(name, scene):
    torch.manual_seed(0)
    first = corrupt(scene, name, 3, seed=1)
    torch.manual_seed(7)
    assert torch.equal(corrupt(scene, name, 3, seed=1), first)
    assert torch.equal(corrupt(scene, name, 3, seed=2), first) == (name in NO_CHANCE)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"saturate"}))
def test_strength_grows_with_severity(name, scene):
    """Distance to the clean picture; two neighbours may be as good as equal where chance decides (fog 3 and 4)."""
    moved = [sum(distance(corrupt(scene, name, severity, seed), scene) for seed in range(3)) for severity in range(6)]
    slack = 1.0 if name in NO_CHANCE else 0.94
    assert all(after > slack * before for before, after in zip(moved, moved[1:], strict=False)), moved
    assert moved[5] > 1.1 * moved[1] and moved[0] == 0


def test_saturate_has_two_arms_each_growing(scene):
    paler, richer = [[distance(corrupt(scene, "saturate", s), scene) for s in arm] for arm in ((1, 2), (3, 4, 5))]
    assert paler == sorted(paler) and richer == sorted(richer)
    spread = [(picture.amax(0).float() - picture.amin(0)).mean() for picture in
              (corrupt(scene, "saturate", s) for s in (2, 1, 0, 3, 4, 5))]
    assert spread == sorted(spread)


# By hand


def test_brightness_adds_to_the_largest_channel_and_keeps_the_hue():
    assert torch.equal(corrupt(colour(100, 50, 0), "brightness", 2), colour(151, 76, 0))  # 100 + 0.2 * 255, times 1.51
    assert torch.equal(corrupt(colour(200, 100, 50), "brightness", 5), colour(255, 128, 64))  # white is the end
    assert torch.equal(corrupt(colour(0, 0, 0), "brightness", 1), colour(26, 26, 26))


def test_contrast_shrinks_the_distance_to_the_mean():
    image = torch.cat([colour(100, 0, 200), colour(200, 0, 100)], 2)
    wanted = torch.cat([colour(140, 0, 160), colour(160, 0, 140)], 2)  # severity 3: a fifth of 50
    assert distance(corrupt(image, "contrast", 3), wanted) < 0.6
    assert distance(corrupt(image, "contrast", 1), torch.cat([colour(130, 0, 170), colour(170, 0, 130)], 2)) < 0.6


def test_saturate_moves_the_smallest_channel_and_leaves_value_and_grey():
    assert torch.equal(corrupt(colour(200, 100, 150), "saturate", 1), colour(200, 170, 185))  # saturation .5 -> .15
    assert torch.equal(corrupt(colour(200, 100, 150), "saturate", 3), colour(200, 0, 100))  # .5 -> 1
    assert torch.equal(corrupt(colour(200, 50, 125), "saturate", 3), colour(200, 0, 100))  # .75 -> 1, the most
    assert torch.equal(corrupt(colour(200, 190, 195), "saturate", 4), colour(200, 130, 165))  # .05 -> .35
    assert torch.equal(corrupt(colour(90, 90, 90), "saturate", 5), colour(90, 90, 90))


@pytest.mark.parametrize(("name", "share"), [("gaussian_noise", 0.18), ("speckle_noise", 0.35 * 128 / 255),
                                             ("shot_noise", (128 / 255 / 12) ** 0.5)])
def test_noise_has_its_standard_deviation_and_keeps_the_mean(name, share):
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    noisy = corrupt(grey, name, 3).float()
    assert noisy.mean().item() == pytest.approx(128, abs=1.5)
    assert noisy.std().item() == pytest.approx(255 * share, rel=0.03)


def test_impulse_noise_hits_its_share_with_black_and_white_alike():
    noisy = corrupt(torch.full((3, 200, 200), 128, dtype=torch.uint8), "impulse_noise", 5)
    assert [(noisy == value).float().mean().item() for value in (0, 255)] == pytest.approx([0.135, 0.135], abs=0.005)
    assert set(noisy.unique().tolist()) == {0, 128, 255}


# Blur


@pytest.mark.parametrize("name", FAMILIES["blur"])
def test_blur_keeps_the_mean_and_a_plain_picture(name, scene):
    for severity in (1, 5):
        assert corrupt(scene, name, severity).float().mean().item() == pytest.approx(scene.float().mean().item(), abs=3)
        plain = colour(10, 120, 240)
        assert distance(corrupt(plain, name, severity), plain) == 0


def test_gaussian_blur_has_its_sigma_and_defocus_its_radius():
    point = torch.zeros(3, 65, 65)
    point[:, 32, 32] = 1
    far = torch.arange(65.0) - 32
    bell = C.gaussian_blur(point, None, 1.0, 3.0)[0]
    assert [(bell.sum(axis) * far**2).sum().sqrt().item() for axis in (0, 1)] == pytest.approx([3, 3], rel=0.01)
    disc = C.defocus_blur(point, None, 1.0, 6.0)[0]
    assert (disc > 0).sum(1).max() == 13 and disc.sum().item() == pytest.approx(1, abs=1e-4)
    assert disc[32, 32].item() == pytest.approx(1 / (torch.pi * 36), rel=0.1)


def test_motion_goes_one_way():
    point = torch.zeros(1, 65, 65)
    point[:, 32, 20] = 1
    line = C.trail(point, length=10, sigma=5, angle=0.0)[0]
    assert line[32, 20:31].gt(0).all() and line.gt(0).sum() == 11 and line[32].argmax() == 20
    down = C.trail(point, length=10, sigma=5, angle=torch.pi / 2)[0]
    assert down[32:43, 20].gt(0).all() and down.gt(0).sum() == 11


def test_glass_only_moves_pixels_and_not_far():
    x = torch.arange(40 * 50.0).reshape(1, 40, 50)
    x = torch.cat([x, x + 5000, -x])
    for reach in (0.4, 1, 4):
        moved = C.local_shuffle(x, torch.Generator().manual_seed(0), reach)
        assert torch.equal(moved.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
        assert torch.equal(moved[1], moved[0] + 5000) and torch.equal(moved[2], -moved[0]), "channels came apart"
        rows, columns = moved[0].long() // 50, moved[0].long() % 50
        steps = torch.stack([rows - torch.arange(40)[:, None], columns - torch.arange(50)]).abs()
        assert steps.max() < 2 * reach and (steps.sum(0) > 0).float().mean() > (0.4 if reach >= 1 else -1)


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "motion_blur"])
def test_scaled_radii_do_the_same_to_a_picture_twice_as_large(name, scene):
    large = F.interpolate(scene[None].float(), scale_factor=2, mode="bilinear")[0].round().to(torch.uint8)
    small, seed = F.avg_pool2d(large.float(), 2).round().to(torch.uint8), 5
    scaled, fixed = [F.avg_pool2d(corrupt(large, name, 4, seed, made_for).float(), 2) for made_for in (144, None)]
    wanted = corrupt(small, name, 4, seed)
    assert distance(scaled, wanted) < 2.5 < 2 * distance(scaled, wanted) + 2.5 < distance(fixed, wanted)


@pytest.mark.parametrize("name", ["snow", "spatter"])
def test_scaled_weather_has_flakes_as_large_as_the_picture_needs(name):
    """Pieces of snow or mud in a picture three times as large: as many when scaled, far more in pixels."""
    def edges(side: int, made_for: int | None) -> float:
        x = corrupt(torch.full((3, side, side), 60, dtype=torch.uint8), name, 3, 0, made_for).float().mean(0)
        flakes = x > (x.min() + x.max()) / 2
        return (flakes[:, 1:] != flakes[:, :-1]).sum().item() / side

    small, scaled, fixed = edges(128, None), edges(384, 128), edges(384, None)
    assert scaled < 1.7 * small < 0.85 * fixed, (small, scaled, fixed)


# The data set, the score, the errors


def test_a_corrupted_set_keeps_labels_and_gives_each_picture_its_own_noise(dataset):
    noisy = Corrupted(dataset, "gaussian_noise", 3)
    assert len(noisy) == len(dataset) and noisy.classes == dataset.classes and noisy.names == dataset.names
    for i in (0, 5):
        image, label = noisy[i]
        assert torch.equal(label, dataset[i][1]) and torch.equal(image, noisy[i][0])
        assert torch.equal(image, corrupt(dataset[i][0], "gaussian_noise", 3, seed=i))
    assert not torch.equal(Corrupted(dataset, "gaussian_noise", 3, seed=1)[0][0], noisy[0][0])


def test_the_score_leaves_out_strong_noise_and_weighs_corruptions_alike():
    assert counted("shot_noise") == (1, 2, 3) and counted("snow") == (1, 2, 3, 4, 5)
    scores = {"shot_noise": [0.6, 0.4, 0.2, 0, 0], "snow": [0.5, 0.4, 0.3, 0.2, 0.1], "fog": [0.6] * 5}
    shares = robustness(scores, clean=0.8)
    assert shares == pytest.approx({"noise": 0.5, "weather": 0.5625, "all": 1.3 / 3 / 0.8})


@pytest.mark.parametrize(("arguments", "message"), [
    ((colour(0, 0, 0), "rain", 1), "no corruption 'rain'; there are motion_blur"),
    ((colour(0, 0, 0), "fog", 6), "severity is 6: give 1 to 5"),
    ((colour(0, 0, 0), "fog", -1), "severity is -1"),
    ((colour(0, 0, 0).float(), "fog", 1), "torch.float32"),
    ((colour(0, 0, 0)[:1], "fog", 1), r"\(1, 32, 32\)"),
    ((colour(0, 0, 0)[:, :31], "fog", 1), "at least 32 px"),
    ((colour(0, 0, 0)[None], "fog", 1), r"\(1, 3, 32, 32\)"),
])
def test_wrong_requests_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        corrupt(*arguments)
    assert "\n" not in str(error.value)


# CT artefacts


def test_back_projection_gives_back_a_disc():
    angles, ray = torch.arange(360) * torch.pi / 180, torch.arange(-46, 47)
    centre = 10 * angles.cos() + 5 * angles.sin()
    chords = 2 * (144 - (ray - centre[:, None]) ** 2).clamp(min=0).sqrt()
    picture = ct_shifts.back_project(chords, (65, 65))
    across, down = torch.meshgrid(torch.arange(65) - 32, torch.arange(65) - 32, indexing="xy")
    far = torch.hypot(across - 10.0, down - 5.0)
    assert picture[far < 10].mean().item() == pytest.approx(1, abs=0.02)
    assert picture[far > 15].abs().mean() < 0.05


@pytest.mark.parametrize("make", [ct_shifts.rings, ct_shifts.metal])
def test_artefacts_have_their_strength_and_their_seed(make):
    grey = torch.full((3, 97, 130), 128, dtype=torch.uint8)
    weak, strong = make(grey, 4), make(grey, 12)
    assert weak.shape == grey.shape and weak.dtype == torch.uint8 and torch.equal(weak[0], weak[2])
    streaks = strong[strong < 255].float()
    assert streaks.std().item() == pytest.approx(12, rel=0.15)
    assert distance(weak, grey) < distance(strong, grey)
    assert torch.equal(make(grey, 4), weak) and not torch.equal(make(grey, 4, seed=1), weak)


def test_rings_are_rings():
    """Along circles around the axis the artefact hardly changes, across them it does."""
    artefact = ct_shifts._ring_map((129, 129), 0)
    turn = torch.arange(0, 2 * torch.pi, 0.05)
    circles = []
    for radius in torch.arange(5, 60, 0.5):
        x, y = 64 + radius * turn.cos(), 64 + radius * turn.sin()
        grid = torch.stack([x, y], 1)[None, None] / 64 - 1
        circles.append(F.grid_sample(artefact[None, None], grid, align_corners=True)[0, 0, 0])
    circles = torch.stack(circles)
    assert circles.std(1).mean() < 0.35 * circles.mean(1).std()


def test_metal_is_white_and_darkens_what_lies_between():
    streaks, rods = ct_shifts._metal_map((129, 129), 0)
    left, right = [(rods & side).nonzero().float().mean(0) for side in (torch.arange(129) < 64, torch.arange(129) > 64)]
    between = [streaks[tuple((left + share * (right - left)).round().int().tolist())] for share in (0.4, 0.5, 0.6)]
    assert sum(between) / 3 < -0.5 and 4 < rods.sum() < 200
    assert (ct_shifts.metal(torch.zeros(3, 129, 129, dtype=torch.uint8), 10)[:, rods] == 255).all()
