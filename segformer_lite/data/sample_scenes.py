"""Little landscapes, streets, tables and walls with instances of ten COCO classes: the pictures of the COCO sample."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from segformer_lite.data.sample_objects import CLASSES, Colour, Sprite, any_colour, earthy, hsv, noise, pale, shade, vivid

SIZES = [(192, 144), (192, 144), (144, 192), (208, 160), (160, 160)]  # (width, height) in pixels


@dataclass
class Instance:
    """One annotated object (or crowd): its class, and how much of each pixel it covers and shows (H, W), 0..1."""

    name: str
    visible: np.ndarray
    iscrowd: bool = False


@dataclass
class Scene:
    """A picture being painted from back to front; whatever comes later hides what is there."""

    rng: np.random.Generator
    width: int
    height: int
    rgb: np.ndarray = field(init=False)
    light: tuple[float, float] = field(init=False)
    instances: list[Instance] = field(default_factory=list)
    annotated: bool = True

    def __post_init__(self):
        turn = self.rng.uniform(-0.8, 0.8)
        self.light = (np.sin(turn), -np.cos(turn))
        self.rgb = np.zeros((self.height, self.width, 3), np.float32)

    def noise(self, zoom_x: float = 1, zoom_y: float = 1) -> np.ndarray:
        return noise(self.rng, self.width, self.height, zoom_x, zoom_y)

    def cover(self, alpha: np.ndarray, rgb: np.ndarray | Colour) -> None:
        """Paint background: `rgb` where alpha is 1; instances under it lose those pixels."""
        self.rgb += alpha[..., None] * (np.asarray(rgb, np.float32) - self.rgb)
        for instance in self.instances:
            instance.visible = instance.visible * (1 - alpha)

    def texture(self, colour: Colour, strength: float, zoom_x: float = 1, zoom_y: float = 1) -> np.ndarray:
        """A surface (H, W, 3): the colour under fractal noise."""
        return np.asarray(colour, np.float32) * (1 + strength * self.noise(zoom_x, zoom_y))[..., None]

    def shapes(self, *polygons: list[tuple[float, float]], blur: float = 0) -> np.ndarray:
        """Coverage (H, W) of polygons given in pixels, with smooth edges."""
        image = Image.new("L", (2 * self.width, 2 * self.height))
        draw = ImageDraw.Draw(image)
        for polygon in polygons:
            draw.polygon([(2 * x, 2 * y) for x, y in polygon], fill=255)
        image = image.reduce(2)
        return np.asarray(image.filter(ImageFilter.GaussianBlur(blur)) if blur else image, np.float32) / 255

    def shadow(self, x: float, y: float, rx: float, ry: float, depth: float = 0.45) -> None:
        down, right = np.ogrid[:self.height, :self.width]
        self.rgb *= (1 - depth * np.exp(-2 * (((right - x) / rx) ** 2 + ((down - y) / ry) ** 2)))[..., None]

    def put(self, name: str, x: float, y: float, size: float, angle: float = 0, squash: float = 1) -> np.ndarray:
        """Draw one object of a class, its centre at (x, y), `size` pixels large; returns its coverage (H, W)."""
        _, _, draw, grain = CLASSES[name]
        pen = Sprite(size, (128, 128, 128), angle, name != "stop sign" and self.rng.random() < 0.5, squash)
        draw(pen, self.rng)
        rgb, alpha = pen.render(self.rng, self.light, grain)
        left, top = round(x - pen.side / 2), round(y - pen.side / 2)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + pen.side, self.width), min(top + pen.side, self.height)
        full, colours = np.zeros((self.height, self.width), np.float32), np.zeros_like(self.rgb)
        if x0 < x1 and y0 < y1:
            inside = np.s_[y0 - top:y1 - top, x0 - left:x1 - left]
            full[y0:y1, x0:x1], colours[y0:y1, x0:x1] = alpha[inside], rgb[inside]
        self.cover(full, colours)
        return full

    def add(self, name: str, x: float, y: float, size: float, angle: float = 0, squash: float = 1) -> None:
        """Draw an object and annotate it; in a scene without annotations draw nothing."""
        if self.annotated:
            self.instances.append(Instance(name, self.put(name, x, y, size, angle, squash)))

    def stand(self, name: str, x: float, foot: float, size: float) -> None:
        """Add an object that stands on the ground at (x, foot), with its shadow."""
        if self.annotated:
            below = {"person": 0.48, "car": 0.25, "cat": 0.48, "bird": 0.42, "umbrella": 0.48}[name]
            self.shadow(x - 0.2 * size * self.light[0], foot, 0.5 * size, 0.1 * size)
            self.add(name, x, foot - below * size, size, self.rng.uniform(-0.06, 0.06))

    def crowd(self, foot: float, size: float) -> None:
        """A row of small people, annotated as one crowd region."""
        if not self.annotated:
            return
        x, group = self.rng.uniform(0.05, 0.4) * self.width, Instance("person", np.zeros(self.rgb.shape[:2], np.float32), True)
        for _ in range(self.rng.integers(8, 16)):
            alpha = self.put("person", x, foot - 0.48 * size + self.rng.uniform(-2, 2), size * self.rng.uniform(0.85, 1.15))
            group.visible = np.maximum(group.visible, alpha)
            x += size * self.rng.uniform(0.25, 0.5)
        self.instances.append(group)

    # ---- pieces of background --------------------------------------------------------------------------

    def sky(self, horizon: float) -> None:
        """A sky over the whole picture: clear, evening, grey or dusk, with clouds and sometimes a sun."""
        hue, saturation, value = [(0.56, 0.5, 0.95), (0.05, 0.5, 0.98), (0.6, 0.1, 0.85), (0.72, 0.45, 0.65)][
            self.rng.choice(4, p=[0.5, 0.2, 0.2, 0.1])]
        top = np.array(hsv(hue + self.rng.uniform(-0.04, 0.04), saturation, value * 0.85), np.float32)
        low = np.array(hsv(hue + self.rng.uniform(-0.1, 0.1), saturation * 0.35, min(1, value * 1.1)), np.float32)
        t = np.linspace(0, self.height / horizon, self.height, dtype=np.float32).clip(0, 1)[:, None, None]
        self.rgb[:] = top + t * (low - top)
        if self.rng.random() < 0.3:
            x, y, r = self.rng.uniform(0.1, 0.9) * self.width, self.rng.uniform(0.1, 0.6) * horizon, self.rng.uniform(6, 14)
            turn = np.linspace(0, 2 * np.pi, 30)
            self.cover(self.shapes(list(zip(x + r * np.cos(turn), y + r * np.sin(turn))), blur=0.8), hsv(0.13, 0.35, 1))
        clouds = (self.noise(2.5, 1.2) - self.rng.uniform(0, 1.2)).clip(0, 1) * self.rng.uniform(0.5, 0.95)
        self.cover(clouds, self.texture(pale(self.rng), 0.04))

    def ground(self, horizon: float, colour: Colour, strength: float, zoom_x: float, zoom_y: float) -> None:
        """A plane from the horizon down, darker and coarser towards the viewer."""
        y = np.arange(self.height, dtype=np.float32)[:, None] + 0 * self.rgb[..., 0]
        near = ((y - horizon) / (self.height - horizon)).clip(0, 1)
        surface = np.asarray(colour, np.float32) * (1.08 - 0.25 * near + strength * (0.4 + near) * self.noise(zoom_x, zoom_y))[..., None]
        self.cover((y - horizon + 0.5).clip(0, 1), surface)

    def hills(self, horizon: float) -> None:
        for step in range(self.rng.integers(1, 4)):
            x = np.linspace(0, 2 * np.pi, 60)
            ridge = sum(np.sin(k * x * self.rng.uniform(0.4, 1) + self.rng.uniform(0, 6)) / k for k in (1, 2, 4, 8))
            top = horizon - self.height * self.rng.uniform(0.03, 0.12) * (1.6 + ridge) * (1 - 0.25 * step)
            outline = [*zip(x * self.width / 6.28, top), (self.width, horizon + 2), (0, horizon + 2)]
            self.cover(self.shapes(outline), self.texture(hsv(self.rng.uniform(0.2, 0.7), 0.3, self.rng.uniform(0.35, 0.75)), 0.08, 1, 0.6))

    def tree(self, x: float, foot: float, size: float) -> None:
        bark, leaf = hsv(0.07, 0.5, self.rng.uniform(0.25, 0.5)), hsv(self.rng.uniform(0.02, 0.4), self.rng.uniform(0.3, 0.7), self.rng.uniform(0.3, 0.7))
        self.shadow(x, foot, 0.35 * size, 0.08 * size)
        self.cover(self.shapes([(x - 0.05 * size, foot), (x - 0.03 * size, foot - 0.6 * size), (x + 0.03 * size, foot - 0.6 * size), (x + 0.05 * size, foot)]), bark)
        t = np.linspace(0, 2 * np.pi, 50)
        if self.rng.random() < 0.3:  # a fir, else a round crown
            outline = [[(x - w * size, foot - a * size), (x, foot - b * size), (x + w * size, foot - a * size)]
                       for w, a, b in ((0.3, 0.2, 0.65), (0.24, 0.45, 0.85), (0.17, 0.65, 1.0))]
        else:
            r = size * (0.3 + 0.025 * np.sin(7 * t + self.rng.uniform(0, 6)) + 0.03 * np.sin(4 * t + self.rng.uniform(0, 6)))
            outline = [list(zip(x + r * np.cos(t), foot - 0.68 * size + r * np.sin(t)))]
        self.cover(self.shapes(*outline), self.texture(leaf, 0.28, 0.5, 0.5))

    def houses(self, foot: float) -> None:
        x = -self.rng.uniform(0, 20)
        while x < self.width:
            w, h = self.rng.uniform(0.16, 0.34) * self.width, self.rng.uniform(0.3, 0.95) * foot
            wall, glass = any_colour(self.rng), hsv(self.rng.uniform(0.1, 0.65), 0.35, self.rng.uniform(0.3, 0.9))
            box = [(x, foot), (x, foot - h), (x + w, foot - h), (x + w, foot)]
            self.cover(self.shapes(box), self.texture(wall, 0.07, 0.5, 0.5))
            if self.rng.random() < 0.5:
                self.cover(self.shapes([(x - 2, foot - h), (x + w / 2, foot - h - 0.3 * w), (x + w + 2, foot - h)]), self.texture(earthy(self.rng), 0.1, 1, 0.3))
            across, pitch = self.rng.integers(2, 5), self.rng.uniform(13, 20)
            windows = [[(a, b), (a, b + pitch * 0.55), (a + w / across * 0.55, b + pitch * 0.55), (a + w / across * 0.55, b)]
                       for a in x + w / across * (np.arange(across) + 0.22) for b in np.arange(foot - h + 5, foot - 10, pitch)]
            self.cover(0.9 * self.shapes(*windows), glass)
            x += w + self.rng.choice([0, 0, self.rng.uniform(3, 15)])

    def wall(self) -> None:
        """Brick, plaster, striped or dotted wallpaper."""
        kind, colour = self.rng.integers(4), any_colour(self.rng)
        self.rgb[:] = self.texture(colour, 0.09, 1, 1)
        y, x = np.mgrid[:self.height, :self.width].astype(np.float32)
        pitch = self.rng.uniform(10, 22)
        if kind == 0:
            row = np.floor(y / pitch * 2)
            joint = ((y * 2 % pitch < 1.8) | ((x + row % 2 * pitch / 2) % pitch < 1.2)).astype(np.float32)
            tint = 1 + 0.12 * np.sin(row * 12.9 + np.floor((x + row % 2 * pitch / 2) / pitch) * 78.2)
            self.rgb *= tint[..., None]
            self.cover(0.75 * joint, pale(self.rng))
        elif kind == 1:
            self.cover(0.8 * (x % pitch < 0.45 * pitch), self.texture(any_colour(self.rng), 0.06))
        elif kind == 2:
            u, v = (x + np.floor(y / pitch) % 2 * pitch / 2) % pitch - pitch / 2, y % pitch - pitch / 2
            self.cover(0.8 * (0.27 * pitch - np.hypot(u, v)).clip(0, 1), any_colour(self.rng))

    def frame(self, x: float, y: float, w: float, h: float) -> None:
        """A picture frame with an abstract painting: an unlabelled thing that is neither clock nor kite."""
        self.shadow(x, y + 3, 0.8 * w, 0.8 * h, 0.35)
        for inset, colour in ((0, earthy(self.rng)), (2.5, pale(self.rng)), (5, any_colour(self.rng))):
            a, b = w / 2 - inset, h / 2 - inset
            self.cover(self.shapes([(x - a, y - b), (x + a, y - b), (x + a, y + b), (x - a, y + b)]), colour)
        for _ in range(3):
            cx, cy, r = x + self.rng.uniform(-0.2, 0.2) * w, y + self.rng.uniform(-0.2, 0.2) * h, self.rng.uniform(0.06, 0.14) * min(w, h)
            turn = self.rng.uniform(0, 6) + 2 * np.pi * np.arange(n := self.rng.choice([3, 4, 16])) / n
            self.cover(self.shapes(list(zip(cx + r * np.cos(turn), cy + r * np.sin(turn)))), any_colour(self.rng))

    def disc(self, x: float, y: float, r: float, squash: float) -> None:
        """A plate, round like a pizza or a clock, and unlabelled."""
        self.shadow(x + 2, y + 3, 1.4 * r, 1.4 * r * squash, 0.4)
        t, colour = np.linspace(0, 2 * np.pi, 60), any_colour(self.rng)
        for scale, tone in ((1, 1.0), (0.93, 1.25), (0.68, 0.88), (0.63, 1.15)):
            self.cover(self.shapes(list(zip(x + scale * r * np.cos(t), y + scale * r * squash * np.sin(t)))), self.texture(shade(colour, tone), 0.03))

    def finish(self) -> Image.Image:
        """Exposure, colour of the light, vignette and grain; as an 8-bit picture."""
        y, x = np.ogrid[-1:1:self.height * 1j, -1:1:self.width * 1j]
        tint = self.rng.uniform(0.9, 1.1, 3) * self.rng.uniform(0.8, 1.12)
        lit = self.rgb * tint * (1 + 0.06 * self.noise(6, 6) - self.rng.uniform(0, 0.14) * (x * x + y * y))[..., None]
        lit += self.rng.uniform(1, 5) * self.rng.standard_normal(lit.shape, np.float32)
        return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


# ---- five kinds of scene ---------------------------------------------------------------------------------

def _near_to_far(s: Scene, count: int, horizon: float) -> list[tuple[float, float, float]]:
    """Feet (x, y) and nearness 0..1 of things on the ground, the far ones first: most are far, few fill the picture."""
    near = np.sort(s.rng.beta(0.9, 1.5, count))
    return [(s.rng.uniform(0.04, 0.96) * s.width, horizon + 2 + n * (1.02 * s.height - horizon), n) for n in near]


def _fly(s: Scene, name: str, count: int, horizon: float) -> None:
    for _ in range(count):
        size = s.height * (0.05 + 0.5 * s.rng.beta(0.8, 2.2))
        angle = s.rng.uniform(-0.9, 0.9) if name == "kite" else s.rng.uniform(-0.4, 0.4)
        s.add(name, s.rng.uniform(0.05, 0.95) * s.width, s.rng.uniform(0.05, 0.85) * horizon, size, angle)


def meadow(s: Scene) -> None:
    horizon = s.height * s.rng.uniform(0.3, 0.6)
    s.sky(horizon)
    s.hills(horizon)
    s.ground(horizon, hsv(s.rng.uniform(0.12, 0.36), s.rng.uniform(0.3, 0.65), s.rng.uniform(0.4, 0.8)), 0.16, 0.5, 1.6)
    for x, y, near in _near_to_far(s, s.rng.integers(0, 5), horizon):
        s.tree(x, horizon + 0.4 * (y - horizon), s.height * (0.25 + 0.4 * near))
    if s.rng.random() < 0.15:
        s.crowd(horizon + 8, s.height * s.rng.uniform(0.1, 0.16))
    _fly(s, "kite", s.rng.integers(0, 3), horizon)
    _fly(s, "bird", s.rng.integers(0, 2), horizon)
    for x, y, near in _near_to_far(s, s.rng.integers(1, 4), horizon):
        name = s.rng.choice(["person", "cat", "bird", "umbrella"], p=[0.4, 0.25, 0.2, 0.15])
        s.stand(name, x, y, s.height * (0.08 + near) * {"person": 0.95, "cat": 0.55, "bird": 0.45, "umbrella": 0.7}[name])


def beach(s: Scene) -> None:
    horizon = s.height * s.rng.uniform(0.25, 0.5)
    shore = horizon + (s.height - horizon) * s.rng.uniform(0.3, 0.95)
    s.sky(horizon)
    s.ground(horizon, hsv(s.rng.uniform(0.45, 0.62), s.rng.uniform(0.3, 0.65), s.rng.uniform(0.45, 0.85)), 0.1, 3, 0.4)
    for x, y, near in _near_to_far(s, s.rng.integers(1, 4), horizon):
        size, y = s.height * (0.09 + 0.85 * near), horizon + 0.9 * (min(y, shore + 10) - horizon)
        if s.annotated:
            s.shadow(x, y, 0.5 * size, 0.08 * size)
        s.add("boat", x, y - 0.46 * size, size, s.rng.uniform(-0.08, 0.08))
    s.ground(shore, hsv(s.rng.uniform(0.07, 0.13), s.rng.uniform(0.2, 0.5), s.rng.uniform(0.7, 0.95)), 0.07, 0.6, 0.6)
    s.cover(np.repeat(np.exp(-((np.arange(s.height) - shore) / 1.5) ** 2)[:, None], s.width, 1).astype(np.float32) * 0.8, (250, 250, 250))
    _fly(s, "kite", s.rng.integers(0, 2), horizon)
    _fly(s, "bird", s.rng.integers(0, 2), horizon)
    if s.rng.random() < 0.12:
        s.crowd(shore + 8, s.height * s.rng.uniform(0.1, 0.16))
    for x, y, near in _near_to_far(s, s.rng.integers(0, 3), shore):
        name = s.rng.choice(["person", "umbrella", "bird"], p=[0.4, 0.4, 0.2])
        s.stand(name, x, y, s.height * (0.25 + 0.55 * near) * (0.4 if name == "bird" else 1))


def street(s: Scene) -> None:
    horizon = s.height * s.rng.uniform(0.35, 0.6)
    s.sky(horizon)
    s.houses(horizon)
    s.ground(horizon, hsv(s.rng.random(), s.rng.uniform(0, 0.12), s.rng.uniform(0.35, 0.75)), 0.08, 0.5, 0.5)
    lane = horizon + 0.55 * (s.height - horizon)
    dashes = [[(x, lane), (x + 14, lane), (x + 12, lane + 3), (x - 2, lane + 3)] for x in np.arange(0, s.width, 26)]
    s.cover(0.8 * s.shapes(*dashes), (240, 235, 220))
    if s.rng.random() < 0.3:
        s.tree(s.rng.uniform(0, 1) * s.width, horizon + 5, s.height * s.rng.uniform(0.3, 0.5))
    if s.rng.random() < 0.15:
        s.crowd(horizon + 6, s.height * s.rng.uniform(0.1, 0.16))
    for x, y, near in _near_to_far(s, s.rng.integers(1, 4), horizon):
        name = s.rng.choice(["car", "person", "cat", "umbrella"], p=[0.6, 0.22, 0.1, 0.08])
        s.stand(name, x, y, s.height * (0.12 + near) * {"car": 1.1, "person": 0.8, "cat": 0.35, "umbrella": 0.6}[name])
    if s.rng.random() < 0.6:
        x, near = s.rng.uniform(0.1, 0.9) * s.width, s.rng.beta(1, 1.5)
        size, foot = s.height * (0.1 + 0.5 * near), horizon + (0.15 + near) * (s.height - horizon)
        y = foot - s.height * (0.3 + 0.5 * near)
        s.cover(s.shapes([(x - 0.04 * size, y), (x + 0.04 * size, y), (x + 0.04 * size, foot), (x - 0.04 * size, foot)]), (125, 125, 130))
        s.add("stop sign", x, y, size, s.rng.uniform(-0.08, 0.08))


def table(s: Scene) -> None:
    """A table from above: boards or a checked cloth, plates, pizzas, sometimes a cat or a clock."""
    first, second = any_colour(s.rng), pale(s.rng)
    if s.rng.random() < 0.5:
        s.rgb[:] = s.texture(earthy(s.rng), 0.13, 6, 0.5)
        boards = np.arange(s.height) % s.rng.integers(24, 44) < 1.5
        s.rgb[boards] *= 0.6
    else:
        y, x = np.mgrid[:s.height, :s.width]
        pitch = s.rng.integers(8, 20)
        checks = 0.5 * ((x // pitch) % 2) + 0.5 * ((y // pitch) % 2)
        s.rgb[:] = s.texture(second, 0.05)
        s.cover(checks.astype(np.float32), s.texture(first, 0.08, 0.4, 0.4))
    squash = s.rng.uniform(0.55, 1)
    for _ in range(s.rng.integers(0, 3)):
        s.disc(s.rng.uniform(0, 1) * s.width, s.rng.uniform(0, 1) * s.height, s.height * s.rng.uniform(0.12, 0.3), squash)
    for _ in range(s.rng.integers(1, 4)):
        size, x, y = s.height * (0.15 + s.rng.beta(1.2, 1.5)), s.rng.uniform(0.1, 0.9) * s.width, s.rng.uniform(0.15, 0.85) * s.height
        if s.annotated:
            s.shadow(x + 2, y + 0.05 * size, 0.68 * size, 0.68 * size * squash, 0.5)
        s.add("pizza", x, y, size, 0, squash)
    for name, chance in (("cat", 0.2), ("clock", 0.2), ("kite", 0.1)):
        if s.rng.random() < chance:
            s.add(name, s.rng.uniform(0.1, 0.9) * s.width, s.rng.uniform(0.2, 0.9) * s.height, s.height * s.rng.uniform(0.2, 0.7), s.rng.uniform(-0.3, 0.3))


def room(s: Scene) -> None:
    """A wall with clocks and pictures over a floor or a shelf with cats, birds and people."""
    s.wall()
    floor = s.height * s.rng.uniform(0.65, 0.95)
    s.ground(floor, earthy(s.rng), 0.12, 4, 0.4)
    for _ in range(s.rng.integers(0, 3)):
        s.frame(s.rng.uniform(0.1, 0.9) * s.width, s.rng.uniform(0.15, 0.6) * floor, *s.height * s.rng.uniform(0.2, 0.4, 2))
    if s.rng.random() < 0.25:
        s.disc(s.rng.uniform(0.1, 0.9) * s.width, s.rng.uniform(0.2, 0.7) * floor, s.height * s.rng.uniform(0.1, 0.2), 1)
    for _ in range(s.rng.choice([0, 1, 1, 2])):
        size, x, y = s.height * (0.1 + 0.75 * s.rng.beta(1, 1.8)), s.rng.uniform(0.1, 0.9) * s.width, s.rng.uniform(0.15, 0.7) * floor
        if s.annotated:
            s.shadow(x - 3 * s.light[0], y + 0.06 * size, 0.7 * size, 0.7 * size, 0.4)
        s.add("clock", x, y, size)
    for x, y, near in _near_to_far(s, s.rng.choice([0, 1, 1, 2]), floor):
        name = s.rng.choice(["cat", "person", "bird", "umbrella"], p=[0.5, 0.2, 0.15, 0.15])
        s.stand(name, x, y, s.height * (0.3 + 0.6 * near) * {"cat": 0.9, "person": 1.1, "bird": 0.6, "umbrella": 0.8}[name])


def draw_scene(rng: np.random.Generator, empty: bool = False) -> tuple[Image.Image, list[Instance]]:
    """One random scene and its visible instances, back to front; with `empty`, a scene that holds no object at all."""
    width, height = SIZES[rng.integers(len(SIZES))]
    scene = Scene(rng, width, height, annotated=not empty)
    (meadow, beach, street, table, room)[rng.integers(5)](scene)
    return scene.finish(), [i for i in scene.instances if (i.visible > 0.5).sum() >= 8]
