"""Point cloud reader: every format, in-memory forms, features, faults."""

import gzip

import laspy
import numpy as np
import pytest
import torch

from polysense.core.errors import InputError
from polysense.data.point_cloud import CLOUD_ENDINGS, Cloud, import_open3d, read_cloud, read_clouds_all

RNG = np.random.default_rng(0)
XYZ = RNG.random((50, 3)) * 10 + np.array([500_000.0, 5_000_000.0, 100.0])
LOW = XYZ - XYZ.mean(0)
RGB = RNG.integers(0, 256, (50, 3))
NORMALS = LOW / np.linalg.norm(LOW, axis=1, keepdims=True)
INTENSITY = RNG.random((50, 1)) * 0.9


def text(*columns, delimiter=" ", head="") -> bytes:
    rows = np.hstack(columns)
    return (head + "\n".join(delimiter.join(f"{v:.9g}" if v % 1 else f"{v:.0f}" for v in row) for row in rows)).encode()


def ply(form: str) -> bytes:
    order = ">" if "big" in form else "<"
    kinds = [*((c, "double", "f8") for c in "xyz"), *((c, "uchar", "u1") for c in ("red", "green", "blue")),
             ("intensity", "float", "f4"), *((c, "float", "f4") for c in ("nx", "ny", "nz"))]  # fmt: skip
    head = f"ply\nformat {form} 1.0\ncomment made by a test\nelement vertex 50\n"
    head += "".join(f"property {kind} {name}\n" for name, kind, _ in kinds) + "end_header\n"
    columns = np.hstack([XYZ, RGB, INTENSITY, NORMALS])
    if form == "ascii":
        return head.encode() + text(XYZ, RGB, INTENSITY, NORMALS)
    rows = np.zeros(50, [(name, order + code) for name, _, code in kinds])
    for i, (name, _, _) in enumerate(kinds):
        rows[name] = columns[:, i]
    return head.encode() + rows.tobytes()


def pcd(form: str, kind: str = "f8") -> bytes:
    """Also binary_compressed: LZF without matches, runs of at most 32 bytes behind their length."""
    size = kind[1]
    xyz = XYZ if kind == "f8" else LOW
    packed = (RGB[:, 0] << 16 | RGB[:, 1] << 8 | RGB[:, 2]).astype("<u4").view("<f4")
    head = f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb intensity\nSIZE {size} {size} {size} 4 4\nTYPE F F F F F\n"
    head += f"COUNT 1 1 1 1 1\nWIDTH 50\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 50\nDATA {form}\n"
    if form == "ascii":
        rows = zip(xyz, packed, INTENSITY[:, 0], strict=True)
        return (head + "\n".join(f"{p[0]:.9g} {p[1]:.10g} {p[2]:.9g} {c:.9g} {i:.7g}" for p, c, i in rows)).encode()
    rows = np.zeros(50, [(c, "<" + kind) for c in "xyz"] + [("rgb", "<f4"), ("intensity", "<f4")])
    for i, axis in enumerate("xyz"):
        rows[axis] = xyz[:, i]
    rows["rgb"], rows["intensity"] = packed, INTENSITY[:, 0]
    if form == "binary":
        return head.encode() + rows.tobytes()
    raw = b"".join(rows[name].tobytes() for name in rows.dtype.names)
    runs = [raw[i : i + 32] for i in range(0, len(raw), 32)]
    packed_runs = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return head.encode() + np.array([len(packed_runs), len(raw)], "<u4").tobytes() + packed_runs


def las(tmp_path, ending: str) -> bytes:
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.offsets, header.scales = np.floor(XYZ.min(0)), [1e-6] * 3
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = XYZ.T
    cloud.intensity = (INTENSITY[:, 0] * 65_535).astype(np.uint16)
    cloud.red, cloud.green, cloud.blue = (RGB * 257).astype(np.uint16).T
    cloud.write(str(tmp_path / f"w{ending}"))
    return (tmp_path / f"w{ending}").read_bytes()


def kitti(tmp_path) -> bytes:
    return np.hstack([LOW, INTENSITY]).astype("<f4").tobytes()


def numpy_file(tmp_path, **arrays) -> bytes:
    if arrays:
        np.savez(tmp_path / "w.npz", **arrays)
        return (tmp_path / "w.npz").read_bytes()
    np.save(tmp_path / "w.npy", XYZ)
    return (tmp_path / "w.npy").read_bytes()


