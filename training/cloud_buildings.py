"""Programs of `synthetic_clouds`: buildings, their elements and what stands in a landscape.

Each gives the parts of one thing, its proportions and variants at random.
"""

from __future__ import annotations

import numpy as np

from polysense.training.synthetic_clouds import (
    PROGRAMS,
    Part,
    Rng,
    ball,
    box,
    corners,
    prism,
    rod,
    sheet,
    tube,
    uniform,
)


@PROGRAMS.register("door")
def door(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, h, f, t = u(0.6, 1.8), u(1.9, 2.4), u(0.04, 0.1), u(0.05, 0.2)
    parts = [box(f, t, h).at(s * w / 2) for s in (-1, 1)] + [box(w, t, f).at(z=h)]
    leaf = [box(w - f, 0.04, h).at(w / 2 - f / 2), ball(0.04, 0.08, 0.02).at(w * 0.9, 0, h * 0.48)]
    for k in range(int(rng.integers(0, 4))):
        leaf.append(box(w * 0.6, 0.06, h * 0.18).at(w / 2, 0, h * (0.1 + 0.22 * k)))
    swing = u(0, 1.5) if rng.random() < 0.3 else 0.0
    return parts + [part.turn(2, swing).at(x=-w / 2) for part in leaf]


@PROGRAMS.register("window")
def window(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, h, f, t = u(0.5, 2.0), u(0.5, 1.8), u(0.04, 0.1), u(0.04, 0.2)
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    parts = [box(f, t, h).at(x) for x in np.linspace(-w / 2, w / 2, columns + 1)]
    parts += [box(w + f, t, f).at(z=z) for z in np.linspace(0, h, rows + 1)]
    if rng.random() < 0.5:
        parts.append(box(w, 0.01, h))
    if rng.random() < 0.4:
        parts.append(box(w * 1.15, t * 2.5, 0.04).at(y=t, z=-0.04))
    if rng.random() < 0.2:
        parts += [box(w / 2, 0.03, h).at(s * w * 0.8, t / 2) for s in (-1, 1)]  # shutters
    return parts


@PROGRAMS.register("gable house")
def gable_house(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, length, h, roof = u(5, 14), u(6, 25), u(2.5, 8), u(1, 5)
    slopes = sheet(w, length, lambda x, y: h + roof * (1 - 2 * np.abs(x) / w))
    walls = box(w * 0.95, length * 0.95, h)
    if rng.random() < 0.6:  # from above mostly the roof is seen
        walls = Part(walls.draw, walls.area * u(0, 0.3))
    parts = [slopes, walls]
    if rng.random() < 0.4:
        parts.append(
            sheet(w * 0.7, w, lambda x, y: h + roof * 0.7 * (1 - 2.8 * np.abs(x) / w)).turn(2, np.pi / 2).at(w / 2)
        )
    return parts


@PROGRAMS.register("flat building")
def flat_building(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h = u(3, 15)
    parts = [box(u(6, 25), u(6, 25), h)]
    for _ in range(int(rng.integers(0, 4))):
        parts.append(box(u(2, 10), u(2, 10), u(1, h)).at(u(-8, 8), u(-8, 8), rng.choice([0, h])))
    return parts


@PROGRAMS.register("mast")
def mast(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h = u(2, 14)
    parts = [rod(u(0.05, 0.2), h)]
    parts += [box(u(0.5, 3), 0.1, 0.1).at(u(-0.5, 0.5), 0, h * u(0.7, 1)) for _ in range(int(rng.integers(0, 4)))]
    if rng.random() < 0.3:
        parts.append(tube(np.array([[0, 0, h], [0.5, 0, h + 0.4], [u(1, 3), 0, h + 0.3]]), 0.06))
    return parts


@PROGRAMS.register("fence")
def fence(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, h = u(1.5, 12), u(0.7, 2.0)
    rails, posts = int(rng.integers(1, 5)), int(rng.integers(2, 24))
    size = u(0.02, 0.08)
    parts = [box(length, size, size).at(z=z) for z in np.linspace(h * 0.15, h, rails)]
    parts += [box(size, size, h * u(0.9, 1.1)).at(x) for x in np.linspace(-length / 2, length / 2, posts)]
    return parts + ([box(length, 0.01, h * 0.9)] if rng.random() < 0.2 else [])


@PROGRAMS.register("wall")
def wall(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, h, t = u(1.5, 8), u(2, 3.5), u(0.08, 0.4)
    if rng.random() < 0.5:
        return [box(length, t, h)]
    hole, low, high, x = u(0.2, 0.5) * length, u(0, 0.4) * h, u(0.7, 0.95) * h, u(-0.2, 0.2) * length
    left, right = length / 2 + x - hole / 2, length / 2 - x - hole / 2
    return [box(left, t, h).at(-length / 2 + left / 2), box(right, t, h).at(length / 2 - right / 2),
            box(hole, t, low + 1e-3).at(x), box(hole, t, h - high).at(x, 0, high)]  # fmt: skip


@PROGRAMS.register("slab")
def slab(rng: Rng) -> list[Part]:
    u = uniform(rng)
    t = u(0.01, 0.4)
    if rng.random() < 0.5:
        return [box(u(2, 10), u(2, 10), t)]
    return [prism(corners(int(rng.integers(4, 9)), u(2, 6), 0.25, rng), t)]


@PROGRAMS.register("beam")
def beam(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, w, h, t = u(2, 10), u(0.1, 0.4), u(0.15, 0.6), u(0.01, 0.04)
    if rng.random() < 0.5:
        return [box(length, w, h)]
    return [box(length, w, t), box(length, w, t).at(z=h), box(length, t, h)]  # an I of steel


@PROGRAMS.register("column")
def column(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h, r = u(2, 6), u(0.1, 0.5)
    shaft = rod(r, h, r * u(0.75, 1)) if rng.random() < 0.6 else box(2 * r, 2 * r, h)
    if rng.random() < 0.5:
        return [shaft]
    foot = box(r * 2.8, r * 2.8, r * u(0.3, 1))
    return (
        [shaft, foot, foot.at(z=h)]
        if rng.random() < 0.5
        else [shaft, rod(r * 1.4, r * 0.5), rod(r, r, r * 1.5).at(z=h)]
    )


@PROGRAMS.register("stairs")
def stairs(rng: Rng) -> list[Part]:
    u = uniform(rng)
    steps, w, tread, rise = int(rng.integers(4, 20)), u(0.7, 2.5), u(0.22, 0.35), u(0.14, 0.22)
    if rng.random() < 0.2:  # winding
        return [box(w, tread, 0.05).at(x=w / 2).turn(2, k * 0.35).at(z=k * rise) for k in range(steps)] + [
            rod(0.08, steps * rise)]  # fmt: skip
    solid = rng.random() < 0.5
    parts = [
        box(w, tread, rise * (k + 1) if solid else 0.05).at(0, k * tread, 0 if solid else k * rise)
        for k in range(steps)
    ]
    if rng.random() < 0.5:
        for s in (-1, 1):
            path = np.array([[s * w / 2, 0, 0.9], [s * w / 2, steps * tread, 0.9 + steps * rise]])
            parts += [
                tube(path, 0.03),
                *(rod(0.015, 0.9).at(s * w / 2, k * tread, k * rise) for k in range(0, steps, 2)),
            ]
    return parts


@PROGRAMS.register("roof")
def roof(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, length, h = u(4, 14), u(5, 20), u(1, 5)
    kind = int(rng.integers(4))
    if kind == 0:
        return [sheet(w, length, lambda x, y: h * (1 - 2 * np.abs(x) / w))]
    if kind == 1:  # hipped: each slope as steep as the others
        return [sheet(w, length, lambda x, y: h * np.minimum(1 - 2 * np.abs(x) / w, (length - 2 * np.abs(y)) / w))]
    if kind == 2:
        return [sheet(w, length, lambda x, y: h * np.sqrt(np.maximum(1 - (2 * x / w) ** 2, 0)))]
    return [sheet(w, length, lambda x, y: h * x / w), sheet(w, length, lambda x, y: h * x / w - 0.2)]


@PROGRAMS.register("balcony")
def balcony(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h = u(1.5, 5), u(0.8, 2), u(0.8, 1.2)
    parts = [box(w, d, u(0.1, 0.3))]
    runs = [((-w / 2, -d / 2), (-w / 2, d / 2)), ((-w / 2, d / 2), (w / 2, d / 2)), ((w / 2, d / 2), (w / 2, -d / 2))]
    solid = rng.random() < 0.4
    for a, b in runs:
        ends = np.array([[*a, h], [*b, h]])
        parts.append(tube(ends, 0.04))
        if solid:
            side = b[0] != a[0]
            parts.append(box(w if side else 0.06, 0.06 if side else d, h).at((a[0] + b[0]) / 2, (a[1] + b[1]) / 2))
        else:
            parts += [rod(0.02, h).at(*(np.array(a) + t * (np.array(b) - a))) for t in np.linspace(0, 1, 8)]
    return parts


@PROGRAMS.register("wires")
def wires(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, sag = u(10, 40), u(0.2, 3)
    x = np.linspace(-length / 2, length / 2, 20)
    return [tube(np.stack([x, 0 * x + k * u(0.3, 1.2), 6 + sag * (2 * x / length) ** 2 + rng.normal()], 1), 0.03)
            for k in range(int(rng.integers(1, 6)))]  # fmt: skip


@PROGRAMS.register("terrain")
def terrain(rng: Rng) -> list[Part]:
    u = uniform(rng)
    waves, high = rng.normal(size=(3, 6)) * np.array([[1.5], [1.5], [3]]), u(0.05, 0.2)
    return [sheet(4, 4, lambda x, y: high * np.sin(x[:, None] * waves[0] + y[:, None] * waves[1] + waves[2]).sum(1))]
