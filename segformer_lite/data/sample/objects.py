"""Drawings of ten COCO classes, each in its own unit square (x right, y down, from -1 to 1)."""

from itertools import pairwise

import numpy as np

from .pen import Sprite, any_colour, curve, earthy, hsv, pale, shade, vivid


def person(pen: Sprite, rng: np.random.Generator) -> None:
    skin = hsv(rng.uniform(0.04, 0.09), rng.uniform(0.25, 0.6), rng.uniform(0.4, 0.98))
    shirt, trousers, hair, shoes = any_colour(rng), any_colour(rng), earthy(rng), earthy(rng)
    stride = rng.uniform(0.02, 0.22)
    dress = rng.random() < 0.3
    for side in (-1, 1):
        knee, foot = side * (0.1 + 0.4 * stride), side * (0.09 + stride)
        pen.line(
            [(side * 0.1, 0.12), (knee, 0.52), (foot, 0.9)],
            0.17,
            skin if dress else shade(trousers, 0.94 + 0.06 * side),
        )
        pen.ellipse(foot + 0.04, 0.94, 0.12, 0.06, shoes)
    for side in (-1, 1):
        reach, lift = rng.uniform(0.08, 0.35), rng.choice([-0.35, 0.1, 0.3, 0.36, 0.36])
        elbow, hand = (side * (0.3 + reach / 2), -0.22), (side * (0.3 + reach), -0.22 + lift)
        pen.line([(side * 0.21, -0.45), elbow, hand], 0.13, shade(shirt, 0.85))
        pen.ellipse(*hand, 0.075, 0.075, skin)
    if dress:
        pen.polygon([(-0.18, -0.1), (0.18, -0.1), (0.36, 0.42), (-0.36, 0.42)], shirt)
    pen.line([(0, -0.36), (0, 0.08)], 0.44, shirt)
    if rng.random() < 0.4:
        for y in np.arange(-0.5, 0.2, 0.16):
            pen.line([(-0.19, y), (0.19, y)], 0.06, shade(shirt, 1.8), solid=False)
    pen.line([(0, -0.6), (0, -0.54)], 0.13, shade(skin, 0.85))
    pen.ellipse(0, -0.78, 0.21, 0.22, hair)
    pen.ellipse(0, -0.74, 0.165, 0.19, skin)
    pen.ellipse(0, -0.8, 0.2, 0.19, hair, start=0.5, end=1)
    if rng.random() < 0.3:
        hat = vivid(rng)
        pen.ellipse(0, -0.85, 0.2, 0.15, hat, start=0.5, end=1)
        pen.line([(-0.27, -0.85), (0.27, -0.85)], 0.06, hat)
    for side in (-1, 1):
        pen.ellipse(side * 0.065, -0.73, 0.022, 0.03, (30, 25, 25), solid=False)
    pen.line(curve([(-0.06, -0.65), (0, -0.61), (0.06, -0.65)]), 0.02, shade(skin, 0.5), solid=False)


def car(pen: Sprite, rng: np.random.Generator) -> None:
    paint, glass = any_colour(rng), hsv(rng.uniform(0.5, 0.62), 0.3, rng.uniform(0.35, 0.9))
    roof, back, front = rng.uniform(-0.52, -0.4), rng.uniform(-0.88, -0.6), rng.uniform(0.5, 0.68)
    cabin = [(back, -0.02), (back + 0.14, roof), (0.2, roof), (front, -0.02)]
    pen.line([*cabin, cabin[0]], 0.07, paint)
    pen.polygon(cabin, paint)
    pen.line([(-0.86, 0.12), (0.86, 0.12)], 0.28, paint)
    pen.line([(-0.86, 0.24), (0.88, 0.24)], 0.14, shade(paint, 0.7))
    middle = (back + front) / 2 - 0.05
    pen.polygon([(back + 0.1, -0.03), (back + 0.2, roof + 0.06), (middle, roof + 0.06), (middle, -0.03)], glass)
    pen.polygon(
        [(middle + 0.06, -0.03), (middle + 0.06, roof + 0.06), (0.18, roof + 0.06), (front - 0.09, -0.03)],
        glass,
    )
    pen.line([(middle + 0.03, 0.0), (middle + 0.03, 0.2)], 0.02, shade(paint, 0.6))
    pen.line([(middle - 0.14, 0.06), (middle - 0.06, 0.06)], 0.03, shade(paint, 0.5))
    pen.ellipse(0.92, 0.1, 0.06, 0.07, hsv(0.14, 0.25, 1))
    pen.ellipse(-0.94, 0.1, 0.04, 0.07, hsv(0.0, 0.8, 0.8))
    for x in (-0.52, 0.54):
        pen.ellipse(x, 0.27, 0.235, 0.235, shade(paint, 0.45), solid=False)
        pen.ellipse(x, 0.3, 0.195, 0.195, (38, 38, 42))
        pen.ellipse(x, 0.3, 0.1, 0.1, (190, 190, 195))
        pen.ellipse(x, 0.3, 0.035, 0.035, (60, 60, 65))


