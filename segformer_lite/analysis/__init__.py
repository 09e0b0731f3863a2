"""Looking inside networks: what each place sees. Computes, never draws."""

from .attention import attention_map
from .cost import macs, parameters
from .position import iou_by_border_distance, position_maps, position_spread, readout_r2, split_padding, train_readout
from .receptive_field import Probe, ReceptiveField, receptive_field
from .uncertainty import uncertainty

__all__ = ["Probe", "ReceptiveField", "attention_map", "iou_by_border_distance", "macs", "parameters",
           "position_maps", "position_spread", "readout_r2", "receptive_field", "split_padding", "train_readout",
           "uncertainty"]
