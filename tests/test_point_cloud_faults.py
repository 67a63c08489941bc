"""Point cloud reader: triangle meshes, and files that are damaged, empty or something else."""

import os
import struct

import numpy as np
import pytest

from polysense.core.errors import InputError
from polysense.data.point_cloud import import_open3d, read_cloud

CORNERS = np.array([(x, y, z) for x in (0.0, 2.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))]
V = "\n".join(f"{x} {y} {z}" for x, y, z in CORNERS)


def off(head: str = "OFF\n") -> bytes:
    faces = "\n".join("4 " + " ".join(map(str, face)) for face in QUADS)
    return f"{head}8 6 0\n{V}\n{faces}\n".encode()


def obj(index=lambda i: f"{i + 1}", head: str = "") -> bytes:
    vertices = "\n".join(f"v {line}" for line in V.splitlines())
    faces = "\n".join("f " + " ".join(index(i) for i in face) for face in QUADS)
    return f"# a box\n{head}{vertices}\nvn 0 0 1\nvt 0 0\n{faces}\n".encode()


def ply(binary: bool) -> bytes:
    form = "binary_little_endian" if binary else "ascii"
    head = f"ply\nformat {form} 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
    head += "element face 12\nproperty list uchar int vertex_indices\nend_header\n"
    if not binary:
        return (head + V + "\n" + "\n".join(f"3 {a} {b} {c}" for a, b, c in TRIANGLES) + "\n").encode()
    faces = b"".join(struct.pack("<Biii", 3, *triangle) for triangle in TRIANGLES)
    return head.encode() + CORNERS.astype("<f4").tobytes() + faces


def stl(binary: bool) -> bytes:
    if binary:
        faces = (struct.pack("<12fH", 0, 0, 0, *CORNERS[list(t)].ravel(), 0) for t in TRIANGLES)
        return bytes(80) + struct.pack("<I", 12) + b"".join(faces)
    corners = "".join(
        "facet normal 0 0 0\nouter loop\n"
        + "".join("vertex {} {} {}\n".format(*CORNERS[i]) for i in triangle)
        + "endloop\nendfacet\n"
        for triangle in TRIANGLES
    )
    return f"solid box\n{corners}endsolid box\n".encode()


MESHES = {
    "a.off": off(),
    "glued.off": off("OFF"),
    "comment.off": off("# made by a test\nOFF # really\n# so\n"),
    "a.obj": obj(),
    "slashes.obj": obj(lambda i: f"{i + 1}/1/1", "mtllib absent.mtl\no box\n"),
    "normals.obj": obj(lambda i: f"{i + 1}//1"),
    "negative.obj": obj(lambda i: f"{i - 8}"),
    "ascii.ply": ply(False),
    "binary.ply": ply(True),
    "ascii.stl": stl(False),
    "binary.stl": stl(True),
}


@pytest.mark.parametrize("name", MESHES)
def test_meshes_become_their_surface(tmp_path, name):
    (tmp_path / name).write_bytes(MESHES[name])
    cloud = read_cloud(tmp_path / name, sample=4000)
    xyz, normals = cloud.xyz, cloud.features["normals"]
    assert xyz.shape == normals.shape == (4000, 3)
    on_face = np.isclose(xyz, [0, 0, 0]) | np.isclose(xyz, [2, 1, 1])
    assert on_face.any(1).all() and (xyz > -1e-9).all() and (xyz < np.array([2, 1, 1]) + 1e-9).all()
    ends = np.isclose(xyz[:, 0], 0) | np.isclose(xyz[:, 0], 2)
    assert ends.mean() == pytest.approx(2 / 10, abs=0.03)  # by area, not by face
    assert np.allclose(np.abs(normals).max(1), 1)
    np.testing.assert_array_equal(read_cloud(tmp_path / name, sample=4000).xyz, xyz)
    assert not np.array_equal(read_cloud(tmp_path / name, sample=4000, seed=1).xyz, xyz)
    assert len(read_cloud(MESHES[name]).xyz) == 20_000


@pytest.mark.parametrize("name", [name for name in MESHES if not name.endswith("obj")])  # obj has no counts, no end
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_truncated_meshes(tmp_path, name, share, capfd):
    content = MESHES[name]
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=name):
        read_cloud(tmp_path / name)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_truncated_polygons(share):
    faces = b"".join(struct.pack("<Biiii", 4, *quad) for quad in QUADS)
    content = ply(True).split(b"end_header\n")[0].replace(b"face 12", b"face 6") + b"end_header\n"
    content += CORNERS.astype("<f4").tobytes() + faces
    assert len(read_cloud(content).xyz) == 20_000
    with pytest.raises(InputError, match="faces are missing"):
        read_cloud(content[: len(content) - int(len(faces) * (1 - share)) - 1])


def test_open3d_mesh_far_from_the_origin():
    o3d = import_open3d()
    box = o3d.geometry.TriangleMesh.create_box(2, 1, 1).translate((5e6, 4e5, 0))
    for mesh in (box, o3d.t.geometry.TriangleMesh.from_legacy(box)):
        xyz = read_cloud(mesh, sample=100).xyz - [5e6, 4e5, 0]
        assert (xyz > -0.5).all() and (xyz < 2.5).all()


def test_flat_and_broken_triangles():
    line = b"OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n"
    assert len(read_cloud(line).xyz) == 3  # no area: the vertices
    with pytest.raises(InputError, match="vertex that is not there"):
        read_cloud(line.replace(b"3 0 1 2", b"3 0 1 9"))


