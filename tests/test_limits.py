"""Hostile inputs: each is refused in one sentence before it is decoded, and nothing is ever unpickled."""

import ast
import gzip
import io
import pickle
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import laspy
import numpy as np
import openpyxl
import pandas as pd
import pytest
import soundfile
from PIL import Image

from polysense.core.errors import InputError
from polysense.data import limits as module
from polysense.data.audio import read_audio
from polysense.data.image import read_image
from polysense.data.limits import Limits, limited, limits, parse_limits, set_limits
from polysense.data.listing import list_items
from polysense.data.masks import read_mask
from polysense.data.point_cloud import read_cloud
from polysense.data.segments import PanopticFile
from polysense.data.table import read_table
from polysense.data.text import read_texts
from polysense.data.time_series import read_series
from polysense.data.video import read_video

ROOT = Path(__file__).parents[1]
FLOORS = ("core", "kernels", "data", "tokenizers", "backbone", "heads", "polysense", "training", "apps", "benchmarks",
          "scripts")  # fmt: skip


def read_text(source):
    return list(read_texts(source))


def png(width: int, height: int) -> bytes:
    """One whose header promises pixels that are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def npy(*shape: int, kind: str = "<f8") -> bytes:
    """One whose header promises numbers that are not there."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def saved(save, *arguments, **options) -> bytes:
    file = io.BytesIO()
    save(file, *arguments, **options)
    return file.getvalue()


def wav(seconds: float, rate: int = 8000) -> bytes:
    return saved(lambda file: soundfile.write(file, np.zeros(int(seconds * rate)), rate, format="WAV"))


def las(points: int) -> bytes:
    cloud = laspy.create(point_format=3, file_version="1.4")
    cloud.x = cloud.y = cloud.z = np.arange(points, dtype=float)
    file = io.BytesIO()
    cloud.write(file)
    return file.getvalue()


def gif(frames: int, side: int = 16) -> bytes:
    pictures = [Image.fromarray(np.full((side, side), 9 * i, np.uint8)) for i in range(frames)]
    return saved(pictures[0].save, format="GIF", save_all=True, append_images=pictures[1:])


def workbook(**cells: float) -> bytes:
    book = openpyxl.Workbook()
    for place, value in cells.items():
        book.active[place] = value
    return saved(book.save)


def parquet(rows: int) -> bytes:
    return pd.DataFrame({"x": np.zeros(rows), "y": np.arange(rows)}).to_parquet()


def refusal(read, data: bytes, name: str, folder: Path) -> str:
    """What is said of a file, which must take no time and no memory."""
    path = folder / name
    path.write_bytes(data)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(InputError) as fault:
        read(path)
    took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    text = str(fault.value)
    assert str(path) in text and "\n" not in text
    assert peak < 20e6 and took < 3
    return text


