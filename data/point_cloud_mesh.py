"""Triangle meshes as point clouds: obj, off, stl and ply faces, and points drawn from a surface.

Shape legend: v vertices, t triangles, n points.
"""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from polysense.core.errors import InputError
from polysense.data.limits import check

AGAIN = "export the mesh again"


class Mesh(NamedTuple):
    """Vertices and the triangles between them (none: the vertices are the cloud)."""

    vertices: Float[np.ndarray, "v 3"]
    triangles: Int[np.ndarray, "t 3"]


def import_open3d() -> ModuleType:
    """open3d, which loads only where the system has libusb: the `libusb-package` wheel brings it."""
    import libusb_package

    path = libusb_package.get_library_path()
    if path is not None:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    import open3d

    return open3d


def sample_surface(mesh: Mesh, count: int, seed: int, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`count` points drawn evenly by area, with the normals of their triangles; the vertices where there is no area.

    Raises:
        InputError: A triangle names a vertex that is not there.
    """
    vertices, triangles = mesh
    if len(triangles) and (triangles.min() < 0 or triangles.max() >= len(vertices)):
        raise InputError(name, "a face names a vertex that is not there (truncated?)", AGAIN)
    triangles = triangles[np.isfinite(vertices).all(1)[triangles].all(1)] if len(triangles) else triangles
    if len(triangles) == 0:
        return vertices, {}
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    if not np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() > 0:
        return vertices, {}
    o3d = import_open3d()
    origin = a[0]  # far from the origin, areas would lose digits
    points = o3d.utility.Vector3dVector(np.nan_to_num(vertices - origin))
    surface = o3d.geometry.TriangleMesh(points, o3d.utility.Vector3iVector(triangles.astype(np.int32)))
    o3d.utility.random.seed(seed)
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        cloud = surface.sample_points_uniformly(count, use_triangle_normal=True)
    return np.asarray(cloud.points) + origin, {"normals": np.asarray(cloud.normals, np.float32)}


def decode_with_open3d(data: bytes, ending: str, name: str) -> Mesh:
    """stl, and ply with faces."""
    o3d = import_open3d()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mesh{ending}"
        path.write_bytes(data)
        with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
            mesh = o3d.io.read_triangle_mesh(str(path))
    vertices, triangles = np.array(mesh.vertices), np.array(mesh.triangles)
    if len(vertices) == 0 or len(triangles) == 0:
        raise InputError(name, f"the {ending[1:].upper()} mesh is damaged or truncated", AGAIN)
    return Mesh(vertices, triangles)


def decode_stl(data: bytes, name: str) -> Mesh:
    binary = len(data) >= 84 and not (data[:5] == b"solid" and b"facet" in data[:4096])
    if binary and len(data) != 84 + 50 * int.from_bytes(data[80:84], "little"):
        raise InputError(name, "the STL file is truncated or damaged", AGAIN)
    check("points", 3 * (len(data) // 50 if binary else data.count(b"facet normal")), name)
    if not binary and b"endsolid" not in data[-4096:]:
        raise InputError(name, "the STL file is truncated: it has no end", AGAIN)
    return decode_with_open3d(data, ".stl", name)


def decode_obj(data: bytes, name: str) -> Mesh:
    """Vertices and faces of an OBJ file. open3d reads nothing where the material file is missing or faces are."""
    check("points", data.count(b"\nv "), name)
    vertices: list[list[str]] = []
    faces: list[list[int]] = []
    try:
        for line in data.decode("latin-1").splitlines():
            if line.startswith(("v ", "v\t")):
                vertices.append(line.split()[1:4])
            elif line.startswith(("f ", "f\t")):
                corners = [int(corner.split("/", 1)[0]) for corner in line.split()[1:]]
                faces.append([i - 1 if i > 0 else len(vertices) + i for i in corners])  # negative: from the last one
        points = np.array(vertices, np.float64).reshape(-1, 3)
    except ValueError as error:
        raise InputError(name, "a line of the OBJ file is no vertex or face", AGAIN) from error
    if len(points) == 0:
        raise InputError(name, "the OBJ file holds no vertices", AGAIN)
    return Mesh(points, _fans(faces))


def decode_off(data: bytes, name: str) -> Mesh:
    """OFF, also as ModelNet has it (counts glued to the first word), which open3d does not read."""
    text = re.sub(r"#[^\n]*", "", data.decode("latin-1"))
    match = re.match(r"\s*[A-Za-z0-9]*?OFF\s*(\d+)\s+(\d+)(?:[ \t]+\d+)?[ \t]*\r?\n", text)
    if match is None:
        raise InputError(name, "the OFF file has no counts of vertices and faces", AGAIN)
    v, f = int(match[1]), int(match[2])
    check("points", v, name)
    lines = [line.split() for line in text[match.end() :].splitlines() if line.strip()]
    if len(lines) < v + f:
        raise InputError(name, f"the OFF file is truncated: {len(lines)} of {v + f} lines", AGAIN)
    try:
        vertices = np.array([line[:3] for line in lines[:v]], np.float64).reshape(-1, 3)
        faces = [[int(i) for i in line[1 : 1 + int(line[0])]] for line in lines[v : v + f]]
    except ValueError as error:
        raise InputError(name, "a line of the OFF file is no vertex or face", AGAIN) from error
    return Mesh(vertices, _fans(faces))


def _fans(faces: Iterable[list[int]]) -> Int[np.ndarray, "t 3"]:
    """Polygons -> triangles around their first corner."""
    triangles = [(face[0], face[i], face[i + 1]) for face in faces for i in range(1, len(face) - 1)]
    return np.array(triangles, np.int64).reshape(-1, 3)
