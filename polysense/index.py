"""An index of embeddings that is kept: a LanceDB table in a folder, a bucket or LanceDB's cloud, searched by cosine.

`Neighbours` holds vectors in memory and compares the query with each; an `Index` stays on disk, grows and is filtered
by conditions, and beyond `MANY` rows a graph of near vectors (HNSW, Malkov and Yashunin 2018, over vectors rounded to 8
bits) leads to candidates, whose cosines are then computed from the full vectors.

Shape legend: n vectors, d their width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from polysense.core.errors import InputError
from polysense.core.predictions import Embedding
from polysense.lance import connect, faults, is_local, place_name, plain
from polysense.neighbours import ROWS, Neighbour, stack, unit_rows

if TYPE_CHECKING:
    import pyarrow as pa

MANY = 50_000  # rows from which on a graph is built; up to there, comparing with each takes some hundredths of a second
TABLE, KEY = "embeddings", b"polysense"
CARE, EFFORT = 150, 200  # candidates that are looked at for a row while the graph is built, and for a query
REFINE, PARTITIONS = 5, 20  # times k: candidates whose cosines are computed anew; graphs that a query enters
FILTERS = "write a condition on source, modality or added, such as modality = 'audio' or added > timestamp '2026-01-31'"


class Index:
    """Vectors of one space and one encoder, each under the name of its source.

    Args:
        place: Where the table lies; `open` and `create` give it.
        table: LanceDB's table, whose schema carries what the vectors are.

    Raises:
        InputError: The table is not one of these.
    """

    def __init__(self, place: str, table: Any) -> None:
        self.place, self.table = place, table
        try:
            about = json.loads((table.schema.metadata or {})[KEY])
            self.dim, self.space, self.fingerprint = int(about["dim"]), str(about["space"]), str(about["fingerprint"])
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(place, "its table is no index of polysense", "name another place") from error

    @classmethod
    def create(cls, place: str | Path, dim: int, space: str, fingerprint: str) -> Index:
        """Makes an empty index.

        Args:
            place: A folder that is new or empty, or an address that LanceDB opens (`s3://…`, `gs://…`, `az://…`, or
                `db://…` with the environment's LANCEDB_API_KEY).
            dim: Width of the vectors.
            space: What their numbers mean: "encoder" or "meaning".
            fingerprint: Of the encoder that they come from, see `Encoder.fingerprint`.

        Raises:
            InputError: There is an index or something else at the place, it cannot be written to, or the extra
                `search` is not installed.
        """
        name = place_name(place)
        if dim < 1:
            raise InputError(name, f"vectors of {dim} numbers say nothing", "give a width from 1 on")
        if is_local(name) and Path(name).exists() and (not Path(name).is_dir() or any(Path(name).iterdir())):
            problem = "there is an index already" if cls.exists(name) else "something else is there"
            raise InputError(name, problem, "name a new or empty folder")
        about = json.dumps({"format": 1, "dim": dim, "space": space, "fingerprint": fingerprint})
        with faults(name, "an index cannot be made there"):
            return cls(name, connect(name).create_table(TABLE, schema=_schema(dim).with_metadata({KEY: about})))

    @classmethod
    def open(cls, place: str | Path) -> Index:
        """Opens an index that was created.

        Raises:
            InputError: There is none, it is damaged, or the extra `search` is not installed.
        """
        name = place_name(place)
        if not cls.exists(name):
            raise InputError(name, "there is no index", "make one with polysense embed FILES --index PLACE")
        with faults(name, "the index is damaged"):
            return cls(name, connect(name).open_table(TABLE))

    @staticmethod
    def exists(place: str | Path) -> bool:
        """Whether an index is at the place, damaged or not.

        Raises:
            InputError: The place cannot be asked, or the extra `search` is not installed.
        """
        name = place_name(place)
        if is_local(name):  # to connect would make the folder
            return (Path(name) / f"{TABLE}.lance").is_dir()
        with faults(name, "the place cannot be opened"):
            found = connect(name)
            try:
                found.open_table(TABLE)
            except ValueError as error:
                if "not found" in str(error):
                    return False
                raise
            return True

    def __len__(self) -> int:
        return int(self.table.count_rows())

    def check(self, space: str, fingerprint: str | None = None) -> None:
        """Refuses vectors that cannot be compared with those of the index.

        Args:
            space: Where they lie.
            fingerprint: The encoder that they come from; None: not asked (words come from none).

        Raises:
            InputError: They are of another space or another encoder.
        """
        if space != self.space:
            fix = f"embed in the space {self.space}, or into another index"
            raise InputError(self.place, f"its vectors lie in the space {self.space}, not in {space}", fix)
        if fingerprint not in (None, self.fingerprint):
            fix = "embed everything anew into another index"
            raise InputError(self.place, "its vectors come from another encoder", fix)

    def add(self, embeddings: Iterable[Embedding], modality: str = "") -> int:
        """Adds embeddings, which may be a stream; one whose source is there already takes its place.

        Args:
            embeddings: Of the index's space and encoder (see `check`); they are kept with unit length.
            modality: What all of them are; "": what each one's `meta` says.

        Returns:
            How many were taken from the stream.

        Raises:
            InputError: One is no embedding, is of another width, zero or not finite, or has no source of its own; or
                the index cannot be written to. What came thousands before it stays added.
        """
        stream, count = iter(embeddings), 0
        while part := list(islice(stream, ROWS)):
            vectors = unit_rows(stack(part, self.dim), [embedding.source for embedding in part])
            rows = {embedding.source: i for i, embedding in enumerate(part)}  # of the same source the last one
            if "<memory>" in rows:
                fix = "give each embedding a source: dataclasses.replace(embedding, source=...)"
                raise InputError("<memory>", "the index knows vectors by their sources, and this has none", fix)
            chosen = list(rows.values())
            kinds = [modality or str(part[i].meta.get("modality", "")) for i in chosen]
            with faults(self.place, "the index cannot be written to"):
                insert = self.table.merge_insert("source").when_matched_update_all().when_not_matched_insert_all()
                insert.execute(_rows(list(rows), kinds, vectors[chosen]))
            count += len(part)
        return count

    def search(
        self,
        query: ArrayLike | Embedding,
        k: int = 10,
        where: str | None = None,
        modality: str | None = None,
        exact: bool = False,
    ) -> list[Neighbour]:
        """The k nearest, nearest first.

        Args:
            query: (d,) numbers of any length, or an embedding.
            k: How many; fewer come where fewer fit.
            where: A condition in SQL on `source`, `modality` and `added` (a time).
            modality: Only what was added as that.
            exact: Compare with every vector, even where there is a graph.

        Raises:
            InputError: The index is empty, damaged or has nothing of the modality; the condition cannot be understood;
                k is below 1; or the query is of another width, zero or not finite.
        """
        if k < 1:
            raise InputError(f"k = {k}", "it asks for no neighbour", "give a number from 1 on")
        vector = self._query(query)
        condition = _condition(where, modality)
        with faults(self.place, "the index is damaged"):
            try:
                found = self._nearest(vector, k, condition, exact)
                if len(found) < k and not exact:  # a graph may lose its way among rows that a condition leaves out
                    found = self._nearest(vector, k, condition, True)
            except ValueError as error:
                if where is None:
                    raise
                raise InputError(f"condition {where!r}", f"it is not understood ({plain(error)})", FILTERS) from error
            if not found:
                self._explain_nothing(modality)
        return found

    def optimise(self) -> None:
        """Joins the small files of many additions and brings the graph up to date, which is built from `MANY` rows on.

        Rows that no graph knows yet are found all the same, by comparing the query with each of them.

        Raises:
            InputError: The index is damaged or cannot be written to.
        """
        with faults(self.place, "the index cannot be optimised"):
            if any("vector" in index.columns for index in self.table.list_indices()):
                self.table.optimize()
                return
            self.table.optimize()
            if len(self) >= MANY:
                from lancedb.index import HnswSq

                self.table.create_index("vector", config=HnswSq(distance_type="cosine", ef_construction=CARE))

    def _nearest(self, vector: np.ndarray, k: int, condition: str | None, exact: bool) -> list[Neighbour]:
        """What LanceDB finds, with cosines in float64; of equally near ones the first by name."""
        search = self.table.search(vector, vector_column_name="vector").distance_type("cosine").limit(k)
        search = search.select(["source", "modality", "vector", "_distance"])
        if condition:
            search = search.where(condition, prefilter=True)
        if exact:
            search = search.bypass_vector_index()
        else:
            search = search.nprobes(PARTITIONS).ef(max(EFFORT, 2 * k)).refine_factor(REFINE)
        found = search.to_arrow()
        vectors = found["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self.dim)
        scores = (vectors * vector.astype(np.float64)).sum(axis=1).clip(-1, 1).tolist()
        rows = zip(found["source"].to_pylist(), scores, found["modality"].to_pylist(), strict=True)
        return sorted((Neighbour(*row) for row in rows), key=lambda one: (-one.score, one.source))

    def _query(self, query: ArrayLike | Embedding) -> np.ndarray:
        """(d,) of unit length."""
        if not isinstance(query, Embedding):
            try:
                query = Embedding(np.asarray(query, np.float64), "query")
            except (ValueError, TypeError, RuntimeError) as error:  # the last one: a tensor with gradients
                raise InputError("query", "it is no array of numbers", f"give ({self.dim},) numbers") from error
        return unit_rows(stack([query], self.dim), [query.source])[0]

    def _explain_nothing(self, modality: str | None) -> None:
        """Says why nothing was found, where it is not a condition that nothing fits."""
        if not len(self):
            raise InputError(self.place, "the index is empty", "add embeddings before searching it")
        if modality is not None and not self.table.count_rows(_condition(None, modality)):
            kinds = self.table.search().select(["modality"]).to_arrow()["modality"].unique().to_pylist()
            known = ", ".join(repr(kind) for kind in sorted(kinds))
            raise InputError(f"modality {modality!r}", "nothing in the index is of it", f"choose from {known}")


def _condition(where: str | None, modality: str | None) -> str | None:
    """Both as one condition; in brackets, so that nothing behind a semicolon or a comment's dashes is passed over."""
    parts = [] if where is None else [f"({where})"]
    if modality is not None:
        parts.append("modality = '{}'".format(modality.replace("'", "''")))
    return " AND ".join(parts) or None


def _schema(dim: int) -> pa.Schema:
    import pyarrow as pa

    kinds = {"source": pa.string(), "modality": pa.string(), "added": pa.timestamp("s", tz="UTC")}
    return pa.schema([*(pa.field(*item) for item in kinds.items()), pa.field("vector", pa.list_(pa.float32(), dim))])


def _rows(sources: list[str], modalities: list[str], vectors: np.ndarray) -> pa.Table:
    import pyarrow as pa

    schema = _schema(vectors.shape[1])
    now = [datetime.now(UTC).replace(microsecond=0)] * len(sources)
    cells = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table([pa.array(sources), pa.array(modalities), pa.array(now, schema.field("added").type), cells], schema)