def boat(pen: Sprite, rng: np.random.Generator) -> None:
    hull, trim = any_colour(rng), any_colour(rng)
    if rng.random() < 0.7:  # a sailing boat, else a fishing boat
        mast, sail = (70, 50, 40), any_colour(rng)
        pen.line([(-0.02, 0.55), (-0.02, -0.95)], 0.045, mast)
        pen.polygon([(0.03, -0.9), *curve([(0.03, -0.9), (0.55, -0.3), (0.72, 0.36)]), (0.03, 0.36)], sail)
        pen.polygon(
            [(-0.07, -0.75), *curve([(-0.07, -0.75), (-0.4, -0.2), (-0.68, 0.36)]), (-0.07, 0.3)],
            shade(sail, 0.8),
        )
        for y in (-0.5, -0.15, 0.15):
            pen.line([(0.03, y), (0.7, y + 0.03)], 0.025, shade(sail, 0.65), solid=False)
        pen.polygon([(-0.02, -1), (0.22, -0.93), (-0.02, -0.86)], trim)
    else:
        cabin = any_colour(rng)
        pen.polygon([(-0.45, 0.5), (-0.45, 0.0), (0.15, 0.0), (0.25, 0.5)], cabin)
        pen.line([(-0.55, -0.02), (0.22, -0.02)], 0.09, trim)
        for x in (-0.3, -0.05):
            pen.ellipse(x, 0.2, 0.085, 0.085, hsv(0.55, 0.35, 0.85))
        pen.line([(-0.2, 0), (-0.2, -0.6)], 0.05, (70, 60, 50))
        pen.polygon([(-0.2, -0.6), (0.12, -0.48), (-0.2, -0.36)], vivid(rng))
    bow = curve([(0.92, 0.42), (0.8, 0.8), (0.5, 0.92)])
    pen.polygon([(-0.8, 0.47), (0.92, 0.42), *bow, (-0.6, 0.92), (-0.76, 0.75)], hull)
    pen.line([(-0.78, 0.5), (0.9, 0.46)], 0.08, trim)
    pen.line([(-0.68, 0.86), (0.62, 0.86)], 0.06, shade(hull, 0.6), solid=False)


def stop_sign(pen: Sprite, rng: np.random.Generator) -> None:
    red = hsv(rng.uniform(-0.04, 0.06), rng.uniform(0.6, 0.95), rng.uniform(0.4, 0.95))
    turn = np.pi / 8 + np.arange(8) * np.pi / 4
    octagon = np.stack([np.cos(turn), np.sin(turn)], 1)
    white = hsv(rng.random(), 0.06, rng.uniform(0.75, 1))
    for radius, colour in ((1.0, shade(red, 0.8)), (0.97, white), (0.88, red)):
        pen.polygon(radius * octagon, colour)
    letters = {
        "S": [(1, 0.1), (0.3, 0), (0, 0.25), (0.9, 0.7), (0.7, 1), (0, 0.9)],
        "T": [(0, 0), (1, 0), (0.5, 0), (0.5, 1)],
        "O": [(0.2, 0), (0.8, 0), (1, 0.5), (0.8, 1), (0.2, 1), (0, 0.5), (0.2, 0)],
        "P": [(0, 1), (0, 0), (0.8, 0), (1, 0.25), (0.8, 0.55), (0, 0.55)],
    }
    for i, letter in enumerate("STOP"):
        pen.line([(-0.7 + 0.38 * i + 0.26 * x, -0.27 + 0.54 * y) for x, y in letters[letter]], 0.1, white, solid=False)


