"""`polysense predict`: many inputs through one pipeline, to the screen, a file and pictures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import polysense
from polysense.apps.inputs import check_model, choose_device, endings, sort_files
from polysense.apps.job import Group, Job
from polysense.apps.screen import Gallery, Screen, consume, note
from polysense.apps.words import Words, nameable
from polysense.batches import Answered, BatchSize, answer_reads
from polysense.core.errors import InputError
from polysense.core.predictions import Labels, Prediction
from polysense.data.listing import Item, list_items, read_list, shard
from polysense.data.spool import Spool
from polysense.decode import Decoders
from polysense.saving import fingerprint

WINDOW = 1024  # inputs answered at a time into a file
SHOWN = 64  # and onto the screen, where somebody waits
FEW = 200  # items up to which processes take longer to start than they save


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a pipeline beside the inputs; all of it changes the answers.

    Attributes:
        engine: What runs the encoder, see `Pipeline.with_engine`; or "ray", torch on a cluster.
        top_k: Keep only the most probable classes.
        words: What "zero-shot" names inputs by.
        answer: What a bundle for segments is asked for: "semantic", "instance" or "panoptic".
        views, mirror: How often images are read, see `Pipeline.with_views`; None and False leave it as trained.
        horizon: Steps that a forecaster is to answer.
    """

    engine: str = "torch"
    top_k: int | None = None
    words: Words | None = None
    answer: str | None = None
    views: tuple[float, ...] | None = None
    mirror: bool = False
    horizon: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """How inputs are read.

    Attributes:
        lists: Files that name inputs, "-" for stdin.
        column: Of a list that is a table, the column with the names.
        part: Share of all inputs that this run answers, "3/8".
        workers: Processes that read; None: one for each core, and none for a few inputs.
        timeout: Seconds after which an input is left.
        cluster: Address of a Ray cluster, for the engine "ray"; None starts one on this machine.
        actors: Of Ray; None: one for each CPU or GPU.
    """

    lists: tuple[str, ...] = ()
    column: str | None = None
    part: str | None = None
    workers: int | None = None
    timeout: float = 120.0
    cluster: str | None = None
    actors: int | None = None

    def items(self, inputs: Sequence[str], wanted: Sequence[str]) -> Iterator[Item]:
        """Lists what is to be read."""
        named = list_items(inputs, wanted)
        listed = (list_items(read_list(name, self.column), wanted, strict=False) for name in self.lists)
        items = chain(named, *listed)
        return shard(items, self.part) if self.part else items

    def decoders(self, pipeline: polysense.Pipeline, count: int) -> Decoders:
        """What reads `count` items."""
        workers = self.workers if self.workers is not None else 0 if count < FEW else os.cpu_count() or 1
        return Decoders(pipeline.tokenizer, workers, self.timeout)


