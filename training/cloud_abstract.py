"""Programs of `synthetic_clouds`: shapes that are nothing in particular.

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
    revolve,
    rod,
    tube,
    uniform,
)


@PROGRAMS.register("random boxes")
def random_boxes(rng: Rng) -> list[Part]:
    return [box(*np.exp(rng.normal(-1, 0.7, 3))).turn(2, rng.choice([0, 0.5, 1.0])).at(*rng.uniform(-0.5, 0.5, 3))
            for _ in range(int(rng.integers(2, 9)))]  # fmt: skip


@PROGRAMS.register("random balls")
def random_balls(rng: Rng) -> list[Part]:
    return [
        ball(*np.exp(rng.normal(-1.6, 0.5, 3))).at(*rng.uniform(-0.5, 0.5, 3)) for _ in range(int(rng.integers(2, 9)))
    ]


@PROGRAMS.register("turned")
def turned(rng: Rng) -> list[Part]:
    count = int(rng.integers(4, 12))
    tilt = rng.choice([0, 0, np.pi / 2])
    return [revolve([0, *np.exp(rng.normal(-1, 0.6, count))], [0, *np.sort(rng.random(count))]).turn(0, tilt)]


@PROGRAMS.register("star prism")
def star_prism(rng: Rng) -> list[Part]:
    outline = corners(int(rng.integers(3, 13)), 0.5, 0.35, rng)
    return [prism(outline, float(np.exp(rng.normal(-1, 0.8)))).turn(0, rng.choice([0, np.pi / 2]))]


@PROGRAMS.register("radial")
def radial(rng: Rng) -> list[Part]:
    u = uniform(rng)
    count = int(rng.integers(3, 12))
    arm = [box(0.6, u(0.03, 0.2), u(0.03, 0.3)), rod(u(0.02, 0.08), 0.6).turn(1, np.pi / 2), ball(0.3, 0.1, 0.1)]
    part = arm[int(rng.integers(3))].at(x=0.35).turn(1, u(-0.6, 0.6))
    flat = rng.random() < 0.6
    parts = [part.turn(2, 2 * np.pi * k / count) for k in range(count)]
    return parts if flat else [p.turn(0, np.pi / 2) for p in parts]


@PROGRAMS.register("knot")
def knot(rng: Rng) -> list[Part]:
    t = np.linspace(0, 1, 40)[:, None]
    wave = sum(rng.normal(0, 1 / k, 3) * np.sin(2 * np.pi * k * t + rng.uniform(0, 6.28, 3)) for k in (1, 2, 3))
    return [tube(np.asarray(wave), float(rng.uniform(0.02, 0.12)))]


@PROGRAMS.register("lattice")
def lattice(rng: Rng) -> list[Part]:
    u = uniform(rng)
    size, counts, thick = np.exp(rng.normal(0, 0.5, 3)), rng.integers(2, 5, 3), u(0.01, 0.05)
    places = [np.linspace(-0.5, 0.5, k) * s for k, s in zip(counts, size, strict=True)]
    parts = []
    for axis in range(3):
        a, b = [i for i in range(3) if i != axis]
        for p in places[a]:
            for q in places[b]:
                ends = np.zeros((2, 3))
                ends[:, a], ends[:, b], ends[:, axis] = p, q, [-size[axis] / 2, size[axis] / 2]
                parts.append(tube(ends, thick))
    return parts
