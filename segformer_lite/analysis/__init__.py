"""Looking inside networks: what each place sees. Computes, never draws."""

from .receptive_field import ReceptiveField, receptive_field

__all__ = ["ReceptiveField", "receptive_field"]
