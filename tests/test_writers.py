"""Writers: every kind of answer in every format, atomic replacement, clear errors."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Embedding, Labels, Mask, Prediction, Segments, Series, Values
from polysense.data.writers import WRITERS, open_writer

ANSWERS: dict[str, Prediction] = {
    "labels": Labels(("cat", "dög"), (0.75, 0.25), ("cat",), "a, b.jpg"),
    "boxes": Boxes(np.array([[1, 2, 3, 4]], np.float32), ["cell"], np.array([0.5], np.float32), (8, 8), "b.jpg"),
    "mask": Mask(np.array([[0, 1], [1, 2]]), ("sky", "road", "car"), 0.9, "c.png"),
    "segments": Segments(np.array([[-1, 0], [1, 0]], np.int32), ["cup", "table"], np.array([0.75, 0.5]), "c.png"),
    "series": Series(np.array([[1.0, 2], [3, 4]]), {0.1: np.zeros((2, 2)), 0.9: np.full((2, 2), 9.0)},
                     ["2024-01-01", "2024-01-02"], ["load", "price"], None, "d.csv"),
    "values": Values({"age": 41.5, "height": 1.8}, "e.wav"),
    "embedding": Embedding(np.array([0.5, -0.25], np.float32), "f.ply"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_json_keeps_the_whole_record(tmp_path: Path, ending: str, kind: str) -> None:
    out = tmp_path / f"out{ending}"
    with open_writer(out) as writer:
        for _ in range(3):
            writer.write(ANSWERS[kind])
    text = out.read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()] if ending == ".jsonl" else json.loads(text)
    expected = json.loads(json.dumps(ANSWERS[kind].to_record()))
    if kind in ("mask", "segments"):
        assert [r.pop("mask") for r in records] == [f"out{ending}.masks/{i:06d}-c.png" for i in range(3)]
    assert records == [expected] * 3


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables_are_flat(tmp_path: Path, ending: str, kind: str) -> None:
    out = tmp_path / f"out{ending}"
    with open_writer(out) as writer:
        writer.write(ANSWERS[kind])
        writer.write(ANSWERS[kind])
    table = pd.read_csv(out) if ending == ".csv" else pd.read_parquet(out)
    if kind == "series":
        assert list(table.columns) == ["source", "variate", "step", "time", "mean", "q0.1", "q0.9"]
        assert len(table) == 8
        row = table[(table.variate == "price") & (table.step == 2)].iloc[0]
        assert (row["mean"], row["q0.9"], row["time"]) == (4.0, 9.0, "2024-01-02")
        return
    assert list(table.columns[:3]) == ["source", "answer", "confidence"]
    assert table.source.tolist() == [ANSWERS[kind].source] * 2
    assert table.answer.tolist() == [ANSWERS[kind].answer()] * 2
    if kind == "labels":
        assert json.loads(table.scores[0]) == {"cat": 0.75, "dög": 0.25}
    if kind == "embedding":
        vector = json.loads(table.embedding[0]) if ending == ".csv" else table.embedding[0]
        np.testing.assert_array_equal(np.asarray(vector, np.float32), [0.5, -0.25])


def test_masks_are_index_pngs(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for _ in range(2):  # the second run replaces the first one's masks
        with open_writer(out) as writer:
            writer.write(ANSWERS["mask"])
    files = list((tmp_path / "out.jsonl.masks").iterdir())
    assert [f.name for f in files] == ["000000-c.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])), [[0, 1], [1, 2]])


def test_segments_are_numbered_from_one(tmp_path: Path) -> None:
    with open_writer(tmp_path / "out.jsonl") as writer:
        writer.write(ANSWERS["segments"])
    record = json.loads((tmp_path / "out.jsonl").read_text())
    assert np.asarray(Image.open(tmp_path / record["mask"])).tolist() == [[0, 1], [2, 1]]
    assert [(one["number"], one["label"], one["pixels"]) for one in record["segments"]] == [
        (1, "cup", 2),
        (2, "table", 1),
    ]


def test_mask_of_many_classes_keeps_its_indices(tmp_path: Path) -> None:
    cloud = Mask(np.array([0, 299]), [str(i) for i in range(300)], 1.0, "scan.ply")
    with open_writer(tmp_path / "o.json") as writer:
        writer.write(cloud)
    pixels = np.asarray(Image.open(tmp_path / "o.json.masks" / "000000-scan.png"))
    np.testing.assert_array_equal(pixels, [[0, 299]])


@pytest.mark.parametrize("ending", WRITERS)
def test_a_failed_run_leaves_what_was_there(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out{ending}"
    out.write_text("before")
    with pytest.raises(RuntimeError, match="stop"), open_writer(out) as writer:
        writer.write(ANSWERS["boxes" if ending == ".coco.json" else "mask"])
        raise RuntimeError("stop")
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("ending", WRITERS)
def test_no_answer_is_a_valid_file(tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out{ending}"
    with open_writer(out):
        pass
    if ending == ".json":
        assert json.loads(out.read_text()) == []
    elif ending == ".coco.json":
        assert json.loads(out.read_text()) == {"images": [], "categories": [], "annotations": []}
    elif ending == ".csv":
        assert next(csv.reader(out.open())) == ["source", "answer", "confidence"]
    elif ending == ".parquet":
        assert len(pd.read_parquet(out)) == 0
    else:
        assert out.read_text() == ""
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_different_kinds_do_not_share_a_table(tmp_path: Path, ending: str) -> None:
    with pytest.raises(InputError, match="jsonl"), open_writer(tmp_path / f"o{ending}") as writer:
        writer.write(ANSWERS["labels"])
        writer.write(ANSWERS["values"])
    assert not list(tmp_path.iterdir())


def test_parquet_boxes_after_an_image_without_any(tmp_path: Path) -> None:
    empty = Boxes(np.zeros((0, 4), np.float32), [], np.zeros(0, np.float32), (8, 8), "none.jpg")
    with open_writer(tmp_path / "o.parquet") as writer:
        writer.chunk = 1
        writer.write(empty)
        writer.write(ANSWERS["boxes"])
    table = pd.read_parquet(tmp_path / "o.parquet")
    assert [len(boxes) for boxes in table.boxes] == [0, 1]
    assert table.boxes[1][0]["label"] == "cell"


def test_json_has_null_for_numbers_that_are_none(tmp_path: Path) -> None:
    with open_writer(tmp_path / "o.jsonl") as writer:
        writer.write(Values({"x": float("nan")}))
    assert json.loads((tmp_path / "o.jsonl").read_text())["values"] == {"x": None}


def test_errors_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.parquet"):
        open_writer(tmp_path / "out.xlsx")
    with pytest.raises(InputError, match="does not exist"):
        open_writer(tmp_path / "nowhere" / "out.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(InputError, match="folder"):
        open_writer(tmp_path / "d.csv")


def test_formulas_are_escaped_where_asked(tmp_path: Path) -> None:
    for answer in ("=HYPERLINK(1)", "+1", "-x", "@sum", "\tx", "plain"):
        labels = Labels((answer, "b"), (0.75, 0.25), (answer,), f"{answer}.jpg")
        for escape in (False, True):
            with open_writer(tmp_path / "o.csv", escape=escape) as writer:
                writer.write(labels)
            with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as file:
                _, row = csv.reader(file)
            dangerous = escape and answer != "plain"
            assert row[1] == (f"'{answer}" if dangerous else answer)
            assert row[0] == (f"'{answer}.jpg" if dangerous else f"{answer}.jpg")
            assert row[2] == "0.75"


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("kind", ["boxes", "series"])
def test_rows_say_what_answered(tmp_path: Path, ending: str, kind: str) -> None:
    if ending == ".coco.json" and kind != "boxes":
        return
    out = tmp_path / f"o{ending}"
    with open_writer(out, {"model": "m", "encoder": "0123"}) as writer:
        writer.write(ANSWERS[kind])
    if ending == ".coco.json":
        assert json.loads(out.read_text())["info"]["model"] == "m"
    elif ending in (".csv", ".parquet"):
        table = pd.read_csv(out, dtype=str) if ending == ".csv" else pd.read_parquet(out)
        assert list(table.columns[-2:]) == ["model", "encoder"]
        assert set(table.encoder) == {"0123"}
    else:
        text = out.read_text()
        record = json.loads(text)[0] if ending == ".json" else json.loads(text.splitlines()[0])
        assert (record["model"], record["encoder"]) == ("m", "0123")


def test_arrays_hold_embeddings_of_one_width(tmp_path: Path) -> None:
    with open_writer(tmp_path / "o.npy") as writer:
        for value in range(3):
            writer.write(Embedding(np.full(4, value, np.float32)))
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), np.arange(3)[:, None].repeat(4, 1))
    with open_writer(tmp_path / "none.npz"):
        pass
    assert np.load(tmp_path / "none.npz")["vectors"].shape == (0, 0)
    with pytest.raises(InputError, match="4 and 5 numbers"), open_writer(tmp_path / "p.npy") as writer:
        writer.write(Embedding(np.zeros(4, np.float32)))
        writer.write(Embedding(np.zeros(5, np.float32)))
    with pytest.raises(InputError, match="holds embeddings"), open_writer(tmp_path / "p.npz") as writer:
        writer.write(ANSWERS["labels"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.npz", "o.npy"]
