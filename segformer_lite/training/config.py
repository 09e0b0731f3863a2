"""What a training run is: every setting in one dataclass, and the named presets."""

import hashlib
import inspect
import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import get_args

LARGEST_SIZE = 2**14  # px
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")  # of torch.compile; the second records CUDA graphs
OWN_CLASS = "own class "  # how a file notes that a learner's class was put into the network


def note_of(part) -> str:
    """A learner's class by its name and a digest of its code: edited, it is another class."""
    name = getattr(part, "__qualname__", type(part).__name__)
    functions = [part] if inspect.isfunction(part) else filter(inspect.isfunction, vars(part).values())
    with suppress(OSError):  # where there is no source to read, as at a prompt, the name alone
        if code := "".join(map(inspect.getsource, functions)):
            name += " " + hashlib.sha256(code.encode()).hexdigest()[:8]
    return OWN_CLASS + name


def require_own_classes(options: dict, file) -> None:
    """Raises ValueError where a file's model options only name a learner's class: code is not kept in files."""
    for key, value in options.items():
        if isinstance(value, str) and value.startswith(OWN_CLASS):
            name = value.removeprefix(OWN_CLASS).split()[0]
            raise ValueError(f"{file} was trained with your own {key}, {name}: load it in Python with "
                             f"load_model(folder, {key}={name.rsplit('.', 1)[-1]})")


@dataclass
class TrainConfig:
    """All settings of one run; the run's numbers are a function of them.

    `data`: a data set's name or the path of a folder; `data_options` go to its class (`classes`, `limit`, ...).
    `model`: a name of `list_models()`; `model_options` go to `create_model`. Images are resized to `base_size`
    px on the short side (default: `size`), augmented by `augment` ("none", "flip", "pspnet", "segformer") and
    cut to `size` x `size`. `weights` to start from, in place of random ones: whatever `SegFormer.from_pretrained` takes
    (its classifier is kept where the number of classes agrees); with `freeze_encoder` the decoder alone learns.
    `steps` optimiser steps of `batch_size` images, those of all processes together; `epochs`,
    when given, sets the steps.
    `class_weights`, one for each class, and `dice_weight` change the loss (see `segmentation_loss`).
    `lr` is the encoder's peak rate, the decoder's is `head_lr_mult` times higher; `warmup` in steps; AdamW's
    `weight_decay`; gradients are clipped to norm `clip`; `seed` of weights, order and augmentation.
    `precision`: "auto", "fp32", "bf16" or "fp16"; `device`: "auto", "cpu", "cuda", ...; `compile`: train the network
    through torch.compile in one of `COMPILE_MODES` (None: as it is).
    `eval_every` steps between validations (0: only at the end), `checkpoint_every` steps between checkpoints.
    `workers`: processes that load data, for each GPU. `folder`: where the run goes (default: <date>-<name> in the
    course's runs/ or in SEGFORMER_LITE_RUNS). Raises ValueError for a setting out of its range.
    """

    data: str = "sample-coco"
    model: str = "segformer_b0"
    size: int = 128
    base_size: int | None = None
    augment: str = "pspnet"
    weights: str | None = None
    freeze_encoder: bool = False
    steps: int = 1000
    epochs: float | None = None
    batch_size: int = 16
    class_weights: list[float] | None = None
    dice_weight: float = 0.0
    lr: float = 1e-3
    head_lr_mult: float = 10.0
    weight_decay: float = 0.01
    warmup: int = 50
    clip: float = 1.0
    precision: str = "auto"
    device: str = "auto"
    compile: str | None = None
    seed: int = 0
    eval_every: int = 0
    checkpoint_every: int = 500
    workers: int = 0
    data_options: dict = field(default_factory=dict)
    model_options: dict = field(default_factory=dict)
    name: str | None = None
    folder: str | None = None

    def __post_init__(self):
        self.data_options, self.model_options = dict(self.data_options), dict(self.model_options)  # not a preset's own
        self._require_numbers()
        for setting in ("size", "batch_size", "checkpoint_every"):
            if getattr(self, setting) < 1:
                raise ValueError(f"{setting} must be at least 1, got {getattr(self, setting)}")
        if max(self.size, self.short_side) > LARGEST_SIZE or self.workers > 1024 or self.seed >= 2**63:
            raise ValueError(f"size and base_size are at most {LARGEST_SIZE} px, workers 1024, seed 2**63 - 1; got "
                             f"{self.size}, {self.base_size}, {self.workers}, {self.seed}")
        if self.steps < 0 or self.size < 32:
            raise ValueError(f"steps must not be negative and size at least 32 px, got {self.steps} and {self.size}")
        if self.class_weights is not None:
            self.class_weights = [float(weight) for weight in self.class_weights]
            if not all(0 <= weight < math.inf for weight in self.class_weights):
                raise ValueError(f"class_weights must be finite and not negative, got {self.class_weights}")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision is auto, fp32, bf16 or fp16, not {self.precision!r}")
        if self.compile not in (None, *COMPILE_MODES):
            raise ValueError(f"compile is None or one of {', '.join(COMPILE_MODES)}, not {self.compile!r}")

    def _require_numbers(self) -> None:
        """Raises ValueError for a setting that is not the kind of number it must be: whole, finite, not negative."""
        for setting in fields(self):
            value, kinds = getattr(self, setting.name), get_args(setting.type) or (setting.type,)
            if not {int, float} & set(kinds) or value is None and type(None) in kinds:
                continue
            if not isinstance(value, Integral if int in kinds else Real) or not 0 <= float(value) < math.inf:
                kind = "a whole number" if int in kinds else "a number"
                raise ValueError(f"{setting.name} must be {kind} and not negative, got {str(value)[:40]}")

    @staticmethod
    def preset(name: str, /, **changes) -> "TrainConfig":
        """The preset `name` with some settings changed. Raises ValueError for an unknown name or setting."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        known = {f.name for f in fields(TrainConfig)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"no setting {unknown[0]!r} in TrainConfig; there are {', '.join(sorted(known))}")
        return PRESETS[name].changed(**{"name": name, **changes})

    def changed(self, **changes) -> "TrainConfig":
        """These settings with some of them changed; steps that are asked for come before epochs that are not."""
        if "steps" in changes:
            changes.setdefault("epochs", None)
        return replace(self, **changes)

    @property
    def short_side(self) -> int:
        return self.base_size or self.size

    def as_dict(self) -> dict:
        """Plain values, for JSON; a learner's own class is kept as a note of its name."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        values["model_options"] = {k: note_of(v) if callable(v) else v for k, v in self.model_options.items()}
        return json.loads(json.dumps(values, default=os.fspath))  # as a file gives it back: lists for tuples


PRESETS = {
    # About two minutes on two CPU cores.
    "sample-coco": TrainConfig(data="sample-coco", size=96, augment="flip"),
    "sample-chest-ct": TrainConfig(data="sample-chest-ct", size=96, augment="flip"),
    # The report, section 4.1: 50,000 COCO images of 256 x 256 px, 100 epochs from scratch, PSPNet's augmentation.
    "report-coco": TrainConfig(data="coco", size=256, batch_size=64, epochs=100, warmup=1500, workers=8,
                               eval_every=10_000, checkpoint_every=2000, data_options={"limit": 50_000}),
    # The report, section 4.2: 15,000 chest CT slices of 512 x 512 px, 50 epochs.
    "report-chest-ct": TrainConfig(data="chest_ct", size=512, batch_size=32, epochs=50, warmup=500, workers=8,
                                   eval_every=5000, checkpoint_every=1000, data_options={"limit": 15_000}),
}
