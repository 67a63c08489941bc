"""The accuracy gate of 8-bit weights: a pipeline's metric with onnx-int8 against torch, on validation data."""

from __future__ import annotations

from pathlib import Path

from polysense.backbone.engines import with_engine
from polysense.core.errors import InputError
from polysense.engine_checks import EngineCheck, save_check
from polysense.pipeline import Pipeline
from polysense.training.evaluate import as_trained, part_of
from polysense.training.examples import Examples
from polysense.training.gates import HALF_A_POINT, gate, with_encoder
from polysense.training.sources import open_sources

VAL_SHARE = 0.15  # what `fit` keeps for validation where it is told nothing else


def check_engine(
    bundle: str | Path | Pipeline,
    data: str | Path,
    *,
    split: str = "val",
    target: str | None = None,
    batch_size: int = 32,
    most_drop: float = HALF_A_POINT,
) -> EngineCheck:
    """Measures what 8-bit weights cost and keeps the finding, by which the engine onnx-int8 is allowed or refused.

    Args:
        bundle: A bundle's name or task, a folder, or a pipeline.
        data: In one of the layouts that `fit` takes; none of the measured part may have been learned from.
        split: The part to measure. Data without a "val" part get the one that `fit` keeps by default; "all" takes
            everything as validation data.
        target: Column to compare with; by default the one the bundle was trained on.
        batch_size: Sequences that run together.
        most_drop: Half a point of a score between 0 and 1 (accuracy, f1, miou, map50), or half a per cent of an
            error (mse).

    Raises:
        InputError: The data cannot be used, the task has no metric, or the engine cannot run this encoder.
    """
    pipeline = bundle if isinstance(bundle, Pipeline) else Pipeline.from_pretrained(bundle)
    pipeline = pipeline.with_engine("torch")
    if not pipeline.task.metric:
        raise InputError(pipeline.task.name, "the task has no metric that 8-bit weights could be judged by",
                         "use the engine onnx")  # fmt: skip
    quantised = with_encoder(pipeline, with_engine(pipeline.encoder, "onnx-int8"))
    examples = part_to_measure(pipeline, data, split, target)
    found = gate(pipeline, lambda _: quantised, examples, most_drop, batch_size=batch_size)
    check = EngineCheck(pipeline.task.name, found.metric, found.before, found.after, found.drop, found.most_drop,
                        found.passed, found.examples, f"{Path(data).name}, {split} part")  # fmt: skip
    save_check(pipeline, check)
    return check


def part_to_measure(pipeline: Pipeline, data: str | Path, split: str, target: str | None) -> Examples:
    """The examples of a part as `check_engine` understands it: those that nothing was learned from."""
    sources = open_sources(pipeline.task, data, **as_trained(pipeline, target))
    if split == "all":
        if parts := [part for part in sources.splits() if part]:
            raise InputError(data, "it has parts, some of them learned from", f"choose one of: {', '.join(parts)}")
        return sources.examples(pipeline.tokenizer, "")
    if split == "val":
        sources = sources.with_validation(VAL_SHARE, int(pipeline.about.get("seed", 0)))
    return part_of(sources, split, pipeline, data)
