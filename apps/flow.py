"""From names to answers: what `predict` and `embed` share. Inputs are listed, read in processes of their own, and
answered window by window, by this process or by Ray."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import polysense
from polysense.apps.job import Group
from polysense.apps.screen import note
from polysense.batches import Answered, BatchSize, answer_reads
from polysense.core.errors import InputError
from polysense.core.predictions import Prediction
from polysense.data.items import Item
from polysense.data.limits import limits, set_limits
from polysense.data.listing import list_items, read_list, shard
from polysense.data.spool import Spool
from polysense.decode import Decoders

WINDOW = 256  # inputs answered at a time into a file
SHOWN = 64  # and onto the screen, where somebody waits
FEW = 200  # items up to which processes take longer to start than they save


@dataclass(frozen=True, slots=True)
class Reading:
    """Which inputs are read, and how.

    Attributes:
        lists: Files that name inputs, "-" for stdin.
        column: Of a list that is a table, the column with the names.
        part: Share of all inputs that this run answers, "3/8".
        workers: Processes that read; None: one for each core, and none for a few inputs.
        timeout: Seconds after which an input is left.
    """

    lists: tuple[str, ...] = ()
    column: str | None = None
    part: str | None = None
    workers: int | None = None
    timeout: float = 120.0

    def items(self, inputs: Sequence[str], wanted: Sequence[str]) -> Iterator[Item]:
        """Lists what is to be read: what the inputs name, and the files in their folders with the wanted endings."""
        named = list_items(inputs, wanted)
        listed = (list_items(read_list(name, self.column), wanted, strict=False) for name in self.lists)
        items = chain(named, *listed)
        return shard(items, self.part) if self.part else items

    def settings(self) -> dict[str, object]:
        """What a job that goes on must find unchanged."""
        return {"lists": self.lists, "column": self.column, "shard": self.part}


@dataclass(frozen=True, slots=True)
class Flow:
    """How inputs become answers.

    Attributes:
        reading: How they are read.
        batch_size: Sequences that run together; None chooses.
        horizon: Of a forecaster, see `Pipeline.stream`.
        ray: Answer on a Ray cluster.
        cluster: Its address; None starts one on this machine.
        actors: Of Ray; None: one for each CPU or GPU.
    """

    reading: Reading = field(default_factory=Reading)
    batch_size: int | None = None
    horizon: int | None = None
    ray: bool = False
    cluster: str | None = None
    actors: int | None = None

    def group(self, pipeline: polysense.Pipeline, items: Callable[[], Iterable[Item]], most: int = WINDOW) -> Group:
        """Inputs of one kind and their answers, in windows of at most so many inputs."""
        return Group(items, partial(self._by_ray if self.ray else self._here, pipeline, most))

    def _here(
        self, pipeline: polysense.Pipeline, most: int, spool: Spool, after: tuple[int, int]
    ) -> Iterator[Answered]:
        reading, size, halved = self.reading, BatchSize(self.batch_size), 0
        few = len(spool) - after[0] < FEW
        workers = reading.workers if reading.workers is not None else 0 if few else os.cpu_count() or 1
        setup = partial(set_limits, limits())
        with Decoders(pipeline.tokenizer, workers, reading.timeout, setup=setup) as decoders:
            reads = decoders.stream(spool.numbered(after[0]))
            for answered in answer_reads(pipeline, reads, size, self.horizon, after, most):
                yield answered
                if size.halved > halved:
                    halved = size.halved
                    note(f"out of memory: going on with 1/{2**halved} of the batch size")

    def _by_ray(
        self, pipeline: polysense.Pipeline, most: int, spool: Spool, after: tuple[int, int]
    ) -> Iterator[Answered]:
        from polysense.scale import answer_by_ray

        return answer_by_ray(pipeline, spool, after, address=self.cluster, actors=self.actors,
                             batch_size=self.batch_size, horizon=self.horizon, timeout=self.reading.timeout,
                             setup=partial(set_limits, limits()))  # fmt: skip


def stream(groups: Mapping[str, Group], skip: bool) -> Iterator[Prediction | InputError]:
    """Answers as they come, without a journal; the first error is raised, unless `skip`."""
    with tempfile.TemporaryDirectory(prefix="polysense-") as folder:
        for name, group in groups.items():
            spool = Spool(Path(folder) / name).fill(group.items())
            for answered in group.answers(spool, (0, 0)):
                for answer in answered.answers:
                    if isinstance(answer, InputError) and not skip:
                        raise answer
                    yield answer
