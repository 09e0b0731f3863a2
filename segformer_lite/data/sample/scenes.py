"""Meadows, beaches, streets, tables and rooms with instances of ten COCO classes."""

import numpy as np
from PIL import Image

from .objects import flying_bird
from .pen import any_colour, curve, earthy, hsv, pale
from .stage import Instance, Scene, box

SIZES = [(192, 144), (192, 144), (144, 192), (208, 160), (160, 160)]  # (width, height) in pixels


def near_and_far(s: Scene, count: int, horizon: float) -> list[tuple[float, float, float]]:
    """Feet (x, y) and nearness 0..1 of things on the ground, far ones first."""
    near = sorted(s.rng.beta(1, 1.3, count).tolist())
    return [(s.between(0.04, 0.96) * s.width, horizon + 2 + n * (1.02 * s.height - horizon), n) for n in near]


def spot(s: Scene, bottom: float = 1) -> tuple[float, float]:
    """A place in the picture, down to a share of its height, away from the edges."""
    return s.between(0.08, 0.92) * s.width, s.between(0.13, 0.87) * bottom * s.height


def kites_and_birds(s: Scene, kites: int, birds: int, horizon: float) -> None:
    for name in ["kite"] * kites + ["bird"] * birds:
        size = s.height * (0.05 + 0.6 * s.rng.beta(0.9, 1.9))
        x, y = s.between(0.05, 0.95) * s.width, s.between(0.05, 0.85) * horizon
        if name == "bird":
            s.add(name, x, y, size, s.between(-0.4, 0.4), draw=flying_bird)
            continue
        hand = (s.between(0, 1) * s.width, horizon + 8)
        string = curve([(x, y), (x + 0.1 * s.width, y + 0.3 * s.height), hand])
        if s.annotated:
            s.fill([[*string, *((a + 0.8, b) for a, b in reversed(string))]], (250, 250, 245), opacity=0.6)
        s.add(name, x, y, size, s.between(-0.9, 0.9))


def meadow(s: Scene) -> None:
    """Grass under a sky: people, cats, birds, umbrellas, kites."""
    horizon = s.height * s.between(0.3, 0.6)
    s.sky(horizon)
    s.hills(horizon)
    grass = hsv(s.between(0.12, 0.36), s.between(0.3, 0.65), s.between(0.4, 0.8))
    s.ground(horizon, grass, 0.16, 0.5, 1.6)
    for x, y, near in near_and_far(s, s.rng.integers(0, 5), horizon):
        s.tree(x, horizon + 0.4 * (y - horizon), s.height * (0.25 + 0.4 * near))
    if s.rng.random() < 0.15:
        s.crowd(horizon + 8, s.height * s.between(0.1, 0.16))
    kites_and_birds(s, s.rng.integers(0, 3), s.rng.integers(0, 2), horizon)
    tall = {"person": 0.95, "cat": 0.55, "bird": 0.45, "umbrella": 0.7}
    for x, y, near in near_and_far(s, s.rng.integers(1, 4), horizon):
        name = str(s.rng.choice(list(tall), p=[0.4, 0.25, 0.2, 0.15]))
        s.stand(name, x, y, s.height * (0.08 + near) * tall[name])


def beach(s: Scene) -> None:
    """Sea and sand: boats, people, parasols, gulls, kites."""
    horizon = s.height * s.between(0.25, 0.5)
    shore = horizon + (s.height - horizon) * s.between(0.3, 0.95)
    s.sky(horizon)
    water = hsv(s.between(0.45, 0.62), s.between(0.3, 0.65), s.between(0.45, 0.85))
    s.ground(horizon, water, 0.1, 3, 0.4)
    for x, y, near in near_and_far(s, s.rng.integers(1, 4), horizon):
        size, y = s.height * (0.09 + 0.85 * near), horizon + 0.9 * (min(y, shore + 10) - horizon)
        if s.annotated:
            s.shadow(x, y, 0.5 * size, 0.08 * size)
        s.add("boat", x, y - 0.46 * size, size, s.between(-0.08, 0.08))
    sand = hsv(s.between(0.07, 0.13), s.between(0.2, 0.5), s.between(0.7, 0.95))
    s.ground(shore, sand, 0.07, 0.6, 0.6)
    s.fill([box(0, shore - 1, s.width, shore + 1.5)], (250, 250, 250), 0.2, 0.3, opacity=0.6)  # surf
    kites_and_birds(s, s.rng.integers(0, 2), s.rng.integers(0, 2), horizon)
    if s.rng.random() < 0.12:
        s.crowd(shore + 8, s.height * s.between(0.1, 0.16))
    for x, y, near in near_and_far(s, s.rng.integers(0, 3), shore):
        name = str(s.rng.choice(["person", "umbrella", "bird"], p=[0.4, 0.4, 0.2]))
        s.stand(name, x, y, s.height * (0.25 + 0.55 * near) * (0.4 if name == "bird" else 1))


