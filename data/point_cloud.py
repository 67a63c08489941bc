"""Point cloud reader: files, arrays and open3d objects -> coordinates and per-point features.

Shape legend: n points, k channels of a feature, c columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.data.limits import check_file
from polysense.data.point_cloud_columns import features_of_columns, scale_colours, scale_intensity
from polysense.data.point_cloud_files import decode
from polysense.data.point_cloud_mesh import Mesh, import_open3d, sample_surface

__all__ = ["CLOUD_ENDINGS", "Cloud", "import_open3d", "read_cloud", "read_clouds_all"]

CLOUD_ENDINGS = (".ply", ".pcd", ".xyz", ".xyzn", ".xyzrgb", ".pts", ".asc", ".txt", ".off", ".obj", ".stl", ".las",
                 ".laz", ".npy", ".npz", ".bin")  # fmt: skip
SURFACE_POINTS = 20_000  # sampled from a triangle mesh
FARTHEST = 1e100  # of a coordinate, in any unit; squares of what is beyond overflow


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points in the file's own unit.

    Attributes:
        xyz: Finite coordinates below `FARTHEST`, float64: survey coordinates of 5,000,000 m keep their millimetres.
        features: float32 (n, k) by name: "rgb" (k = 3, 0 to 1), "intensity" (k = 1, 0 to 1), "normals" (k = 3).
    """

    xyz: Float[np.ndarray, "n 3"]
    features: dict[str, np.ndarray] = field(default_factory=dict)


def read_cloud(source: Any, *, sample: int = SURFACE_POINTS, seed: int = 0) -> Cloud:
    """Reads one point cloud.

    Args:
        source: A path (ply, pcd, xyz / pts / txt / csv, off, obj, stl, las, laz, npy, npz, KITTI bin), the bytes of
            such a file, an array or tensor (n, 3 or more columns), an open3d PointCloud or TriangleMesh, or a `Cloud`.
        sample: Points drawn from the surface of a triangle mesh, by area. Meshes without faces give their vertices.
        seed: Of that drawing.

    Returns:
        The cloud without points that are not finite.

    Raises:
        InputError: The file is missing, unreadable, truncated, empty or not a point cloud.
    """
    name = "<memory>"
    if isinstance(source, Cloud):
        return _finite(source, name)
    if isinstance(source, np.ndarray | torch.Tensor):
        found: Cloud | Mesh = from_array(_to_numpy(source), name)
    elif type(source).__module__.startswith("open3d"):
        found = _from_open3d(source, name)
    elif isinstance(source, bytes | bytearray | memoryview):
        found = _wrap(decode(bytes(source), "", name), name)
    elif isinstance(source, str | Path):
        name = str(source)
        found = _wrap(decode(_load(Path(source)), Path(source).name, name), name)
    else:
        fix = "give a path, bytes, an array (n, 3), or an open3d cloud or mesh"
        raise InputError(name, f"a {type(source).__name__} is no point cloud", fix)
    if isinstance(found, Mesh):
        found = Cloud(*sample_surface(found, sample, seed, name))
    return _finite(found, name)


def read_clouds_all(source: Any) -> list[Cloud]:
    """Reads every cloud of a source: an array (clouds, n, 3 or more) in npy, npz or h5, or in memory; else the one.

    Raises:
        InputError: As `read_cloud`.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        array, name = _to_numpy(source), "<memory>"
    elif isinstance(source, str | Path) and Path(source).suffix.lower() in (".npy", ".npz", ".h5", ".hdf5"):
        name = str(source)
        found = decode(_load(Path(source)), Path(source).name, name)
        if not isinstance(found, np.ndarray):
            return [read_cloud(source)]
        array = found
    else:
        return [read_cloud(source)]
    if array.ndim == 3:
        return [_finite(from_array(cloud, f"{name}#{i}"), f"{name}#{i}") for i, cloud in enumerate(array)]
    return [_finite(from_array(array, name), name)]


def from_array(array: np.ndarray, name: str) -> Cloud:
    """Splits an array (n, c): coordinates, then the features that its other columns look like."""
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        many = " (several clouds? `read_clouds_all` reads them)" if array.ndim == 3 else ""
        shape = f"{array.dtype} array of shape {array.shape}"
        raise InputError(name, f"a {shape} is no point cloud{many}", "give numbers of shape (points, 3 or more)")
    xyz = array[:, :3].astype(np.float64, copy=False)
    return Cloud(xyz, features_of_columns(array[:, 3:], name))


def _wrap(decoded: Any, name: str) -> Cloud | Mesh:
    if isinstance(decoded, Mesh):
        return decoded
    return from_array(decoded, name) if isinstance(decoded, np.ndarray) else Cloud(*decoded)


def _load(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(path, "this is a folder", "give a point cloud file")
    check_file(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, "there is no such file", "check the path") from None
    except OSError as error:
        raise InputError(path, f"the file cannot be read ({error.strerror})", "check its permissions") from error
    if not data:
        raise InputError(path, "the file is empty", "export the cloud again")
    return data


def _to_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return array


def _from_open3d(source: Any, name: str) -> Cloud | Mesh:
    """Legacy and tensor PointCloud and TriangleMesh."""
    if hasattr(source, "to_legacy"):
        if hasattr(source, "point"):  # a tensor cloud may also carry intensity, which legacy clouds cannot
            columns = {key: source.point[key].cpu().numpy() for key in source.point}
            positions = np.asarray(columns.pop("positions", np.empty((0, 3))), np.float64)
            return Cloud(positions, _open3d_features(columns, name))
        source = source.to_legacy()
    if hasattr(source, "triangles"):
        return Mesh(np.array(source.vertices), np.array(source.triangles))
    if not (hasattr(source, "points") and hasattr(source, "colors") and hasattr(source, "normals")):
        raise InputError(name, f"an open3d {type(source).__name__} is no point cloud", "give a PointCloud")
    columns = {key: np.asarray(getattr(source, key)) for key in ("colors", "normals")}
    return Cloud(np.array(source.points), _open3d_features({k: v for k, v in columns.items() if len(v)}, name))


def _open3d_features(columns: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    features = {}
    if "colors" in columns:
        features["rgb"] = scale_colours(columns["colors"][:, :3])
    if "intensity" in columns:
        features["intensity"] = scale_intensity(columns["intensity"].reshape(-1, 1))
    if "normals" in columns:
        features["normals"] = columns["normals"].astype(np.float32)
    return features


def _finite(cloud: Cloud, name: str) -> Cloud:
    """Drops points without finite coordinates; what is not finite in a feature becomes zero."""
    if cloud.xyz.ndim != 2 or len(cloud.xyz) == 0:
        raise InputError(name, "the cloud holds no points", "give a cloud with at least one point")
    keep = ((cloud.xyz < FARTHEST) & (cloud.xyz > -FARTHEST)).all(1)  # NaN is neither
    if not keep.any():
        raise InputError(name, "no point has finite coordinates", "export the cloud again")
    features = {key: np.nan_to_num(value, posinf=0, neginf=0) for key, value in cloud.features.items()}
    if keep.all():
        return Cloud(cloud.xyz, features)
    return Cloud(cloud.xyz[keep], {key: value[keep] for key, value in features.items()})
