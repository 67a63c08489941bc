"""Bytes of a point cloud file -> arrays. The content decides the format, the ending only where the content cannot.

ply and pcd are parsed here because open3d hands out uninitialised memory for truncated files of both, and no or wrong
coordinates for pcd files in double precision.

Shape legend: n points, c columns.
"""

from __future__ import annotations

import io
import math
import re
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from polysense.core.errors import InputError
from polysense.data.containers import array_shapes, gunzip
from polysense.data.limits import check
from polysense.data.point_cloud_columns import features_of_names, scale_colours, scale_intensity
from polysense.data.point_cloud_mesh import (
    Mesh,
    decode_obj,
    decode_off,
    decode_stl,
    decode_with_open3d,
    import_open3d,
)
from polysense.data.point_cloud_text import decode_text, read_numbers

AGAIN = "copy or export it again"
READABLE = "give a ply, pcd, xyz, pts, txt, off, obj, stl, las, laz, npy, npz or KITTI bin file"
Decoded = np.ndarray | Mesh | tuple[np.ndarray, dict[str, np.ndarray]]
Element = tuple[str, int, list[tuple[str, str]]]  # of a ply header: name, count, (property, type)
PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
             "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
             "float32": "f4", "float64": "f8"}  # fmt: skip


def decode(data: bytes, filename: str, name: str) -> Decoded:
    """Decodes a file.

    Args:
        data: Its content.
        filename: Its name, for the ending; "" where there is none.
        name: What messages call it.

    Raises:
        InputError: The content is no point cloud, truncated or damaged.
    """
    head, ending = data[:4096], Path(filename).suffix.lower()
    if head[:2] == b"\x1f\x8b":
        try:
            data = gunzip(data, name)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(name, "the gzip file is damaged", AGAIN) from error
        if data[:2] == b"\x1f\x8b":  # there are files that hold themselves
            raise InputError(name, "a gzip file lies in a gzip file", "unpack it once")
        return decode(data, filename.removesuffix(".gz"), name)
    if re.match(rb"ply\s", head):
        return decode_ply(data, name)
    if head[:4] == b"LASF":
        return decode_las(data, name)
    if head[:6] == b"\x93NUMPY" or head[:4] in (b"PK\x03\x04", b"PK\x05\x06") or head[:4] == b"\x89HDF":
        return decode_arrays(data, name)
    if re.match(rb"\s*(#[^\n]*\n\s*)*VERSION\s", head) or head.startswith(b"# .PCD"):
        return decode_pcd(data, name)
    if re.match(rb"\s*(#[^\n]*\n\s*)*[STCN4n]*OFF", head):
        return decode_off(data, name)
    if ending == ".stl" or re.match(rb"\s*solid\s.*\bfacet\b", head, re.DOTALL) or _is_binary_stl(data):
        return decode_stl(data, name)
    if b"\0" not in head and not re.search(rb"[\x01-\x08\x0e-\x1a\x7f]", head):
        return decode_obj(data, name) if re.search(rb"^v[ \t]", head, re.MULTILINE) else decode_text(data, name)
    if ending == ".bin":
        return decode_kitti(data, 5 if filename.lower().endswith(".pcd.bin") else 4, name)
    raise InputError(name, "the content is no point cloud", READABLE)


def _is_binary_stl(data: bytes) -> bool:
    return len(data) > 84 and len(data) == 84 + 50 * int.from_bytes(data[80:84], "little")


