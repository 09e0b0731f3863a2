"""The pictures that a run draws while it goes on; each is whole whenever somebody looks."""

from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.transforms import resize
from ..evaluation import resize_for_model
from ..files import beside
from ..models import Segmenter, device_of
from ..show.curves import loss_curve
from ..show.masks import comparison


def draw_loss(folder: Path, history: list[dict]) -> None:
    """Write loss.png: the loss over steps, and the validation mIoU where it was measured."""
    with beside(folder / "loss.png") as part:
        loss_curve(history, part)


def draw_preview(folder: Path, model: Segmenter, dataset, size: int, count: int = 3) -> None:
    """Write preview.png: input | prediction | label of `count` images spread over a data set, at the network's size."""
    device = device_of(model)
    images, predictions, labels = [], [], []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int):
        image, label = dataset[index]
        images.append(resize_for_model(image, size).as_subclass(Tensor))
        predictions.append(model.predict(images[-1][None].to(device))[0].cpu())
        labels.append(resize(label, *images[-1].shape[-2:]))
    with beside(folder / "preview.png") as part:
        comparison(images, predictions, labels, dataset.classes, dataset.palette, width=2.4, path=part)
