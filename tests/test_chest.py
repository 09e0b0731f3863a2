"""What chapter 10 measures with: shifted CT pictures, intervals over patients, and its benchmark in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import segformer_lite as sl
from segformer_lite.analysis.ct_shifts import SEVERITIES, Shifted, dose_noise, shift, window
from segformer_lite.evaluation import interval

GREYS = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)


@pytest.mark.parametrize("kind", SEVERITIES)
def test_a_shift_keeps_type_and_size_and_grows_with_severity(kind):
    before = GREYS.clone()
    shifted = [shift(GREYS, kind, severity) for severity in range(6)]
    assert torch.equal(GREYS, before), "the picture itself must stay as it is"
    assert all(picture.dtype == torch.uint8 and picture.shape == GREYS.shape for picture in shifted)
    assert torch.equal(shifted[0], GREYS)
    moved = [(picture.float() - GREYS.float()).abs().mean().item() for picture in shifted]
    assert moved == sorted(set(moved)), moved


def test_each_kind_does_what_its_name_says():
    middle = GREYS[:, 6:10]  # far from black and white
    for severity in range(1, 6):
        assert (shift(middle, "brighter", severity).float() > middle.float()).all()
        assert (shift(middle, "darker", severity).float() < middle.float()).all()
        flat = shift(GREYS, "flatter", severity).float()
        assert flat.std() < GREYS.float().std() and abs(flat.mean() - 127.5) < 1


def test_a_window_moves_and_stretches_grey_values():
    values = torch.tensor([[0, 100, 128, 200, 255]], dtype=torch.uint8)
    assert window(values, level=20).tolist() == [[0, 80, 108, 180, 235]]
    assert window(values, level=-100).tolist() == [[100, 200, 228, 255, 255]]
    assert window(values, width=2.0).tolist() == [[64, 114, 128, 164, 191]]
    assert window(values, width=0.5).tolist() == [[0, 72, 128, 255, 255]]


def test_dose_noise_has_its_strength_and_is_a_function_of_its_seed():
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    for sd in (4, 8, 14, 22):
        noisy = dose_noise(grey, sd)
        assert abs(noisy[0].float().std().item() - sd) < 0.05 * sd
        assert abs(noisy.float().mean().item() - 128) < 0.05 * sd
        assert torch.equal(noisy[0], noisy[1]) and torch.equal(noisy[0], noisy[2])
    assert torch.equal(dose_noise(grey, 8, seed=3), dose_noise(grey, 8, seed=3))
    assert not torch.equal(dose_noise(grey, 8, seed=3), dose_noise(grey, 8, seed=4))
    state = torch.get_rng_state()
    dose_noise(grey, 8)
    assert torch.equal(state, torch.get_rng_state()), "the global generator is not to be touched"


@pytest.mark.parametrize(("arguments", "message"), [
    ((GREYS, "foggy", 1), "no CT shift 'foggy'; there are brighter"),
    ((GREYS, "darker", 6), "severity is 6: give 1 to 5"),
    ((GREYS, "darker", 1.5), "severity is 1.5"),
    ((GREYS.float(), "darker", 1), "take uint8"),
])
def test_wrong_shifts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shift(*arguments)


def test_a_shifted_set_keeps_labels_and_gives_each_picture_its_own_noise():
    val_set = sl.data.open_dataset("sample-chest-ct", "val", limit=3)
    shifted = Shifted(val_set, "noisier", 3)
    assert len(shifted) == 3 and shifted.classes == val_set.classes and shifted.names == val_set.names
    noises = []
    for i in range(3):
        image, label = shifted[i]
        assert torch.equal(label, val_set[i][1]) and torch.equal(image, shifted[i][0])
        assert torch.equal(image, shift(torch.Tensor(val_set[i][0]).byte(), "noisier", 3, seed=i))
        noises.append(image.float() - val_set[i][0].float())
    assert not torch.equal(noises[0].sign(), noises[1].sign())


def test_the_interval_is_that_of_patients():
    rng = np.random.default_rng(0)
    levels = rng.normal(0.7, 0.1, 30)
    alike, patients = np.repeat(levels, 25), np.repeat(np.arange(30), 25)
    mean, low, high = interval(alike, patients)
    assert mean == pytest.approx(levels.mean())
    expected = 2 * 1.96 * levels.std() / 30**0.5  # of the normal approximation
    assert high - low == pytest.approx(expected, rel=0.05) and low < mean < high
    once = interval(levels, np.arange(30))
    assert once == pytest.approx((mean, low, high)), "25 equal slices of a patient are no 25 patients"
    assert interval(alike, patients) == (mean, low, high) != interval(alike, patients, seed=1)
    wider = interval(alike, patients, level=0.99)
    assert wider[1] < low and wider[2] > high


def test_the_interval_weighs_patients_alike_and_leaves_out_nan():
    values = [0.0] * 50 + [1.0] * 7 + [np.nan] * 3
    groups = ["a"] * 50 + list("bcdefgh") + list("abi")
    mean, low, high = interval(values, groups)
    assert mean == pytest.approx(7 / 8) and 0 < low < high <= 1


@pytest.mark.parametrize(("values", "groups", "message"), [
    ([0.5] * 7, range(7), "7 groups are too few"),
    ([0.5] * 100, [0, 1] * 50, "2 groups are too few"),
    ([0.5] * 8 + [np.nan], [0, 0, 1, 2, 3, 4, 5, 6, 7], "7 groups"),
    ([0.5] * 9, range(8), "9 values but 8 groups"),
])
def test_no_interval_where_none_is_honest(values, groups, message):
    with pytest.raises(ValueError, match=message):
        interval(values, list(groups))


BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "chest_claims.py"


def test_the_benchmark_holds_out_every_patient_once_and_changes_one_thing():
    sys.path.insert(0, str(BENCHMARK.parent))
    try:
        import chest_claims
    finally:
        sys.path.remove(str(BENCHMARK.parent))
    everybody = chest_claims.patients()
    dealt = [p for k in range(chest_claims.GROUPS) for p in everybody[k :: chest_claims.GROUPS]]
    assert sorted(dealt) == everybody and len(everybody) == 12
    settings = chest_claims.configs(everybody[::3], steps=7)
    plain = settings.pop("plain").as_dict()
    changed = {name: {k for k, v in config.as_dict().items() if v != plain[k]} for name, config in settings.items()}
    assert changed == {"class weights": {"class_weights"}, "Dice loss": {"dice_weight"},
                       "192 px": {"size", "batch_size"}, "colours": {"augment"}, "not augmented": {"augment"},
                       "split by slice": {"data_options"}}
    assert settings["192 px"].batch_size * 192**2 == 16 * 96**2
    image, label = sl.data.open_dataset("sample-chest-ct", "val", limit=1)[0]
    mirrored = chest_claims.Mirrored(sl.data.open_dataset("sample-chest-ct", "val", limit=1))[0]
    assert torch.equal(mirrored[0], image.flip(-1)) and torch.equal(mirrored[1], label.flip(-1))


def test_one_setting_of_the_benchmark_in_small(tmp_path):
    """Trains one step, measures one patient; a second call takes the figures from the folder."""
    code = ("import sys, json; sys.path.insert(0, sys.argv[1]); import chest_claims as c; from pathlib import Path;"
            "c.AUGMENTED = (); p = c.patients()[:1]; f = Path(sys.argv[2]);"
            "a = c.measure('plain', c.configs(p, 1)['plain'], f); b = c.measure('plain', None, f);"
            "print(json.dumps([a, b]))")
    done = subprocess.run([sys.executable, "-c", code, str(BENCHMARK.parent), str(tmp_path / "run")], check=True,
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    first, again = json.loads(done.stdout.strip().splitlines()[-1])
    assert first == again
    (figures,) = first["patients"].values()
    assert set(figures) == {"lung", "heart", "trachea"} and len(first["regions"]) > 10
    assert figures["lung"] == first["pooled"]["lung"], "of one patient, all slices are that patient's"
    assert all(0 <= right <= pixels for pixels, right in first["regions"])
