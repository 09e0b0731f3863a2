"""How good a network is: metrics, and the report of a whole data set."""

from .bootstrap import interval
from .metrics import boundary_counts, confusion_matrix, dice_per_class, iou_per_class
from .report import Report, aligned_size, evaluate, predict_labels, resize_for_model

__all__ = ["Report", "aligned_size", "boundary_counts", "confusion_matrix", "dice_per_class", "evaluate",
           "interval", "iou_per_class", "predict_labels", "resize_for_model"]
