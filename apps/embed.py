"""`polysense embed`: one vector per input, each kind of file by its own tokenizer, all by the same encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

import polysense
from polysense.apps.inputs import choose_device, sort_files
from polysense.apps.screen import Screen, consume, track
from polysense.core.errors import InputError
from polysense.core.predictions import Embedding, Prediction
from polysense.index import Index
from polysense.tasks import TASKS

ARRAYS = (".npz", ".npy")
BATCH = 1024  # embeddings that go into an index at a time


def embed(
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    index: str | None = None,
    modality: str | None = None,
    space: str = "encoder",
    batch_size: int = 16,
    skip: bool = True,
    device: str = "auto",
    threads: int | None = None,
) -> int:
    """Embeds every input.

    Args:
        inputs: Files, folders, patterns; kinds may be mixed.
        out: .npz (`vectors` (n, d) float32, `sources`, `modalities`), .npy (vectors alone), or any ending of
            `open_writer`. None prints what was embedded, where no index takes it either.
        index: Folder or address of an index, which is made or added to (`polysense.index`).
        modality: What all the files are; None tells by their endings.
        space: "encoder", or "meaning": where all kinds lie near the words for what they show.
        batch_size: Inputs computed at a time.
        skip: Go on after an input that cannot be read.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.

    Returns:
        The exit code: 0 all embedded, 1 none, 3 some were skipped.
    """
    from polysense.data.writers import open_writer

    tasks = embedding_tasks(space)
    groups = sort_files(inputs, modality, list(tasks))
    shelf = None if index is None else Shelf(index, space)
    if shelf is not None and "tabular" in groups:
        problem = "vectors of a table's rows depend on its columns, so that an index cannot compare them with others"
        raise InputError(groups["tabular"][0], problem, "leave tables out, or embed them with --out")
    used = choose_device(device, threads)

    def answers() -> Iterator[Prediction | InputError]:
        for name, paths in groups.items():
            pipeline = open_pipeline(tasks[name], paths, used)
            if shelf is not None:
                shelf.check(pipeline)
            for answer in pipeline.stream(track(paths), batch_size=batch_size, on_error="skip" if skip else "raise"):
                yield replace(answer, meta={"modality": name}) if isinstance(answer, Embedding) else answer

    with ExitStack() as stack:
        sinks: list[Callable[[Prediction], None]] = [] if shelf is None else [stack.enter_context(shelf).add]
        found: list[Embedding] = []
        if out is not None and out.suffix.lower() in ARRAYS:
            if not out.parent.is_dir():
                raise InputError(out, "its folder does not exist", f"create {out.parent} first")
            sinks.append(_collect(found))
        elif out is not None:
            sinks.append(stack.enter_context(open_writer(out)).write)
        elif shelf is None:
            sinks.append(stack.enter_context(Screen()).add)
        code = consume(answers(), sinks, " and ".join(str(place) for place in (out, index) if place) or None)
        if out is not None and found:
            save_arrays(out, found)
    return code


class Shelf:
    """Embeddings on their way into an index, a batch at a time.

    A batch that is in the index stays there, whatever comes after it: a run that was stopped is started again.

    Args:
        place: Folder or address of the index; where there is none yet, the first embedding makes it.
        space: Where the embeddings lie.

    Raises:
        InputError: The index is damaged, or of another space.
    """

    def __init__(self, place: str, space: str) -> None:
        self.place, self.space = place, space
        self.index = Index.open(place) if Index.exists(place) else None
        if self.index is not None:
            self.index.check(space)
        self.fingerprint = ""
        self.batch: list[Embedding] = []

    def check(self, pipeline: polysense.Pipeline) -> None:
        """Asks whether the pipeline's encoder is the index's."""
        self.fingerprint = pipeline.encoder_hash
        if self.index is not None:
            self.index.check(self.space, self.fingerprint)

    def add(self, answer: Prediction) -> None:
        assert isinstance(answer, Embedding), "an embedding bundle answers with embeddings"
        if self.index is None:
            self.index = Index.create(self.place, len(answer.vector), self.space, self.fingerprint)
        self.batch.append(answer)
        if len(self.batch) >= BATCH:
            self.store()

    def store(self) -> None:
        """Puts into the index what has come together."""
        if self.index is not None:
            self.index.add(self.batch)
        self.batch = []

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.store()
            if self.index is not None:
                self.index.optimise()


def embedding_tasks(space: str = "encoder") -> dict[str, str]:
    """modality -> name of its task that embeds in that space."""
    kind = {"encoder": "embedding", "meaning": "meaning"}[space]
    return {TASKS[name].modality: name for name in TASKS if TASKS[name].kind == kind}


def open_pipeline(task: str, paths: Sequence[Path], device: str) -> polysense.Pipeline:
    """The task's pipeline; for tables one of seeded weights, whose columns are those of the first table."""
    if TASKS[task].modality != "tabular":
        return polysense.load(task, device=device)
    return polysense.Pipeline.build(task, sources=paths[:1]).to(device)


def save_arrays(out: Path, found: Sequence[Embedding]) -> None:
    """Writes the vectors as one array; complete or not at all."""
    vectors = np.stack([embedding.vector for embedding in found]).astype(np.float32)
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("wb") as file:
            if out.suffix.lower() == ".npy":
                np.save(file, vectors, allow_pickle=False)
            else:
                modalities = np.array([str(embedding.meta.get("modality", "")) for embedding in found])
                np.savez(file, vectors=vectors, sources=np.array([embedding.source for embedding in found]),
                         modalities=modalities)  # fmt: skip
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _collect(found: list[Embedding]) -> Callable[[Prediction], None]:
    def add(answer: Prediction) -> None:
        assert isinstance(answer, Embedding), "an embedding bundle answers with embeddings"
        found.append(answer)

    return add
