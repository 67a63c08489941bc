"""Answers on the screen and as pictures, and what is said on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from polysense.core.errors import InputError
from polysense.core.predictions import Labels, Prediction

T = TypeVar("T")


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
