"""Drawing: figures with alt text, the map of the network, grids of pictures."""

from .plots import COLOURS, figure, grid, network, use_style

__all__ = ["COLOURS", "figure", "grid", "network", "use_style"]
