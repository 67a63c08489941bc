"""Batches with damaged files among good ones: no file ends a run, every file is answered or listed, and what the good
ones are answered does not change."""

import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import laspy
import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

import polysense
from polysense.apps.cli import main
from polysense.pipeline import Pipeline

# What readers take; beside it, whether a file that lost most of its bytes cannot be read: text has no end to miss.
FORMATS = {
    "image": {"png": True, "jpg": True, "gif": True, "webp": True, "bmp": True, "tiff": True},
    "audio": {"wav": True, "flac": True, "mp3": True, "ogg": True},
    "video": {"mp4": True},
    "point_cloud": {"ply": True, "pcd": True, "npy": True, "las": True, "xyz": False, "obj": False},
    "time_series": {"csv": False, "npz": True, "parquet": True, "ts": False},
    "tabular": {"csv": False, "tsv": False, "parquet": True, "xlsx": True},
    "text": {"txt": False, "jsonl": False, "csv": False},
}
WORDS = ("a", "small", "dog", "barks", "at", "the", "train", "and", "nobody", "minds", "but", "Zoë")


def image(rng: np.random.Generator, ending: str) -> bytes:
    pixels = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(7, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "jpeg"}.get(ending, ending))
    return file.getvalue()


def audio(rng: np.random.Generator, ending: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, rng.normal(0, 0.1, 12_000), 8000, format=ending)
    return file.getvalue()


def video(rng: np.random.Generator, ending: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=ending) as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(12):
            pixels = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def point_cloud(rng: np.random.Generator, ending: str) -> bytes:
    xyz = rng.normal(0, 2, (200, 3)).astype("<f4")
    file = io.BytesIO()
    if ending == "ply":
        fields = "".join(f"property float {axis}\n" for axis in "xyz")
        return (
            f"ply\nformat binary_little_endian 1.0\nelement vertex 200\n{fields}end_header\n".encode() + xyz.tobytes()
        )
    if ending == "pcd":
        head = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 200\nHEIGHT 1\nPOINTS 200\n"
        return f"{head}DATA binary\n".encode() + xyz.tobytes()
    if ending == "npy":
        np.save(file, xyz)
        return file.getvalue()
    if ending == "las":
        cloud = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
        cloud.x, cloud.y, cloud.z = xyz.T.astype(np.float64)
        cloud.write(file)
        return file.getvalue()
    return "".join(f"{'v ' * (ending == 'obj')}{x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in xyz).encode()


def time_series(rng: np.random.Generator, ending: str) -> bytes:
    values = rng.normal(0, 1, 120).cumsum()
    file = io.BytesIO()
    if ending == "ts":
        lines = "\n".join(",".join(f"{v:.3f}" for v in values + i) for i in range(3))
        return f"@problemName Waves\n@timeStamps false\n@univariate true\n@classLabel false\n@data\n{lines}\n".encode()
    if ending == "npz":
        np.savez(file, values=values)
        return file.getvalue()
    frame = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=120, freq="h"), "load": values})
    return written(frame, ending)


def tabular(rng: np.random.Generator, ending: str) -> bytes:
    frame = pd.DataFrame({"size": rng.normal(10, 3, 12).round(3), "count": rng.integers(0, 9, 12).astype(float),
                          "kind": rng.choice(["red", "green"], 12)})  # fmt: skip
    return written(frame, ending)


def text(rng: np.random.Generator, ending: str) -> bytes:
    sentences = [" ".join(rng.choice(WORDS, 9)) for _ in range(6)]
    if ending == "jsonl":
        return "".join(json.dumps({"text": one}) + "\n" for one in sentences).encode()
    return ("\n".join(["text"] * (ending == "csv") + sentences) + "\n").encode()


def written(frame: pd.DataFrame, ending: str) -> bytes:
    file = io.BytesIO()
    if ending == "parquet":
        frame.to_parquet(file)
    elif ending == "xlsx":
        frame.to_excel(file, index=False)
    else:
        file.write(frame.to_csv(sep="\t" if ending == "tsv" else ",", index=False).encode())
    return file.getvalue()