LINES = b"".join(b"%d %d %d\n" % (i, i, i) for i in range(50))
# reader, content, name, lowered limit, what is said. Each is a good file above the limit, or a promise far above it.
ABOVE = {
    "image": (read_image, saved(Image.new("L", (20, 10)).save, "PNG"), "a.png", {"pixels": 199}, "20 × 10 pixels"),
    "mask": (read_mask, saved(Image.new("L", (20, 10)).save, "PNG"), "a.png", {"pixels": 199}, "20 × 10 pixels"),
    "mask array": (read_mask, saved(np.save, np.zeros((20, 10), int)), "a.npy", {"pixels": 199}, "200 pixels"),
    "segments": (lambda path: PanopticFile(path).read(), saved(Image.new("RGB", (20, 10)).save, "PNG"), "a.png",
                 {"pixels": 199}, "20 × 10 pixels"),
    "frame": (read_video, gif(3), "a.gif", {"pixels": 255}, "frames of 16 × 16 pixels"),
    "film": (read_video, gif(9), "a.gif", {"frames": 8}, "9 frames"),
    "recording": (read_audio, wav(2), "a.wav", {"seconds": 1}, "2 seconds"),
    "lines of points": (read_cloud, LINES, "a.xyz", {"points": 49}, "50 points"),
    "las": (read_cloud, las(50), "a.las", {"points": 49}, "50 points"),
    "array of points": (read_cloud, saved(np.save, np.zeros((50, 3))), "a.npy", {"points": 49}, "50 points"),
    "npz of points": (read_cloud, saved(np.savez_compressed, np.zeros((50_000, 3))), "a.npz", {"unpacked": 900_000},
                      "1.200128 million bytes once unpacked"),
    "kitti": (read_cloud, bytes(16 * 50), "a.bin", {"points": 49}, "50 points"),
    "obj": (read_cloud, b"o x\n" + b"v 1 2 3\n" * 50, "a.obj", {"points": 49}, "50 points"),
    "gz of points": (read_cloud, gzip.compress(LINES), "a.xyz.gz", {"unpacked": 100}, "bytes once unpacked"),
    "csv": (read_table, b"x,y\n" + b"1,2\n" * 50, "a.csv", {"rows": 50}, "51 rows"),
    "csv cells": (read_table, b"x,y\n" + b"1,2\n" * 50, "a.csv", {"cells": 101}, "102 cells"),
    "gz of rows": (read_table, gzip.compress(b"1,2\n" * 50), "a.csv", {"unpacked": 100}, "bytes once unpacked"),
    "parquet": (read_table, parquet(50), "a.parquet", {"rows": 49}, "50 rows"),
    "parquet cells": (read_table, parquet(50), "a.parquet", {"cells": 99}, "100 cells"),
    "parquet bytes": (read_table, parquet(5000), "a.parquet", {"unpacked": 30_000}, "bytes once unpacked"),
    "workbook": (read_table, workbook(A1=1, B50=2), "a.xlsx", {"rows": 49}, "50 rows"),
    "workbook bytes": (read_table, workbook(A1=1), "a.xlsx", {"unpacked": 999}, "bytes once unpacked"),
    "series": (read_series, b"x,y\n" + b"1,2\n" * 50, "a.csv", {"rows": 49}, "51 rows"),
    "parquet series": (read_series, parquet(50), "a.parquet", {"rows": 49}, "50 rows"),
    "array series": (read_series, saved(np.save, np.zeros((50, 2))), "a.npy", {"cells": 99}, "100 cells"),
    "workbook series": (read_series, workbook(A1=1, B50=2), "a.xlsx", {"cells": 99}, "100 cells"),
    "gz of series": (read_series, gzip.compress(b"1,2\n" * 50), "a.gz", {"unpacked": 100}, "bytes once unpacked"),
    "text": (read_text, "ä".encode() * 50, "a.txt", {"characters": 49}, "50 characters"),
    "rows of texts": (read_text, b"text\n" + b"a b\n" * 50, "a.csv", {"rows": 50}, "51 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", ABOVE)
def test_more_than_the_limit_is_refused_and_what_is_at_it_is_read(case, tmp_path):
    read, data, name, limit, said = ABOVE[case]
    with limited(**limit):
        text = refusal(read, data, name, tmp_path)
    ((kind, most),) = limit.items()
    assert f"it has {said}" in text or said in text
    assert f"more than the limit of {most:,}; if it is to be trusted, raise the limit: --limit {kind}=" in text
    raised = parse_limits([text.rpartition("--limit ")[2].rstrip(".")])
    with limited(**{kind: getattr(raised, kind)}):
        read(tmp_path / name)


def test_decoders_are_not_reached(tmp_path, monkeypatch):
    def decode(*arguments, **options):
        raise AssertionError("decoded")

    for owner, name in ((Image.Image, "load"), (laspy, "read"), (soundfile.SoundFile, "blocks"), (pd, "read_csv"),
                        (pd, "read_parquet"), (pd, "read_excel"), (np, "load")):  # fmt: skip
        monkeypatch.setattr(owner, name, decode)
    with limited(pixels=99, seconds=1, points=9, rows=9, cells=9):
        for case in ("image", "recording", "las", "array of points", "lines of points", "csv", "parquet", "workbook",
                     "array series", "series"):  # fmt: skip
            read, data, name, *_ = ABOVE[case]
            assert "more than the limit" in refusal(read, data, name, tmp_path)


WIDE = b"a" + b",1" * 20_000 + b"\n" + b"b,2\n" * 60_000  # a long line and many short ones: 1200 million cells
BOMBS = {
    "png": (read_image, png(60_000, 60_000), "a.png", "60000 × 60000 pixels, more than the limit of 250 million"),
    "mask": (read_mask, png(60_000, 60_000), "a.png", "more than the limit of 250 million"),
    "mask array": (read_mask, npy(10**6, 10**6, kind="|u1"), "a.npy", "bytes hold no array"),
    "npy of points": (read_cloud, npy(10**7, 3), "a.npy", "truncated, damaged"),
    "npz of points": (read_cloud, zipped(xyz=npy(10**12, 3)), "a.npz", "truncated, damaged"),
    "npy of values": (read_series, npy(10**12), "a.npy", "bytes hold no array of shape"),
    "ply": (read_cloud, b"ply\nformat binary_little_endian 1.0\nelement vertex 999999999\nproperty float x\n"
            b"property float y\nproperty float z\nend_header\n", "a.ply", "999.999999 million points"),
    "pcd": (read_cloud, b"VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 9\nDATA binary_compressed\n"
            + struct.pack("<II", 4, 0xFFFFFFFF) + bytes(4), "a.pcd", "4,294.967295 million bytes once unpacked"),
    "gz of a gz": (read_cloud, gzip.compress(gzip.compress(LINES)), "a.xyz.gz", "a gzip file lies in a gzip file"),
    "table": (read_table, WIDE, "a.csv", "million cells, more than the limit of 1,000 million"),
    "lines": (read_series, WIDE, "a.csv", "million cells, more than the limit of 1,000 million"),
    "ts": (read_series, b"@dimensions 40001\n@data\n" + b"1," * 30_000 + b"1" + b":1" * 40_000, "a.ts",
           "million cells"),
    "workbook": (read_table, workbook(A1=1, XFD1048576=2), "a.xlsx", "17,179.869184 million cells"),
    "workbook series": (read_series, workbook(A1=1, XFD1048576=2), "a.xlsx", "17,179.869184 million cells"),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_by_the_limits_as_they_stand(case, tmp_path):
    read, data, name, said = BOMBS[case]
    assert len(data) < 400_000
    assert said in refusal(read, data, name, tmp_path)


# What short files are filled up to.
SPANS = {
    "blanks": (read_table, (b"1 " * 2000 + b"\n") * 51 + b"2\n" * 100_000, "a.txt", 99_999_999,
               "200.102 million cells"),
    "keys": (read_text, b"".join(b'{"%d": 1}\n' % i for i in range(10_000)), "a.jsonl", 99_999_999,
             "100 million cells"),
    "points": (read_cloud, b"1 " * 5000 + b"\n" + b"2\n" * 50_000, "a.xyz", 99_999_999, "250.005 million cells"),
    "uneven": (read_series, b"time,x,y\n" + b"".join(b"2024-01-01 00:%02d:%02d,1,2\n" % divmod(i, 60)
               for i in range(3000)) + b"2024-01-01 12:00:00,1,2\n", "a.csv", 10_000, "86,402 cells"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPANS)
def test_cells_that_readers_would_fill_in_are_counted(case, tmp_path):
    read, data, name, most, said = SPANS[case]
    with limited(cells=most):
        assert said in refusal(read, data, name, tmp_path)


def test_a_thousand_channels_need_little_memory(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((400, 1000)), 8000)
    tracemalloc.start()
    assert read_audio(tmp_path / "a.wav", 8000).wave.shape == (400,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6  # half a million samples of a thousand channels would be two thousand million bytes


FILES = [(read_image, "a.png"), (read_video, "a.mp4"), (read_audio, "a.wav"), (read_cloud, "a.ply"),
         (read_table, "a.csv"), (read_series, "a.csv"), (read_text, "a.txt")]  # fmt: skip


@pytest.mark.parametrize("read, name", FILES)
def test_the_bytes_of_a_file_are_asked_first(read, name, tmp_path):
    with limited(bytes=99):
        assert "100 bytes, more than the limit of 99" in refusal(read, bytes(100), name, tmp_path)


def test_what_is_fetched_is_no_larger_than_a_file_may_be(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.chdir(tmp_path)
    fsspec.filesystem("memory").pipe_file("/limits/a.png", bytes(100))
    with tarfile.open("s.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = 100
        tar.addfile(info, io.BytesIO(bytes(100)))
    for item in list_items(["memory://limits/a.png", "s.tar"], (".png",)):
        with item.open_local() as path:
            assert path.stat().st_size == 100
        above = pytest.raises(InputError, match="100 bytes, more than the limit of 99")
        with limited(bytes=99), above as fault, item.open_local():
            pass
        assert fault.value.source == item.name
        with pytest.raises(InputError, match="this is not an image") as fault, item.open_local() as path:
            read_image(path)
        assert fault.value.source == item.name


def test_limits_are_set_and_come_back():
    usual = limits()
    assert usual == Limits() and pickle.loads(pickle.dumps(usual)) == usual
    with pytest.raises(RuntimeError), limited(pixels=5):
        assert limits() == Limits(pixels=5)
        with limited(rows=3):
            assert limits() == Limits(pixels=5, rows=3)
        raise RuntimeError
    assert limits() is usual
    try:
        set_limits(parse_limits(["pixels=5e8", "seconds=inf"]))
        assert limits().pixels == 500_000_000 and limits().seconds > 1e18 and limits().rows == usual.rows
    finally:
        set_limits(usual)
    assert parse_limits([]) == usual


@pytest.mark.parametrize("option, problem", [("pixel=5", "no limit 'pixel'.*pixels, "), ("pixels", "this is no limit"),
                                             ("pixels=", "nothing is no number"), ("pixels=many", "many is no number"),
                                             ("rows=0", "0 is no number of rows"), ("rows=nan", "nan is no"),
                                             ("rows=-5", "-5 is no number")])  # fmt: skip
def test_limits_that_are_none(option, problem):
    with pytest.raises(InputError, match=problem):
        parse_limits([option])


def test_what_a_limit_is_raised_to_suffices():
    for amount in (1, 9, 10, 11, 99, 100, 101, 199_999, 401_234_567, 10**9, 2**40 + 1):
        assert amount <= float(module._above(amount)) <= 1.11 * amount


UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "pd.read_pickle", "pandas.read_pickle", "joblib.load",
          "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "marshal.load", "marshal.loads",
          "shelve.open", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load",
          "eval", "exec"}  # fmt: skip
# An option of the call, what it must be, and what it is where nothing is said.
WANTED = {"torch.load": ("weights_only", "True", "None"), "np.load": ("allow_pickle", "False", "False"),
          "numpy.load": ("allow_pickle", "False", "False")}  # fmt: skip


def unsafe_loads(code: str) -> list[str]:
    """Calls that may run what stands in a file. np.load refuses pickles as it is, unless it is told otherwise."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        call, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        name, wanted, usual = WANTED.get(call, ("", "", ""))
        if call in UNSAFE or options.get(name, usual) != wanted or "trust_remote_code" in options:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_nothing_in_the_source_unpickles_or_runs_a_file():
    files = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
    assert len(files) > 200
    found = [f"{path}:{call}" for path in files for call in unsafe_loads(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_unsafe_loads_would_be_found():
    bad = ["pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)",
           "yaml.load(t, Loader=yaml.Loader)", "pd.read_pickle(p)", "eval(text)",
           "load(trust_remote_code=True)"]  # fmt: skip
    assert all(len(unsafe_loads(code)) == 1 for code in bad)
    good = ["model.eval()", "torch.load(p, weights_only=True)", "np.load(p)", "yaml.safe_load(t)", "json.loads(t)"]
    assert not any(map(unsafe_loads, good))


def test_arrays_of_objects_are_refused(tmp_path):
    data = saved(np.save, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for read in (read_cloud, read_series, read_mask):
        (tmp_path / "a.npy").write_bytes(data)
        with pytest.raises(InputError):
            read(tmp_path / "a.npy")


def test_the_command_line_sets_limits_for_one_run(tmp_path, capsys, monkeypatch):
    from polysense.apps import cli

    seen = []
    monkeypatch.setattr("polysense.apps.learn.list_models", lambda: seen.append(limits()))
    runs = ["models --limit pixels=5e8 --limit=rows=9", "--limit rows=7 models", "models"]
    for arguments in map(str.split, runs):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert not end.value.code
    assert seen == [Limits(pixels=500_000_000, rows=9), Limits(rows=7), Limits()] and limits() == Limits()
    for wrong, said in ((["models", "--limit", "pixel=5"], "no limit 'pixel'"), (["models", "--limit"], "")):
        with pytest.raises(SystemExit) as end:
            cli.main(wrong)
        assert end.value.code in (1, 2) and said in capsys.readouterr().err