def flying_bird(pen: Sprite, rng: np.random.Generator) -> None:
    body, beak = any_colour(rng), hsv(rng.uniform(0.06, 0.13), 0.9, 0.9)
    wing, belly = shade(body, 0.6), shade(body, 1.7)
    lift = rng.uniform(-0.25, 0.3)
    for side, colour in ((-1, wing), (1, shade(body, 0.75))):
        tip = [
            (side * 0.06, -0.12),
            *curve([(side * 0.1, -0.1), (side * 0.45, -0.75 + lift), (side * 1.0, -0.3 + lift)]),
            (side * 0.78, -0.16 + lift),
            (side * 0.66, -0.02 + 0.7 * lift),
            (side * 0.45, 0.0 + 0.5 * lift),
            (side * 0.06, 0.2),
        ]
        pen.polygon(tip, colour)
    pen.polygon([(-0.1, 0.2), (0.1, 0.2), (0.22, 0.68), (0, 0.58), (-0.22, 0.68)], wing)
    pen.ellipse(0, 0.08, 0.17, 0.36, body)
    pen.ellipse(0, 0.14, 0.1, 0.22, belly, solid=False)
    pen.ellipse(0, -0.32, 0.17, 0.16, body)
    pen.polygon([(-0.07, -0.42), (0.07, -0.42), (0, -0.66)], beak)
    for side in (-1, 1):
        pen.ellipse(side * 0.08, -0.37, 0.035, 0.035, (20, 20, 25), solid=False)


def bird(pen: Sprite, rng: np.random.Generator) -> None:
    body, beak = any_colour(rng), hsv(rng.uniform(0.06, 0.13), 0.9, 0.9)
    wing, belly = shade(body, 0.6), shade(body, 1.7)
    for x in (-0.02, 0.14):
        pen.line([(x, 0.4), (x + 0.04, 0.82), (x + 0.16, 0.84)], 0.045, beak)
    pen.polygon([(-0.3, 0.02), (-0.98, 0.28), (-0.9, 0.44), (-0.25, 0.36)], wing)
    pen.ellipse(0.02, 0.14, 0.52, 0.36, body, turn=-0.35)
    pen.ellipse(0.14, 0.24, 0.33, 0.23, belly, turn=-0.5, solid=False)
    pen.ellipse(0.43, -0.3, 0.26, 0.25, body)
    pen.polygon([(0.64, -0.4), (0.98, -0.26), (0.64, -0.18)], beak)
    pen.polygon([(0.22, -0.1), *curve([(0.22, -0.1), (0.1, 0.5), (-0.62, 0.36)]), (-0.3, 0.05)], wing)
    pen.ellipse(0.5, -0.34, 0.06, 0.06, (250, 250, 250), solid=False)
    pen.ellipse(0.51, -0.34, 0.04, 0.04, (20, 20, 25), solid=False)


