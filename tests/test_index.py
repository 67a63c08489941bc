"""An index of embeddings: as exact neighbours find them; filters, a graph, damage, and the command line end to end."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

import polysense
from polysense import index as module
from polysense.apps import cli
from polysense.apps import embed as embed_module
from polysense.backbone.anchor import load_anchor
from polysense.core.errors import InputError
from polysense.core.predictions import Embedding, Values
from polysense.index import Index
from polysense.neighbours import Neighbours
from polysense.pipeline import Pipeline

# Not importorskip: the library is to be imported where it is used, after it was told to be quiet.
pytestmark = pytest.mark.skipif(find_spec("lancedb") is None, reason="wants the extra search")
DIM = 24
KINDS = ("image", "audio", "text")


def embeddings(count: int, seed: int = 0) -> list[Embedding]:
    """Of any length; number i is called "in/i.x" and is of kind i mod 3."""
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return [Embedding(vector, f"in/{i}.x", {"modality": KINDS[i % 3]}) for i, vector in enumerate(vectors)]


def in_memory(found: list[Embedding]) -> Neighbours:
    memory = Neighbours(DIM)
    for one in found:
        memory.add([one], one.meta["modality"])
    return memory


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def index(place: Path) -> Index:
    return Index.create(place, DIM, "encoder", "abc")


@pytest.mark.parametrize("rows", [7, 4096])
def test_it_finds_what_exact_neighbours_find(index: Index, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    given = embeddings(60)
    assert index.add(iter(given)) == len(index) == 60
    memory = in_memory(given)
    for query in (*(one.vector for one in given[:5]), *np.random.default_rng(1).standard_normal((5, DIM)) * 30):
        for k in (1, 10, 100):
            assert index.search(query, k) == index.search(query, k, exact=True) == memory.search(query, k)[0]
            assert index.search(query, k, modality="audio") == memory.search(query, k, "audio")[0]
    assert index.search(given[3], 1)[0].source == "in/3.x"


def test_a_source_that_is_added_again_takes_its_place(index: Index) -> None:
    first, again = embeddings(6), embeddings(3, seed=5)
    index.add(first, "image")
    index.add([*again, Embedding(-again[0].vector, again[0].source)], "audio")
    assert len(index) == 6
    assert index.search(-again[0].vector, 1)[0].score == pytest.approx(1)  # of the same batch, the last one
    assert {one.source: one.modality for one in index.search(first[0], 9)} == {
        f"in/{i}.x": "audio" if i < 3 else "image" for i in range(6)
    }


def test_conditions(index: Index) -> None:
    index.add(embeddings(30))
    index.add([Embedding(np.ones(DIM), "it's.x")], "o'clock")
    numbers = {int(one.source[3:-2]) for one in index.search(np.ones(DIM), 50, "source LIKE 'in/1%'", "audio")}
    assert numbers == {1, 10, 13, 16, 19}
    assert index.search(np.ones(DIM), 5, "source = 'it''s.x'") == index.search(np.ones(DIM), 5, modality="o'clock")
    assert len(index.search(np.ones(DIM), 50, "added > timestamp '2020-01-01' OR modality = 'none'")) == 31
    assert index.search(np.ones(DIM), 5, "source = 'nowhere'") == []


@pytest.mark.parametrize(
    "where", ["size = 3", "modality", "modality = ", "modality = 'audio'; drop table x", "true -- x", "", "xx(source)"]
)
def test_a_bad_condition_is_one_sentence(index: Index, where: str) -> None:
    index.add(embeddings(3))
    with pytest.raises(InputError, match=r"not understood \(.+\); write a condition on source, modality or") as error:
        index.search(np.ones(DIM), 3, where)
    assert "\n" not in str(error.value) and ".rs:" not in str(error.value)


def test_opened_again_it_is_the_same(index: Index, place: Path) -> None:
    given = embeddings(20)
    index.add(given)
    index.optimise()
    again = Index.open(str(place))
    assert (again.dim, again.space, again.fingerprint, len(again)) == (DIM, "encoder", "abc", 20)
    assert again.search(given[0], 20) == in_memory(given).search(given[0], 20)[0]
    again.add(embeddings(22))
    assert len(Index.open(place)) == 22


def test_beyond_many_rows_a_graph_finds_nearly_all(
    index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "MANY", 2000)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, DIM))[rng.integers(50, size=2500)] + 0.4 * rng.standard_normal((2500, DIM))
    given = [Embedding(vector, f"{i}", {"modality": KINDS[i % 3]}) for i, vector in enumerate(vectors)]
    index.add(given[:1900])
    index.optimise()
    assert not index.table.list_indices()
    index.add(given[1900:2100])
    index.optimise()
    assert [entry.num_indexed_rows for entry in index.table.list_indices()] == [2100]
    index.add(given[2100:])  # not yet in the graph
    memory = in_memory(given)
    for _ in range(2):
        share = []
        for query in vectors[::50] + 0.1:
            true, found = memory.search(query, 10)[0], index.search(query, 10)
            share.append(len({one.source for one in true} & {one.source for one in found}) / 10)
            assert index.search(query, 10, exact=True) == true
            assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        assert np.mean(share) > 0.95
        index.optimise()
    assert [entry.num_unindexed_rows for entry in index.table.list_indices()] == [0]
    few = index.search(vectors[0], 10, "source IN ('7', '70', '700', '2400')")
    assert sorted(one.source for one in few) == ["2400", "7", "70", "700"]
    assert capfd.readouterr() == ("", "")  # the library keeps its notes to itself


def test_other_spaces_and_encoders_are_refused(index: Index) -> None:
    index.check("encoder", "abc")
    index.check("encoder")
    with pytest.raises(InputError, match="lie in the space encoder, not in meaning; embed in the space encoder"):
        index.check("meaning", "abc")
    with pytest.raises(InputError, match="come from another encoder; embed everything anew"):
        index.check("encoder", "abd")


@pytest.mark.parametrize(
    ("embedding", "problem"),
    [
        (Embedding(np.ones(DIM + 1), "a.png"), r"a\.png: its vector has shape \(25,\), the collection's \(24,\)"),
        (Embedding(np.zeros(DIM), "a.png"), r"a\.png: its vector is zero or not finite"),
        (Embedding(np.full(DIM, np.nan), "a.png"), r"a\.png: its vector is zero or not finite"),
        (Embedding(np.ones(DIM)), "knows vectors by their sources"),
        (Values({"x": 1.0}), "Values: it is no embedding"),
        (InputError("b.png", "it is empty", "leave it out"), r"b\.png: it is empty"),
    ],
)
def test_what_does_not_fit_is_refused(index: Index, embedding: Embedding, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        index.add([*embeddings(2), embedding])
    assert len(index) == 0


def test_searches_that_cannot_be_answered_are_refused(index: Index) -> None:
    with pytest.raises(InputError, match="the index is empty"):
        index.search(np.ones(DIM))
    index.add(embeddings(2))
    with pytest.raises(InputError, match="k = 0"):
        index.search(np.ones(DIM), 0)
    for query in (np.ones(3), "words", [[1], [2, 3]], np.ones((2, DIM)), np.zeros(DIM)):
        with pytest.raises(InputError, match="query: "):
            index.search(query)
    with pytest.raises(InputError, match="'smell': nothing in the index is of it; choose from 'audio', 'image'"):
        index.search(np.ones(DIM), modality="smell")


def test_places_that_hold_no_index_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lancedb
    import pyarrow as pa

    with pytest.raises(InputError, match="there is no index; make one with polysense embed"):
        Index.open(place)
    assert not place.exists()
    Index.create(place, DIM, "encoder", "abc")
    with pytest.raises(InputError, match="there is an index already"):
        Index.create(place, DIM, "encoder", "abc")
    for taken in (tmp_path, tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="something else is there; name a new or empty folder"):
            Index.create(taken, DIM, "encoder", "abc")
    with pytest.raises(InputError, match="cannot be made there"):
        Index.create(tmp_path / "file" / "deep", DIM, "encoder", "abc")
    with pytest.raises(InputError, match="vectors of 0 numbers"):
        Index.create(tmp_path / "zero", 0, "encoder", "abc")
    lancedb.connect(tmp_path / "other").create_table(module.TABLE, schema=pa.schema([pa.field("x", pa.int32())]))
    with pytest.raises(InputError, match="no index of polysense"):
        Index.open(tmp_path / "other")
    with pytest.raises(InputError, match=r"cannot be opened .*scheme"):
        Index.open("nothing://place")
    monkeypatch.delenv("LANCEDB_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"db://mine: .*set LANCEDB_API_KEY"):
        Index.open("db://mine")


def test_an_address_is_opened_as_a_folder_is(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/index"
    assert not Index.exists(address)
    Index.create(address, DIM, "encoder", "abc").add(embeddings(4))
    assert Index.exists(address) and len(Index.open(address)) == len(Index.open(tmp_path / "index")) == 4
    with pytest.raises(InputError, match=r"cannot be made there .*already exists"):
        Index.create(address, DIM, "encoder", "abc")


def test_without_the_library_the_extra_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(InputError, match=r"install the extra: pip install 'polysense\[search\]'"):
        Index.create(place, DIM, "encoder", "abc")


def test_damage_is_answered_by_nothing_but_an_input_error(index: Index, place: Path) -> None:
    given = embeddings(50)
    index.add(given[:30])
    index.add(given[30:])
    index.optimise()
    true, refused = index.search(given[0], 3), 0
    files = [path for path in place.rglob("*") if path.is_file()]
    for path in files:
        data = path.read_bytes()
        for damaged in (b"", data[: len(data) // 2], data[:-1], bytes(255 - byte for byte in data), bytes(len(data))):
            path.write_bytes(damaged)
            try:
                assert Index.open(place).search(given[0], 3) == true  # a file of an older state is not read
            except InputError as error:
                assert error.source == str(place)
                refused += 1
        path.write_bytes(data)
    assert refused >= 5
    for path in files:
        path.unlink()
    with pytest.raises(InputError, match="damaged"):
        Index.open(place)


@cache
def pipeline(task: str) -> Pipeline:
    return Pipeline.from_pretrained(task)


@pytest.fixture
def senses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures, two sounds and a text in the working directory's folder "in", a series beside it."""
    monkeypatch.setattr(polysense, "load", lambda task, device="cpu": pipeline(task))  # each is loaded once
    monkeypatch.chdir(tmp_path)
    rng, folder = np.random.default_rng(0), tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        pixels = rng.integers(0, 60, (40, 50 + 9 * i, 3), np.uint8)
        pixels[..., i] += 190
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for i in range(2):
        soundfile.write(folder / f"{i}.wav", 0.3 * np.sin(np.arange(9000) * (0.05 + 0.2 * i)), 16_000)
    (tmp_path / "load.csv").write_text("load\n" + "\n".join(map(str, rng.normal(0, 1, 80).cumsum())))
    (folder / "note.md").write_text("the small dog barks at a passing train")
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return int(stopped.value.code or 0)


