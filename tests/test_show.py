"""Figures keep the colours that mean something."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import segformer_lite as sl
from segformer_lite.show import curves, masks, plots


@pytest.mark.parametrize("colours", [256, 128])
def test_class_colours_survive_the_smaller_palette(colours):
    """Eleven classes laid over a picture of noise, and their legend: the drawing against what is stored of it."""
    palette, rng = np.asarray(sl.data.open_dataset("sample-coco").palette), np.random.default_rng(0)
    labels = np.repeat(np.arange(len(palette)), 20)[:, None].repeat(200, 1)
    image = rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    fig, axes = plt.subplots(1, 2, figsize=(6, 3), layout="constrained")
    axes[0].imshow(masks.overlay(image, labels, palette, strength=0.5))
    axes[1].imshow(rng.random((220, 200, 3)))
    masks.legend(fig, [labels], [f"class {c}" for c in range(len(palette))], palette)
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", dpi=plots.DPI)
    plt.close(fig)

    picture = Image.open(drawn).convert("RGB")
    stored = plots.fewer_colours(picture, colours)
    before, after = np.asarray(picture).astype(int), np.asarray(stored.convert("RGB")).astype(int)
    assert len(np.unique(np.asarray(stored))) <= colours
    for colour in [*palette, (255, 255, 255)]:
        where = (before == colour).all(-1)
        assert where.sum() > 30, "the colour must be in the drawing"
        assert np.abs(after[where] - colour).max() <= 4


def test_a_picture_of_few_colours_stays_as_it_is():
    pixels = np.random.default_rng(0).choice([0, 90, 255], (40, 50, 3)).astype(np.uint8)
    assert np.array_equal(plots.fewer_colours(Image.fromarray(pixels), 256).convert("RGB"), pixels)


def test_bars_of_ratios_go_to_the_median_with_the_quartiles_those_of_seeds_to_the_mean():
    values = [1.0, 2.0, 3.0, 4.0, 20.0]
    for fig, middle, low, high in ((curves.bar_panels({"a peer": {"a case": values}}, "ratio"), 3, 2, 4),
                                   (curves.bars({"a case": values}, "mIoU"), 6, 6 - np.std(values, ddof=1),
                                    6 + np.std(values, ddof=1))):
        bar, line = fig.axes[0].containers[::-1]
        assert bar.patches[0].get_width() == pytest.approx(middle)
        (ends,) = line.lines[2][0].get_segments()
        assert ends[:, 0] == pytest.approx([low, high])
        plt.close(fig)
