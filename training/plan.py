"""`make_plan`: what a fit would do, told before it does it: parts, sizes, what learns, steps, time and memory.

Time is measured on a few real examples and steps, so that it holds for this machine as it is now. The steps change
the pipeline, which is of no use afterwards.
"""

from __future__ import annotations

import math
import resource
import sys
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from polysense.backbone.adapters import AdaptedEncoder
from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline, to_device
from polysense.training.compute import start
from polysense.training.examples import CACHE_BYTES, Examples
from polysense.training.joint import Recipe, batches, make_optimiser, steps_of, train_step
from polysense.training.probe import can_probe

LOOKED_AT = 4  # examples whose shapes are told and whose answer is timed
TIMED = 3  # steps that are timed, after one that warms up


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fit would do."""

    parts: Mapping[str, int]  # examples
    inputs: Mapping[str, tuple[str, ...]]  # shapes seen of each tensor of a sequence
    sequences: tuple[int, int]  # of an example: least and most seen
    tokens: tuple[int, int]  # of a sequence, likewise
    parameters: Mapping[str, int]  # of tokenizer, head, adapter and encoder
    learning: Mapping[str, int]  # of them, those that the joint phase changes
    probe: bool  # the head is solved for first
    epochs: int  # at most: early stopping may end them
    steps: int  # of an epoch
    batch_size: int
    seconds: Mapping[str, float]  # of an example's answer, a step, and at most of both phases
    memory: float  # bytes at the peak: this process so far and the decoded inputs that it would keep
    boosted: bool  # trees grow before that, whose time is not in the estimate

    def lines(self) -> list[str]:
        def counts(table: Mapping[str, int]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in table.items() if count) or "nothing"

        shapes = "; ".join(f"{name} {', '.join(sizes)}" for name, sizes in self.inputs.items())
        first = "the head is solved for on features computed once" if self.probe else "nothing is solved for"
        trees = "; boosted trees come on top" if self.boosted else ""
        return [
            f"examples: {counts(self.parts)}",
            f"input: {shapes}",
            f"sequences an example: {_span(self.sequences)}; tokens a sequence: {_span(self.tokens)}",
            f"parameters: {counts(self.parameters)} (the encoder's own stay frozen)",
            f"first: {first}",
            f"then: {self.epochs} epochs at most of {self.steps} steps of {self.batch_size} examples; learns: "
            f"{counts(self.learning)}" if self.epochs else "then: no joint training",
            f"time: {_duration(self.seconds['all'])} at most ({self.seconds['example'] * 1e3:.0f} ms an answer"
            + (f", {self.seconds['step'] * 1e3:.0f} ms a step" if self.epochs else "") + f"){trees}",
            f"memory: {self.memory / 2**30:.1f} GiB",
        ]  # fmt: skip


def make_plan(pipeline: Pipeline, learning: Examples, validation: Examples, recipe: Recipe, watched: int) -> Plan:
    """Measures a few answers and steps; the pipeline is spoilt by it.

    Args:
        pipeline: Untrained.
        learning, validation: What it would learn from and be measured on.
        recipe: How.
        watched: Validation examples that each epoch is measured on.
    """
    chosen = np.unique(np.linspace(0, len(learning) - 1, LOOKED_AT).astype(int)).tolist()
    with torch.random.fork_rng([pipeline.device] if pipeline.device.type == "cuda" else []):
        examples = [learning.whole(i)[0] for i in chosen]
        pipeline.predict_sequences(examples[:1], recipe.batch_size)  # warms up
        started = clock.perf_counter()
        examples = [learning.whole(i)[0] for i in chosen]
        pipeline.predict_sequences(examples, recipe.batch_size)
        answer = (clock.perf_counter() - started) / len(chosen)
        tokens = [_tokens(pipeline, sample) for samples in examples for sample in samples[:1]]
        step = _timed_step(pipeline, learning, recipe) if recipe.epochs else 0.0
    steps = steps_of(len(learning), recipe, recipe.batch_size * recipe.accumulate)
    probing = can_probe(pipeline.head) or isinstance(pipeline.head, ForecastHead)
    first = (len(learning) + len(validation)) * answer if probing else 0.0
    joint = recipe.epochs * (steps * step * recipe.accumulate + watched * answer)
    if recipe.max_minutes is not None:
        joint = min(joint, recipe.max_minutes * 60)
    sizes = [sum(value.nbytes for sample in samples for value in sample.data.values()) for samples in examples]
    kept = 0.0 if recipe.augment else min(float(np.mean(sizes)) * (len(learning) + len(validation)), CACHE_BYTES)
    return Plan(
        parts={"train": len(learning), "val": len(validation)},
        inputs=_shapes(examples),
        sequences=_ends([len(samples) for samples in examples]),
        tokens=_ends(tokens),
        parameters=_parameters(pipeline, every=True),
        learning=_parameters(pipeline, every=False) if recipe.epochs else {},
        probe=probing,
        epochs=recipe.epochs,
        steps=steps,
        batch_size=min(recipe.batch_size, len(learning)),
        seconds={"example": answer, "step": step, "all": first + joint + (watched + len(validation)) * answer},
        memory=_peak(pipeline) + kept,
        boosted=bool(getattr(pipeline.tokenizer.config, "boost", False)),
    )


def _timed_step(pipeline: Pipeline, learning: Examples, recipe: Recipe) -> float:
    """Seconds of a step with its reading; the first one, which warms up, does not count."""
    optimiser = make_optimiser(pipeline, recipe)
    supply = batches(pipeline, learning, recipe, np.random.default_rng(recipe.seed), TIMED + 1)
    alone = replace(recipe, accumulate=1)
    accelerator = start(recipe.precision, pipeline.device)
    train_step(pipeline, iter([next(supply)]), optimiser, accelerator, alone)
    started = clock.perf_counter()
    for batch in supply:
        train_step(pipeline, iter([batch]), optimiser, accelerator, alone)
    return (clock.perf_counter() - started) / TIMED


@torch.inference_mode()
def _tokens(pipeline: Pipeline, sample: Any) -> int:
    batch = to_device(pipeline.tokenizer.collate([sample]), pipeline.device)
    return int(pipeline.tokenizer(batch).dense_mask().sum())


def _shapes(examples: list[list[Any]]) -> dict[str, tuple[str, ...]]:
    """Distinct shapes of each tensor."""
    found: dict[str, dict[str, None]] = {}
    for samples in examples:
        for name, value in samples[0].data.items():
            found.setdefault(name, {})["×".join(map(str, value.shape)) or "a number"] = None
    return {name: tuple(shapes) for name, shapes in found.items()}


def _parameters(pipeline: Pipeline, every: bool) -> dict[str, int]:
    """Counts by part; without `every` of those that learn. `make_optimiser` has marked them by then."""
    counts = {"tokenizer": 0, "head": 0, "adapter": 0, "encoder": 0}
    plain = pipeline.encoder.plain if isinstance(pipeline.encoder, AdaptedEncoder) else pipeline.encoder
    own = {id(parameter) for parameter in plain.parameters()}
    for name, parameter in pipeline.named_parameters():
        part = name.partition(".")[0]
        if part == "encoder" and id(parameter) not in own:
            part = "adapter"
        if every or parameter.requires_grad:
            counts[part] += parameter.numel()
    return counts


def _peak(pipeline: Pipeline) -> float:
    """Bytes: of the GPU where one computes, else of this process."""
    if pipeline.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(pipeline.device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _ends(numbers: list[int]) -> tuple[int, int]:
    return min(numbers), max(numbers)


def _span(ends: tuple[int, int]) -> str:
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{math.floor(seconds / 360) / 10:g} h"