def test_embed_and_search(senses: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("embed", "in", "--index", "all", "--out", "all.npz") == 0
    output = capsys.readouterr()
    assert output.out == "" and "6 answers" in output.err and "all.npz" in output.err
    assert run("embed", "load.csv", "--modality", "time_series", "--index", "all") == 0
    assert run("embed", "in", "--index", "all", "--batch-size", "2") == 0
    memory, index = Neighbours.load("all.npz"), Index.open("all")
    memory.add(polysense.load("time-series-embedding")(["load.csv"]))
    assert len(index) == 7  # replaced, not doubled
    assert index.fingerprint == polysense.load("image-embedding").encoder_hash
    for path, kind in (("in/1.png", "image"), ("in/0.wav", "audio"), ("load.csv", "time_series")):
        capsys.readouterr()
        assert run("search", "all", path, "--k", "4", "--query-modality", kind) == 0
        lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == ["1.000", kind, path]
        vector = polysense.load(f"{kind.replace('_', '-')}-embedding")([path])[0]
        assert [line[2] for line in lines] == [one.source for one in memory.search(vector, 4)[0]]
    assert run("search", "all", "in/1.png", "--modality", "audio", "--where", "source LIKE '%1.wav'") == 0
    assert capsys.readouterr().out.splitlines()[0].split("\t")[1:] == ["audio", "in/1.wav"]


def test_what_was_found_is_shown_or_written(senses: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert run("embed", "in/0.png", "in/1.png", "in/0.wav", "--index", "all") == 0
    read = {"jsonl": lambda path: pd.read_json(path, lines=True), "csv": pd.read_csv, "parquet": pd.read_parquet}
    for ending, reader in read.items():
        capsys.readouterr()
        assert run("search", "all", "in/0.png", "--out", f"found.{ending}") == 0
        assert capsys.readouterr() == ("", f"3 found: found.{ending}\n")
        table = reader(f"found.{ending}")
        assert list(table.columns) == ["source", "score", "modality"] and table.source[0] == "in/0.png"
        assert table.score.is_monotonic_decreasing and set(table.modality) == {"image", "audio"}
    assert json.loads(Path("found.jsonl").read_text().splitlines()[0])["score"] == pytest.approx(1)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run("search", "all", "in/0.png", "-k", "2") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["score", "modality", "source"]
    assert rows[0].split() == ["1.000", "image", "in/0.png"] and len(rows) == 2


def test_words_find_in_the_space_of_meaning(senses: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("embed", "in/0.png", "in/1.png", "in/0.wav", "--space", "meaning", "--index", "all") == 0
    capsys.readouterr()
    index = Index.open("all")
    assert (index.space, index.dim) == ("meaning", 384)
    (senses / "a dog").write_bytes((senses / "in" / "1.png").read_bytes())
    for arguments in (["a cat"], ["a dog", "--words"], ["dog.png", "--words"]):
        assert run("search", "all", *arguments) == 0
        lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        true = index.search(load_anchor()([arguments[0]])[0].numpy())
        assert lines == [[f"{one.score:.3f}", one.modality, one.source] for one in true]
    assert run("search", "all", "a dog", "--query-modality", "image") == 0  # it is a file
    assert capsys.readouterr().out.splitlines()[0] == "1.000\timage\tin/1.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "all", "a dog"], "the space encoder, where no words lie; give a file, or make an index with"),
        (["search", "meant", " "], "it says nothing"),
        (["search", "all", "dog.png"], "dog.png: there is no such file; check the name, or say --words"),
        (["search", "all", "in"], "it is a folder"),
        (["search", "all", "t.csv"], "say --query-modality text|time_series"),
        (["search", "all", "two.jsonl", "--query-modality", "text"], "it holds 2 inputs"),
        (["search", "all", "in/0.png", "--query-modality", "tabular"], "nothing of the kind tabular lies in the space"),
        (
            ["search", "meant", "load.csv", "--query-modality", "time_series"],
            "time_series lies in the space meaning",
        ),
        (["search", "all", "bad.png"], "bad.png: "),
        (["search", "nowhere", "in/0.png"], "nowhere: there is no index; make one with polysense embed"),
        (["search", "in", "in/0.png"], "in: there is no index"),
        (["search", "all", "in/0.png", "--where", "size > 3"], "condition 'size > 3': it is not understood"),
        (["search", "all", "in/0.png", "--modality", "smell"], "nothing in the index is of it; choose from 'image'"),
        (["search", "all", "in/0.png", "--out", "o.xlsx"], "end the name with one of .jsonl, .csv, .parquet"),
        (["search", "all", "in/0.png", "--out", "nowhere/o.csv"], "its folder does not exist"),
        (["search", "other", "in/0.png"], "come from another encoder"),
        (["embed", "in/0.png", "--index", "other"], "come from another encoder"),
        (["embed", "in/0.png", "--index", "all", "--space", "meaning"], "lie in the space encoder, not in meaning"),
        (["embed", "in/0.png", "--index", "in"], "something else is there; name a new or empty folder"),
        (["embed", "t.csv", "--modality", "tabular", "--index", "all"], "leave tables out, or embed them with --out"),
    ],
)
def test_errors_are_one_line(senses: Path, capsys: pytest.CaptureFixture[str], arguments: list, words: str) -> None:
    vector = polysense.load("image-embedding")(["in/0.png"])[0]
    Index.create("all", len(vector.vector), "encoder", polysense.load("image-embedding").encoder_hash).add(
        [vector], "image"
    )
    Index.create("other", len(vector.vector), "encoder", "of someone else")
    Index.create("meant", 384, "meaning", "abc")
    (senses / "t.csv").write_text("a,b\n1,2\n3,4\n")
    (senses / "two.jsonl").write_text('{"text": "one dog"}\n{"text": "two dogs"}\n')
    (senses / "bad.png").write_text("no picture")
    assert run(*arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    assert len(Index.open("all")) == 1


def test_batches_before_a_fault_stay(senses: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(embed_module, "BATCH", 2)
    (senses / "bad.png").write_text("no picture")
    inputs = ["in/0.png", "in/1.png", "in/2.png", "bad.png"]
    assert run("embed", *inputs, "--index", "all", "--batch-size", "1", "--on-error", "fail") == 1
    assert "bad.png" in capsys.readouterr().err
    assert len(Index.open("all")) == 2
    assert run("embed", *inputs, "--index", "all") == 3
    assert len(Index.open("all")) == 3
    assert run("embed", "bad.png", "--index", "none") == 1
    assert not Path("none").exists()
