"""Exact nearest neighbours by cosine, over vectors in memory: whatever shares a space is found by whatever else does.

Shape legend: n vectors, d their width, q queries, r rows of a block.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from polysense.core.errors import InputError
from polysense.core.predictions import Embedding

BLOCK = 65536  # rows that a matrix product scores at a time
QUERIES = 64  # queries in it: their scores of a block take 16 MB
ROWS = 4096  # rows that are handled in float64 at a time
# What a damaged .npz raises.
FAULTS = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, RuntimeError, SyntaxError)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Something found: where it came from, its cosine with the query, and what it is ("image", "audio" …)."""

    source: str
    score: float
    modality: str = ""


class Neighbours:
    """Unit vectors with their sources and modalities, searched by comparing the query with each of them.

    Stored as float32: float16 would halve the memory (1.5 GB for a million of 384 numbers), but a query then takes
    longer and finds what rounding moved (benchmarks/neighbours.py).

    Args:
        dim: Width of the vectors.
        block: Rows scored at a time; bounds what a search needs beside the vectors.

    Raises:
        InputError: One of them is below 1.
    """

    def __init__(self, dim: int, block: int = BLOCK) -> None:
        if dim < 1 or block < 1:
            raise InputError("neighbours", f"width {dim} in blocks of {block} holds nothing", "give numbers from 1 on")
        self.dim, self.block = dim, block
        # Blocks are never moved: adding copies nothing that is there already.
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []  # vectors (block, d) float32, modalities (block,) int32
        self._sources: list[str] = []
        self._modalities: dict[str, int] = {}  # name -> its number in the blocks

    def __len__(self) -> int:
        return len(self._sources)

    def add(self, predictions: Iterable[Embedding], modality: str = "") -> None:
        """Adds what a pipeline that embeds answers; it may be a stream.

        Raises:
            InputError: As `add_vectors`, or one of them is no embedding. What came thousands before it stays added.
        """
        stream = iter(predictions)
        while part := list(islice(stream, ROWS)):
            self.add_vectors(stack(part, self.dim), [embedding.source for embedding in part], modality)

    def add_vectors(self, vectors: ArrayLike, sources: Sequence[str], modality: str | Sequence[str] = "") -> None:
        """Adds vectors; all of them or, after an error, none.

        Args:
            vectors: (n, d) numbers; rows that are not of unit length are normalised.
            sources: n names.
            modality: Of all of them, or one for each.

        Raises:
            InputError: Another width than the collection's, a count that differs, a zero or non-finite vector.
        """
        table = self._table(vectors, "vectors")
        names = [modality] * len(table) if isinstance(modality, str) else list(modality)
        if not len(table) == len(sources) == len(names):
            counts = f"{len(table)} vectors, {len(sources)} sources and {len(names)} modalities"
            raise InputError("vectors", f"there are {counts}", "give one of each for every vector")
        known = dict(self._modalities)
        codes = np.array([known.setdefault(name, len(known)) for name in names], np.int32)
        start = 0
        while start < len(table):  # rows behind the last source count as free: an error leaves the collection as it was
            number, offset = divmod(len(self) + start, self.block)
            if number == len(self._blocks):
                self._blocks.append((np.empty((self.block, self.dim), np.float32), np.empty(self.block, np.int32)))
            stop = min(start + ROWS, start + self.block - offset, len(table))
            place = slice(offset, offset + stop - start)
            self._blocks[number][0][place] = unit_rows(table[start:stop], sources[start:stop])
            self._blocks[number][1][place] = codes[start:stop]
            start = stop
        self._modalities = known
        self._sources += [str(source) for source in sources]

    def search(
        self, query: ArrayLike | Embedding | Sequence[Embedding], k: int = 10, modality: str | None = None
    ) -> list[list[Neighbour]]:
        """The k nearest of each query, nearest first; of equally near ones the first that was added.

        An answer depends neither on the other queries nor on the size of the blocks.

        Args:
            query: (d,) or (q, d) numbers of any length, an embedding or several.
            k: How many; fewer come where there are fewer.
            modality: Only what was added as that; None: everything.

        Returns:
            One list for each query.

        Raises:
            InputError: The collection is empty or has nothing of that modality; k is below 1; or a query is of another
                width, zero or not finite.
        """
        if k < 1:
            raise InputError(f"k = {k}", "it asks for no neighbour", "give a number from 1 on")
        if not len(self):
            raise InputError("neighbours", "the collection is empty", "add vectors before searching it")
        if modality is not None and modality not in self._modalities:
            known = ", ".join(repr(name) for name in self._modalities)
            raise InputError(f"modality {modality!r}", "nothing in the collection is of it", f"choose from {known}")
        code = None if modality is None else self._modalities[modality]
        queries, names = self._queries(query)
        queries = unit_rows(queries, names)
        answers = []
        for start in range(0, len(queries), QUERIES):
            answers += self._nearest(queries[start : start + QUERIES], k, code)
        return answers

    def save(self, path: str | Path) -> None:
        """Writes an .npz of `vectors`, `sources` and `modalities`; whole or not at all.

        Raises:
            InputError: Nothing can be written there.
        """
        path = Path(path).expanduser()
        parts = [(vectors[:count], codes[:count]) for vectors, codes, count in self._filled()]
        vectors = np.concatenate([np.empty((0, self.dim), np.float32), *(part for part, _ in parts)])
        names = list(self._modalities)
        modalities = np.array([names[code] for _, codes in parts for code in codes.tolist()], dtype=str)
        partial = path.with_name(f".{path.name}.part")
        try:
            with partial.open("wb") as file:
                np.savez(file, vectors=vectors, sources=np.array(self._sources, dtype=str), modalities=modalities)
            partial.replace(path)
        except OSError as error:
            raise InputError(path, f"it cannot be written ({error.strerror})", "choose another place") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, block: int = BLOCK) -> Neighbours:
        """Reads what `save` wrote, or the .npz of `polysense embed`, whose modalities are unknown ("").

        Raises:
            InputError: The file is missing, damaged or something else.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise InputError(path, "there is no such file", "give an .npz that was saved or embedded")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                vectors, sources = arrays["vectors"], arrays["sources"]
                modalities = arrays["modalities"] if "modalities" in arrays else np.full(len(sources), "")
        except (*FAULTS, TypeError, AttributeError) as error:  # the last two: an array that is no archive
            raise InputError(path, "it is damaged, or no .npz of vectors and sources", "save it again") from error
        except OSError as error:
            raise InputError(path, f"it cannot be read ({error.strerror})", "check the file") from error
        if vectors.ndim != 2 or vectors.shape[1] < 1 or sources.shape != modalities.shape or sources.ndim != 1:
            raise InputError(path, "its arrays do not belong together", "save it again")
        found = cls(vectors.shape[1], block)
        found.add_vectors(vectors, sources.tolist(), modalities.tolist())
        return found

    def _filled(self) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Vectors and modalities of each block, and how many of its rows are taken."""
        counts = [min(self.block, len(self) - i * self.block) for i in range(len(self._blocks))]
        return [(*block, count) for block, count in zip(self._blocks, counts, strict=True) if count > 0]

    def _nearest(self, queries: np.ndarray, k: int, code: int | None) -> list[list[Neighbour]]:
        """Rough scores by a matrix product, whose last bits depend on the shapes; near ones anew, row by row."""
        slack = 1.01 * self.dim * float(np.finfo(np.float32).eps)  # twice the bound on a float32 product's error
        exact = queries.astype(np.float64)
        scores = [np.empty(0) for _ in queries]  # sorted, at most k
        rows = [np.empty(0, np.int64) for _ in queries]
        names = list(self._modalities)
        for number, (vectors, codes, count) in enumerate(self._filled()):
            vectors, kept = vectors[:count], np.arange(count)
            if code is not None:
                kept = np.flatnonzero(codes[:count] == code)
                vectors = vectors if len(kept) == count else vectors[kept]
            rough = queries @ vectors.T  # (q, r)
            for i, near_to in enumerate(exact):
                least = scores[i][-1] - slack if len(scores[i]) == k else -np.inf
                near = np.flatnonzero(rough[i] >= least)
                if len(near) > k:
                    some = rough[i, near]
                    near = near[some >= np.partition(some, len(some) - k)[len(some) - k] - slack]
                fine = [(vectors[near[s : s + ROWS]] * near_to).sum(axis=1) for s in range(0, len(near), ROWS)]
                both = np.concatenate([scores[i], *fine])
                order = np.argsort(-both, kind="stable")[:k]
                scores[i], rows[i] = both[order], np.concatenate([rows[i], kept[near] + number * self.block])[order]

        def neighbour(row: int, score: float) -> Neighbour:
            number, offset = divmod(row, self.block)
            return Neighbour(self._sources[row], min(max(score, -1.0), 1.0), names[self._blocks[number][1][offset]])

        return [list(map(neighbour, r.tolist(), s.tolist())) for r, s in zip(rows, scores, strict=True)]

    def _queries(self, query: ArrayLike | Embedding | Sequence[Embedding]) -> tuple[np.ndarray, list[str]]:
        """Numbers (q, d), and what each is called in an error."""
        if isinstance(query, Embedding):
            query = [query]
        if isinstance(query, list | tuple) and not query:
            return np.empty((0, self.dim), np.float32), []
        if isinstance(query, list | tuple) and isinstance(query[0], Embedding):
            return stack(query, self.dim), [embedding.source for embedding in query]
        table = self._table(query, "query")
        return table, [f"query {i}" for i in range(len(table))]

    def _table(self, vectors: object, what: str) -> np.ndarray:
        """(n, d) numbers, checked for kind and width."""
        try:
            table = np.asarray(vectors)
        except (ValueError, TypeError, RuntimeError) as error:  # the last one: a tensor with gradients
            raise InputError(what, "they are no array of numbers", "give (n, d) numbers") from error
        table = table[None] if table.ndim == 1 and what == "query" else table
        if table.dtype.kind not in "fiu" or table.ndim != 2 or table.shape[1] != self.dim:
            problem = f"an array of {table.dtype} of shape {table.shape} does not fit vectors of {self.dim} numbers"
            raise InputError(what, problem, f"give (n, {self.dim}) numbers")
        return table