def _features(columns: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    found = features_of_names(columns)
    if found is None:
        raise InputError(name, f"no coordinates x, y, z among the columns {', '.join(columns)}", READABLE)
    return found


def _rows(data: bytes, offset: int, dtype: np.dtype, count: int, name: str) -> np.ndarray:
    """`count` packed records, a view of the bytes."""
    check("points", count, name)
    have = (len(data) - offset) // max(dtype.itemsize, 1)
    if have < count:
        raise InputError(name, f"the file is truncated: {max(have, 0)} of {count} points", AGAIN)
    return np.frombuffer(data, dtype, count, offset)


def decode_ply(data: bytes, name: str) -> Decoded:
    """Vertices with their colours, intensity and normals; a mesh where there are faces."""
    end = re.search(rb"end_header\r?\n", data[:65_536])
    if end is None:
        raise InputError(name, "the PLY header has no end", AGAIN)
    form, offset, skip = "", end.end(), 0
    elements: list[Element] = []
    try:
        for words in (line.split() for line in data[: end.start()].decode("latin-1").splitlines()):
            if words[:1] == ["format"]:
                form = words[1]
            elif words[:1] == ["element"]:
                elements.append((words[1], int(words[2]), []))
            elif words[:1] == ["property"]:
                kinds = [PLY_TYPES[word] for word in words[1:-1] if word != "list"]
                is_list, before = "list" in words[1:-1], [key for key, _ in elements[-1][2]]
                if len(kinds) != 1 + is_list or words[-1] in before:
                    raise ValueError(f"property {words[-1]}")
                elements[-1][2].append((words[-1], " ".join(kinds)))  # two of them for a list: length and entries
        if any(count < 0 for _, count, _ in elements):
            raise ValueError("a negative count")
    except (IndexError, KeyError, ValueError) as error:
        raise InputError(name, "the PLY header is damaged", AGAIN) from error
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(form, "")
    for element, count, properties in elements:
        lists = any(" " in kind for _, kind in properties)
        dtype = np.dtype([(key, order + kind) for key, kind in properties if " " not in kind])
        if element != "vertex":
            if lists and order:
                break  # its size is unknown before it is read
            offset, skip = offset + count * dtype.itemsize, skip + count
            continue
        if count == 0 or lists:
            raise InputError(name, "the PLY file holds no points", "give a cloud with at least one point")
        if order:
            rows = _rows(data, offset, dtype, count, name)
            columns = {key: rows[key] for key in rows.dtype.names or ()}
        else:
            values = read_numbers(data[offset:], name, skip=skip, rows=count)
            columns = {key: values[:, i] for i, (key, _) in enumerate(properties[: values.shape[1]])}
        if any(other == "face" and faces > 0 for other, faces, _ in elements):
            return _read_faces(data, offset + count * dtype.itemsize if order else offset, elements, bool(order), name)
        return _features(columns, name)
    raise InputError(name, "the PLY file has no vertices that can be read", AGAIN)


def _read_faces(data: bytes, offset: int, elements: list[Element], binary: bool, name: str) -> Mesh:
    """A mesh by open3d, which says nothing to us where faces are missing: the bytes are counted before and after."""

    def require(triangles_per_face: float) -> None:
        need = sum(_face_bytes(e, triangles_per_face) for e in elements if e[0] == "face")
        if binary and len(data) - offset < need:
            raise InputError(name, "the file is truncated: faces are missing", AGAIN)

    require(1)
    if not binary:
        lines = sum(1 for line in data[offset:].splitlines() if line.strip())
        if lines < sum(count for _, count, _ in elements):
            raise InputError(name, "the file is truncated: faces are missing", AGAIN)
    mesh = decode_with_open3d(data, ".ply", name)
    require(len(mesh.triangles) / next(count for element, count, _ in elements if element == "face"))
    return mesh


def _face_bytes(element: Element, triangles_per_face: float) -> float:
    """What faces take: a polygon of n corners is n - 2 triangles."""
    _, count, properties = element
    kinds = [kind.split() for _, kind in properties]
    fixed = sum(np.dtype(kind[0]).itemsize for kind in kinds)  # numbers, and the lengths of lists
    corner = next((np.dtype(kind[1]).itemsize for kind in kinds if len(kind) == 2), 0)
    return count * (fixed + corner * (triangles_per_face + 2))


def decode_pcd(data: bytes, name: str) -> Decoded:
    """ascii, binary and binary_compressed."""
    match = re.search(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", data[:65_536], re.MULTILINE)
    try:
        if match is None:
            raise ValueError("no DATA line")
        lines = (line.split() for line in data[: match.start()].decode("latin-1").splitlines())
        header = {words[0]: words[1:] for words in lines if words and not words[0].startswith("#")}
        names, sizes, types = header["FIELDS"], header["SIZE"], [t.lower() for t in header["TYPE"]]
        counts = [int(c) for c in header.get("COUNT", ["1"] * len(names))]
        # A padding field "_" may come several times, and a dtype wants each name once.
        keys = [f"{key}#{i}" if key == "_" else key for i, key in enumerate(names)]
        dtype = np.dtype([(k, f"<{t}{s}", (c,)) for k, t, s, c in zip(keys, types, sizes, counts, strict=True)])
        count = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(name, "the PCD header is damaged", AGAIN) from error
    if count < 1:
        raise InputError(name, "the PCD file holds no points", "give a cloud with at least one point")
    if match[1] == b"binary_compressed":
        return _decode_compressed_pcd(data, match.end(), count, name)
    if match[1] == b"binary":
        rows = _rows(data, match.end(), dtype, count, name)
        columns = {key: rows[key][:, 0] for key, c in zip(keys, counts) if c == 1}
    else:
        values = read_numbers(data[match.end() :], name, rows=count)
        places = np.cumsum([0, *counts])
        if values.shape[1] != places[-1]:
            raise InputError(name, f"the PCD lines have {values.shape[1]} numbers, not {places[-1]}", AGAIN)
        columns = {key: values[:, i].astype(dtype[key].base) for key, i, c in zip(keys, places, counts) if c == 1}
    packed = next((columns.pop(key) for key in ("rgb", "rgba") if key in columns), None)
    if packed is not None:  # four bytes, blue first, whatever number type they are declared as
        channels = np.ascontiguousarray(packed).view(np.uint8).reshape(count, -1)
        columns |= {"blue": channels[:, 0], "green": channels[:, 1], "red": channels[:, 2]}
    return _features(columns, name)


def _decode_compressed_pcd(data: bytes, offset: int, count: int, name: str) -> Decoded:
    """open3d undoes the LZF compression."""
    check("points", count, name)
    size, whole = struct.unpack("<II", data[offset : offset + 8].ljust(8, b"\0"))
    check("unpacked", whole, name)
    if len(data) < offset + 8 + size:
        raise InputError(name, "the PCD file is truncated", AGAIN)
    o3d = import_open3d()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cloud.pcd"
        path.write_bytes(data)
        with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
            cloud = o3d.t.io.read_point_cloud(str(path))
    columns = {key: cloud.point[key].numpy() for key in cloud.point}
    if len(columns.get("positions", ())) != count:
        raise InputError(name, "the PCD file is damaged", AGAIN)
    features = {"normals": columns["normals"].astype(np.float32)} if "normals" in columns else {}
    if "colors" in columns:
        features["rgb"] = scale_colours(columns["colors"][:, :3])
    if "intensity" in columns:
        features["intensity"] = scale_intensity(columns["intensity"].reshape(-1, 1))
    return columns["positions"].astype(np.float64), features


def decode_las(data: bytes, name: str) -> Decoded:
    """las and laz: coordinates with the file's own offset and scale applied."""
    import laspy

    # laspy walks through as many records as a damaged header promises, up to four thousand millions.
    size, start, records = struct.unpack("<HII", data[94:104].ljust(10, b"\0"))
    if not 227 <= size <= start <= len(data) or size + 54 * records > start:
        raise InputError(name, "the LAS header is truncated or damaged", AGAIN)
    try:
        with laspy.open(io.BytesIO(data), closefd=False) as file:
            check("points", file.header.point_count, name)
        cloud = laspy.read(io.BytesIO(data))
        xyz = np.asarray(cloud.xyz, np.float64)
        kinds = set(cloud.point_format.dimension_names)
        promised = cloud.header.point_count
    except InputError:
        raise
    except Exception as error:  # laspy, its two decompressors and struct each raise their own
        raise InputError(name, f"the LAS file is truncated or damaged ({error})", AGAIN) from error
    if len(xyz) < promised:
        raise InputError(name, f"the file is truncated: {len(xyz)} of {promised} points", AGAIN)
    features = {"intensity": scale_intensity(np.asarray(cloud.intensity)[:, None])}
    if {"red", "green", "blue"} <= kinds:
        features["rgb"] = scale_colours(np.stack([np.asarray(cloud[c]) for c in ("red", "green", "blue")], 1))
    return xyz, features


def decode_arrays(data: bytes, name: str) -> np.ndarray:
    """npy, npz and h5: the array called xyz, points, pos or data, or the only one."""
    if data[:4] == b"\x89HDF":
        arrays: dict[str, Any] = _hdf5_arrays(data, name)
    else:
        try:
            for shape in array_shapes(io.BytesIO(data), name):
                check("points", math.prod(shape[:-1]), name)
            loaded = np.load(io.BytesIO(data), allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
        except InputError:
            raise
        except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            fix = "save it again with numpy.save or numpy.savez"
            raise InputError(name, "the NumPy file is truncated, damaged or holds objects", fix) from error
    key = next((key for key in ("xyz", "points", "pos", "data") if key in arrays), None)
    if key is None and len(arrays) != 1:
        fix = "name the coordinates 'xyz', or keep one array"
        raise InputError(name, f"which of the arrays {', '.join(arrays) or '(none)'} is the cloud?", fix)
    return arrays[key] if key is not None else next(iter(arrays.values()))


def _hdf5_arrays(data: bytes, name: str) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise InputError(name, "reading HDF5 needs h5py", "install h5py, or convert the file to npz") from None
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            held = {key: value for key, value in file.items() if isinstance(value, h5py.Dataset)}
            check("points", max((math.prod(value.shape[:-1]) for value in held.values()), default=0), name)
            check("unpacked", sum(value.nbytes for value in held.values()), name)
            return {key: value[()] for key, value in held.items()}
    except OSError as error:
        raise InputError(name, "the HDF5 file is truncated or damaged", AGAIN) from error


def decode_kitti(data: bytes, columns: int, name: str) -> Decoded:
    """float32 x, y, z, intensity (nuScenes' `.pcd.bin` adds the ring)."""
    if len(data) == 0 or len(data) % (4 * columns):
        problem = f"{len(data)} bytes are no whole number of points of {4 * columns} bytes (truncated?)"
        raise InputError(name, problem, "give float32 x, y, z, intensity")
    check("points", len(data) // (4 * columns), name)
    values = np.frombuffer(data, "<f4").reshape(-1, columns)
    with np.errstate(invalid="ignore"):
        odd = ~(np.abs(values[:, :3]) < 1e7).all(1) & ~np.isnan(values[:, 0])
    if odd.mean() > 0.01:  # random bytes read as floats are mostly astronomical
        raise InputError(name, "the numbers are no coordinates", "give float32 x, y, z, intensity")
    return values[:, :3].astype(np.float64), {"intensity": scale_intensity(values[:, 3:4])}