def predict(
    model: str,
    inputs: Sequence[str],
    asked: Asked = Asked(),
    reading: Reading = Reading(),
    *,
    out: str | Path | None = None,
    escape: bool = False,
    resume: bool | None = None,
    batch_size: int | None = None,
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
        reading: How inputs are read.
        out: File for the answers, or its URL; None prints them: a table on a terminal, tab-separated lines into a pipe.
        escape: See `open_writer`.
        resume: True goes on with an interrupted run, False begins it anew; None does neither.
        batch_size: Inputs computed at a time; None chooses.
        skip: Go on after an input that cannot be read (else the first one ends the run with its error).
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.
        pictures: Folder for a picture of every answer.
        progress: Options of `Progress`.

    Returns:
        The exit code: 0 all answered, 1 none, 3 some were skipped.
    """
    # Actors choose a device where they are.
    used = "cpu" if asked.engine == "ray" else choose_device(device, threads, asked.engine)
    pipelines, items = _open(model, inputs, used, asked, reading)
    flow = partial(_answers, asked=asked, reading=reading, batch_size=batch_size, most=SHOWN if out is None else WINDOW)
    groups = {name: Group(items[name], partial(flow, pipelines[name])) for name in items}
    keep = partial(keep_top, top_k=asked.top_k)
    gallery = None if pictures is None else Gallery(pictures, None if len(groups) > 1 else next(iter(groups)))
    sinks = () if gallery is None else (gallery.add,)
    if out is not None:
        about = {"model": model, "encoder": next(iter(pipelines.values())).encoder.fingerprint()}
        settings = {"model": model, "inputs": list(inputs), "device": used.partition(":")[0], "batch size": batch_size,
                    "lists": reading.lists, "column": reading.column, "shard": reading.part, **asdict(asked),
                    "weights_sha256": _weights(pipelines)}  # fmt: skip
        return Job(groups, settings, about, skip, keep, escape, tuple(sinks), progress or {}).run(out, resume)
    if resume is not None:
        raise InputError("--resume", "without an output there is nothing to go on with", "add --out FILE")
    return _show(groups, skip, keep, sinks, asked.top_k)


def _show(
    groups: Mapping[str, Group],
    skip: bool,
    keep: Callable[[Prediction], Prediction],
    sinks: Sequence[Callable[[Prediction], None]],
    top_k: int | None,
) -> int:
    """Answers to the screen, as they come; see `predict`."""

    def answers(folder: Path) -> Iterator[Prediction | InputError]:
        for name, group in groups.items():
            for answered in group.answers(Spool(folder / name).fill(group.items()), (0, 0)):
                for answer in answered.answers:
                    if isinstance(answer, InputError) and not skip:
                        raise answer
                    yield answer if isinstance(answer, InputError) else keep(answer)

    with tempfile.TemporaryDirectory(prefix="polysense-") as folder, Screen(top_k) as screen:
        return consume(answers(Path(folder)), [screen.add, *sinks], None)


def _weights(pipelines: Mapping[str, polysense.Pipeline]) -> str:
    """A hash of all that computes."""
    return fingerprint({f"{name}.{key}": value for name, pipeline in pipelines.items()
                        for key, value in pipeline.state_dict().items()})  # fmt: skip


def _answers(
    pipeline: polysense.Pipeline,
    spool: Spool,
    after: tuple[int, int],
    *,
    asked: Asked,
    reading: Reading,
    batch_size: int | None,
    most: int,
) -> Iterator[Answered]:
    """Reads and answers the items of a spool, window by window."""
    if asked.engine == "ray":
        from polysense.scale import answer_by_ray

        yield from answer_by_ray(pipeline, spool, after, address=reading.cluster, actors=reading.actors,
                                 batch_size=batch_size, horizon=asked.horizon, timeout=reading.timeout)  # fmt: skip
        return
    size = BatchSize(batch_size)
    with reading.decoders(pipeline, len(spool) - after[0]) as decoders:
        halved = 0
        reads = decoders.stream(spool.numbered(after[0]))
        for answered in answer_reads(pipeline, reads, size, asked.horizon, after, most):
            yield answered
            if size.halved > halved:
                halved = size.halved
                note(f"out of memory: going on with 1/{2**halved} of the batch size")


def _open(
    model: str, inputs: Sequence[str], device: str, asked: Asked, reading: Reading
) -> tuple[dict[str, polysense.Pipeline], dict[str, Callable[[], Iterable[Item]]]]:
    """Pipelines by modality, and what lists the inputs of each."""
    words, engine = asked.words, asked.engine
    if model == "zero-shot":
        if words is None or engine not in ("torch", "ray"):
            problem = "it names inputs by words, and none are given" if words is None else f"it has no engine {engine}"
            raise InputError(model, problem, 'write --labels "dog, cat, bird"' if words is None else "use torch")
        groups = sort_files(inputs, words.modality, nameable())
        files = {name: partial(_as_items, paths) for name, paths in groups.items()}
        return {name: words.pipeline(name, device) for name in groups}, dict(files)
    if words is not None:
        raise InputError(model, "its classes were trained", "use --labels with zero-shot: polysense predict zero-shot")
    check_model(model)
    pipeline = polysense.load(model, device=device, engine="torch" if engine == "ray" else engine)
    if asked.answer is not None:
        ask(pipeline, asked.answer, model)
    if asked.views or asked.mirror:
        pipeline = pipeline.with_views(asked.views or (1.0,), asked.mirror)
    name = pipeline.modality
    return {name: pipeline}, {name: partial(reading.items, inputs, endings(name))}


def _as_items(paths: Iterable[Path]) -> Iterator[Item]:
    for path in paths:
        yield Item(str(path), str(path))


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
