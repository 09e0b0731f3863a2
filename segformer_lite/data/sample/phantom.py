"""A phantom of the human chest: slices that look like CT, with lung, heart and trachea known exactly.

Lengths are in units of about 20 cm; x points to the patient's left (right in the picture), y to the back
(down), z runs from the neck (0) to the upper belly (1). Values are Hounsfield units (air -1000, water 0)
until the scanner's window maps them to 0..255.
"""

import numpy as np
from PIL import Image, ImageDraw

from .pen import noise
from .scanner import SIDE, Scanner

AIR, FAT, WATER, MUSCLE, CARTILAGE, SPONGY, BONE = -1000, -95, 10, 50, 110, 220, 750
ORGANS = ("trachea", "heart", "lung")  # the red, green and blue channel of a mask


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0, power: float = 2) -> np.ndarray:
    """Outline (64, 2) of an ellipse; a power above 2 makes it boxier."""
    t = np.linspace(0, 2 * np.pi, 64)
    dx, dy = (np.sign(f) * r * np.abs(f) ** (2 / power) for f, r in ((np.cos(t), rx), (np.sin(t), ry)))
    c, s = np.cos(turn), np.sin(turn)
    return np.stack([x + c * dx - s * dy, y + s * dx + c * dy], 1)


def inside(points: np.ndarray, half_axes: np.ndarray) -> np.ndarray:
    """The points (n, 2), those beyond the ellipse round the origin moved onto it."""
    return points / np.hypot(*(points / half_axes).T).clip(1)[:, None]


