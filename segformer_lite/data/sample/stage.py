"""A picture painted from back to front that knows what is still visible of each object."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .objects import CLASSES
from .pen import Colour, Sprite, any_colour, earthy, hsv, noise, pale, shade


@dataclass
class Instance:
    """One annotated object or crowd: its class, and which part (H, W) of each pixel shows it, 0..1."""

    name: str
    visible: np.ndarray
    iscrowd: bool = False


def regular(x: float, y: float, r: float, squash: float = 1, corners: int = 48, turn: float = 0):
    """Corners (n, 2) of a regular polygon round (x, y); with many corners a disc."""
    t = turn + 2 * np.pi * np.arange(corners) / corners
    return np.stack([x + r * np.cos(t), y + squash * r * np.sin(t)], 1)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Corners (4, 2) of an upright rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


class Scene:
    """A picture being painted from back to front; whatever comes later hides what is there.

    rng: source of every choice.
    width, height: in pixels.
    annotated: False for a scene that shall hold no object.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int, annotated: bool = True):
        self.rng, self.between = rng, rng.uniform
        self.width, self.height, self.annotated = width, height, annotated
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.instances: list[Instance] = []
        turn = self.between(-0.8, 0.8)
        self.light = (math.sin(turn), -math.cos(turn))

    # ---- painting ----------------------------------------------------------------------------------------

    def noise(self, zoom_x: float = 1, zoom_y: float = 1) -> np.ndarray:
        return noise(self.rng, self.width, self.height, zoom_x, zoom_y)

    def texture(self, colour: Colour, strength: float, zoom_x: float = 1, zoom_y: float = 1) -> np.ndarray:
        """A surface (H, W, 3): the colour under fractal noise."""
        return np.asarray(colour, np.float32) * (1 + strength * self.noise(zoom_x, zoom_y))[..., None]

    def fill(self, polygons: list, colour: Colour, grain: float = 0, zoom: float = 1, opacity: float = 1) -> None:
        """Paint polygons given in pixels with smooth edges; grain and zoom are those of the noise on them."""
        points = np.concatenate([np.asarray(p, float) for p in polygons])
        x0, y0 = np.maximum(np.floor(points.min(0)) - 1, 0).astype(int).tolist()
        x1, y1 = np.minimum(np.ceil(points.max(0)) + 1, (self.width, self.height)).astype(int).tolist()
        if x0 >= x1 or y0 >= y1:
            return
        image = Image.new("L", (2 * (x1 - x0), 2 * (y1 - y0)))
        draw = ImageDraw.Draw(image)
        for polygon in polygons:
            draw.polygon((2 * (np.asarray(polygon) - (x0, y0))).ravel().tolist(), fill=255)
        alpha = np.asarray(image.reduce(2), np.float32) * (opacity / 255)
        rgb = np.asarray(colour, np.float32)
        if grain:
            rgb = rgb * (1 + grain * noise(self.rng, x1 - x0, y1 - y0, zoom, zoom))[..., None]
        self.cover(alpha, rgb, np.s_[y0:y1, x0:x1])

    def cover(self, alpha: np.ndarray, rgb: np.ndarray | Colour, where=np.s_[:, :]) -> None:
        """Paint `rgb` where alpha is 1, both given within `where`; instances below lose those pixels."""
        self.rgb[where] += alpha[..., None] * (np.asarray(rgb, np.float32) - self.rgb[where])
        for instance in self.instances:
            instance.visible[where] *= 1 - alpha

    def shadow(self, x: float, y: float, rx: float, ry: float, depth: float = 0.45) -> None:
        """Darken the picture around (x, y)."""
        across = np.exp(-2 * ((np.arange(self.width) - x) / rx) ** 2)
        down = np.exp(-2 * ((np.arange(self.height) - y) / ry) ** 2)
        self.rgb *= (1 - depth * down[:, None] * across).astype(np.float32)[..., None]

    def finish(self) -> Image.Image:
        """Exposure, colour of the light, vignette and grain; as an 8-bit picture."""
        y, x = np.linspace(-1, 1, self.height)[:, None], np.linspace(-1, 1, self.width)
        tint = (self.between(0.9, 1.1, 3) * self.between(0.8, 1.12)).astype(np.float32)
        vignette = 1 + 0.06 * self.noise(6, 6) - self.between(0, 0.14) * (x * x + y * y)
        grain = self.between(1, 5) * self.rng.standard_normal(self.rgb.shape, np.float32)
        lit = self.rgb * tint * vignette.astype(np.float32)[..., None] + grain
        return Image.fromarray(lit.clip(0, 255).astype(np.uint8))

    # ---- objects -----------------------------------------------------------------------------------------

    def put(
        self,
        name: str,
        x: float,
        y: float,
        size: float,
        angle: float = 0,
        squash: float = 1,
        draw: Callable | None = None,
    ) -> np.ndarray:
        """Draw an object of a class with its centre at (x, y), `size` pixels large; returns its coverage."""
        _, _, usual, grain = CLASSES[name]
        mirrored = name != "stop sign" and self.rng.random() < 0.5
        pen = Sprite(size, (128, 128, 128), angle, mirrored, squash)
        (draw or usual)(pen, self.rng)
        rgb, alpha = pen.render(self.rng, self.light, grain)
        left, top = round(x - pen.side / 2), round(y - pen.side / 2)
        x0, x1 = max(left, 0), min(left + pen.side, self.width)
        y0, y1 = max(top, 0), min(top + pen.side, self.height)
        coverage = np.zeros((self.height, self.width), np.float32)
        if x0 < x1 and y0 < y1:
            here, inside = np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
            self.cover(alpha[inside], rgb[inside], here)
            coverage[here] = alpha[inside]
        return coverage

    def add(self, name: str, x: float, y: float, size: float, angle: float = 0, **how) -> None:
        """Draw an object and annotate it; in a scene without annotations draw nothing."""
        if self.annotated:
            self.instances.append(Instance(name, self.put(name, x, y, size, angle, **how)))

    def stand(self, name: str, x: float, foot: float, size: float) -> None:
        """Add an object that stands on the ground at (x, foot), with its shadow."""
        if not self.annotated:
            return
        below = {"person": 0.48, "car": 0.25, "cat": 0.48, "bird": 0.42, "umbrella": 0.48}[name]
        self.shadow(x - 0.2 * size * self.light[0], foot, 0.5 * size, 0.1 * size)
        self.add(name, x, foot - below * size, size, self.between(-0.06, 0.06))
        if name == "person" and self.rng.random() < 0.15:  # who carries an umbrella
            self.add("umbrella", x + 0.2 * size, foot - 0.8 * size, 0.75 * size, 0.1)

    def crowd(self, foot: float, size: float) -> None:
        """A row of small people, annotated as one crowd region."""
        if not self.annotated:
            return
        x, coverage = self.between(0.05, 0.4) * self.width, np.zeros((self.height, self.width), np.float32)
        for _ in range(self.rng.integers(8, 16)):
            y = foot - 0.48 * size + self.between(-2, 2)
            coverage = np.maximum(coverage, self.put("person", x, y, size * self.between(0.85, 1.15)))
            x += size * self.between(0.25, 0.5)
        self.instances.append(Instance("person", coverage, iscrowd=True))

    # ---- pieces of background: none of them is annotated -------------------------------------------------

    def sky(self, horizon: float) -> None:
        """A sky over the whole picture: clear, evening, grey or dusk, with clouds and sometimes a sun."""
        moods = (0.56, 0.5, 0.95), (0.05, 0.5, 0.98), (0.6, 0.1, 0.85), (0.72, 0.45, 0.65)
        hue, saturation, value = moods[self.rng.choice(4, p=[0.5, 0.2, 0.2, 0.1])]
        top = np.array(hsv(hue + self.between(-0.04, 0.04), saturation, value * 0.85), np.float32)
        low = np.array(hsv(hue + self.between(-0.1, 0.1), saturation * 0.35, value * 1.1), np.float32)
        t = np.linspace(0, self.height / horizon, self.height, dtype=np.float32).clip(0, 1)[:, None, None]
        self.rgb[:] = top + t * (low - top)
        if self.rng.random() < 0.3:
            x, y = self.between(0.1, 0.9) * self.width, self.between(0.1, 0.6) * horizon
            self.fill([regular(x, y, self.between(6, 14))], hsv(0.13, 0.35, 1))
        clouds = (self.noise(2.5, 1.2) - self.between(0, 1.2)).clip(0, 1) * self.between(0.5, 0.95)
        self.cover(clouds, self.texture(pale(self.rng), 0.04))

    def ground(self, horizon: float, colour: Colour, strength: float, zoom_x: float, zoom_y: float) -> None:
        """A plane from the horizon down, darker and coarser towards the viewer."""
        y = np.arange(self.height, dtype=np.float32)[:, None].repeat(self.width, 1)
        near = ((y - horizon) / (self.height - horizon)).clip(0, 1)
        light = 1.08 - 0.25 * near + strength * (0.4 + near) * self.noise(zoom_x, zoom_y)
        self.cover((y - horizon + 0.5).clip(0, 1), np.asarray(colour, np.float32) * light[..., None])

    def hills(self, horizon: float) -> None:
        """One to three ridges behind each other."""
        x = np.linspace(0, 1, 60)
        for step in range(self.rng.integers(1, 4)):
            waves = (np.sin(6 * k * x * self.between(0.4, 1) + self.between(0, 6)) / k for k in (1, 2, 4, 8))
            height = self.height * self.between(0.03, 0.12) * (1 - 0.25 * step)
            ridge = np.stack([x * self.width, horizon - height * (1.6 + sum(waves))], 1)
            outline = [*ridge, (self.width, horizon + 2), (0, horizon + 2)]
            self.fill([outline], hsv(self.between(0.2, 0.7), 0.3, self.between(0.35, 0.75)), 0.08)

    def tree(self, x: float, foot: float, size: float) -> None:
        """A fir or a tree with a round crown."""
        leaf = hsv(self.between(0.02, 0.4), self.between(0.3, 0.7), self.between(0.3, 0.7))
        self.shadow(x, foot, 0.35 * size, 0.08 * size)
        trunk = [(-0.05, 0), (-0.03, -0.6), (0.03, -0.6), (0.05, 0)]
        crown = regular(0, -0.68, 1)
        if self.rng.random() < 0.3:
            tiers = ((0.3, 0.2, 0.65), (0.24, 0.45, 0.85), (0.17, 0.65, 1.0))
            outlines = [[(-w, -low), (0, -top), (w, -low)] for w, low, top in tiers]
        else:
            t = np.linspace(0, 2 * np.pi, len(crown), endpoint=False)
            bumps = 0.025 * np.sin(7 * t + self.between(0, 6)) + 0.03 * np.sin(4 * t + self.between(0, 6))
            outlines = [(0, -0.68) + (crown - (0, -0.68)) * (0.3 + bumps)[:, None]]
        trunk, *outlines = ((x, foot) + size * np.asarray(points) for points in (trunk, *outlines))
        self.fill([trunk], hsv(0.07, 0.5, self.between(0.25, 0.5)))
        self.fill(outlines, leaf, 0.28, 0.5)

    def houses(self, foot: float) -> None:
        """A row of houses with windows, some with a roof."""
        x = -self.between(0, 20)
        while x < self.width:
            w, top = self.between(0.16, 0.34) * self.width, self.between(0.05, 0.7) * foot
            self.fill([box(x, top, x + w, foot)], any_colour(self.rng), 0.07, 0.5)
            if self.rng.random() < 0.5:
                roof = [(x - 2, top), (x + w / 2, top - 0.3 * w), (x + w + 2, top)]
                self.fill([roof], earthy(self.rng), 0.1, 0.5)
            pitch_x, pitch_y = w / self.rng.integers(2, 5), self.between(13, 20)
            columns = np.arange(x + 0.22 * pitch_x, x + w - 2, pitch_x)
            rows = np.arange(top + 5, foot - 10, pitch_y)
            windows = [box(a, b, a + 0.55 * pitch_x, b + 0.55 * pitch_y) for a in columns for b in rows]
            if windows:
                self.fill(windows, hsv(self.between(0.1, 0.65), 0.35, self.between(0.3, 0.9)), opacity=0.9)
            x += w + self.rng.choice([0, 0, self.between(3, 15)])

    def wall(self) -> None:
        """Brick, striped or dotted wallpaper, or plaster."""
        kind, pitch = self.rng.integers(4), self.between(10, 22)
        self.rgb[:] = self.texture(any_colour(self.rng), 0.09)
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32)
        if kind == 0:
            row = np.floor(2 * y / pitch)
            along = x + row % 2 * pitch / 2
            joints = (2 * y % pitch < 1.8) | (along % pitch < 1.2)
            self.rgb *= (1 + 0.12 * np.sin(row * 12.9 + np.floor(along / pitch) * 78.2))[..., None]
            self.cover(0.75 * joints.astype(np.float32), pale(self.rng))
        elif kind == 1:
            self.cover(0.8 * (x % pitch < 0.45 * pitch), self.texture(any_colour(self.rng), 0.06))
        elif kind == 2:
            across = (x + np.floor(y / pitch) % 2 * pitch / 2) % pitch - pitch / 2
            dots = (0.27 * pitch - np.hypot(across, y % pitch - pitch / 2)).clip(0, 1)
            self.cover(0.8 * dots, any_colour(self.rng))

    def frame(self, x: float, y: float, w: float, h: float) -> None:
        """A framed abstract painting: neither clock nor kite."""
        self.shadow(x, y + 3, 0.8 * w, 0.8 * h, 0.35)
        for inset, colour in ((0, earthy(self.rng)), (2.5, pale(self.rng)), (5, any_colour(self.rng))):
            a, b = w / 2 - inset, h / 2 - inset
            self.fill([box(x - a, y - b, x + a, y + b)], colour)
        for _ in range(3):
            u, v, r = self.between(-0.2, 0.2) * w, self.between(-0.2, 0.2) * h, self.between(0.06, 0.14)
            corners = self.rng.choice([3, 4, 16])
            spot = regular(x + u, y + v, r * min(w, h), corners=corners, turn=self.between(0, 6))
            self.fill([spot], any_colour(self.rng))

    def plate(self, x: float, y: float, r: float, squash: float = 1) -> None:
        """A plate, as round as a pizza or a clock."""
        self.shadow(x + 2, y + 3, 1.4 * r, 1.4 * r * squash, 0.4)
        colour = any_colour(self.rng)
        for scale, tone in ((1, 1.0), (0.93, 1.25), (0.68, 0.88), (0.63, 1.15)):
            self.fill([regular(x, y, scale * r, squash)], shade(colour, tone), 0.03)
