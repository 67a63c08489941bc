"""Nearest neighbours: as brute force finds them, whatever the blocks; ties, filters, files and every error."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from polysense import neighbours as module
from polysense.core.errors import InputError
from polysense.core.predictions import Embedding, Values
from polysense.neighbours import Neighbours

DIM = 24
KINDS = ("image", "audio", "text")


def vectors_of(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors, every fifth of which stands there twice more."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = rng.permutation(count)[: 2 * (count // 5)]
    vectors[copies] = vectors[np.tile(np.arange(0, count, 5)[: count // 5], 2)]
    return vectors


def collection(vectors: np.ndarray, block: int = 64) -> Neighbours:
    """Added in uneven portions; row i is called "i" and is of kind i mod 3."""
    found = Neighbours(vectors.shape[1], block)
    for start in range(0, len(vectors), 37):
        rows = range(start, min(start + 37, len(vectors)))
        found.add_vectors(vectors[rows], [str(i) for i in rows], [KINDS[i % 3] for i in rows])
    return found


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    unit = (query / np.linalg.norm(query)).astype(np.float32).astype(np.float64)
    scores = np.array([np.sum(vectors[row].astype(np.float64) * unit) for row in rows])
    order = sorted(range(len(rows)), key=lambda i: (-scores[i], i))[:k]
    return [str(rows[i]) for i in order], scores[order]


@pytest.mark.parametrize("block", [1, 7, 64, 200, 5000])
@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.parametrize("modality", [None, "audio"])
def test_as_brute_force(block: int, k: int, modality: str | None) -> None:
    vectors = vectors_of(200)
    queries = np.concatenate([vectors[:6], np.random.default_rng(1).standard_normal((5, DIM)) * 30])
    rows = np.arange(200) if modality is None else np.arange(1, 200, 3)
    answers = collection(vectors, block).search(queries, k, modality)
    assert len(answers) == len(queries)
    for query, answer in zip(queries, answers, strict=True):
        sources, scores = brute_force(vectors, query, k, rows)
        assert [one.source for one in answer] == sources
        assert np.allclose([one.score for one in answer], scores, atol=1e-12)
        assert [one.modality for one in answer] == [KINDS[int(one.source) % 3] for one in answer]


def test_more_rows_and_queries_than_are_handled_at_a_time() -> None:
    vectors = vectors_of(3 * module.ROWS + 5)
    rows = np.arange(len(vectors))
    found = Neighbours(DIM)
    found.add_vectors(vectors, [str(i) for i in rows])
    queries = vectors[: module.QUERIES + 3]
    answers = found.search(queries, 4)
    for i in (0, module.QUERIES, module.QUERIES + 2):
        assert [one.source for one in answers[i]] == brute_force(vectors, queries[i], 4, rows)[0]


@pytest.mark.parametrize("dim", [384, 767])
def test_near_ties_do_not_depend_on_blocks_or_on_other_queries(dim: int) -> None:
    """Copies among neighbours that differ in the last bits: rounding of a float32 product would reorder them."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal(dim)
    vectors = (base + 1e-6 * rng.standard_normal((300, dim))).astype(np.float32)
    vectors[rng.permutation(300)[:100]] = vectors[0]
    queries = base + rng.standard_normal((9, dim))
    whole = collection(vectors, 1000).search(queries, 50)
    for block in (1, 13, 128):
        found = collection(vectors, block)
        assert found.search(queries, 50) == whole
        assert [found.search(query, 50)[0] for query in queries] == whole
    for answer in whole:
        keys = [(-one.score, int(one.source)) for one in answer]
        assert keys == sorted(keys)


def test_ties_come_in_the_order_of_adding() -> None:
    found = Neighbours(2, block=3)
    found.add_vectors([[1, 0], [0, 1], [0, 2], [1, 0], [0, 5], [0, 1]], list("abcdef"))
    answer = found.search([0, 3], k=3)[0]
    assert [(one.source, one.score) for one in answer] == [("b", 1.0), ("c", 1.0), ("e", 1.0)]
    assert [one.source for one in found.search([1, 0], k=5)[0]] == ["a", "d", "b", "c", "e"]


