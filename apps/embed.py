"""`polysense embed`: one vector per input, each kind of file by its own tokenizer, all by the same encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import polysense
from polysense.apps.inputs import choose_device, sort_files
from polysense.apps.screen import Screen, consume, track
from polysense.core.errors import InputError
from polysense.core.predictions import Embedding, Prediction
from polysense.tasks import TASKS

ARRAYS = (".npz", ".npy")


def embed(
    inputs: Sequence[str],
    *,
    out: Path | None = None,
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
            `open_writer`.
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
    used = choose_device(device, threads)

    def answers() -> Iterator[Prediction | InputError]:
        for name, paths in groups.items():
            pipeline = open_pipeline(tasks[name], paths, used)
            for answer in pipeline.stream(track(paths), batch_size=batch_size, on_error="skip" if skip else "raise"):
                yield replace(answer, meta={"modality": name}) if isinstance(answer, Embedding) else answer

    if out is None:
        with Screen() as screen:
            return consume(answers(), [screen.add], None)
    if out.suffix.lower() not in ARRAYS:
        with open_writer(out) as writer:
            return consume(answers(), [writer.write], out)
    if not out.parent.is_dir():
        raise InputError(out, "its folder does not exist", f"create {out.parent} first")
    found: list[Embedding] = []
    code = consume(answers(), [_collect(found)], out)
    save_arrays(out, found)
    return code


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
