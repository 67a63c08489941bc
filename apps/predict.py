"""`polysense predict`: many inputs through one pipeline, to the screen, a file and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import polysense
from polysense.apps.flow import SHOWN, WINDOW, Flow, Reading, stream
from polysense.apps.inputs import check_model, choose_device, endings, sort_items
from polysense.apps.job import Job
from polysense.apps.screen import Gallery, Screen, consume
from polysense.apps.words import Words, nameable
from polysense.core.errors import InputError
from polysense.core.predictions import Labels, Prediction
from polysense.data.items import Item
from polysense.saving import hash_weights


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a pipeline beside the inputs; all of it changes the answers.

    Attributes:
        engine: What runs the encoder, see `Pipeline.with_engine`.
        top_k: Keep only the most probable classes.
        words: What "zero-shot" names inputs by.
        answer: What a bundle for segments is asked for: "semantic", "instance" or "panoptic".
        views, mirror: How often images are read, see `Pipeline.with_views`; None and False leave it as trained.
    """

    engine: str = "torch"
    top_k: int | None = None
    words: Words | None = None
    answer: str | None = None
    views: tuple[float, ...] | None = None
    mirror: bool = False


def predict(
    model: str,
    inputs: Sequence[str],
    asked: Asked = Asked(),
    flow: Flow | None = None,
    *,
    out: str | Path | None = None,
    escape: bool = False,
    resume: bool | None = None,
    skip: bool = True,
    device: str = "auto",
    threads: int | None = None,
    pictures: Path | None = None,
    progress: Mapping[str, bool] | None = None,
) -> int:
    """Answers every input; what cannot be read is named on stderr and, beside an output, in `OUT.errors.jsonl`.

    Args:
        model: A task's name or a bundle's folder, or "zero-shot".
        inputs: Files, folders, patterns, tars, URLs.
        asked: What is asked.
        flow: How inputs are read and computed; None: as usual.
        out: File for the answers, or its URL; None prints them: a table on a terminal, tab-separated lines into a pipe.
        escape: See `open_writer`.
        resume: True goes on with an interrupted run, False begins it anew; None does neither.
        skip: Go on after an input that cannot be read (else the first one ends the run with its error).
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.
        pictures: Folder for a picture of every answer.
        progress: Options of `Progress`.

    Returns:
        The exit code: 0 all answered, 1 none, 3 some were skipped.
    """
    flow = flow or Flow()
    # Actors of Ray choose a device where they are.
    used = "cpu" if flow.ray else choose_device(device, threads, asked.engine)
    pipelines, items = _open(model, inputs, used, asked, flow.reading)
    most = SHOWN if out is None else WINDOW
    groups = {name: flow.group(pipelines[name], items[name], most) for name in items}
    keep = partial(keep_top, top_k=asked.top_k)
    gallery = None if pictures is None else Gallery(pictures, None if len(groups) > 1 else next(iter(groups)))
    sinks = () if gallery is None else (gallery.add,)
    if out is not None:
        about = {"model": model, "encoder": next(iter(pipelines.values())).encoder.fingerprint()}
        settings = {"model": model, "inputs": list(inputs), "device": used.partition(":")[0], **asdict(asked),
                    "batch size": flow.batch_size, "horizon": flow.horizon, "ray": flow.ray, **flow.reading.settings(),
                    "weights_sha256": hash_weights(pipelines)}  # fmt: skip
        return Job(groups, settings, about, skip, keep, escape, tuple(sinks), progress or {}).run(out, resume)
    if resume is not None:
        raise InputError("--resume", "without an output there is nothing to go on with", "add --out FILE")
    with Screen(asked.top_k) as screen:
        answers = (answer if isinstance(answer, InputError) else keep(answer) for answer in stream(groups, skip))
        return consume(answers, [screen.add, *sinks], None)


def _open(
    model: str, inputs: Sequence[str], device: str, asked: Asked, reading: Reading
) -> tuple[dict[str, polysense.Pipeline], dict[str, Callable[[], Iterable[Item]]]]:
    """Pipelines by modality, and what lists the inputs of each."""
    words, engine = asked.words, asked.engine
    if model == "zero-shot":
        if words is None or engine != "torch":
            problem = "it names inputs by words, and none are given" if words is None else f"it has no engine {engine}"
            raise InputError(model, problem, 'write --labels "dog, cat, bird"' if words is None else "use torch")
        groups = sort_items(partial(reading.items, inputs), inputs, words.modality, nameable())
        return {name: words.pipeline(name, device) for name in groups}, {n: partial(iter, groups[n]) for n in groups}
    if words is not None:
        raise InputError(model, "its classes were trained", "use --labels with zero-shot: polysense predict zero-shot")
    check_model(model)
    pipeline = polysense.load(model, device=device, engine=engine)
    if asked.answer is not None:
        ask(pipeline, asked.answer, model)
    if asked.views or asked.mirror:
        pipeline = pipeline.with_views(asked.views or (1.0,), asked.mirror)
    name = pipeline.modality
    return {name: pipeline}, {name: partial(reading.items, inputs, endings(name))}


def ask(pipeline: polysense.Pipeline, answer: str, model: str) -> None:
    """Asks a head that answers in several ways for one of them."""
    from polysense.heads.queries import QueryHead

    if not isinstance(pipeline.head, QueryHead):
        fix = "use --answer with a bundle for panoptic-segmentation or instance-segmentation"
        raise InputError(model, f"it has no {answer} answer", fix)
    pipeline.head.answer = answer


def keep_top(answer: Prediction, top_k: int | None) -> Prediction:
    """Cuts class lists to the k most probable."""
    if top_k is None or not isinstance(answer, Labels):
        return answer
    return replace(answer, names=answer.names[:top_k], scores=answer.scores[:top_k])