MAKERS = (image, audio, video, point_cloud, time_series, tabular, text)
MAKE: dict[str, Callable[[np.random.Generator, str], bytes]] = {maker.__name__: maker for maker in MAKERS}


def damaged(content: bytes, other: bytes, rng: np.random.Generator) -> dict[str, bytes]:
    """What may become of a file's content, by the name of the mishap."""

    def flipped(count: int, within: int) -> bytes:
        changed = np.frombuffer(content, np.uint8).copy()
        for place in rng.integers(0, min(within, len(changed)), count):
            changed[place] ^= 1 << rng.integers(8)
        return changed.tobytes()

    packed = gzip.compress(content)
    return {"empty": b"", "zeros": bytes(len(content)), "other": other, "third": content[: len(content) // 3],
            "end": content[: -rng.integers(1, 40)], "bits": flipped(5, len(content)), "head": flipped(3, 120),
            "packed": packed, "torn": packed[:-20]}  # fmt: skip


UNREADABLE = {"empty", "zeros", "other", "torn", "folder", "absent"}  # whatever the format


class Batch:
    """Files of some formats of a modality in a folder: good ones, and as many mishaps as there are.

    Attributes:
        good: Files that are as they should be.
        bad: The mishap of each other one.
        hopeless: Those of the others that nobody could read.
    """

    def __init__(self, folder: Path, modality: str, endings: dict[str, bool], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.folder, self.good, self.hopeless = folder, list[Path](), set[Path]()
        self.bad: dict[Path, str] = {}
        folder.mkdir()
        other = audio(rng, "wav") if modality == "image" else image(rng, "png")
        for ending, framed in endings.items():
            for number in range(2):
                self.good.append(folder / f"{number}-{ending}.{ending}")
                self.good[-1].write_bytes(MAKE[modality](rng, ending))
            for mishap, content in damaged(MAKE[modality](rng, ending), other, rng).items():
                self._add(mishap, ending, framed).write_bytes(content)
            self._add("folder", ending, framed).mkdir()
            self._add("absent", ending, framed)

    def _add(self, mishap: str, ending: str, framed: bool) -> Path:
        path = self.folder / f"{mishap}-{ending}.{ending}"
        self.bad[path] = mishap
        if mishap in UNREADABLE or (framed and mishap == "third"):
            self.hopeless.add(path)
        return path

    def check(self, model: str, out: Path, workers: int, alone: Pipeline) -> None:
        """Predicts all of them, shuffled, and checks all that was said."""
        names = sorted([*self.good, *self.bad], key=lambda path: path.name[::-1])
        lines = out.with_suffix(".list")
        lines.write_text("\n".join(map(str, names)))
        assert predict(model, "--list", lines, "--out", out, "--workers", workers) == 3
        answered: dict[Path, list[list[float]]] = {}
        for row in rows(out):
            answered.setdefault(self.file_of(row["source"]), []).append(row["embedding"])
        errors = rows(Path(f"{out}.errors.jsonl"))
        listed = [self.file_of(error["source"]) for error in errors]
        assert all(error["problem"] and error["fix"] for error in errors)
        assert not any("its reader" in error["problem"] for error in errors), errors  # it had no words of its own
        assert len(set(listed)) == len(listed) and not answered.keys() & set(listed)
        assert answered.keys() | set(listed) == {*self.good, *self.bad}
        assert self.hopeless <= set(listed), {self.bad[path] for path in self.hopeless - set(listed)}
        for path in self.good:
            np.testing.assert_allclose(answered[path], [one.vector for one in alone([path])], atol=1e-4)
        assert not hidden(out.parent)

    def file_of(self, source: str) -> Path:
        """The file that an answer ("a.csv#3") or an error ("a.ts, line 5") is of."""
        return next(path for path in (*self.good, *self.bad) if source.startswith(str(path)))


def predict(*arguments: Any) -> int:
    """The command's exit code; anything but an exit is a crash."""
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments), "--quiet"])
    assert isinstance(end.value.code, int)
    return end.value.code


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def model(tmp_path: Path, build: Callable[..., Pipeline], encoder_spec: str) -> Callable[[str], str]:
    """model(modality) -> a task that ships, or a bundle: tables differ in their columns, so that none does."""

    def name(modality: str) -> str:
        if modality != "tabular":
            return f"{modality.replace('_', '-')}-embedding"
        return str(build("tabular-embedding", encoder=encoder_spec).save_pretrained(tmp_path / "tables"))

    return name


