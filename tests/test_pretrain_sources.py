"""What pretraining reads: folders, shards, parquet, lists, arrays; training parts alone, and where they lie."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from polysense.core.errors import InputError
from polysense.data.image import read_image
from polysense.training import pretrain_containers
from polysense.training.pretrain_config import DataPlan
from polysense.training.pretrain_containers import ParquetSource
from polysense.training.pretrain_sources import braces, open_series, open_source


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def red(source: object) -> int:
    return read_image(source).getpixel((0, 0))[0]


def everything(source) -> list[tuple[int, int]]:
    return [(red(value), label) for value, label in map(source.get, range(len(source)))]


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(("train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "val/cat/4.png")):
        (tmp_path / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pics" / name).write_bytes(png(i + 1))
    return tmp_path


def test_class_folders_give_their_training_part(folder: Path) -> None:
    source = open_source(DataPlan("pics", labels=True), "image", folder)
    assert source.classes == ["cat", "dog"] and everything(source) == [(1, 0), (2, 1)]


def test_without_labels_none_enter(folder: Path) -> None:
    source = open_source(DataPlan("pics"), "image", folder)
    assert source.classes == [] and everything(source) == [(1, -1), (2, -1)]


def test_braces_and_patterns(tmp_path: Path) -> None:
    assert braces("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert braces("plain") == ["plain"]
    for i in range(2):
        shard(tmp_path / f"s-{i}.tar", {f"{i}.png": png(i)})
    for text in ("s-{0..1}.tar", "s-*.tar", "."):
        assert everything(open_source(DataPlan(text), "image", tmp_path)) == [(0, -1), (1, -1)]
    with pytest.raises(InputError, match=r"s-2.tar: there is no such file"):
        open_source(DataPlan("s-{0..2}.tar"), "image", tmp_path)


def test_shards_with_labels_in_cls_and_json(tmp_path: Path) -> None:
    shard(tmp_path / "a-train.tar", {"x/1.png": png(1), "x/1.cls": b"7", "x/2.cls": b"3\n", "x/2.png": png(2),
                                     "x/2.txt": b"a caption"})  # fmt: skip
    shard(tmp_path / "b-train.tar", {"x/1.json": json.dumps({"label": 7}).encode(), "x/1.seg.png": png(9),
                                     "x/1.png": png(3)})  # fmt: skip
    shard(tmp_path / "c-test.tar", {"1.png": png(4), "1.cls": b"3"})
    source = open_source(DataPlan("*.tar", labels=True), "image", tmp_path)
    assert source.classes == ["3", "7"] and everything(source) == [(1, 1), (2, 0), (3, 1)]
    shard(tmp_path / "d.tar", {"1.png": png(4)})
    with pytest.raises(InputError, match="1 of its samples have no label"):
        open_source(DataPlan("d.tar", labels=True), "image", tmp_path)


def test_compressed_or_broken_shards_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"1.png": png(1)}, "w:gz")
    with pytest.raises(InputError, match="unpacked first"):
        open_source(DataPlan("a.tar"), "image", tmp_path)


def parquet(path: Path, count: int, groups: int) -> None:
    table = pa.table({"image": [{"bytes": png(i), "path": None} for i in range(count)],
                      "label": [f"c{i % 2}" for i in range(count)]})  # fmt: skip
    pq.write_table(table, path, row_group_size=groups)


def test_parquet_files(tmp_path: Path) -> None:
    parquet(tmp_path / "train-0.parquet", 5, 2)
    parquet(tmp_path / "test-0.parquet", 3, 2)
    source = open_source(DataPlan(".", labels=True), "image", tmp_path)
    assert source.classes == ["c0", "c1"] and everything(source) == [(i, i % 2) for i in range(5)]
    with pytest.raises(InputError, match="no column 'kind'"):
        open_source(DataPlan(".", labels=True, label="kind"), "image", tmp_path)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"none of its columns \(x\) holds inputs"):
        open_source(DataPlan("x.parquet"), "image", tmp_path)


def test_large_parquet_is_drawn_by_few_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "a.parquet", 60, 5)
    monkeypatch.setattr(pretrain_containers, "IN_MEMORY", 1)
    source = ParquetSource("a", [tmp_path / "a.parquet"], None, False)
    drawn = [source.draw(np.random.default_rng(seed), 40) for seed in range(30)]
    assert all(len({i // 5 for i in rows}) <= source.MOST for rows in drawn)
    assert {i for rows in drawn for i in rows} == set(range(60))
    assert [red(source.get(i)[0]) for i in drawn[0]] == drawn[0] and len(source._kept) <= source.MOST


def test_lists_and_arrays(folder: Path) -> None:
    pd.DataFrame({"file": ["train/cat/1.png", "train/dog/2.png", "test/dog/3.png"], "animal": ["c", "d", "d"],
                  "split": ["train", "train", "test"]}).to_csv(folder / "pics" / "list.csv", index=False)  # fmt: skip
    listed = open_source(DataPlan("pics/list.csv", labels=True, label="animal"), "image", folder)
    assert listed.classes == ["c", "d"] and everything(listed) == [(1, 0), (2, 1)]
    np.save(folder / "clouds.npy", np.random.default_rng(0).normal(size=(3, 50, 3)))
    clouds = open_source(DataPlan("clouds.npy"), "point_cloud", folder)
    assert len(clouds) == 3 and clouds.get(1)[0].xyz.shape == (50, 3)
    with pytest.raises(InputError, match="have no classes"):
        open_source(DataPlan("clouds.npy", labels=True), "point_cloud", folder)
    with pytest.raises(InputError, match="not named"):
        open_source(DataPlan("pics/list.csv", labels=True), "image", folder)


def test_nothing_readable(folder: Path) -> None:
    with pytest.raises(InputError, match="no readable audio was found"):
        open_source(DataPlan("pics"), "audio", folder)
    with pytest.raises(InputError, match="no such file or folder"):
        open_source(DataPlan("nowhere"), "image", folder)


def test_series_of_a_folder_beside_its_notes(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name, steps in (("long.csv", 30), ("short.csv", 5), ("long_TEST.csv", 30)):
        pd.DataFrame({"a": np.arange(steps) * 1.5}).to_csv(tmp_path / "s" / name, index=False)
    (tmp_path / "s" / "SOURCE.txt").write_text("From somewhere.\nUnder a licence.\n")
    frames, left_out = open_series(DataPlan("s"), tmp_path, None, None, 10)
    assert [len(frame.values) for frame in frames] == [30] and left_out == 1
    with pytest.raises(InputError, match=r"SOURCE\.txt"):
        open_series(DataPlan("s/SOURCE.txt"), tmp_path, None, None, 10)
    with pytest.raises(InputError, match="at least 40 steps"):
        open_series(DataPlan("s"), tmp_path, None, None, 40)