def test_vectors_are_normalised_and_unit_ones_keep_every_bit() -> None:
    vectors = vectors_of(50)
    for scale in (1e-300, 1e-30, 1.0, 7.0, 1e300):
        found = Neighbours(DIM)
        found.add_vectors(vectors.astype(np.float64) * scale, [str(i) for i in range(50)])
        stored = found._blocks[0][0][:50]
        assert np.abs(stored - vectors).max() < 1e-6
        assert scale != 1.0 or np.array_equal(stored, vectors)
        for i, answer in enumerate(found.search(vectors.astype(np.float64) * scale, 1)):
            assert answer[0].score == pytest.approx(1, abs=1e-6) and -1 <= answer[0].score <= 1
            assert np.array_equal(vectors[int(answer[0].source)], vectors[i])


def test_embeddings_are_added_from_a_stream_and_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 8)
    vectors = vectors_of(30)
    embeddings = [Embedding(vector, f"{i}.png") for i, vector in enumerate(vectors)]
    found = Neighbours(DIM)
    found.add((embedding for embedding in embeddings), "image")
    found.add([Embedding(-vectors[2], "a.wav")], "audio")
    assert len(found) == 31
    one = found.search(embeddings[2], 1)
    assert len(one) == 1 and one[0][0].modality == "image" and one[0][0].score == pytest.approx(1)
    assert found.search(embeddings, 3) == found.search(vectors, 3)
    assert found.search(embeddings[2], 1, modality="audio")[0][0].score == pytest.approx(-1)
    assert found.search([]) == []


@pytest.mark.parametrize("block", [16, 4096])
def test_saved_and_loaded_it_answers_the_same(tmp_path: Path, block: int) -> None:
    vectors = vectors_of(100)
    found = collection(vectors, block)
    found.save(tmp_path / "all.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["all.npz"]
    again = Neighbours.load(tmp_path / "all.npz")
    assert len(again) == 100 and again.dim == DIM
    assert again.search(vectors, 20) == found.search(vectors, 20)
    assert again.search(vectors, 5, "text") == found.search(vectors, 5, "text")
    again.add_vectors(vectors[:1], ["new"])
    again.save(tmp_path / "all.npz")
    assert len(Neighbours.load(tmp_path / "all.npz")) == 101


def test_an_empty_collection_is_saved_too(tmp_path: Path) -> None:
    Neighbours(3).save(tmp_path / "none.npz")
    again = Neighbours.load(tmp_path / "none.npz")
    assert len(again) == 0 and again.dim == 3


def test_what_polysense_embed_writes_is_loaded(tmp_path: Path) -> None:
    from polysense.data.writers import open_writer

    vectors = vectors_of(20)
    with open_writer(tmp_path / "out.npz", {"encoder": "0123"}) as writer:
        for i, vector in enumerate(vectors):
            writer.write(Embedding(vector, f"ö {i}.jpg", {"modality": "image"} if i else {}))
    answers = Neighbours.load(tmp_path / "out.npz").search(vectors[:2], 1)
    assert [(one.source, one.modality) for (one,) in answers] == [("ö 0.jpg", ""), ("ö 1.jpg", "image")]
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["vectors"], np.asarray(vectors, np.float32))
        assert str(arrays["encoder"]) == "0123"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = collection(vectors_of(10))
    found.save(tmp_path / "all.npz")
    before = (tmp_path / "all.npz").read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(InputError, match=r"cannot be written.*No space"):
        found.save(tmp_path / "all.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["all.npz"]
    assert (tmp_path / "all.npz").read_bytes() == before


def test_no_damage_is_answered_by_anything_but_an_input_error(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.npz", tmp_path / "damaged.npz"
    found = collection(vectors_of(4))
    found.save(whole)
    data = whole.read_bytes()
    refused = 0
    for place in range(0, len(data), 3):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :]):
            path.write_bytes(damaged)
            try:
                again = Neighbours.load(path)
            except InputError as error:
                assert error.source == str(path)
                refused += 1
            else:  # a date, say, or the name of what is not needed
                again.search(vectors_of(4))
    assert refused > len(data) // 3  # whatever is cut short is


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"vectors": np.eye(3)}, "no .npz of vectors"),
        ({"vectors": np.eye(3), "sources": np.array(list("ab"))}, "do not belong together|3 vectors, 2 sources"),
        ({"vectors": np.ones(3), "sources": np.array(list("abc"))}, "do not belong together"),
        ({"vectors": np.ones((2, 0)), "sources": np.array(list("ab"))}, "do not belong together"),
        ({"vectors": np.eye(2), "sources": np.array(list("ab")), "modalities": np.array(["x"])}, "do not belong"),
        ({"vectors": np.eye(2), "sources": np.array(["a", None], dtype=object)}, "no .npz of vectors"),
        ({"vectors": np.array([["a"]]), "sources": np.array(["a"])}, "does not fit vectors"),
        ({"vectors": np.zeros((1, 2)), "sources": np.array(["a"])}, "zero or not finite"),
    ],
)
def test_archives_of_something_else_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], problem: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=problem):
        Neighbours.load(tmp_path / "x.npz")


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Neighbours.load(tmp_path / "missing.npz")
    np.save(tmp_path / "x.npy", np.eye(3))
    (tmp_path / "text.npz").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as file:
        file.writestr("vectors", "text")
    for name in ("x.npy", "text.npz", "other.npz"):
        with pytest.raises(InputError, match="damaged"):
            Neighbours.load(tmp_path / name)
    with pytest.raises(InputError, match="cannot be written"):
        Neighbours(2).save(tmp_path / "missing" / "x.npz")