def cat(pen: Sprite, rng: np.random.Generator) -> None:
    fur, iris = earthy(rng), hsv(rng.uniform(0.12, 0.4), 0.6, 0.85)
    dark, light, pink = shade(fur, 0.6), shade(fur, 1.8), (225, 150, 150)
    tabby = rng.random() < 0.6
    sitting = rng.random() < 0.65
    hx, hy, r = (0, -0.38, 1.0) if sitting else (0.6, -0.25, 0.72)
    if sitting:
        pen.line(curve([(0.25, 0.85), (0.95, 0.95), (0.85, 0.3), (0.7, 0.1)]), 0.15, dark)
        pen.ellipse(0, 0.42, 0.42, 0.52, fur)
        pen.ellipse(-0.3, 0.72, 0.2, 0.24, fur)
        pen.ellipse(0.3, 0.72, 0.2, 0.24, fur)
        stripes = [[(s * 0.42, y), (s * 0.2, y + 0.05)] for s in (-1, 1) for y in (0.15, 0.33, 0.51)]
    else:
        pen.line(curve([(-0.62, -0.02), (-0.95, -0.1), (-0.75, -0.6), (-0.95, -0.8)]), 0.12, dark)
        for x, colour in ((-0.5, dark), (0.42, dark), (-0.36, fur), (0.28, fur)):
            pen.line([(x, 0.15), (x + 0.03, 0.72)], 0.16, colour)
        pen.ellipse(-0.08, 0.05, 0.6, 0.29, fur)
        stripes = [[(x, -0.25), (x - 0.05, 0.08)] for x in (-0.5, -0.32, -0.14, 0.04)]
    if tabby:
        for stripe in stripes:
            pen.line(stripe, 0.07, dark, solid=False)
    if sitting:
        pen.ellipse(0, 0.32, 0.2, 0.3, light, solid=False)
        for x in (-0.13, 0.13):
            pen.line([(x, 0.5), (x, 0.88)], 0.17, shade(fur, 0.9), solid=False)
            pen.ellipse(x, 0.92, 0.13, 0.075, light)
    for side in (-1, 1):
        ear = np.array([(0.1, -0.28), (0.36, -0.62), (0.42, -0.1)]) * (side * r, r) + (hx, hy)
        pen.polygon(ear, fur)
        pen.polygon(0.55 * ear + 0.45 * ear.mean(0), pink, solid=False)
    pen.ellipse(hx, hy, 0.43 * r, 0.36 * r, fur)
    if tabby:
        for x in (-0.1, 0, 0.1):
            pen.line([(hx + x * r, hy - 0.32 * r), (hx + x * r, hy - 0.2 * r)], 0.05 * r, dark, solid=False)
    pen.ellipse(hx, hy + 0.17 * r, 0.2 * r, 0.13 * r, light, solid=False)
    for side in (-1, 1):
        pen.ellipse(hx + side * 0.18 * r, hy - 0.03 * r, 0.095 * r, 0.085 * r, iris, solid=False)
        pen.ellipse(hx + side * 0.18 * r, hy - 0.03 * r, 0.04 * r, 0.08 * r, (15, 15, 15), solid=False)
        for y in (0.1, 0.17):
            pen.line(
                [(hx + side * 0.12 * r, hy + y * r), (hx + side * 0.42 * r, hy + (1.6 * y - 0.1) * r)],
                0.014,
                (245, 245, 240),
                solid=False,
            )
    pen.polygon(
        [(hx - 0.05 * r, hy + 0.08 * r), (hx + 0.05 * r, hy + 0.08 * r), (hx, hy + 0.14 * r)],
        (190, 90, 100),
        solid=False,
    )


def umbrella(pen: Sprite, rng: np.random.Generator) -> None:
    first, second = any_colour(rng), any_colour(rng)
    pen.line([(0, -0.9), (0, -0.6), (0, 0.75)], 0.05, (90, 70, 55))
    pen.line(curve([(0, 0.7), (0, 1.0), (0.22, 1.0), (0.22, 0.78)]), 0.06, shade(second, 0.7))
    edges = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 7)) * 0.97
    for i, (x0, x1) in enumerate(pairwise(edges)):
        left = curve([(0, -0.82), (0.75 * x0, -0.8), (x0, 0.05)])
        right = curve([(x1, 0.05), (0.75 * x1, -0.8), (0, -0.82)])
        hem = curve([(x0, 0.05), ((x0 + x1) / 2, -0.1), (x1, 0.05)])
        pen.polygon([*left, *hem, *right], (first, second)[i % 2])
    for x in edges[1:-1]:
        pen.line(curve([(0, -0.82), (0.75 * x, -0.8), (x, 0.05)]), 0.014, shade(first, 0.55), solid=False)
    pen.line([(0, -0.97), (0, -0.82)], 0.05, (80, 65, 55))


def kite(pen: Sprite, rng: np.random.Generator) -> None:
    colours = [any_colour(rng) for _ in range(4)]
    top, left, right, bottom, centre = (0, -0.98), (-0.55, -0.4), (0.55, -0.4), (0, 0.45), (0, -0.4)
    tail = curve([bottom, (0.45, 0.6), (-0.5, 0.8), (0.1, 1.0)], 24)
    pen.line(tail, 0.035, shade(colours[0], 0.7))
    for i in (7, 13, 19):
        (x, y), bow = tail[i], colours[i % 4]
        pen.polygon(
            [(x, y), (x - 0.13, y - 0.07), (x - 0.13, y + 0.07), (x + 0.13, y - 0.07), (x + 0.13, y + 0.07)],
            bow,
        )
    for colour, corners in zip(colours, [(top, left), (top, right), (bottom, left), (bottom, right)], strict=True):
        pen.polygon([centre, *corners], colour)
    for ends in ((top, bottom), (left, right)):
        pen.line(ends, 0.03, (70, 55, 45), solid=False)


