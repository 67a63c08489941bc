"""`polysense search`: what lies nearest to a file or to words in an index of embeddings."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from polysense.apps.embed import embedding_tasks
from polysense.apps.inputs import choose_device, endings, guess
from polysense.apps.result_files import Whole, write_table
from polysense.apps.screen import note
from polysense.core.errors import InputError
from polysense.index import Index
from polysense.neighbours import Neighbour

FILES = (".jsonl", ".csv", ".parquet")


def search(
    place: str,
    query: str,
    *,
    k: int = 10,
    modality: str | None = None,
    where: str | None = None,
    words: bool = False,
    kind: str | None = None,
    exact: bool = False,
    out: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Searches an index.

    Args:
        place: Folder or address of the index.
        query: A file, or words.
        k: How many to find.
        modality: Find these alone.
        where: A condition in SQL, see `Index.search`.
        words: The query is words, even if a file has that name.
        kind: Modality of the file, where its ending does not say.
        exact: Compare with every vector.
        out: File for what was found: .jsonl, .csv or .parquet; None prints it.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.

    Raises:
        InputError: See `Index`; or the query cannot be read, or is words where the index knows none.
    """
    if out is not None and out.suffix.lower() not in FILES:
        raise InputError(out, f"cannot write {out.suffix or 'a file without ending'}",
                         f"end the name with one of {', '.join(FILES)}")  # fmt: skip
    index = Index.open(place)
    used = choose_device(device, threads)
    vector = words_vector(index, query) if words or is_words(query) else file_vector(index, Path(query), kind, used)
    found = index.search(vector, k, where, modality, exact)
    if out is None:
        show(found)
        return
    table = pd.DataFrame(found, columns=["source", "score", "modality"])
    with Whole(out) as writer:
        if out.suffix.lower() == ".jsonl":
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_dict("records")]
            writer.file.write("".join(lines).encode())
        else:
            write_table(table, writer.file, out.suffix.lower())
    note(f"{len(found)} found: {out}")


def is_words(query: str) -> bool:
    """Whether a query is no file.

    Raises:
        InputError: It is a folder, or looks like a file that is not there.
    """
    path = Path(query)
    if len(query) < 250 and path.is_dir():
        raise InputError(query, "it is a folder", "give one file, or words with --words")
    if len(query) < 250 and path.exists():
        return False
    known = {ending for modality in embedding_tasks() for ending in endings(modality)}
    if path.suffix.lower() in known and not any(sign.isspace() for sign in query):
        raise InputError(query, "there is no such file", "check the name, or say --words if these are words")
    return True


def words_vector(index: Index, words: str) -> np.ndarray:
    """Where words lie in the index's space (d,).

    Raises:
        InputError: The index is not of the space of meaning, there are no words, or the extra `text` is not installed.
    """
    from polysense.backbone.anchor import load_anchor

    if index.space != "meaning":
        problem = f"there is no file of this name, and the index is of the space {index.space}, where no words lie"
        fix = "give a file, or make an index with polysense embed FILES --space meaning --index PLACE"
        raise InputError(f"query {words!r}", problem, fix)
    if not words.strip():
        raise InputError("query", "it says nothing", "give words or a file")
    return load_anchor()([words])[0].numpy()


def file_vector(index: Index, path: Path, kind: str | None, device: str) -> np.ndarray:
    """Where a file lies in the index's space (d,).

    Raises:
        InputError: The file cannot be read, holds several inputs, or nothing leads from its kind into the space.
    """
    import polysense

    tasks = {name: task for name, task in embedding_tasks(index.space).items() if name != "tabular"}
    if kind is not None and kind not in tasks:
        problem = f"nothing of the kind {kind} lies in the space {index.space} of an index"
        raise InputError(path, problem, f"choose one of: {', '.join(tasks)}")
    pipeline = polysense.load(tasks[kind or guess(path, list(tasks), "--query-modality")], device=device)
    index.check(index.space, pipeline.encoder_hash)
    found = pipeline([path])
    if len(found) != 1:
        raise InputError(path, f"it holds {len(found)} inputs", "give a file with one of them")
    return found[0].vector


def show(found: Sequence[Neighbour]) -> None:
    """A table on a terminal, tab-separated lines into a pipe: score, modality, source."""
    rows = [(f"{one.score:.3f}", one.modality, one.source) for one in found]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("score", justify="right", style="cyan")
    table.add_column("modality")
    table.add_column("source", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