@pytest.mark.parametrize(
    ("vectors", "sources", "modality", "problem"),
    [
        (np.ones((2, 3)), ["a", "b"], "", "does not fit vectors of 2"),
        (np.ones(2), ["a"], "", "does not fit"),
        ([["a", "b"]], ["a"], "", "does not fit"),
        ([[1, 2], [3]], ["a", "b"], "", "no array of numbers"),
        (np.ones((2, 2)), ["a"], "", "2 vectors, 1 sources"),
        (np.ones((2, 2)), ["a", "b"], ["image"], "1 modalities"),
        ([[1, 0], [0, 0]], ["a", "b"], "", "b: its vector is zero"),
        ([[1, 0], [1, np.nan]], ["a", "b"], "", "b: .*not finite"),
        ([[1, 0], [-np.inf, 1]], ["a", "b"], "", "b: .*not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_and_none_is_added(vectors, sources, modality, problem) -> None:
    found = Neighbours(2, block=1)
    found.add_vectors([[0, 1]], ["first"], "kept")
    with pytest.raises(InputError, match=problem):
        found.add_vectors(vectors, sources, modality)
    assert len(found) == 1
    assert [one.source for one in found.search([1, 1])[0]] == ["first"]
    with pytest.raises(InputError, match="choose from 'kept'"):
        found.search([1, 1], modality="image")


def test_what_is_no_embedding_is_refused() -> None:
    found = Neighbours(2)
    with pytest.raises(InputError, match=r"a\.png: its vector has shape \(3,\)"):
        found.add([Embedding(np.ones(3), "a.png")])
    with pytest.raises(InputError, match="Values: it is no embedding"):
        found.add([Values({"x": 1.0})])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"b\.png: it is empty"):
        found.add([InputError("b.png", "it is empty", "leave it out")])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"c\.png: its vector is zero"):
        found.add([Embedding(np.zeros(2), "c.png")])
    assert len(found) == 0


def test_searches_that_cannot_be_answered_are_refused() -> None:
    for sizes in ((0, 5), (5, 0)):
        with pytest.raises(InputError, match="holds nothing"):
            Neighbours(*sizes)
    found = Neighbours(2)
    with pytest.raises(InputError, match="empty"):
        found.search([1, 0])
    found.add_vectors(np.eye(2), ["a", "b"], "image")
    for k in (0, -1):
        with pytest.raises(InputError, match=f"k = {k}"):
            found.search([1, 0], k)
    with pytest.raises(InputError, match="does not fit vectors of 2"):
        found.search([1, 0, 0])
    with pytest.raises(InputError, match="query 1: its vector is zero"):
        found.search([[1, 0], [0, 0]])
    with pytest.raises(InputError, match=r"a\.png: its vector is zero or not finite"):
        found.search(Embedding(np.array([np.nan, 1]), "a.png"))
    with pytest.raises(InputError, match="shape"):
        found.search([Embedding(np.ones(2)), Embedding(np.ones(3), "b.png")])
    with pytest.raises(InputError, match="nothing in the collection is of it; choose from 'image'"):
        found.search([1, 0], modality="audio")