def street(s: Scene) -> None:
    """Houses and a road: cars, people, a stop sign."""
    horizon = s.height * s.between(0.35, 0.6)
    s.sky(horizon)
    s.houses(horizon)
    s.ground(horizon, hsv(s.rng.random(), s.between(0, 0.12), s.between(0.35, 0.75)), 0.08, 0.5, 0.5)
    lane = horizon + 0.55 * (s.height - horizon)
    dashes = [box(x, lane, x + 14, lane + 3) for x in range(0, s.width, 26)]
    s.fill(dashes, (240, 235, 220), 0.1, opacity=0.8)
    if s.rng.random() < 0.3:
        s.tree(s.between(0, 1) * s.width, horizon + 5, s.height * s.between(0.3, 0.5))
    if s.rng.random() < 0.15:
        s.crowd(horizon + 6, s.height * s.between(0.1, 0.16))
    tall = {"car": 1.1, "person": 0.8, "cat": 0.35, "umbrella": 0.6}
    for x, y, near in near_and_far(s, s.rng.integers(1, 4), horizon):
        name = str(s.rng.choice(list(tall), p=[0.6, 0.22, 0.1, 0.08]))
        s.stand(name, x, y, s.height * (0.12 + near) * tall[name])
    if s.rng.random() < 0.8:
        x, near = s.between(0.1, 0.9) * s.width, s.rng.beta(1, 1.5)
        size, foot = s.height * (0.1 + 0.5 * near), horizon + (0.15 + near) * (s.height - horizon)
        y = foot - s.height * (0.3 + 0.5 * near)
        s.fill([box(x - 0.04 * size, y, x + 0.04 * size, foot)], (125, 125, 130))  # the post
        s.add("stop sign", x, y, size, s.between(-0.08, 0.08))


def table(s: Scene) -> None:
    """A table from above, boards or a checked cloth: plates, pizzas, sometimes a cat, a clock or a kite."""
    if s.rng.random() < 0.5:
        s.rgb[:] = s.texture(earthy(s.rng), 0.13, 6, 0.5)
        s.rgb[np.arange(s.height) % s.rng.integers(24, 44) < 1.5] *= 0.6
    else:
        y, x = np.mgrid[: s.height, : s.width] // s.rng.integers(8, 20)
        s.rgb[:] = s.texture(pale(s.rng), 0.05)
        s.cover((x % 2 + y % 2) / np.float32(2), s.texture(any_colour(s.rng), 0.08, 0.4, 0.4))
    squash = s.between(0.55, 1)
    for _ in range(s.rng.integers(0, 3)):
        s.plate(*spot(s), s.height * s.between(0.12, 0.3), squash)
    for _ in range(s.rng.integers(1, 4)):
        size, (x, y) = s.height * (0.15 + s.rng.beta(1.2, 1.5)), spot(s)
        if s.annotated:
            s.shadow(x + 2, y + 0.05 * size, 0.68 * size, 0.68 * size * squash, 0.5)
        s.add("pizza", x, y, size, squash=squash)
    for name, chance in (("cat", 0.2), ("clock", 0.2), ("kite", 0.1)):
        if s.rng.random() < chance:
            s.add(name, *spot(s), s.height * s.between(0.2, 0.7), s.between(-0.3, 0.3))


def room(s: Scene) -> None:
    """A wall over a floor: clocks, pictures, plates, cats, birds, people."""
    s.wall()
    floor = s.between(0.65, 0.95)
    s.ground(floor * s.height, earthy(s.rng), 0.12, 4, 0.4)
    for _ in range(s.rng.integers(0, 3)):
        s.frame(*spot(s, 0.7 * floor), *s.height * s.between(0.2, 0.4, 2))
    if s.rng.random() < 0.25:
        s.plate(*spot(s, 0.8 * floor), s.height * s.between(0.1, 0.2))
    for _ in range(s.rng.choice([0, 1, 1, 2])):
        size, (x, y) = s.height * (0.1 + 0.75 * s.rng.beta(1, 1.8)), spot(s, 0.8 * floor)
        if s.annotated:
            s.shadow(x - 3 * s.light[0], y + 0.06 * size, 0.7 * size, 0.7 * size, 0.4)
        s.add("clock", x, y, size)
    tall = {"cat": 0.9, "person": 1.1, "bird": 0.6, "umbrella": 0.8}
    for x, y, near in near_and_far(s, s.rng.choice([0, 1, 1, 2]), floor * s.height):
        name = str(s.rng.choice(list(tall), p=[0.5, 0.2, 0.15, 0.15]))
        s.stand(name, x, y, s.height * (0.3 + 0.6 * near) * tall[name])


def draw_scene(rng: np.random.Generator, empty: bool = False) -> tuple[Image.Image, list[Instance]]:
    """A random scene.

    rng: source of every choice.
    empty: draw the background alone.
    Returns the picture and what is visible of its instances, those in front last, none under 8 pixels.
    """
    width, height = SIZES[rng.integers(len(SIZES))]
    scene = Scene(rng, width, height, annotated=not empty)
    (meadow, beach, street, table, room)[rng.integers(5)](scene)
    return scene.finish(), [i for i in scene.instances if (i.visible > 0.5).sum() >= 8]
