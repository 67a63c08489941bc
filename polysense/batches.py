"""Many inputs that are already read -> answers: alike ones run together, as many at a time as memory allows.

A window of inputs is answered at once, however its inputs are ordered: sorted by size, so that little is padded, in
batches whose composition depends on the window alone. The same window gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from polysense.core.errors import InputError
from polysense.core.predictions import Prediction
from polysense.core.types import Sample
from polysense.decode import size_of
from polysense.pipeline import Pipeline
from polysense.roll_out import check_known

Sequences = list[Sample]  # of one input
Read = tuple[int, Sequences | InputError]  # with the number of its item
SMALL = 16 << 10  # bytes of a row of a table, of a short series


@dataclass(slots=True)
class BatchSize:
    """How many sequences run together.

    Attributes:
        most: The number asked for; None chooses: 16 on a CPU, 128 on a GPU, of tiny inputs 256.
        share: Halved where memory did not suffice.
        halved: How often.
    """

    most: int | None = None
    share: float = 1.0
    halved: int = 0

    def of(self, sample: Sample, device: torch.device) -> int:
        usual = 256 if size_of(sample) < SMALL else 16 if device.type == "cpu" else 128
        return max(1, int((self.most or usual) * self.share))

    def halve(self) -> None:
        self.share /= 2
        self.halved += 1


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a window of inputs.

    Attributes:
        answers: In the order of the inputs; an error where one could not be used.
        item: Number of the item that the last input is of.
        inputs: So many inputs of that item are answered.
    """

    answers: list[Prediction | InputError]
    item: int
    inputs: int


def answer_reads(
    pipeline: Pipeline,
    reads: Iterable[Read],
    size: BatchSize,
    horizon: int | None = None,
    after: tuple[int, int] = (0, 0),
    most: int = 1024,
) -> Iterator[Answered]:
    """Answers a stream of inputs, window by window.

    Args:
        pipeline: What answers.
        reads: Numbers of items and the sequences of their inputs, or errors.
        size: Sequences that run together.
        horizon: Of a forecaster, see `Pipeline.stream`.
        after: The item to begin in, and how many of its inputs to leave out. Begun after a window, the answers are
            those that came after it.
        most: Inputs in a window.
    """
    item, inputs = after
    for window in windows(_checked(pipeline, islice(reads, inputs, None), horizon), most):
        good = [read for _, read in window if not isinstance(read, InputError)]
        found = iter(answer_window(pipeline, good, size, horizon))
        answers = [read if isinstance(read, InputError) else next(found) for _, read in window]
        for number, _ in window:
            item, inputs = (item, inputs + 1) if number == item else (number, 1)
        yield Answered(answers, item, inputs)


def _checked(pipeline: Pipeline, reads: Iterable[Read], horizon: int | None) -> Iterator[Read]:
    """Puts an error in place of series whose covariates are not known for all steps."""
    for number, read in reads:
        try:
            if horizon is not None and not isinstance(read, InputError):
                check_known(pipeline, read[0], horizon)
            yield number, read
        except InputError as error:
            yield number, error


def answer_window(
    pipeline: Pipeline, inputs: Sequence[Sequences], size: BatchSize, horizon: int | None = None
) -> list[Prediction]:
    """Answers inputs, in their order.

    Args:
        pipeline: What answers.
        inputs: The sequences of each.
        size: Sequences that run together; halved in place where memory does not suffice.
        horizon: Of a forecaster, see `Pipeline.stream`.

    Raises:
        InputError: A single sequence is too much for the memory.
    """
    order = sorted(range(len(inputs)), key=lambda i: [tensor.shape for tensor in inputs[i][0].data.values()])
    answers: dict[int, Prediction] = {}
    start = 0
    while start < len(order):
        most = size.of(inputs[order[start]][0], pipeline.device)
        batch = list(take(order[start:], inputs, most))
        try:
            found = pipeline.answer([inputs[i] for i in batch], most, horizon)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if most == 1:
                problem = "one input alone is too much for the memory"
                raise InputError(
                    inputs[batch[0]][0].source, problem, "use a larger machine, or --device cpu"
                ) from error
            size.halve()
            if pipeline.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        answers.update(zip(batch, found, strict=True))
        start += len(batch)
    return [answers[i] for i in range(len(inputs))]


def take(order: Sequence[int], inputs: Sequence[Sequences], most: int) -> Iterator[int]:
    """The next inputs whose sequences are together at most so many; at least one input."""
    count = 0
    for i in order:
        count += len(inputs[i])
        if count > most and count > len(inputs[i]):
            return
        yield i


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, on a GPU or a CPU (where torch has no class of its own for it)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def windows(reads: Iterable[Read], most: int = 1024, room: int = 64 << 20) -> Iterator[list[Read]]:
    """Cuts a stream into windows of at most so many inputs and so many bytes (one input may be larger)."""
    window: list[Read] = []
    held = 0
    for number, read in reads:
        window.append((number, read))
        held += 0 if isinstance(read, InputError) else sum(map(size_of, read))
        if len(window) >= most or held >= room:
            yield window
            window, held = [], 0
    if window:
        yield window
