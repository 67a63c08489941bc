"""`polysense predict`: many inputs through one pipeline, to the screen, a file and pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import polysense
from polysense.apps.inputs import check_model, choose_device, endings, expand, sort_files
from polysense.apps.words import Words, nameable
from polysense.core.errors import InputError
from polysense.core.predictions import Labels, Prediction

T = TypeVar("T")


def predict(
    model: str,
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    batch_size: int = 16,
    skip: bool = True,
    device: str = "auto",
    engine: str = "torch",
    threads: int | None = None,
    top_k: int | None = None,
    pictures: Path | None = None,
    words: Words | None = None,
    answer: str | None = None,
    views: Sequence[float] | None = None,
    mirror: bool = False,
    horizon: int | None = None,
) -> int:
    """Answers every input; what cannot be read is named on stderr.

    Args:
        model: A task's name or a bundle's folder, or "zero-shot".
        inputs: Files, folders, patterns.
        out: File for the answers; None prints them: a table on a terminal, tab-separated lines into a pipe.
        batch_size: Inputs computed at a time.
        skip: Go on after an input that cannot be read (else the first one ends the run with its error).
        device: "auto", "cpu", "cuda" …
        engine: What runs the encoder, see `Pipeline.with_engine`.
        threads: CPU threads.
        top_k: Keep only the most probable classes.
        pictures: Folder for a picture of every answer.
        words: What "zero-shot" names inputs by.
        answer: What a bundle for segments is asked for: "semantic", "instance" or "panoptic".
        views, mirror: How often images are read, see `Pipeline.with_views`; None and False leave it as trained.
        horizon: Steps that a forecaster is to answer.

    Returns:
        The exit code: 0 all answered, 1 none, 3 some were skipped.
    """
    from polysense.data.writers import open_writer

    pipelines, groups = _open(model, inputs, choose_device(device, threads, engine), engine, words)
    if answer is not None:
        ask(pipelines.values(), answer, model)
    if views or mirror:
        pipelines = {name: pipeline.with_views(views or (1.0,), mirror) for name, pipeline in pipelines.items()}
    with ExitStack() as stack:
        sinks: list[Callable[[Prediction], None]] = []
        if out is not None:
            sinks.append(stack.enter_context(open_writer(out)).write)
        if pictures is not None:
            sinks.append(Gallery(pictures, None if len(groups) > 1 else next(iter(groups))).add)
        if out is None:
            sinks.append(stack.enter_context(Screen(top_k)).add)
        answers = chain.from_iterable(
            pipelines[name].stream(track(files), batch_size, "skip" if skip else "raise", horizon=horizon)
            for name, files in groups.items()
        )
        return consume((keep_top(answer, top_k) for answer in answers), sinks, out)


def _open(
    model: str, inputs: Sequence[str], device: str, engine: str, words: Words | None
) -> tuple[dict[str, polysense.Pipeline], dict[str, list[Path]]]:
    """Pipelines by modality, and the files that each is to answer."""
    if model == "zero-shot":
        if words is None or engine != "torch":
            problem = "it names inputs by words, and none are given" if words is None else f"it has no engine {engine}"
            raise InputError(model, problem, 'write --labels "dog, cat, bird"' if words is None else "use torch")
        groups = sort_files(inputs, words.modality, nameable())
        return {name: words.pipeline(name, device) for name in groups}, groups
    if words is not None:
        raise InputError(model, "its classes were trained", "use --labels with zero-shot: polysense predict zero-shot")
    check_model(model)
    pipeline = polysense.load(model, device=device, engine=engine)
    return {pipeline.modality: pipeline}, {pipeline.modality: expand(inputs, endings(pipeline.modality))}


def ask(pipelines: Iterable[polysense.Pipeline], answer: str, model: str) -> None:
    """Asks heads that answer in several ways for one of them."""
    from polysense.heads.queries import QueryHead

    for pipeline in pipelines:
        if not isinstance(pipeline.head, QueryHead):
            fix = "use --answer with a bundle for panoptic-segmentation or instance-segmentation"
            raise InputError(model, f"it has no {answer} answer", fix)
        pipeline.head.answer = answer


def consume(
    answers: Iterable[Prediction | InputError], sinks: Sequence[Callable[[Prediction], None]], out: Path | str | None
) -> int:
    """Hands every answer to the sinks and every fault to stderr; at the end says how many, and where they are."""
    start, done, skipped = time.perf_counter(), 0, 0
    for answer in answers:
        if isinstance(answer, InputError):
            skipped += 1
            note(f"skipped: {answer}")
            continue
        done += 1
        for sink in sinks:
            sink(answer)
    if out is not None and done:
        count = f"{done} answer{'s' if done > 1 else ''}{f', {skipped} skipped' if skipped else ''}"
        note(f"{count}, {time.perf_counter() - start:.1f} s: {out}")
    if not done:
        # Raised inside the writer's context, so that no empty file appears.
        raise InputError("inputs", f"none of {skipped} could be read", "see the lines above")
    return 3 if skipped else 0


def keep_top(answer: Prediction | InputError, top_k: int | None) -> Prediction | InputError:
    """Cuts class lists to the k most probable."""
    if top_k is None or not isinstance(answer, Labels):
        return answer
    return replace(answer, names=answer.names[:top_k], scores=answer.scores[:top_k])


def track(items: Sequence[T]) -> Iterator[T]:
    """Passes the items on, with a progress bar on a terminal's stderr."""
    if not sys.stderr.isatty() or len(items) < 2:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, "Reading", console=Console(stderr=True), transient=True)


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Screen:
    """Answers on stdout: tab-separated lines as they come into a pipe, one table at the end on a terminal."""

    def __init__(self, top_k: int | None = None) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.top_k = top_k or 1
        self.plain = not sys.stdout.isatty()

    def add(self, answer: Prediction) -> None:
        confidence = "" if answer.confidence is None else f"{answer.confidence:.3f}"
        words = answer.answer()
        if isinstance(answer, Labels) and self.top_k > 1:
            words = ", ".join(f"{name} {score:.3f}" for name, score in zip(answer.names, answer.scores))
        row = (answer.source, words, confidence)
        if self.plain:
            print("\t".join(" ".join(cell.split()) for cell in row), flush=True)
        else:
            self.rows.append(row)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.rows:
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(header_style="bold", box=None, pad_edge=False)
        table.add_column("input", overflow="fold")
        table.add_column("answer", style="bold")
        table.add_column("confidence", justify="right", style="cyan")
        for row in self.rows:
            table.add_row(*map(escape, row))
        Console().print(table)


class Gallery:
    """A folder with one picture per answer."""

    def __init__(self, folder: Path, modality: str | None) -> None:
        self.folder, self.modality = folder, modality  # None: told by each file's ending
        self.names: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(folder, f"cannot be made a folder ({error.strerror})", "choose another one") from error

    def add(self, answer: Prediction) -> None:
        from polysense.apps.pictures import draw

        draw(answer, answer.source, self.path_for(answer.source), modality=self.modality)

    def path_for(self, source: str) -> Path:
        """ "scans/a.ply" -> "a.png"; a second a.ply from another folder -> "a-2.png"; "t.csv#7" -> "t-7.png"."""
        path = Path(source)
        stem = path.stem if "#" not in path.suffix else f"{path.stem}-{path.suffix.rpartition('#')[2]}"
        count = self.names[stem] = self.names.get(stem, 0) + 1
        return self.folder / (f"{stem}.png" if count == 1 else f"{stem}-{count}.png")
