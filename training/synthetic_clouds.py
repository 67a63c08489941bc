"""Generated point clouds whose class is the program that made them: furniture, things, buildings, terrain, abstract.

A program draws its proportions at random and returns parts; points are drawn from the parts' surfaces, by area. Sizes
are in metres, z is up, and +y is the front where there is one.

Shape legend: n points, k vertices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from polysense.core.registry import Registry

Points = Float[np.ndarray, "n 3"]
Rng = np.random.Generator


Program = Callable[[Rng], list["Part"]]
PROGRAMS: Registry[Program] = Registry("cloud program")


@dataclass(frozen=True, slots=True)
class Part:
    """A surface: `draw(n, rng)` gives points on it, `area` its share of them."""

    draw: Callable[[int, Rng], Points]
    area: float

    def at(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Part:
        return Part(lambda n, rng: self.draw(n, rng) + np.array([x, y, z]), self.area)

    def turn(self, axis: int, angle: float) -> Part:
        """Turned about a coordinate axis (0 x, 1 y, 2 z) through the origin."""
        a, b = [i for i in range(3) if i != axis]
        matrix = np.eye(3)
        matrix[[a, b], [a, b]], matrix[a, b], matrix[b, a] = np.cos(angle), -np.sin(angle), np.sin(angle)
        return Part(lambda n, rng: self.draw(n, rng) @ matrix.T, self.area)


def box(x: float, y: float, z: float) -> Part:
    """Centred on the origin in x and y, standing on z = 0."""
    faces = np.array([y * z, y * z, x * z, x * z, x * y, x * y])

    def draw(n: int, rng: Rng) -> Points:
        face = rng.choice(6, n, p=faces / faces.sum())
        points = rng.uniform(-0.5, 0.5, (n, 3))
        points[np.arange(n), face // 2] = face % 2 - 0.5
        return (points + np.array([0, 0, 0.5])) * [x, y, z]

    return Part(draw, float(faces.sum()))


def revolve(radius: list[float], height: list[float], turn: float = 2 * np.pi) -> Part:
    """The polyline (radius, height) turned about z."""
    r, h = np.array(radius), np.array(height)
    length = np.hypot(np.diff(r), np.diff(h))
    areas = length * (r[1:] + r[:-1]) / 2 + 1e-9

    def draw(n: int, rng: Rng) -> Points:
        i = rng.choice(len(areas), n, p=areas / areas.sum())
        a, b = r[i], r[i + 1]
        u = rng.random(n)
        spread = b * b - a * a  # even on a cone's surface: the squared radius is uniform
        flat = np.abs(b - a) < 1e-9
        t = np.where(flat, u, (np.sqrt(np.maximum(a * a + u * spread, 0)) - a) / np.where(flat, 1, b - a))
        angle, radius = rng.uniform(0, turn, n), a + t * (b - a)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), h[i] + t * (h[i + 1] - h[i])], 1)

    return Part(draw, float(areas.sum() * turn))


def rod(radius: float, height: float, top: float | None = None) -> Part:
    """A cylinder or cone frustum with caps, standing on z = 0."""
    top = radius if top is None else top
    return revolve([0, radius, top, 0], [0, 0, height, height])


def ball(x: float, y: float, z: float) -> Part:
    """An ellipsoid of these half axes, centred on the origin."""

    def draw(n: int, rng: Rng) -> Points:
        points = rng.normal(size=(n, 3))
        return points / np.linalg.norm(points, axis=1, keepdims=True) * [x, y, z]

    return Part(draw, 4 / 3 * np.pi * (x * y + y * z + x * z))


def tube(path: Float[np.ndarray, "k 3"], radius: float) -> Part:
    """A round tube along a polyline."""
    length = np.linalg.norm(np.diff(path, axis=0), axis=1) + 1e-9

    def draw(n: int, rng: Rng) -> Points:
        i = rng.choice(len(length), n, p=length / length.sum())
        axis = (path[i + 1] - path[i]) / length[i, None]
        side = rng.normal(size=(n, 3))
        side -= (side * axis).sum(1, keepdims=True) * axis
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        return path[i] + rng.random((n, 1)) * (path[i + 1] - path[i]) + radius * side

    return Part(draw, float(length.sum() * 2 * np.pi * radius))


def ring(radius: float, thick: float, turn: float = 2 * np.pi) -> Part:
    """A torus, or a part of one, about z."""
    angle = np.linspace(0, turn, 25)
    return tube(np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], 1), thick)


def prism(corners: Float[np.ndarray, "k 2"], height: float) -> Part:
    """A polygon, star-shaped about its mean, as floor and ceiling of upright walls."""
    ends = np.roll(corners, -1, 0)
    middle = corners.mean(0)
    walls = np.linalg.norm(ends - corners, axis=1) * height
    a, b = corners - middle, ends - middle
    flat = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])  # twice a triangle: floor and ceiling
    areas = np.concatenate([walls, flat]) + 1e-9

    def draw(n: int, rng: Rng) -> Points:
        i = rng.choice(len(areas), n, p=areas / areas.sum())
        edge, wall = i % len(corners), i < len(corners)
        u = rng.random((n, 1))
        on_edge = corners[edge] * (1 - u) + ends[edge] * u
        shrink = np.where(wall[:, None], 1.0, np.sqrt(rng.random((n, 1))))
        z = np.where(wall, rng.random(n), rng.integers(2, size=n)) * height
        return np.column_stack([middle + (on_edge - middle) * shrink, z])

    return Part(draw, float(areas.sum()))


def sheet(x: float, y: float, bump: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Part:
    """A rectangle of heights `bump(x, y)`."""

    def draw(n: int, rng: Rng) -> Points:
        u, v = rng.uniform(-0.5, 0.5, (2, n)) * [[x], [y]]
        return np.stack([u, v, bump(u, v)], 1)

    return Part(draw, x * y)


def leaves(count: int, size: float, place: Callable[[int, Rng], Points], rng: Rng) -> Part:
    """Small discs in random directions at places."""
    centers, normals = place(count, rng), rng.normal(size=(count, 3))

    def draw(n: int, rng: Rng) -> Points:
        i = rng.integers(count, size=n)
        offset = rng.normal(size=(n, 3))
        normal = normals[i] / np.linalg.norm(normals[i], axis=1, keepdims=True)
        offset -= (offset * normal).sum(1, keepdims=True) * normal
        return centers[i] + offset / np.linalg.norm(offset, axis=1, keepdims=True) * size * rng.random((n, 1)) ** 0.5

    return Part(draw, count * np.pi * size**2)


def sample(parts: list[Part], n: int, rng: Rng) -> Points:
    """n points of the parts, by area; every part has some."""
    areas = np.array([part.area for part in parts])
    shares = areas / areas.sum() + 0.1 / len(parts)
    counts = rng.multinomial(n, shares / shares.sum())
    return np.concatenate([part.draw(int(count), rng) for part, count in zip(parts, counts, strict=True) if count])


def synthetic_cloud(rng: Rng, n: int = 2048) -> tuple[Points, int]:
    """One cloud (n, 3) and the number of its program in `PROGRAMS`."""
    # They register themselves; they import this file, so not at its top.
    from polysense.training import cloud_abstract, cloud_buildings, cloud_furniture, cloud_things  # noqa: F401

    names = list(PROGRAMS)
    number = int(rng.integers(len(names)))
    return sample(PROGRAMS[names[number]](rng), n, rng), number


def corners(count: int, radius: float, wobble: float, rng: Rng) -> Float[np.ndarray, "k 2"]:
    """A polygon about the origin; `wobble` makes a star or a stone of it."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    r = radius * np.exp(rng.normal(0, wobble, count))
    return np.stack([r * np.cos(angle), r * np.sin(angle)], 1)


def four(part: Part, x: float, y: float) -> list[Part]:
    """A part at the four corners (+-x, +-y)."""
    return [part.at(sx * x, sy * y) for sx in (-1, 1) for sy in (-1, 1)]


U = Callable[..., float]


def uniform(rng: Rng) -> U:
    """A shorthand: `u(a, b)` draws one number."""
    return partial(rng.uniform)