def stack(embeddings: Sequence[Embedding], dim: int) -> np.ndarray:
    """(n, dim) of n embeddings.

    Raises:
        InputError: One of them is no embedding, or of another width.
    """
    for embedding in embeddings:
        if isinstance(embedding, InputError):  # what a stream that goes on after errors puts in an answer's place
            raise embedding
        if not isinstance(embedding, Embedding):
            raise InputError(type(embedding).__name__, "it is no embedding", "use a task that embeds")
        if np.shape(embedding.vector) != (dim,):
            problem = f"its vector has shape {np.shape(embedding.vector)}, the collection's ({dim},)"
            raise InputError(embedding.source, problem, "embed everything with the same task")
    return np.stack([embedding.vector for embedding in embeddings])


def unit_rows(vectors: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Rows of unit length, float32; those that are already keep every bit.

    Raises:
        InputError: A row is zero or not finite.
    """
    unit = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), ROWS):
        part = vectors[start : start + ROWS].astype(np.float64)
        largest = np.abs(part).max(axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(largest) & (largest > 0)))
        if len(bad):
            raise InputError(names[start + bad[0]], "its vector is zero or not finite", "leave it out")
        scaled = part / largest  # its squares neither overflow nor vanish
        length = np.linalg.norm(scaled, axis=1, keepdims=True)
        is_unit = np.abs(length - 1 / largest) <= 1e-6 * length
        unit[start : start + ROWS] = np.where(is_unit, part, scaled / length)
    return unit
