"""Accuracy gates: a change that makes a pipeline faster is kept only while its own metric allows it.

found = gate(pipeline, lambda p: with_encoder(p, merge_tokens_in(p.encoder, 8)), examples, most_drop=0.005)
print(found)
pipeline = found.pipeline  # the changed one where it passed, the given one where it did not
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from polysense.core.errors import InputError
from polysense.pipeline import Pipeline
from polysense.tasks import Task
from polysense.training.evaluate import measure
from polysense.training.examples import Examples

HALF_A_POINT = 0.005  # of an accuracy between 0 and 1; of an error, half a per cent of it


@dataclass(frozen=True, slots=True)
class Gate:
    """What a gate found."""

    metric: str  # the one that decided ("accuracy")
    before: float  # its value without the change
    after: float  # and with it
    drop: float  # what the change costs; negative where it helps. See `drop_of`
    most_drop: float  # what it may cost
    passed: bool
    pipeline: Pipeline  # the one to go on with: changed if passed, else as it was given
    examples: int  # how many were measured

    def __str__(self) -> str:
        verdict = "kept" if self.passed else "refused"
        return (f"{verdict}: {self.metric} {self.before:.4f} -> {self.after:.4f} on {self.examples} examples, "
                f"a drop of {self.drop:.4f} where {self.most_drop:.4f} is allowed")  # fmt: skip


def gate(
    pipeline: Pipeline,
    change: Callable[[Pipeline], Pipeline],
    examples: Examples,
    most_drop: float = HALF_A_POINT,
    *,
    before: Mapping[str, float] | None = None,
    batch_size: int = 32,
) -> Gate:
    """Measures a change on validation examples and keeps it if the task's metric drops by at most `most_drop`.

    Args:
        pipeline: As it runs today; it is left as it is.
        change: Makes another pipeline of it, without touching the given one. `with_encoder` makes one with another
            encoder. Its examples are read by the given pipeline's tokenizer.
        examples: Validation examples with targets, none of them learned from.
        most_drop: What the change may cost, see `drop_of`; 0 lets through only what costs nothing.
        before: Metrics of the unchanged pipeline on these very examples, where they are known already.
        batch_size: Sequences that run together.

    Raises:
        ValueError: `change` gave the given pipeline back, or `most_drop` is not a number of 0 or more.
        InputError: There is nothing to judge by: no examples, or a task or examples without the metric.
    """
    if not most_drop >= 0:
        raise ValueError(f"most_drop is a number of 0 or more, not {most_drop}")
    if not len(examples):
        raise InputError("gate", "there are no examples to judge the change by", "give validation examples")
    if not pipeline.task.metric:
        raise InputError(pipeline.task.name, "the task has no metric", "judge the change by a task with targets")
    changed = change(pipeline)
    if changed is pipeline:
        raise ValueError("change must make another pipeline; one changed in place could not be refused")
    name = pipeline.task.metric
    was = _value(measure(pipeline, examples, batch_size) if before is None else before, name)
    now = _value(measure(changed, examples, batch_size), name)
    drop = drop_of(pipeline.task, was, now)
    passed = drop <= most_drop + 1e-9  # 0.750 - 0.745 is more than 0.005 in binary
    return Gate(name, was, now, drop, most_drop, passed, changed if passed else pipeline, len(examples))


def drop_of(task: Task, before: float, after: float) -> float:
    """What a change costs: the loss in points of a score between 0 and 1 (accuracy, miou, map50), and the growth as a
    share of it of an error that is to be small (mse). An answer that is not a number costs infinitely much."""
    if not math.isfinite(after):
        return math.inf
    if task.larger_is_better:
        return before - after
    if before == 0:
        return 0.0 if after <= 0 else math.inf
    return after / before - 1


def with_encoder(pipeline: Pipeline, encoder: Any) -> Pipeline:
    """The same tokenizer, head and facts (shared, not copied) around another encoder of the same width."""
    other = Pipeline(pipeline.task, pipeline.tokenizer, encoder, pipeline.head, name=pipeline.name,
                     metrics=pipeline.metrics, about=pipeline.about)  # fmt: skip
    other.settled = set(pipeline.settled)
    return other.train(pipeline.training)


def _value(scores: Mapping[str, float], name: str) -> float:
    if name not in scores:
        fix = f"give examples that have it; they have {', '.join(scores) or 'no metric at all'}"
        raise InputError("gate", f"the examples have no {name}", fix)
    return float(scores[name])