FORMATS = {  # file name: (content, coordinates, features)
    "little.ply": (lambda t: ply("binary_little_endian"), XYZ, "rgb intensity normals"),
    "big.ply": (lambda t: ply("binary_big_endian"), XYZ, "rgb intensity normals"),
    "ascii.ply": (lambda t: ply("ascii"), XYZ, "rgb intensity normals"),
    "ascii.pcd": (lambda t: pcd("ascii"), XYZ, "rgb intensity"),
    "binary.pcd": (lambda t: pcd("binary"), XYZ, "rgb intensity"),
    "compressed.pcd": (lambda t: pcd("binary_compressed", "f4"), LOW, "rgb intensity"),
    "a.xyz": (lambda t: text(XYZ), XYZ, ""),
    "a.xyzrgb": (lambda t: text(XYZ, RGB), XYZ, "rgb"),
    "a.xyzn": (lambda t: text(XYZ, NORMALS), XYZ, "normals"),
    "intensity.txt": (lambda t: text(XYZ, INTENSITY), XYZ, "intensity"),
    "comma.txt": (lambda t: text(XYZ, NORMALS, delimiter=","), XYZ, "normals"),
    "names.csv": (lambda t: text(XYZ, INTENSITY, RGB, delimiter=";", head="X;Y;Z;Intensity;R;G;B\n"), XYZ,
                  "intensity rgb"),
    "comments.asc": (lambda t: text(XYZ, RGB, head="# made by a test\n//X Y Z R G B\n"), XYZ, "rgb"),
    "a.pts": (lambda t: text(XYZ, INTENSITY, RGB, head="50\n"), XYZ, "intensity rgb"),
    "label.txt": (lambda t: text(XYZ, RGB, np.arange(50)[:, None] % 4), XYZ, "rgb"),
    "vertices.obj": (lambda t: text(*(XYZ[:, [i]] for i in range(3))).replace(b"\n", b"\nv ").join([b"v ", b"\n"]),
                     XYZ, ""),
    "vertices.off": (lambda t: text(XYZ, head="OFF\n50 0 0\n"), XYZ, ""),
    "a.las": (lambda t: las(t, ".las"), XYZ, "intensity rgb"),
    "a.laz": (lambda t: las(t, ".laz"), XYZ, "intensity rgb"),
    "a.npy": (numpy_file, XYZ, ""),
    "only.npz": (lambda t: numpy_file(t, cloud=np.hstack([XYZ, INTENSITY])), XYZ, "intensity"),
    "named.npz": (lambda t: numpy_file(t, labels=np.arange(3), points=XYZ), XYZ, ""),
    "scan.bin": (kitti, LOW, "intensity"),
    "a.xyz.gz": (lambda t: gzip.compress(text(XYZ)), XYZ, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    make, xyz, features = FORMATS[name]
    content = make(tmp_path)
    (tmp_path / name).write_bytes(content)
    found = [read_cloud(tmp_path / name), read_cloud(str(tmp_path / name))]
    if not name.endswith((".bin", ".pts", "label.txt")):  # those need their name
        found.append(read_cloud(content))
        (tmp_path / "wrong.ply").write_bytes(content)
        found.append(read_cloud(tmp_path / "wrong.ply"))
    for cloud in found:
        assert cloud.xyz.dtype == np.float64 and set(cloud.features) == set(features.split())
        np.testing.assert_allclose(
            cloud.xyz,
            xyz,
            atol=2e-2
            if "asc" in name or name.startswith(("a.xyz", "a.pts", "names", "intensity", "comma", "label", "vertices"))
            else 2e-6,
        )  # nine digits of text
        for key, values in cloud.features.items():
            expected = {"rgb": RGB / 255, "intensity": INTENSITY, "normals": NORMALS}[key]
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, expected, atol=1e-4)


def test_every_ending_is_tested():
    assert {f".{name.rsplit('.', 1)[1]}" for name in FORMATS} | {".stl"} >= set(CLOUD_ENDINGS)


def open3d_forms():
    o3d = import_open3d()
    legacy = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(XYZ))
    legacy.colors = o3d.utility.Vector3dVector(RGB / 255)
    tensor = o3d.t.geometry.PointCloud(XYZ)
    tensor.point.colors, tensor.point.intensity = RGB.astype(np.uint8), INTENSITY.astype(np.float32)
    return {"legacy": (legacy, {"rgb"}), "tensor": (tensor, {"rgb", "intensity"})}


@pytest.mark.parametrize("form", ["legacy", "tensor"])
def test_open3d_clouds(form):
    source, features = open3d_forms()[form]
    cloud = read_cloud(source)
    np.testing.assert_array_equal(cloud.xyz, XYZ)
    np.testing.assert_allclose(cloud.features["rgb"], RGB / 255, atol=1e-6)
    assert set(cloud.features) == features


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int32])
def test_arrays(kind):
    array = (LOW * 10).astype(kind)
    for source in (array, torch.from_numpy(array)):
        np.testing.assert_array_equal(read_cloud(source).xyz, array.astype(np.float64))
    assert read_cloud(np.hstack([LOW, RGB])).features["rgb"].max() <= 1


def test_points_that_are_not_finite_are_dropped():
    xyz = LOW.copy()
    xyz[3, 1], xyz[7] = np.nan, np.inf
    cloud = read_cloud(Cloud(xyz, {"intensity": INTENSITY.astype(np.float32)}))
    assert len(cloud.xyz) == 48 == len(cloud.features["intensity"])
    np.testing.assert_array_equal(cloud.xyz, np.delete(LOW, [3, 7], 0))
    assert len(read_cloud(text(LOW) + b"\nnan nan nan\n").xyz) == 50


def test_several_clouds(tmp_path):
    many = RNG.random((4, 20, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", many)
    np.savez(tmp_path / "a.npz", xyz=many, labels=np.arange(4))
    for source in (many, tmp_path / "a.npy", tmp_path / "a.npz"):
        clouds = read_clouds_all(source)
        assert len(clouds) == 4
        np.testing.assert_array_equal(clouds[2].xyz, many[2])
    assert len(read_clouds_all(many[0])) == 1
    (tmp_path / "a.xyz").write_bytes(text(LOW))
    assert len(read_clouds_all(tmp_path / "a.xyz")) == 1
    with pytest.raises(InputError, match="read_clouds_all"):
        read_cloud(tmp_path / "a.npy")


def test_several_clouds_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    many = RNG.random((3, 20, 3)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["label"] = many, np.arange(3)
    assert len(read_clouds_all(tmp_path / "a.h5")) == 3