PLY_HEAD = (
    b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
)
PCD_HEAD = b"VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 3\nHEIGHT 1\nPOINTS 3\nDATA binary\n"
NOISE = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
FAULTS = {
    "empty.ply": (b"", "the file is empty"),
    "none.ply": (PLY_HEAD.replace(b"vertex 3", b"vertex 0"), "no points"),
    "short.ply": (PLY_HEAD + b"0 0 0\n1 1 1\n", "2 of 3 points"),
    "binary.ply": (PLY_HEAD.replace(b"ascii", b"binary_little_endian") + bytes(30), "2 of 3 points"),
    "header.ply": (PLY_HEAD[:40], "header"),
    "property.ply": (PLY_HEAD.replace(b"float x", b"text x") + b"0 0 0\n" * 3, "header is damaged"),
    "list.ply": (PLY_HEAD.replace(b"float x", b"list x") + b"0 0 0\n" * 3, "header is damaged"),
    "twice.ply": (PLY_HEAD.replace(b"float y", b"float x") + b"0 0 0\n" * 3, "header is damaged"),
    "minus.ply": (PLY_HEAD.replace(b"vertex 3", b"vertex -3") + b"0 0 0\n" * 3, "header is damaged"),
    "planes.ply": (PLY_HEAD.replace(b" x\n", b" u\n") + b"0 0 0\n" * 3, "no coordinates x, y, z"),
    "noise.ply": (NOISE, "no point cloud"),
    "png.ply": (b"\x89PNG\r\n\x1a\n" + NOISE, "no point cloud"),
    "short.pcd": (PCD_HEAD + bytes(30), "2 of 3 points"),
    "header.pcd": (b"VERSION 0.7\nFIELDS x y z\n", "header is damaged"),
    "none.pcd": (PCD_HEAD.replace(b"POINTS 3", b"POINTS 0"), "no points"),
    "minus.pcd": (PCD_HEAD.replace(b"POINTS 3", b"POINTS -3") + bytes(36), "no points"),
    "short.xyz": (b"0 0 0\n1 1 1\n2 2\n", "cut short"),
    "ragged.xyz": (b"0 0 0\n1 1 1 1\n", "not points"),
    "two.xyz": (b"0 0\n1 1\n", "three or more numbers"),
    "words.txt": (b"this is a letter\nto a friend\n", "no line of numbers"),
    "nan.xyz": (b"nan nan nan\nnan nan nan\n", "finite"),
    "far.xyz": (b"1e200 0 0\n0 -1e120 0\n", "finite"),
    "count.pts": (b"5\n0 0 0\n1 1 1\n", "promises 5 points"),
    "noise.off": (b"OFF\nwhat is this\n", "counts"),
    "words.off": (b"OFF\n2 0 0\n0 0 0\na b c\n", "no vertex"),
    "words.obj": (b"v 0 0 0\nv a b c\n", "no vertex"),
    "noise.stl": (NOISE, "truncated or damaged"),
    "noise.las": (b"LASF" + NOISE, "truncated or damaged"),
    "noise.npy": (b"\x93NUMPY" + NOISE, "NumPy file"),
    "open.npy": (b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr': '<f4', (".ljust(64) + bytes(36), "NumPy file"),
    "noise.npz": (b"PK\x03\x04" + NOISE, "NumPy file"),
    "odd.bin": (NOISE[:1001], "no whole number of points"),
    "noise.bin": (NOISE, "no coordinates"),
    "noise.gz": (b"\x1f\x8b" + NOISE, "gzip"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(tmp_path, name, capfd):
    content, message = FAULTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_cloud(tmp_path / name)
    assert name in str(caught.value) and caught.value.fix
    out, err = capfd.readouterr()
    assert not out and not err  # no chatter of C libraries


@pytest.mark.parametrize("arrays", [{"a": np.zeros((4, 3)), "b": np.zeros((4, 3))}, {"xyz": np.array([{}] * 3)}])
def test_numpy_archives_without_one_cloud(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=r"which of the arrays|holds objects"):
        read_cloud(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 3)), "no points"),
        (np.zeros((5, 2)), "no point cloud"),
        (np.zeros(9), "no point cloud"),
        (np.array([["a", "b", "c"]]), "no point cloud"),
        (np.full((3, 3), np.nan), "finite"),
        (b"", "content|no line"),
        ({"x": 1}, "a dict is no point cloud"),
        (None, "no point cloud"),
    ],
)
def test_bad_memory(source, message):
    with pytest.raises(InputError, match=message):
        read_cloud(source)


def test_empty_open3d_clouds():
    o3d = import_open3d()
    for source in (o3d.geometry.PointCloud(), o3d.t.geometry.PointCloud(), o3d.geometry.TriangleMesh()):
        with pytest.raises(InputError, match="no points"):
            read_cloud(source)
    with pytest.raises(InputError, match="LineSet is no point cloud"):
        read_cloud(o3d.geometry.LineSet())


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_cloud(tmp_path / "none.ply")
    with pytest.raises(InputError, match="folder"):
        read_cloud(tmp_path)
    if os.geteuid() != 0:
        (tmp_path / "secret.ply").touch(0)
        with pytest.raises(InputError, match="cannot be read"):
            read_cloud(tmp_path / "secret.ply")
