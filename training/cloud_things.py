"""Programs of `synthetic_clouds`: people, animals, plants, vehicles and tableware.

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
    four,
    leaves,
    prism,
    revolve,
    ring,
    rod,
    sheet,
    tube,
    uniform,
)


@PROGRAMS.register("person")
def person(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h, wide = u(1.1, 1.95), u(0.85, 1.25)
    hip, shoulder = 0.5 * h, 0.82 * h
    stride, raise_ = u(-0.25, 0.25), u(0.05, 1.6) if rng.random() < 0.3 else u(0.05, 0.3)
    parts = [ball(0.065 * h, 0.07 * h, 0.075 * h).at(z=0.93 * h), rod(0.03 * h, 0.1 * h).at(z=0.82 * h)]
    parts.append(ball(0.12 * h * wide, 0.075 * h * wide, 0.2 * h).at(z=0.66 * h))
    sitting = rng.random() < 0.2
    for s in (-1, 1):
        knee = [s * 0.06 * h, 0.25 * h, hip] if sitting else [s * 0.06 * h, s * stride * 0.5, 0.27 * h]
        foot = [s * 0.06 * h, 0.25 * h, 0.27 * h] if sitting else [s * 0.07 * h, s * stride, 0.02]
        parts.append(tube(np.array([[s * 0.05 * h, 0, hip], knee, foot]), 0.042 * h * wide))
        parts.append(ball(0.035 * h, 0.07 * h, 0.025 * h).at(foot[0], foot[1] + 0.03 * h, foot[2]))
        elbow = [s * (0.12 + 0.16 * np.sin(raise_)) * h, 0, shoulder - 0.16 * h * np.cos(raise_)]
        hand = [elbow[0] * 1.15, u(0, 0.15) * h, elbow[2] - 0.14 * h * np.cos(raise_)]
        parts.append(tube(np.array([[s * 0.11 * h, 0, shoulder], elbow, hand]), 0.028 * h * wide))
    return parts


@PROGRAMS.register("animal")
def animal(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, h, thick = u(0.4, 2.2), u(0.25, 1.4), u(0.12, 0.25)
    parts = [ball(length * thick, length / 2, length * thick).at(z=h)]
    parts += four(rod(0.03 * length, h), length * thick * 0.6, length * 0.35)
    neck = np.array([[0, length * 0.42, h], [0, length * u(0.5, 0.7), h + length * u(0, 0.5)]])
    parts += [tube(neck, 0.07 * length), ball(0.08 * length, 0.14 * length, 0.09 * length).at(*neck[1])]
    return [*parts, tube(np.array([[0, -length / 2, h], [0, -length * 0.7, h + u(-0.3, 0.2)]]), 0.02 * length)]


@PROGRAMS.register("potted plant")
def potted_plant(rng: Rng) -> list[Part]:
    u = uniform(rng)
    r, h, crown = u(0.08, 0.25), u(0.1, 0.4), u(0.15, 0.6)
    parts = [revolve([0, r * u(0.6, 1), r], [0, 0, h])]
    if rng.random() < 0.5:
        places = lambda n, g: g.normal(size=(n, 3)) * crown * [0.4, 0.4, 0.5] + [0, 0, h + crown]  # noqa: E731
        parts += [leaves(int(rng.integers(20, 120)), u(0.03, 0.12), places, rng), rod(0.015, h + crown)]
    else:  # long leaves that bend down
        for _ in range(int(rng.integers(6, 25))):
            angle, reach, high = u(0, 6.28), u(0.3, 1.0) * crown, u(0.3, 1.5) * crown
            t = np.linspace(0, 1, 6)
            path = np.stack([t * reach * np.cos(angle), t * reach * np.sin(angle), h + high * (t * 2 - 1.3 * t**2)], 1)
            parts.append(tube(path, u(0.005, 0.03)))
    return parts


@PROGRAMS.register("tree")
def tree(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h, trunk, wide = u(3, 20), u(0.1, 0.5), u(0.2, 0.5)
    half = h * (1 - trunk) / 2
    shell = rng.random() < 0.5

    def places(n: int, g: Rng) -> np.ndarray:
        p = g.normal(size=(n, 3))
        p = p / np.linalg.norm(p, axis=1, keepdims=True) * (g.random((n, 1)) ** (0.1 if shell else 0.33))
        return p * [h * wide, h * wide, half] + [0, 0, h * trunk + half]

    crown = leaves(int(rng.integers(80, 500)), h * u(0.01, 0.05), places, rng)
    return [crown] if rng.random() < 0.3 else [crown, rod(h * u(0.01, 0.03), h * (trunk + 0.3))]


@PROGRAMS.register("conifer")
def conifer(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h, wide, low = u(3, 20), u(0.15, 0.35), u(0, 0.2)

    def places(n: int, g: Rng) -> np.ndarray:
        t, angle = g.random(n) ** 1.5, g.uniform(0, 6.28, n)
        r = h * wide * (1 - t) * g.random(n) ** 0.4
        return np.stack([r * np.cos(angle), r * np.sin(angle), h * (low + (1 - low) * t)], 1)

    return [leaves(int(rng.integers(150, 500)), h * 0.015, places, rng), rod(h * 0.015, h * 0.9)]


@PROGRAMS.register("car")
def car(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, w, low, high = u(3.2, 5.2), u(1.5, 2.0), u(0.5, 0.8), u(0.45, 0.8)
    cabin = length * u(0.35, 0.65)
    side = np.array([[-cabin / 2, 0], [cabin / 2, 0], [cabin * u(0.2, 0.4), high], [-cabin * u(0.3, 0.48), high]])
    roof = prism(side, w * 0.9).turn(0, np.pi / 2).turn(2, np.pi / 2).at(w * 0.45, u(-0.3, 0.1), low + 0.2)
    if rng.random() < 0.4:  # seen from an aircraft: no wheels
        return [box(w, length, low).at(z=0.2), roof]
    wheel = ring(0.25, 0.1).turn(1, np.pi / 2).at(z=0.3)
    return [box(w, length, low).at(z=0.2), roof, *four(wheel, w / 2, length * 0.32)]


@PROGRAMS.register("lorry")
def lorry(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, w, h = u(5, 14), u(2.0, 2.6), u(2.2, 3.6)
    wheels = [rod(0.45, 0.3).turn(1, np.pi / 2).at(s * w / 2, y, 0.45)
              for s in (-1, 1) for y in (-length * 0.35, length * 0.25, length * 0.38)]  # fmt: skip
    if rng.random() < 0.4:
        return [box(w, length, h).at(z=0.5), *wheels]  # a bus
    cab = box(w * 0.95, length * 0.2, h * 0.75).at(0, length * 0.4, 0.5)
    return [box(w, length * 0.75, h).at(0, -length * 0.12, 0.8), cab, *wheels]


@PROGRAMS.register("two wheels")
def two_wheels(rng: Rng) -> list[Part]:
    u = uniform(rng)
    r, gap, thick = u(0.2, 0.36), u(0.9, 1.4), u(0.015, 0.08)
    wheels = [ring(r, thick).turn(1, np.pi / 2).at(0, s * gap / 2, r) for s in (-1, 1)]
    seat, bar = np.array([0, -gap * 0.15, u(0.7, 1.0)]), np.array([0, gap * 0.35, u(0.8, 1.1)])
    low, axles = np.array([0, 0, r]), [np.array([0, s * gap / 2, r]) for s in (-1, 1)]
    frame = tube(np.array([axles[0], low, seat, axles[0], seat, bar, low, bar, axles[1]]), thick * 0.8)
    return [*wheels, frame, box(u(0.4, 0.7), 0.03, 0.03).at(*bar), ball(0.08, 0.14, 0.04).at(*seat)]


@PROGRAMS.register("vessel")
def vessel(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, w, h = u(0.9, 12), u(0.25, 0.45), u(0.1, 0.2)
    hull = sheet(length * w, length, lambda x, y: length * h * (
        (2 * np.abs(x) / (length * w)) ** 2 + np.abs(2 * y / length) ** 3))  # fmt: skip
    return [
        hull,
        rod(0.02 * length, length * u(0.3, 1.0)),
        box(length * w * 0.5, length * 0.3, length * 0.1).at(z=h * 0.5),
    ]


@PROGRAMS.register("vase")
def vase(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h = u(0.15, 0.6)
    r = [0, *(h * np.exp(rng.normal(-1.4, 0.45, 4))), h * u(0.05, 0.25)]
    return [revolve(r, [0, 0, h * 0.3, h * 0.55, h * 0.8, h])]


@PROGRAMS.register("bottle")
def bottle(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h, r, neck = u(0.15, 0.35), u(0.03, 0.06), u(0.01, 0.018)
    shoulder = u(0.5, 0.75)
    return [revolve([0, r, r, neck, neck, 0], [0, 0, h * shoulder, h * (shoulder + 0.12), h, h])]


@PROGRAMS.register("cup")
def cup(rng: Rng) -> list[Part]:
    u = uniform(rng)
    r, h = u(0.03, 0.12), u(0.05, 0.2)
    parts = [revolve([0, r * u(0.6, 1.0), r, r * 0.9, r * 0.55, 0], [0, 0, h, h, 0.01, 0.01])]
    if rng.random() < 0.6:
        parts.append(
            ring(h * 0.3, h * 0.05, np.pi).turn(2, -np.pi / 2).turn(1, np.pi / 2).turn(2, np.pi / 2).at(r, 0, h / 2)
        )
    if rng.random() < 0.3:
        parts.append(tube(np.array([[-r, 0, h * 0.4], [-r * 2, 0, h]]), h * 0.06))  # a spout: pots
        parts.append(ball(r, r, h * 0.2).at(z=h))
    return parts


@PROGRAMS.register("dish")
def dish(rng: Rng) -> list[Part]:
    u = uniform(rng)
    r, h = u(0.08, 0.2), u(0.01, 0.12)
    parts = [revolve([0, r * u(0.4, 0.8), r], [0, 0, h])]
    if rng.random() < 0.4:
        for _ in range(int(rng.integers(1, 8))):  # food
            x, y = rng.normal(0, r * 0.3, 2)
            parts.append(ball(*(np.exp(rng.normal(0, 0.2, 3)) * r * 0.3)).at(x, y, h + r * 0.1))
    return parts


@PROGRAMS.register("cutlery")
def cutlery(rng: Rng) -> list[Part]:
    u = uniform(rng)
    length, w = u(0.12, 0.35), u(0.01, 0.02)
    blade = [ball(w * 1.5, length * 0.15, 0.005), box(w, length * 0.4, 0.003), *(
        box(0.003, length * 0.2, 0.003).at(x) for x in np.linspace(-w, w, 4))]  # fmt: skip
    kind = int(rng.integers(3))
    parts = [box(w, length * 0.6, 0.006)] + [p.at(y=length * 0.4) for p in (blade[:1], blade[1:2], blade[2:])[kind]]
    return [p.turn(0, np.pi / 2) for p in parts] if rng.random() < 0.2 else parts
