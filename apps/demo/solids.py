"""A point cloud as a solid that a browser turns: a small octahedron for each point, in a .glb file.

Binary glTF 2.0 (Khronos Group): a header, a piece of JSON that says what the numbers are, the numbers. A browser draws
points of glTF one pixel wide, which nobody sees; hence solids.

Shape legend: n points, k points that are drawn, v vertices, t triangles.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from polysense.apps.panels import class_colours

MOST = 4000  # points drawn: about a megabyte
CORNERS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32)
SIDES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]], np.uint32)
FLOATS, BYTES, INTEGERS = 5126, 5121, 5125  # glTF's numbers for types
VERTICES, INDICES = 34962, 34963  # and for what a piece of the numbers is


def write_solid(path: Path, source: Any, classes: Int[np.ndarray, " n"] | None = None) -> Path:
    """Draws a cloud.

    Args:
        path: The .glb to write.
        source: What `read_cloud` takes.
        classes: Class of every point, whose colours are those of the legend; None: the cloud's own colours, or its
            heights.

    Returns:
        The path.

    Raises:
        InputError: The source is no cloud that can be read.
    """
    from matplotlib import colormaps

    from polysense.data.point_cloud import read_cloud

    cloud = read_cloud(source)
    chosen = np.random.default_rng(0).permutation(len(cloud.xyz))[:MOST]
    xyz = cloud.xyz[chosen]
    if classes is not None and len(classes) == len(cloud.xyz):
        colours = class_colours(classes[chosen])
    elif "rgb" in cloud.features:
        colours = cloud.features["rgb"][chosen]
    else:
        low, high = xyz[:, 2].min(), xyz[:, 2].max()
        colours = colormaps["viridis"]((xyz[:, 2] - low) / max(high - low, 1e-12))[:, :3]
    path.write_bytes(solid(xyz, colours))
    return path


def solid(xyz: Float[np.ndarray, "k 3"], colours: Float[np.ndarray, "k 3"]) -> bytes:
    """The file of an octahedron around each point, in its colour (0 to 1); z of the points is up.

    The cloud is moved to the origin and made of size 1: browsers compute in single precision, survey coordinates are
    large.
    """
    low, high = xyz.min(0), xyz.max(0)
    points = (xyz - (low + high) / 2) / max(float((high - low).max()), 1e-12)
    points = (points[:, [0, 2, 1]] * [1, 1, -1]).astype(np.float32)  # y is up in glTF
    vertices = (points[:, None] + radius(points) * CORNERS).reshape(-1, 3)
    normals = np.tile(CORNERS, (len(points), 1))
    triangles = (SIDES + 6 * np.arange(len(points), dtype=np.uint32)[:, None, None]).reshape(-1)
    # glTF's colours are light, ours are what a screen is told: a gamma lies between them.
    light = np.clip(np.asarray(colours, np.float64), 0, 1) ** 2.2
    paint = np.full((len(vertices), 4), 255, np.uint8)
    paint[:, :3] = np.repeat(np.rint(255 * light), len(CORNERS), 0)
    return _glb(vertices, normals, paint, triangles)


def radius(points: Float[np.ndarray, "k 3"]) -> float:
    """Of the solids: a good part of the way to the next point, within what can be seen and does not hide the rest."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return 0.05
    near = cKDTree(points).query(points, 2)[0][:, 1]
    return float(np.clip(0.6 * np.median(near), 0.004, 0.03))


def _glb(
    vertices: Float[np.ndarray, "v 3"],
    normals: Float[np.ndarray, "v 3"],
    paint: Int[np.ndarray, "v 4"],
    triangles: Int[np.ndarray, " 3*t"],
) -> bytes:
    parts = [(vertices, "VEC3", FLOATS), (normals, "VEC3", FLOATS), (paint, "VEC4", BYTES),
             (triangles, "SCALAR", INTEGERS)]  # fmt: skip
    body, views, accessors = b"", [], []
    for number, (values, shape, kind) in enumerate(parts):
        data = values.tobytes()  # of whole four bytes each
        target = INDICES if shape == "SCALAR" else VERTICES
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(data), "target": target})
        accessors.append({"bufferView": number, "componentType": kind, "count": len(values), "type": shape})
        body += data
    accessors[0] |= {"min": vertices.min(0).tolist(), "max": vertices.max(0).tolist()}
    accessors[2]["normalized"] = True
    about = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "indices": 3,
                                    "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}],
        "buffers": [{"byteLength": len(body)}], "bufferViews": views, "accessors": accessors,
    }  # fmt: skip
    head = json.dumps(about).encode()
    head += b" " * (-len(head) % 4)
    size = 12 + 8 + len(head) + 8 + len(body)
    return (struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<I4s", len(head), b"JSON") + head
            + struct.pack("<I4s", len(body), b"BIN\0") + body)  # fmt: skip
