"""Looking inside networks: what each place sees. Computes, never draws."""

from .cost import macs, parameters
from .receptive_field import ReceptiveField, receptive_field

__all__ = ["ReceptiveField", "macs", "parameters", "receptive_field"]
