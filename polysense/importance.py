"""How much each column of a table counts for a pipeline: permutation importance.

A column's values are shuffled among the rows, so that they say nothing any more, and the answers are scored again: what
the score loses is what the column was worth (Breiman 2001, "Random Forests", section 10; for any model Fisher, Rudin &
Dominici 2019, "All Models are Wrong, but Many are Useful"). To be measured on rows that taught nothing: on those that
did, columns count that were only learnt by heart.

What it does not say: columns that tell the same stand in for each other, and each then seems worth little; and what
counts for the model need not be a cause in the world.

Shape legend: n rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.core.errors import InputError
from polysense.core.predictions import Prediction
from polysense.pipeline import Pipeline
from polysense.tokenizers.tabular import TabularTokenizer

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 1000  # more of them hardly steady what is found
FEWEST_ROWS = 20  # fewer say little, however short the time
BATCH = 256  # rows are short sequences

Score = Callable[[Sequence[Prediction], Sequence[Any]], float]


@dataclass(frozen=True, slots=True)
class Importance:
    """What one column is worth.

    Attributes:
        column: Its name.
        mean: What the score loses without it, over the repeats; 0 where the model does not read it.
        spread: The standard deviation of that loss between repeats.
    """

    column: str
    mean: float
    spread: float


@dataclass(frozen=True, slots=True)
class Importances:
    """What all columns are worth.

    Attributes:
        columns: The one that counts most first; equal ones in the order of the table.
        score: With every column as it is.
        rows: That were scored.
        repeats: Times that each column was shuffled.
    """

    columns: tuple[Importance, ...]
    score: float
    rows: int
    repeats: int


def importance(
    pipeline: Pipeline,
    rows: pd.DataFrame,
    targets: Sequence[Any],
    score: Score,
    *,
    repeats: int = 5,
    most: int = MOST_ROWS,
    seed: int = 0,
    batch_size: int = BATCH,
    seconds: float | None = None,
) -> Importances:
    """Measures what each column of a table is worth to a pipeline.

    Args:
        pipeline: Reads tables.
        rows: n rows that it has not learnt from, as `read_table` gives them; without the columns to predict.
        targets: Their n true values, as `score` takes them.
        score: (answers, targets) -> a number, larger where the answers are better.
        repeats: Times that each column is shuffled.
        most: Rows that are scored; of more, some at random.
        seed: Of the rows and of the shuffling.
        batch_size: Rows that run together.
        seconds: About what it may take: fewer repeats, and then fewer rows, where all would take longer.

    Raises:
        InputError: The pipeline reads no tables, the rows do not suit it or are none, or there is nothing to repeat.
    """
    tokenizer = tokenizer_of(pipeline)
    if len(rows) != len(targets) or not len(rows):
        raise InputError("rows", f"there are {len(rows)}, with {len(targets)} targets", "give one target for each row")
    if min(repeats, most, batch_size) < 1:
        raise InputError("importance", "nothing would be measured", "give numbers from 1 on")
    rng, frame = np.random.default_rng(seed), tokenizer.named(rows)

    def scored(some: pd.DataFrame, truth: Sequence[Any]) -> float:
        return score(pipeline(some, batch_size), truth)

    frame, truth = drawn(frame, targets, most, rng)
    start = time.perf_counter()
    base = scored(frame, truth)
    used = [column.name for column in tokenizer.used]
    if seconds is not None:
        # The first pass is the slowest, so that this errs on the side of haste.
        repeats, most = bounded(repeats, len(frame), len(used), seconds, time.perf_counter() - start)
        if most < len(frame):
            frame, truth = drawn(frame, truth, most, rng)
            base = scored(frame, truth)
    lost = {name: [base - scored(other, truth) for other in shuffled(frame, name, repeats, rng)] for name in used}
    found = [Importance(name, *_mean_and_spread(lost.get(name, [0.0]))) for name in map(str, frame.columns)]
    return Importances(tuple(sorted(found, key=lambda one: -one.mean)), base, len(frame), repeats)


def tokenizer_of(pipeline: Pipeline) -> TabularTokenizer:
    """What reads the tables.

    Raises:
        InputError: The pipeline reads none.
    """
    if not isinstance(pipeline.tokenizer, TabularTokenizer):
        raise InputError(pipeline.name, "it reads no tables, whose columns could count", "choose a tabular one")
    return pipeline.tokenizer


def drawn(
    frame: pd.DataFrame, targets: Sequence[Any], most: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, list[Any]]:
    """At most so many of the rows, in their order, and their targets."""
    if len(frame) <= most:
        return frame.reset_index(drop=True), list(targets)
    chosen = np.sort(rng.choice(len(frame), most, replace=False))
    return frame.iloc[chosen].reset_index(drop=True), [targets[i] for i in chosen.tolist()]


def shuffled(frame: pd.DataFrame, column: str, repeats: int, rng: np.random.Generator) -> Iterator[pd.DataFrame]:
    """The table with the values of one column dealt anew to its rows, once for each repeat."""
    for _ in range(repeats):
        yield frame.assign(**{column: frame[column].take(rng.permutation(len(frame))).set_axis(frame.index)})


def bounded(repeats: int, rows: int, columns: int, seconds: float, once: float) -> tuple[int, int]:
    """Repeats and rows with which it takes about so many seconds, where scoring all rows once takes `once`."""
    rounds = seconds / (max(once, 1e-6) * columns)
    if rounds >= 1:
        return min(repeats, int(rounds)), rows
    return 1, max(min(FEWEST_ROWS, rows), int(rows * rounds))


def _mean_and_spread(lost: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(lost)), float(np.std(lost))
