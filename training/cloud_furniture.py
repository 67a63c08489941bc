"""Programs of `synthetic_clouds`: furniture and household appliances.

Each gives the parts of one thing, its proportions and variants at random.
"""

from __future__ import annotations

import numpy as np

from polysense.training.synthetic_clouds import PROGRAMS, Part, Rng, ball, box, four, revolve, ring, rod, tube, uniform


@PROGRAMS.register("chair")
def chair(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h, back, thick = u(0.35, 0.6), u(0.35, 0.6), u(0.35, 0.6), u(0.25, 0.7), u(0.02, 0.1)
    parts = [box(w, d, thick).at(z=h)]
    if rng.random() < 0.7:
        leg = rod(u(0.01, 0.03), h) if rng.random() < 0.5 else box(0.04, 0.04, h)
        parts += four(leg, w / 2.3, d / 2.3)
    else:  # an office chair
        parts += [rod(0.03, h), *(box(0.04, w * 0.9, 0.04).turn(2, k * np.pi / 5) for k in range(5))]
    lean = -u(0, 0.3)
    if rng.random() < 0.5:
        parts.append(box(w, 0.03, back).turn(0, lean).at(y=-d / 2, z=h + thick))
    else:
        slats = int(rng.integers(2, 7))
        parts += [box(0.03, 0.03, back).turn(0, lean).at(x, -d / 2, h) for x in np.linspace(-w / 2.2, w / 2.2, slats)]
        parts.append(box(w, 0.03, back / 4).at(y=-d / 2 + back * lean, z=h + back))
    if rng.random() < 0.35:
        parts += [box(0.04, d, 0.04).at(s * w / 2, 0, h + 0.2) for s in (-1, 1)]
    return parts


@PROGRAMS.register("stool")
def stool(rng: Rng) -> list[Part]:
    u = uniform(rng)
    r, h = u(0.14, 0.25), u(0.3, 0.85)
    legs = four(rod(0.015, h), r * 0.6, r * 0.6) if rng.random() < 0.5 else [rod(0.03, h), rod(r, 0.02)]
    return [rod(r, u(0.02, 0.1)).at(z=h), *legs]


@PROGRAMS.register("table")
def table(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h, thick = u(0.5, 2.2), u(0.5, 1.1), u(0.35, 0.85), u(0.015, 0.07)
    if rng.random() < 0.35:
        r = d / 2
        foot = [rod(u(0.03, 0.08), h), rod(r * u(0.3, 0.8), 0.03)]
        return [rod(r, thick).at(z=h), *(foot if rng.random() < 0.6 else four(rod(0.02, h), r / 2, r / 2))]
    parts = [box(w, d, thick).at(z=h)]
    if rng.random() < 0.75:
        side = u(0.03, 0.08)
        parts += four(box(side, side, h), w / 2 - side, d / 2 - side)
    else:
        parts += [box(0.04, d * 0.9, h).at(s * w / 2.3) for s in (-1, 1)]
    if rng.random() < 0.4:  # a desk's drawers, or a shelf
        parts.append(box(w * 0.3, d * 0.9, h * 0.8).at(w * 0.3, 0, h * 0.2) if rng.random() < 0.5
                     else box(w * 0.85, d * 0.8, 0.02).at(z=h * 0.3))  # fmt: skip
    return parts


@PROGRAMS.register("bed")
def bed(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h, thick = u(0.8, 2.0), u(1.8, 2.2), u(0.1, 0.4), u(0.12, 0.3)
    parts = [box(w, d, thick).at(z=h), box(w * 1.05, 0.05, h + thick + u(0.1, 0.8)).at(y=-d / 2)]
    parts += four(box(0.06, 0.06, h), w / 2.2, d / 2.1)
    if rng.random() < 0.5:
        parts.append(box(w * 1.05, 0.05, h + thick + u(0, 0.4)).at(y=d / 2))
    pillows = [0.0] if w < 1.2 else [-w / 4, w / 4]
    parts += [ball(w / len(pillows) / 2.6, 0.2, 0.08).at(x, -d / 2.6, h + thick + 0.05) for x in pillows]
    return parts


@PROGRAMS.register("sofa")
def sofa(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h, arm = u(0.8, 2.6), u(0.7, 1.0), u(0.3, 0.45), u(0.1, 0.25)
    seats = max(round(w / 0.75), 1)
    parts = [box(w, d, h * 0.6).at(z=0.08), box(w, 0.2, h + u(0.25, 0.5)).at(y=-d / 2, z=0.08)]
    parts += [box(arm, d, h + u(0.1, 0.25)).at(s * w / 2, 0, 0.08) for s in (-1, 1)]
    parts += [box(w / seats * 0.95, d * 0.75, 0.15).at(-w / 2 + (i + 0.5) * w / seats, 0.05, h * 0.75)
              for i in range(seats)]  # fmt: skip
    if rng.random() < 0.25:
        parts.append(box(0.8, d, h).at(w / 2 - 0.4, d * 0.8))
    return parts


@PROGRAMS.register("cabinet")
def cabinet(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h = u(0.4, 1.8), u(0.3, 0.65), u(0.5, 2.2)
    foot = u(0, 0.12)
    parts = [box(w, d, h).at(z=foot), *four(box(0.04, 0.04, foot + 0.01), w / 2.2, d / 2.2)]
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    for i in range(rows):  # doors or drawers stand out, each with its knob
        for j in range(columns):
            x, z = -w / 2 + (j + 0.5) * w / columns, foot + (i + 0.5) * h / rows
            parts.append(box(w / columns * 0.92, 0.02, h / rows * 0.92).at(x, d / 2, z - h / rows * 0.46))
            parts.append(ball(0.02, 0.02, 0.02).at(x + (0 if rows > columns else w / columns * 0.35), d / 2 + 0.03, z))
    return parts


@PROGRAMS.register("bookcase")
def bookcase(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h, t = u(0.4, 1.6), u(0.22, 0.45), u(0.8, 2.3), 0.025
    shelves = int(rng.integers(3, 8))
    parts = [box(w, d, t).at(z=z) for z in np.linspace(0, h, shelves)]
    parts += [box(t, d, h).at(s * w / 2) for s in (-1, 1)]
    if rng.random() < 0.6:
        parts.append(box(w, 0.01, h).at(y=-d / 2))
    for z in np.linspace(0, h, shelves)[:-1]:  # books on some of them
        if rng.random() < 0.4:
            parts.append(box(w * u(0.2, 0.8), d * 0.6, h / shelves * 0.6).at(z=z + t))
    return parts


@PROGRAMS.register("standing lamp")
def standing_lamp(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h, r, shade = u(0.3, 1.8), u(0.08, 0.25), u(0.12, 0.35)
    top = r * u(0.4, 1.0)
    return [rod(r * u(0.5, 1), u(0.015, 0.05)), rod(u(0.008, 0.03), h), revolve([r, top], [h, h + shade])]


@PROGRAMS.register("hanging lamp")
def hanging_lamp(rng: Rng) -> list[Part]:
    u = uniform(rng)
    drop, arms = u(0.2, 1.0), int(rng.choice([0, 0, 3, 4, 5, 6, 8]))
    parts = [rod(0.01, drop), rod(0.05, 0.03).at(z=drop)]
    shade = rng.choice(3)
    r = u(0.1, 0.3) * (0.4 if arms else 1)
    lamp = [ball(r, r, r), revolve([r, r * 0.2], [-r, r]), revolve([0, r * 0.7, r], [r * 0.7, r * 0.5, -r * 0.3])][
        shade
    ]
    if not arms:
        return [*parts, lamp]
    reach = u(0.25, 0.5)
    for k in range(arms):
        angle = 2 * np.pi * k / arms
        x, y = reach * np.cos(angle), reach * np.sin(angle)
        parts += [tube(np.array([[0, 0, 0.0], [x / 2, y / 2, -0.1], [x, y, 0.05]]), 0.012), lamp.at(x, y, 0.1)]
    return parts


@PROGRAMS.register("desk lamp")
def desk_lamp(rng: Rng) -> list[Part]:
    u = uniform(rng)
    a, b = u(0.2, 0.4), u(0.15, 0.4)
    path = np.array([[0, 0, 0], [0, -a * 0.4, a], [0, b * 0.8 - a * 0.4, a + b * u(-0.1, 0.5)]])
    return [rod(u(0.06, 0.12), 0.02), tube(path, 0.012), revolve([0.02, u(0.05, 0.1)], [0.06, -0.06]).at(*path[2])]


@PROGRAMS.register("toilet")
def toilet(rng: Rng) -> list[Part]:
    u = uniform(rng)
    h, w = u(0.36, 0.45), u(0.16, 0.22)
    bowl = revolve([w * 0.5, w * 0.6, w, w * 0.9, 0], [0, h * 0.5, h, h, h * 0.4])
    parts = [bowl, rod(w * 0.6, h * 0.4), box(w * 1.2, w * 1.5, h * 0.5).at(y=-w)]
    if rng.random() < 0.7:
        parts.append(box(w * 2.1, 0.16, u(0.3, 0.4)).at(0, -w * 1.5, h))
    if rng.random() < 0.4:
        parts.append(box(w * 1.9, 0.03, 0.4).turn(0, -0.2).at(0, -w, h))
    return parts


@PROGRAMS.register("basin")
def basin(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h = u(0.4, 1.7), u(0.4, 0.75), u(0.15, 0.55)
    if rng.random() < 0.5:  # an open box: a bath, a shower tray, a sink
        walls = [box(0.05, d, h).at(s * w / 2) for s in (-1, 1)] + [box(w, 0.05, h).at(y=s * d / 2) for s in (-1, 1)]
        parts = [*walls, box(w, d, 0.04)]
    else:
        parts = [revolve([0, d * 0.35, d * 0.5, d * 0.55], [0, 0.02, h * 0.8, h])]
    if rng.random() < 0.5:
        parts.append(rod(u(0.06, 0.12), 0.7).at(z=-0.7))
    return [*parts, tube(np.array([[0, -d / 2, h], [0, -d / 2, h + 0.2], [0, -d / 4, h + 0.18]]), 0.015)]


@PROGRAMS.register("screen")
def screen(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, ratio, h = u(0.3, 1.5), u(0.55, 0.8), u(0.03, 0.25)
    deep = u(0.2, 0.5) * w if rng.random() < 0.25 else u(0.02, 0.08)
    return [box(w, deep, w * ratio).at(z=h), box(w * 0.15, 0.04, h * 1.5), box(w * u(0.3, 0.6), w * 0.25, 0.02)]


@PROGRAMS.register("laptop")
def laptop(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d = u(0.28, 0.42), u(0.2, 0.28)
    return [box(w, d, 0.02), box(w, 0.012, d).turn(0, -u(-0.3, 0.6)).at(y=-d / 2)]


@PROGRAMS.register("socket")
def socket(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, h = u(0.06, 0.16), u(0.06, 0.12)
    parts = [box(w, 0.012, h), box(w * 0.7, 0.02, h * 0.7).at(z=h * 0.15)]
    for x in np.linspace(-w / 4, w / 4, int(rng.integers(1, 4))):
        parts.append(rod(h * u(0.05, 0.25), u(0.01, 0.04)).turn(0, -np.pi / 2).at(x, 0, h / 2))
    return parts


@PROGRAMS.register("plug")
def plug(rng: Rng) -> list[Part]:
    u = uniform(rng)
    pins = int(rng.integers(2, 4))
    parts = [rod(0.02, 0.03, u(0.008, 0.02))] + [
        rod(0.003, 0.02).at(x, 0, -0.02) for x in np.linspace(-0.01, 0.01, pins)
    ]
    cable = np.cumsum(np.vstack([[0, 0, 0.03], rng.normal(0, 0.03, (7, 3))]), 0)
    parts += [tube(cable, 0.004)] if rng.random() < 0.6 else []
    return [p.turn(0, u(0, 3)) for p in parts]


@PROGRAMS.register("loudspeaker")
def loudspeaker(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h = u(0.15, 0.4), u(0.15, 0.4), u(0.25, 1.2)
    cones = int(rng.integers(1, 4))
    parts = [box(w, d, h)]
    for k in range(cones):
        r = w * u(0.2, 0.42)
        parts.append(
            revolve([r, r * 0.3, 0], [0.02, -r * 0.3, -r * 0.2]).turn(0, -np.pi / 2).at(0, d / 2, h * (k + 0.5) / cones)
        )
    return parts


@PROGRAMS.register("machine")
def machine(rng: Rng) -> list[Part]:
    """A washing machine, an oven, a cooker: a box with a round or square door, knobs and plates."""
    u = uniform(rng)
    w, d, h = u(0.4, 0.7), u(0.4, 0.7), u(0.3, 1.0)
    parts = [box(w, d, h)]
    if rng.random() < 0.5:
        parts.append(ring(w * 0.3, 0.03).turn(0, np.pi / 2).at(0, d / 2, h * 0.45))
    else:
        parts += [
            box(w * 0.8, 0.03, h * 0.5).at(0, d / 2, h * 0.15),
            box(w * 0.7, 0.04, 0.03).at(0, d / 2 + 0.04, h * 0.7),
        ]
    parts += [rod(0.02, 0.03).turn(0, -np.pi / 2).at(x, d / 2, h * 0.9) for x in np.linspace(-w * 0.4, w * 0.4, 5)]
    if rng.random() < 0.4:
        parts += four(rod(w * 0.16, 0.02).at(z=h), w * 0.22, d * 0.22)
    return parts


@PROGRAMS.register("hood")
def hood(rng: Rng) -> list[Part]:
    u = uniform(rng)
    w, d, h = u(0.5, 0.9), u(0.4, 0.6), u(0.1, 0.4)
    base = revolve([w * 0.7, w * 0.18], [0, h]).turn(2, np.pi / 4)
    return [base if rng.random() < 0.3 else box(w, d, h * 0.5), box(w * 0.3, w * 0.3, u(0.4, 0.9)).at(z=h * 0.5)]