def pizza(pen: Sprite, rng: np.random.Generator) -> None:
    crust = hsv(rng.uniform(0.06, 0.1), rng.uniform(0.4, 0.7), rng.uniform(0.55, 0.9))
    cheese = hsv(rng.uniform(0.08, 0.15), rng.uniform(0.3, 0.75), rng.uniform(0.75, 1))
    eaten = rng.uniform(0.1, 0.2) if rng.random() < 0.4 else 0
    start = rng.random()
    for radius, colour in ((0.97, shade(crust, 0.85)), (0.92, crust), (0.81, hsv(0.02, 0.75, 0.65)), (0.77, cheese)):
        t = 2 * np.pi * np.linspace(start + eaten, start + 1, 60)
        wobble = radius * (1 + 0.02 * np.sin(7 * t + 9 * start))
        rim = np.stack([wobble * np.cos(t), wobble * np.sin(t)], 1)
        pen.polygon(np.concatenate([[(0, 0)], rim]) if eaten else rim, colour)
    topping = hsv(rng.uniform(-0.03, 0.03), rng.uniform(0.6, 0.85), rng.uniform(0.5, 0.85))
    angles = start + eaten + 0.06 + (0.9 - eaten) * np.linspace(0, 1, 8 if eaten else 9)[:None]
    for i, turn in enumerate(2 * np.pi * angles):
        radius = (0.6, 0.36)[i % 2] + rng.uniform(-0.05, 0.05)
        x, y = radius * np.cos(turn), radius * np.sin(turn)
        pen.ellipse(x, y, 0.13, 0.13, shade(topping, 0.75), solid=False)
        pen.ellipse(x - 0.01, y - 0.01, 0.105, 0.105, topping, solid=False)
    for _ in range(10):
        turn, radius = 2 * np.pi * (start + eaten + rng.uniform(0, 1 - eaten)), rng.uniform(0.15, 0.7)
        x, y = radius * np.cos(turn), radius * np.sin(turn)
        if rng.random() < 0.5:
            pen.ellipse(x, y, 0.09, 0.045, hsv(0.3, 0.75, 0.5), solid=False, turn=rng.uniform(0, 3))
        else:
            pen.ellipse(x, y, 0.06, 0.06, (45, 40, 45), solid=False)
            pen.ellipse(x, y, 0.025, 0.025, cheese, solid=False)


def clock(pen: Sprite, rng: np.random.Generator) -> None:
    rim, face = any_colour(rng), (pale, pale, any_colour)[rng.integers(3)](rng)
    ink = (30, 28, 35) if sum(face) > 330 else (240, 238, 230)
    if rng.random() < 0.25:
        pen.line([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8)], 0.3, rim)
        pen.polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], rim)
    pen.ellipse(0, 0, 0.97, 0.97, rim)
    pen.ellipse(0, 0, 0.84, 0.84, shade(rim, 0.6))
    pen.ellipse(0, 0, 0.8, 0.8, face)
    for hour in range(12):
        c, s = np.cos(hour * np.pi / 6), np.sin(hour * np.pi / 6)
        inner = 0.56 if hour % 3 == 0 else 0.64
        pen.line([(inner * c, inner * s), (0.71 * c, 0.71 * s)], 0.07 if hour % 3 == 0 else 0.045, ink)
    for length, width in ((0.38, 0.09), (0.6, 0.06)):
        turn = rng.uniform(0, 2 * np.pi)
        pen.line([(0, 0), (length * np.cos(turn), length * np.sin(turn))], width, ink)
    pen.ellipse(0, 0, 0.07, 0.07, vivid(rng))


# COCO's category id, super-category, the drawing, and how strongly its surface is textured
CLASSES = {
    "person": (1, "person", person, 0.05),
    "car": (3, "vehicle", car, 0.03),
    "boat": (9, "vehicle", boat, 0.05),
    "stop sign": (13, "outdoor", stop_sign, 0.05),
    "bird": (16, "animal", bird, 0.07),
    "cat": (17, "animal", cat, 0.09),
    "umbrella": (28, "accessory", umbrella, 0.05),
    "kite": (38, "sports", kite, 0.05),
    "pizza": (59, "food", pizza, 0.1),
    "clock": (85, "indoor", clock, 0.03),
}