class Phantom:
    """One patient: anatomy and scanner drawn from `rng`; `slice` cuts it at a height z."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.width, self.depth = rng.uniform(0.82, 1.02), rng.uniform(0.88, 1.15)
        self.fat = rng.uniform(0.03, 0.13)
        self.breast = rng.choice([0, 0, rng.uniform(0.06, 0.13)])
        self.arms = rng.random() < 0.3
        self.lung = rng.uniform(-900, -780)
        self.heart_size, self.heart_turn = rng.uniform(0.88, 1.15), rng.uniform(-0.8, -0.4)
        self.contrast = rng.choice([0, rng.uniform(80, 260)])
        self.airway = rng.uniform(0.85, 1.2)
        self.phases = rng.uniform(0, 2 * np.pi, (4, 5))
        self.gas = rng.uniform(0.5, 1.2)
        self.vessels = np.concatenate([self._vessel_tree(side) for side in (-1, 1)])
        self.scanner = Scanner(rng, reach=0.82 if self.arms else 1)

    def _vessel_tree(self, side: int) -> np.ndarray:
        """Vessels branching outwards from the root of one lung: segments (n, 7), two ends and a radius."""
        root, segments = np.array([side * 0.15, 0.04, 0.46]), []
        ways = self.rng.normal(0, (0, 0.7, 0.8), (18, 3))
        ways[:, 0] = side * self.rng.uniform(0.2, 1, 18)
        tips = [(root, way, self.rng.uniform(0.013, 0.026)) for way in ways]
        while tips:
            at, way, radius = tips.pop()
            way = way / np.linalg.norm(way)
            while radius > 0.0045:
                way = way + self.rng.normal(0, 0.2, 3)
                way /= np.linalg.norm(way)
                to = at + 0.055 * way * (1, 1, 0.7)
                segments.append([*at, *to, radius])
                at, radius = to, 0.915 * radius
                if radius > 0.006 and self.rng.random() < 0.36:
                    tips.append((at, way + self.rng.normal(0, 0.7, 3), 0.75 * radius))
        return np.array(segments)

    def _wobble(self, kind: int, z: float, points: np.ndarray, amount: float) -> np.ndarray:
        """The outline made irregular, differently in each patient and smoothly along z."""
        centre = points.mean(0)
        t = np.arctan2(*(points - centre).T[::-1])
        bumps = sum(np.sin(k * t + self.phases[kind, k - 1] + k * 3 * z) / k for k in (1, 2, 3, 4, 5))
        return centre + (points - centre) * (1 + amount * bumps)[:, None]

    # ---- painting: later structures replace earlier ones, in the picture and in the masks ----------------

    def _paint(self, points: np.ndarray, value: float, organ: str | None = None) -> None:
        pixels = self.scanner.pixels(points)
        self._draw.polygon(pixels, fill=float(value))
        for name, draw in self._draw_masks.items():
            if (organ, name) != ("trachea", "lung"):  # these two may overlap a little, as in real masks
                draw.polygon(pixels, fill=255 * (name == organ))

    def _stroke(self, points, width: float, value: float) -> None:
        pixels, width = self.scanner.pixels(points), max(1, round(2 * width * self.scanner.zoom))
        self._draw.line(pixels, float(value), width, joint="curve")
        for draw in self._draw_masks.values():
            draw.line(pixels, 0, width, joint="curve")

    def _bone(self, points: np.ndarray, rim: float = 0.18, inside: float = SPONGY) -> None:
        """A bone: bright shell around spongy bone."""
        self._paint(points, BONE)
        centre = points.mean(0)
        self._paint(centre + (1 - rim) * (points - centre), inside)

    def _rod(self, points, width: float) -> None:
        self._stroke(points, width, BONE)
        self._stroke(points, 0.45 * width, SPONGY)

    # ---- the anatomy, from the skin inwards --------------------------------------------------------------

    def slice(self, z: float) -> tuple[Image.Image, Image.Image]:
        """The slice at height z: picture (mode L) and mask (RGB, each channel 0 or 255)."""
        canvas = Image.new("F", (2 * SIDE, 2 * SIDE), AIR)
        masks = {organ: Image.new("L", canvas.size) for organ in ORGANS}
        self._draw = ImageDraw.Draw(canvas)
        self._draw_masks = {organ: ImageDraw.Draw(mask) for organ, mask in masks.items()}
        a = self.width * np.interp(z, [0, 0.1, 0.2, 0.5, 1], [0.98, 0.97, 0.93, 0.9, 0.86])
        b = self.depth * np.interp(z, [0, 0.08, 0.2, 0.4, 0.7, 1], [0.42, 0.47, 0.55, 0.6, 0.62, 0.58])
        self._body(z, a, b)
        self._lungs(z, a, b)
        lung = masks["lung"].copy()
        self._mediastinum(z, b)
        self._airways(z, b)
        self._belly(z, a, b)
        self._heart(z)
        self._skeleton(z, a, b)
        hounsfield = np.array(canvas.reduce(2))
        exact = np.stack([np.asarray(masks[o].reduce(2)) for o in ORGANS])
        self._add_lung_texture(hounsfield, z, np.minimum(np.asarray(lung.reduce(2)), exact[2]) / 255)
        mask = Image.merge("RGB", [Image.fromarray(m) for m in (255 * (exact > 127)).astype(np.uint8)])
        return self.scanner.scan(hounsfield, z), mask

    def _body(self, z: float, a: float, b: float) -> None:
        x = np.linspace(-1.2, 1.2, 40)
        self._stroke(np.stack([x, b + self.scanner.table + 0.16 - 0.22 * x**2], 1), 0.012, -250)  # the table
        self._stroke(np.stack([0.75 * x, b + self.scanner.table + 0.06 - 0.09 * x**2], 1), 0.02, -420)
        if self.arms:
            for side in (-1, 1):
                x, y = side * (a + np.interp(z, [0, 0.2, 1], [0.02, 0.2, 0.23])), 0.1 + 0.1 * z
                for radius, value in ((0.17, FAT), (0.145, MUSCLE)):
                    self._paint(ellipse(x, y, radius, 1.1 * radius), value)
                self._bone(ellipse(x, y, 0.045, 0.045), 0.4, FAT)
        bust = self.breast * np.interp(z, [0.35, 0.5, 0.62, 0.78], [0, 1, 1, 0])
        for side in (-1, 1):
            if bust > 0.005:
                self._paint(ellipse(side * 0.42, -b + 0.12, 0.3, 0.12 + bust), 20)
                self._paint(ellipse(side * 0.42, -b + 0.12, 0.285, 0.105 + bust), FAT)
        skin = self._wobble(0, z, ellipse(0, 0, a, b, power=2.3), 0.012)
        self._paint(skin, 20)
        neck = np.interp(z, [0, 0.08], [0.22, 0])
        if neck > 0:
            self._paint(ellipse(0, -b + 0.08, 0.27, 0.08 + neck), 20)
            self._paint(ellipse(0, -b + 0.08, 0.255, 0.065 + neck), MUSCLE)
        self._paint(skin * (1 - 0.014 / a, 1 - 0.014 / b), FAT)
        wall = ellipse(0, 0, a - self.fat, b - 0.8 * self.fat, power=2.25)
        self._paint(self._wobble(1, z, wall, 0.012), MUSCLE)
        for side in (-1, 1):  # fat planes between the muscles of shoulder and back
            for k in range(3):
                x = side * a * (0.44 + 0.12 * k)
                plane = [(x, 0.22 * b), (x + side * 0.06, 0.45 * b), (x - side * 0.02, 0.66 * b)]
                self._stroke(plane, 0.014, FAT)

    def _cage(self, z: float, a: float, b: float) -> tuple[float, float]:
        """Half axes of the inside of the rib cage."""
        grow = np.interp(z, [0, 0.06, 0.15, 0.3, 0.6, 1], [0.3, 0.45, 0.7, 0.88, 0.98, 1])
        deep = np.interp(z, [0, 0.2, 0.5], [0.72, 0.92, 1])
        return grow * (a - self.fat - 0.1), deep * (b - 0.8 * self.fat - 0.1)

    def _lungs(self, z: float, a: float, b: float) -> None:
        ca, cb = self._cage(z, a, b)
        self._paint(ellipse(0, 0, ca, cb, power=2.3), FAT if z < 0.75 else -60)
        size = np.interp(z, [0.02, 0.05, 0.12, 0.3, 1], [0, 0.45, 0.75, 0.94, 0.97])
        for side in (-1, 1):
            if size > 0.05:
                outline = ellipse(side * 0.5 * ca, 0.03, 0.5 * ca * size, cb * size * 0.95, side * 0.08, 2.5)
                self._paint(self._wobble(2, z + side, outline, 0.014), self.lung, "lung")

    def _mediastinum(self, z: float, b: float) -> None:
        blood = MUSCLE + self.contrast
        half = np.interp(z, [0, 0.1, 0.3, 0.5, 1], [0.2, 0.17, 0.16, 0.17, 0.2])
        right = [(0.6, -1), (0.6, -0.3), (1.1, 0), (1.15, 0.5), (1.5, 1)]
        column = np.array(right + [(-x, y) for x, y in reversed(right)]) * (half, self._cage(z, 1, b)[1])
        self._paint(self._wobble(3, z, column, 0.04), FAT)
        if z < 0.22:
            for x, y in ((-0.12, -0.1), (0.13, -0.08), (-0.1, 0.0), (0.1, 0.02), (0.02, -0.13)):
                self._paint(ellipse(x, y, 0.04, 0.04), blood)
            if z < 0.06:  # the thyroid beside the windpipe
                for side in (-1, 1):
                    self._paint(ellipse(side * 0.085, -0.06, 0.035, 0.06), 110)
        if 0.2 < z < 0.29:  # arch of the aorta
            self._paint(ellipse(0.06, 0.03, 0.085, 0.23, -0.35), blood)
        if 0.27 < z < 0.5:
            self._paint(ellipse(-0.02, -0.17, 0.085, 0.085), blood)
        if 0.12 < z < 0.52:
            self._paint(ellipse(-0.13, -0.13, 0.05, 0.055), blood + 0.3 * self.contrast)
        if 0.36 < z < 0.5:  # trunk of the lung artery and its branches
            self._stroke([(0.08, -0.2), (0.1, -0.06), (0.2, 0.02)], 0.1, blood)
            self._stroke([(0.08, -0.1), (-0.06, -0.03), (-0.2, 0.02)], 0.085, blood)
        self._paint(ellipse(0.05, 0.17, 0.045, 0.035), 40)  # the gullet, with a bubble of air here and there
        bubble = 0.03 * np.sin(23 * z + self.phases[0, 0]) * self.gas
        if bubble > 0.008:
            self._paint(ellipse(0.05, 0.168, bubble, 0.8 * bubble), -900)

    def _belly(self, z: float, a: float, b: float) -> None:
        """Liver and stomach under the domes of the diaphragm, which push the lungs aside; the aorta."""
        cage = np.interp(z, [0.8, 0.98], [0.96, 1]) * np.array(self._cage(z, a, b))
        for side, top, value in ((-1, 0.66, 60 + 0.3 * self.contrast), (1, 0.74, 45 + 0.35 * self.contrast)):
            rise = np.sqrt(np.interp(z, [top, 0.97], [0, 1]))
            if rise > 0:
                dome = ellipse(side * 0.33, -0.07, 0.40 * rise * self.width, 0.80 * b * rise, power=2.3)
                self._paint(inside(self._wobble(1, z, dome, 0.02), cage), value)
        rise = np.interp(z, [0.8, 0.95], [0, 1])
        if rise > 0:
            middle = self._wobble(2, z, ellipse(0.05, -0.16, 0.3 * rise, 0.24 * rise), 0.03)
            self._paint(middle, 60 + 0.3 * self.contrast)
            stomach = self._wobble(3, z, ellipse(0.38, -0.16, 0.2 * rise, 0.2 * rise), 0.05)
            self._paint(stomach, 25)
            level = -0.16 + 0.1 * (1 - self.gas)
            self._paint(np.minimum(0.86 * (stomach - (0.38, -0.16)) + (0.38, -0.16), (9, level)), -960)
            spleen = inside(ellipse(0.58, 0.2, 0.1 * rise, 0.2 * rise, -0.3), cage)
            self._paint(spleen, 60 + 0.5 * self.contrast)
        if z > 0.9:
            for k in range(4):
                gas = ellipse(0.15 + 0.11 * k, -0.36 + 0.03 * np.sin(9 * k), 0.035 * self.gas, 0.03)
                self._paint(inside(gas, cage), -880)
        if z > 0.27:
            self._paint(ellipse(0.13, 0.25, 0.068, 0.068), MUSCLE + self.contrast)

    def _heart(self, z: float) -> None:
        z0 = [0.45, 0.48, 0.55, 0.66, 0.76, 0.84, 0.88]
        size = self.heart_size * np.interp(z, z0, [0, 0.12, 0.24, 0.29, 0.28, 0.19, 0])
        if size < 0.02:
            return
        x, y = 0.03 + 0.33 * size, -0.16 + 0.25 * size
        egg = ellipse(0, 0, 1.15, 0.85)
        egg[:, 1] *= 1 + 0.18 * egg[:, 0]
        c, s = np.cos(self.heart_turn + 1.2), np.sin(self.heart_turn + 1.2)
        egg = egg @ np.array([[c, s], [-s, c]])
        self._paint(self._wobble(2, z, (x, y) + 1.08 * size * egg, 0.03), FAT)
        self._paint(self._wobble(2, z, (x, y) + size * egg, 0.03), MUSCLE + 0.15 * self.contrast, "heart")
        for dx, dy, r in ((0.35, 0.2, 0.42), (-0.25, -0.35, 0.4), (-0.35, 0.3, 0.36)):
            chamber = ellipse(x + dx * size, y + dy * size, r * size, 0.8 * r * size, 0.5)
            self._paint(self._wobble(3, z, chamber, 0.05), MUSCLE + 0.9 * self.contrast, "heart")

    def _airways(self, z: float, b: float) -> None:
        """The windpipe, its fork, and the main bronchi; below, small bronchi that nobody labels."""
        r, y = 0.058 * self.airway, np.interp(z, [0, 0.36, 0.5, 0.6], [-0.06, 0.08, 0.08, 0.15])
        y = min(y, b - 0.8 * self.fat - 0.44)  # in front of the spine
        apart = np.interp(z, [0.33, 0.36, 0.5, 0.6], [0, 0.05, 0.18, 0.27])
        thin = np.interp(z, [0.36, 0.5, 0.6], [1, 0.72, 0.4])
        for side in (-1, 1) if apart > 0 else (1,):
            stretch = np.interp(z, [0.34, 0.38, 0.5], [1, 1.35, 1.1])
            x, turn = side * apart + 0.012 * np.sin(9 * z), -0.35 * side * (apart > 0)
            tube = ellipse(x, y, r * thin * stretch, 1.1 * r * thin, turn)
            if z < 0.5:
                centre = tube.mean(0)
                self._paint(centre + (tube - centre) * 1.22, 60)
            elif z > 0.6:
                continue
            self._paint(tube, -985, "trachea" if z < 0.5 else None)

    def _skeleton(self, z: float, a: float, b: float) -> None:
        back = b - 0.8 * self.fat
        body = ellipse(0, back - 0.26, 0.125, 0.1, power=2.4)
        disc = np.sin(60 * z) > 0.75
        self._rod([(-0.23, back - 0.12), (-0.1, back - 0.15), (0.1, back - 0.15), (0.23, back - 0.12)], 0.05)
        self._rod([(0, back - 0.12), (0, back - 0.01)], 0.045)
        self._bone(ellipse(0, back - 0.15, 0.075, 0.06), 0.3, WATER)
        self._bone(body, 0.12, CARTILAGE if disc else SPONGY)
        ca, cb = self._cage(z, a, b)
        ca, cb = ca + 0.035, cb + 0.03
        for side in (-1, 1):
            for k in range(7 if z > 0.1 else 0):
                # Ribs fall towards the front: going down, the cut of each moves from the back to the front.
                t = np.pi / 2 - 0.3 - (0.42 * k + 2.6 * z + 0.03 * side) % 2.75
                t += np.linspace(-0.11, 0.11, 6)
                bone = t.mean() > -1.0
                arc = np.stack([side * ca * np.cos(t), cb * np.sin(t)], 1)
                self._rod(arc, 0.045) if bone else self._stroke(arc, 0.045, CARTILAGE)
        if 0.14 < z < 0.78:
            self._bone(ellipse(0, -cb - 0.01, 0.1, 0.035), 0.25)
        for side in (-1, 1):
            if z < 0.48:  # shoulder blade: long above, short below
                span = np.interp(z, [0, 0.1, 0.48], [0.3, 0.34, 0.04])
                x0, y0 = side * (ca + 0.05 + 0.5 * (0.48 - z) * 0.3), 0.62 * b
                blade = (x0, y0) + np.array([(-0.4 * side, 0), (0, 0), (0.6 * side, -0.5)]) * span
                blade[:, 1] -= (0.02, 0.08, 0.14)
                self._rod(inside(blade, np.array([a, b]) - 0.04 - 0.7 * self.fat), 0.035)
            if z < 0.14:  # collar bone
                self._rod([(side * (0.1 + z), -0.62 * b), (side * (0.3 + 1.5 * z), -0.7 * b)], 0.05)
            if z < 0.1:  # head of the upper arm bone
                self._bone(ellipse(side * (a - 0.2), 0.02, 0.09, 0.1), 0.14)

    # ---- texture -----------------------------------------------------------------------------------------

    def _add_lung_texture(self, hounsfield: np.ndarray, z: float, lung: np.ndarray) -> None:
        """Vessels where the slice meets the tree, and the sponge between them; denser towards the back."""
        layer = Image.new("L", (2 * SIDE, 2 * SIDE))
        draw = ImageDraw.Draw(layer)
        _, _, z0, _, _, z1, thick = self.vessels.T
        for x0, y0, _, x1, y1, _, radius in self.vessels[np.abs((z0 + z1) / 2 - z) < 0.014 + 0.3 * thick]:
            pixels, r = self.scanner.pixels([(x0, y0), (x1, y1)]), max(0.9, 2 * radius * self.scanner.zoom)
            draw.line(pixels, 255, max(1, round(2 * r)))
            draw.circle(pixels[2:], r, 255)
        vessels = np.asarray(layer.reduce(2), np.float32) / 255 * lung
        sponge, weight = noise(self.rng, SIDE, SIDE, 0.35, 0.35), np.linspace(-0.6, 1, SIDE)[:, None]
        hounsfield += lung * (45 * sponge + 70 * weight)
        hounsfield += 0.85 * vessels * (MUSCLE + 0.5 * self.contrast - hounsfield)