@pytest.mark.parametrize("modality", FORMATS)
def test_damaged_files_of_every_modality(tmp_path: Path, model: Callable[[str], str], modality: str) -> None:
    name = model(modality)
    ending, framed = next(iter(FORMATS[modality].items()))
    batch = Batch(tmp_path / "files", modality, {ending: framed}, seed=1)
    batch.check(name, tmp_path / "out.jsonl", 2 if modality == "image" else 0, polysense.load(name, device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("modality", FORMATS)
def test_damaged_files_of_every_format(tmp_path: Path, model: Callable[[str], str], modality: str) -> None:
    """About three hundred, read in processes."""
    name = model(modality)
    batch = Batch(tmp_path / "files", modality, FORMATS[modality], seed=2)
    batch.check(name, tmp_path / "out.jsonl", 2, polysense.load(name, device="cpu"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of six."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(image(rng, "png"))
    return folder


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/out.jsonl", "its folder"),
        ("file/deeper/out.jsonl", "its folder"),
        ("pictures", "end the name with one of"),
        ("folder.jsonl", "this is a folder"),
    ],
)
def test_outputs_that_cannot_be(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str], out: str, words: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder.jsonl").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert predict("image-embedding", pictures, "--out", tmp_path / out, "--workers", 0) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"error: {tmp_path / out}: ") and words in said[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write anywhere")
def test_folders_without_permissions(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o500)
    assert predict("image-embedding", pictures, "--out", closed / "out.jsonl", "--workers", 0) == 1
    assert "cannot be written" in capsys.readouterr().err
    (pictures / "3.png").chmod(0)
    assert predict("image-embedding", pictures, "--out", tmp_path / "out.jsonl", "--workers", 0) == 3
    (error,) = rows(tmp_path / "out.jsonl.errors.jsonl")
    assert error["source"] == str(pictures / "3.png") and "permission" in error["problem"].lower()


def test_a_folder_that_may_only_be_read(tmp_path: Path, pictures: Path) -> None:
    """Nothing is written beside the inputs, whether or not it could be."""
    before = {path: path.stat().st_mtime_ns for path in (pictures, *pictures.iterdir())}
    pictures.chmod(0o500)
    try:
        assert predict("image-embedding", pictures, "--out", tmp_path / "out.jsonl", "--workers", 0) == 0
    finally:
        pictures.chmod(0o700)
    assert len(rows(tmp_path / "out.jsonl")) == 6
    assert {path: path.stat().st_mtime_ns for path in (pictures, *pictures.iterdir())} == before


def test_an_input_that_goes_after_it_was_listed(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(pictures.iterdir())

    def listed() -> Iterator[str]:
        yield from (f"{name}\n" for name in names)
        names[2].unlink()
        names[4].unlink()
        names[4].mkdir()

    monkeypatch.setattr(sys, "stdin", listed())
    assert predict("image-embedding", "--list", "-", "--out", tmp_path / "out.jsonl", "--workers", 0) == 3
    assert [row["source"] for row in rows(tmp_path / "out.jsonl")] == [str(names[i]) for i in (0, 1, 3, 5)]
    errors = rows(tmp_path / "out.jsonl.errors.jsonl")
    assert [error["source"] for error in errors] == [str(names[2]), str(names[4])]
    assert "no such file" in errors[0]["problem"] and "folder" in errors[1]["problem"]
