"""`polysense embed`: one vector per input, each kind of file by its own tokenizer, all by the same encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import polysense
from polysense.apps.flow import SHOWN, WINDOW, Flow, stream
from polysense.apps.inputs import choose_device, sort_items
from polysense.apps.job import Group, Job
from polysense.apps.screen import Screen, consume
from polysense.batches import Answered
from polysense.core.errors import InputError
from polysense.core.predictions import Embedding, Prediction
from polysense.data.items import Item
from polysense.data.spool import Spool
from polysense.index import Index
from polysense.saving import hash_weights
from polysense.tasks import TASKS

BATCH = 1024  # embeddings that go into an index at a time


def embed(
    inputs: Sequence[str],
    flow: Flow | None = None,
    *,
    out: str | Path | None = None,
    index: str | None = None,
    modality: str | None = None,
    space: str = "encoder",
    resume: bool | None = None,
    skip: bool = True,
    device: str = "auto",
    threads: int | None = None,
    progress: Mapping[str, bool] | None = None,
) -> int:
    """Embeds every input.

    Args:
        inputs: Files, folders, patterns, tars, URLs; kinds may be mixed.
        flow: How inputs are read and computed; None: as usual.
        out: .npz (`vectors` (n, d) float32, `sources`, `modalities`), .npy (vectors alone), or any ending of
            `open_writer`; or its URL. None prints what was embedded, where no index takes it either.
        index: Folder or address of an index, which is made or added to (`polysense.index`).
        modality: What all the files are; None tells by their endings.
        space: "encoder", or "meaning": where all kinds lie near the words for what they show.
        resume: True goes on with an interrupted run, False begins it anew; None does neither.
        skip: Go on after an input that cannot be read.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.
        progress: Options of `Progress`.

    Returns:
        The exit code: 0 all embedded, 1 none, 3 some were skipped.
    """
    flow = flow or Flow()
    tasks = embedding_tasks(space)
    items = sort_items(partial(flow.reading.items, inputs), inputs, modality, list(tasks))
    shelf = None if index is None else Shelf(index, space)
    if shelf is not None and "tabular" in items:
        problem = "vectors of a table's rows depend on its columns, so that an index cannot compare them with others"
        raise InputError(items["tabular"][0].name, problem, "leave tables out, or embed them with --out")
    used = choose_device(device, threads)
    pipelines = {name: open_pipeline(tasks[name], items[name], used) for name in items}
    groups = {name: _marked(flow.group(pipelines[name], partial(iter, items[name]), WINDOW if out else SHOWN), name)
              for name in items}  # fmt: skip
    with ExitStack() as stack:
        sinks: list[Callable[[Prediction], None]] = []
        if shelf is not None:
            for pipeline in pipelines.values():
                shelf.check(pipeline)
            sinks.append(stack.enter_context(shelf).add)
        if out is not None:
            about = {"model": space, "encoder": next(iter(pipelines.values())).encoder_hash}
            settings = {"space": space, "inputs": list(inputs), "modality": modality, "device": used.partition(":")[0],
                        "batch size": flow.batch_size, **flow.reading.settings(),
                        "weights_sha256": hash_weights(pipelines)}  # fmt: skip
            return Job(groups, settings, about, skip, sinks=tuple(sinks), progress=progress or {}).run(out, resume)
        if resume is not None:
            raise InputError("--resume", "without an output there is nothing to go on with", "add --out FILE")
        if shelf is None:
            sinks.append(stack.enter_context(Screen()).add)
        return consume(stream(groups, skip), sinks, index)


def _marked(group: Group, modality: str) -> Group:
    """The same embeddings, which say what they are of."""

    def answers(spool: Spool, after: tuple[int, int]) -> Iterator[Answered]:
        for answered in group.answers(spool, after):
            yield replace(answered, answers=[replace(answer, meta={"modality": modality})
                          if isinstance(answer, Embedding) else answer for answer in answered.answers])  # fmt: skip

    return Group(group.items, answers)


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


def open_pipeline(task: str, items: Sequence[Item], device: str) -> polysense.Pipeline:
    """The task's pipeline; for tables one of seeded weights, whose columns are those of the first table."""
    if TASKS[task].modality != "tabular":
        return polysense.load(task, device=device)
    with items[0].open_local() as path:
        return polysense.Pipeline.build(task, sources=[path]).to(device)
