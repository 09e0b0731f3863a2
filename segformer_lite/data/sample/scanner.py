"""The scanner of the chest phantom: where a slice lies in the picture, how noisy it is, and its window."""

import numpy as np
from PIL import Image

from .pen import noise

SIDE = 256  # pixels


class Scanner:
    """One scanner's settings, drawn from `rng`; `reach` scales the view (below 1: it must hold the arms as well)."""

    def __init__(self, rng: np.random.Generator, reach: float):
        self.rng = rng
        self.zoom = rng.uniform(0.92, 1.16) * reach * 0.5 * SIDE
        self.shift, self.tilt = rng.uniform(-0.05, 0.05, 2) + (0, -0.06), rng.uniform(-0.06, 0.06)
        self.round_view = rng.random() < 0.4
        self.table = rng.uniform(0.03, 0.08)
        self.noise = rng.uniform(12, 45)
        low, high = rng.uniform(-1150, -750), rng.uniform(250, 1100)
        self.window, self.gamma = (low, high), rng.uniform(0.8, 1.2)

    def pixels(self, points: np.ndarray) -> list[float]:
        """Points (n, 2) of the body as x, y, x, y, ... on a canvas of twice the picture's side."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        turned = (np.asarray(points, float) + self.shift) @ np.array([[c, s], [-s, c]])
        return (2 * (self.zoom * turned + SIDE / 2)).ravel().tolist()

    def scan(self, hounsfield: np.ndarray, z: float) -> Image.Image:
        """The picture (mode L) of a slice at height z: noise (streaks between the shoulders), window, view."""
        h = hounsfield + (hounsfield > -300) * 12 * noise(self.rng, SIDE, SIDE, 1.5, 1.5)
        grain = 0.7 * self.rng.standard_normal(h.shape) + 0.5 * noise(self.rng, SIDE, SIDE, 0.4, 0.4)
        h += self.noise * grain
        h += np.interp(z, [0, 0.15], [2.0, 0]) * self.noise * noise(self.rng, SIDE, SIDE, 8, 0.3)
        low, high = self.window
        grey = 255 * ((h - low) / (high - low)).clip(0, 1) ** self.gamma
        if self.round_view:
            y, x = np.ogrid[:SIDE, :SIDE]
            grey *= np.hypot(x - SIDE / 2, y - SIDE / 2) < SIDE / 2
        return Image.fromarray(grey.astype(np.uint8))
