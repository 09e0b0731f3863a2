"""From data to a trained network: settings, loss, schedule, the loop, checkpoints, and comparisons."""

from .checkpoint import load_model, save_model
from .compare import Comparison, compare
from .config import PRESETS, TrainConfig
from .loop import Run, train
from .losses import class_weights, dice_loss, segmentation_loss
from .schedule import make_optimizer, poly_with_warmup

__all__ = ["PRESETS", "Comparison", "Run", "TrainConfig", "class_weights", "compare", "dice_loss", "load_model",
           "make_optimizer", "poly_with_warmup", "save_model", "segmentation_loss", "train"]
