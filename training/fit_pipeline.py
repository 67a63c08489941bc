"""The pipeline that a fit begins with: untrained, and knowing what its data say of classes, columns and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from polysense.core.options import make_config
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.training.sources import Sources


def build_for(
    task: str,
    sources: Sources,
    encoder: str,
    tokenizer_options: Mapping[str, Any] | None,
    head_options: Mapping[str, Any] | None,
    seed: int,
) -> Pipeline:
    """An untrained pipeline that suits the data."""
    front = {**sources.tokenizer_options(), **(tokenizer_options or {})}
    head = {**sources.head_options(), **(head_options or {})}
    if TASKS[task].kind == "forecasting":
        series = TimeSeriesTokenizer(make_config(SeriesConfig, front, "time_series tokenizer"))
        if series.config.form == "variates":
            head |= {"variates": True, "own": 0, "tokens": 1}
        else:
            head["tokens"] = series.token_count(front["context"]) + bool(front.get("static"))
    known = sources.tokenizer_sources()
    if TASKS[task].modality == "tabular" and head.get("chain"):
        front["known"] = tuple(head["names"])
    pipeline = Pipeline.build(task, encoder=encoder, tokenizer=front, head=head, sources=known, seed=seed)
    pipeline.settled |= {f"tokenizer.{name}" for name in pipeline.tokenizer.fit_tensors(known, seed)}
    return pipeline


def adapt_seeded(pipeline: Pipeline, method: str, options: Mapping[str, Any] | None, seed: int) -> None:
    """Puts an adapter beside the encoder, whose first weights hang on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline.adapt(method, **(options or {}))
