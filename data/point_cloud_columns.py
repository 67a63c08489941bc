"""Columns of numbers -> named features: by name where the file names them, else by what they look like.

Shape legend: n points, c columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

COORDINATES = (("x", "y", "z"), ("east", "north", "height"))
COLOURS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))
INTENSITIES = ("intensity", "i", "scalar_intensity", "reflectance", "reflectivity", "remission")


def features_of_names(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """Coordinates and features of named columns (n,); None where no three of them are coordinates."""
    lower = {name.strip().lower(): values for name, values in columns.items()}
    xyz = _first(lower, COORDINATES)
    if xyz is None:
        return None
    features = {}
    if (rgb := _first(lower, COLOURS)) is not None:
        features["rgb"] = scale_colours(rgb)
    if (intensity := next((lower[name] for name in INTENSITIES if name in lower), None)) is not None:
        features["intensity"] = scale_intensity(intensity[:, None])
    if (normals := _first(lower, NORMALS)) is not None:
        features["normals"] = normals.astype(np.float32)
    return xyz.astype(np.float64, copy=False), features


def _first(columns: Mapping[str, np.ndarray], choices: Sequence[Sequence[str]]) -> np.ndarray | None:
    for names in choices:
        if all(name in columns for name in names):
            return np.stack([columns[name] for name in names], 1)
    return None


def features_of_columns(columns: Float[np.ndarray, "n c"], name: str) -> dict[str, np.ndarray]:
    """Features of the columns that follow x, y, z in a file that does not name them.

    1 or 2 columns: intensity first. From 3: normals or colours, then the other of the two where there are 6. 4: also
    intensity and colours. A label is left out, and so is what looks like nothing known.

    Args:
        columns: All columns after the coordinates.
        name: The file's name: `.pts` says intensity, red, green, blue.
    """
    c = columns.shape[1]
    if c == 0 or len(columns) == 0:
        return {}
    if c < 3:
        return {"intensity": scale_intensity(columns[:, :1])}
    first, second = columns[:, :3], columns[:, 3:6]
    if _are_normals(first):
        features = {"normals": first.astype(np.float32)}
        return features | ({"rgb": scale_colours(second)} if c >= 6 and _are_colours(second) else {})
    if c in (4, 5) and _are_colours(columns[:, 1:4]):
        labelled = _are_colours(first) and _looks_like_label(columns[:, 3])  # red, green, blue, label
        if name.lower().endswith(".pts") or not labelled:
            return {"intensity": scale_intensity(columns[:, :1]), "rgb": scale_colours(columns[:, 1:4])}
    if _are_colours(first):
        features = {"rgb": scale_colours(first)}
        return features | ({"normals": second.astype(np.float32)} if c >= 6 and _are_normals(second) else {})
    return {}


def _probe(values: np.ndarray) -> np.ndarray:
    """Some rows from the whole length: enough to tell what a column is, even of ten million points."""
    return values[:: max(len(values) // 10_000, 1)].astype(np.float64)


def _are_normals(values: Float[np.ndarray, "n 3"]) -> bool:
    """Unit vectors (or zeros, for points without one)."""
    length = np.linalg.norm(_probe(values), axis=1)
    unit = np.abs(length - 1) < 0.02
    return bool(unit.any() and (unit | (length < 1e-6)).all())


def _are_colours(values: Float[np.ndarray, "n 3"]) -> bool:
    """All in 0..1, or whole numbers in 0..255 or 0..65535."""
    probe = _probe(values)
    low, high = probe.min(initial=0), probe.max(initial=0)
    return bool(low >= 0 and (high <= 1 or (high <= 65_535 and (probe == np.round(probe)).all())))


def _looks_like_label(values: Float[np.ndarray, " n"]) -> bool:
    """A few small whole numbers, where a colour would take many values."""
    probe = _probe(values)
    return bool((probe == np.round(probe)).all() and len(np.unique(probe)) <= min(40, len(probe) // 2))


def scale_colours(values: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """To 0..1, from bytes, 16-bit numbers or 0..1: what the largest value says."""
    if values.dtype == np.uint8:
        return values.astype(np.float32) / 255
    values = values.astype(np.float32)
    high = np.nanmax(values, initial=0)
    return np.clip(values / (1 if high <= 1 else 255 if high <= 255 else 65_535), 0, 1)


def scale_intensity(values: np.ndarray) -> Float[np.ndarray, "n 1"]:
    """To 0..1, from 0..1, bytes or 16-bit numbers; other ranges (-2048..2047 in some `.pts`) by their extremes."""
    values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    if low < 0 or high > 65_535:
        return (values - low) / max(high - low, 1e-12)
    return values / (1 if high <= 1 else 255 if high <= 255 else 65_535)
