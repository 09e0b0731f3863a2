"""Colours, noise, and a pen that draws small pictures with soft edges, relief and texture."""

import colorsys
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


# ---- colours: one set of distributions for all classes and for the background ----------------------------


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from hue (turns), saturation and value (both 0..1)."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1)))


def vivid(rng: np.random.Generator) -> Colour:
    """Paint and cloth: any hue."""
    return hsv(rng.random(), rng.uniform(0.45, 0.9), rng.uniform(0.45, 0.95))


def earthy(rng: np.random.Generator) -> Colour:
    """Fur, feathers, skin, wood, sand, stone: brown, orange, cream, grey, nearly black."""
    return hsv(rng.uniform(0.03, 0.13), rng.uniform(0.05, 0.65), rng.uniform(0.2, 0.95))


def pale(rng: np.random.Generator) -> Colour:
    """Plaster, paper, sails, clouds."""
    return hsv(rng.random(), rng.uniform(0, 0.2), rng.uniform(0.75, 1.0))


def any_colour(rng: np.random.Generator) -> Colour:
    """One of the three above."""
    return (vivid, vivid, earthy, pale)[rng.integers(4)](rng)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour darker (factor < 1) or nearer to white (factor > 1)."""
    if factor <= 1:
        return tuple(round(c * factor) for c in colour)
    return tuple(round(255 - (255 - c) / factor) for c in colour)


# ---- noise and pen ---------------------------------------------------------------------------------------


@cache
def _noise_tiles() -> list[Image.Image]:
    """Six fixed 512 x 512 fractal noise tiles, mean 0 and deviation 1: textures are windows into them."""
    rng, tiles = np.random.default_rng(20_000), []
    for _ in range(6):
        tile = np.zeros((512, 512), np.float32)
        for cells in (8, 16, 32, 64, 128, 256, 512):
            grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
            tile += np.asarray(grid.resize((512, 512), Image.Resampling.BICUBIC)) * (8 / cells) ** 0.55
        tiles.append(Image.fromarray((tile - tile.mean()) / tile.std()))
    return tiles


def noise(rng: np.random.Generator, width: int, height: int, zoom_x: float = 1, zoom_y: float = 1) -> np.ndarray:
    """Fractal noise (height, width), mean near 0, deviation near 1; zoom > 1 stretches it, < 1 refines it."""
    tile = _noise_tiles()[rng.integers(6)]
    w, h = min(width / zoom_x, 500), min(height / zoom_y, 500)
    x, y = rng.uniform(0, 512 - w), rng.uniform(0, 512 - h)
    return np.asarray(tile.resize((width, height), Image.Resampling.BILINEAR, (x, y, x + w, y + h)))


@cache
def _arc(start: float, end: float) -> np.ndarray:
    """Points (40, 2) of the unit circle, from start to end in turns."""
    t = 2 * np.pi * np.linspace(start, end, 40)
    return np.stack([np.cos(t), np.sin(t)], 1)


class Sprite:
    """A drawing in a unit square: x to the right, y down, both from -1 to 1, `size` pixels from edge to edge.

    Solid strokes widen the outline; the others only colour what lies inside it.
    """

    def __init__(self, size: float, colour: Colour, angle: float = 0, flip: bool = False, squash: float = 1):
        self.size = float(size)
        self.supersample = 4 if size < 48 else 3 if size < 110 else 2
        self.side = int(1.35 * size) + 6
        pixels = (self.side * self.supersample,) * 2
        self.image, self.mask = Image.new("RGB", pixels, colour), Image.new("L", pixels)
        self._draw, self._draw_mask = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        c, s, self.scale = np.cos(angle), np.sin(angle), size * self.supersample / 2
        self._matrix = self.scale * np.array([[c, -s], [s, c]]) @ np.diag([-1 if flip else 1, squash])

    def _pixels(self, points: Points | np.ndarray) -> list[float]:
        return (np.asarray(points) @ self._matrix.T + self.side * self.supersample / 2).ravel().tolist()

    def polygon(self, points: Points | np.ndarray, colour: Colour, solid: bool = True) -> None:
        pixels = self._pixels(points)
        self._draw.polygon(pixels, fill=colour)
        if solid:
            self._draw_mask.polygon(pixels, fill=255)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: Colour,
        solid: bool = True,
        turn: float = 0,
        start: float = 0,
        end: float = 1,
    ) -> None:
        """Ellipse, or with start and end (turns, clockwise from the right) the segment between them."""
        dx, dy = ((rx, ry) * _arc(start, end)).T
        c, s = math.cos(turn), math.sin(turn)
        self.polygon(np.stack([x + c * dx - s * dy, y + s * dx + c * dy], 1), colour, solid)

    def line(self, points: Points, width: float, colour: Colour, solid: bool = True) -> None:
        """A stroke with round ends and joints."""
        pixels, width = self._pixels(points), max(1, round(width * self.scale))
        for draw, fill in ((self._draw, colour), (self._draw_mask, 255))[: 1 + solid]:
            draw.line(pixels, fill, width, joint="curve")
            for x, y in (pixels[:2], pixels[-2:]):
                draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill)

    def render(
        self, rng: np.random.Generator, light: tuple[float, float], grain: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Colours (side, side, 3) and coverage (side, side) of the finished drawing, lit from `light`."""
        rgb = np.asarray(self.image.reduce(self.supersample), np.float32)
        mask = self.mask.reduce(self.supersample)
        soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.045 * self.size + 0.5)), np.float32) / 255
        down, right = np.gradient(soft)
        relief = np.clip(-(right * light[0] + down * light[1]) * 0.1 * self.size, -1, 1)
        lit = 1 + 0.45 * relief + 0.25 * (soft - 0.8) + grain * noise(rng, self.side, self.side, 0.7, 0.7)
        return np.clip(rgb * lit[..., None], 0, 255), np.asarray(mask, np.float32) / 255


def curve(points: Points, samples: int = 16) -> list[tuple[float, float]]:
    """Bézier curve through the first and last of three or four control points."""
    t = np.linspace(0, 1, samples)[:, None]
    p = np.asarray(points, float)[:, None].repeat(samples, 1)
    while len(p) > 1:  # de Casteljau
        p = p[:-1] * (1 - t) + p[1:] * t
    return [tuple(q) for q in p[0]]
