"""What a job has done so far, in one file that only grows: lines of answers and errors, and after each window of inputs
a mark that says how far it came. What stands after the last mark was cut off and does not count, so that a job may be
killed between any two bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polysense.core.errors import InputError
from polysense.core.predictions import Prediction
from polysense.data.prediction_json import dumps, loads


@dataclass(frozen=True, slots=True)
class Place:
    """How far a job came: the next input to read.

    Attributes:
        group: Of inputs of one kind.
        item: Its number in the group.
        inputs: So many inputs of that item are done (rows of a table).
    """

    group: int = 0
    item: int = 0
    inputs: int = 0


@dataclass(slots=True)
class Counts:
    """What a journal holds."""

    answers: int = 0
    errors: int = 0


def to_line(one: Prediction | InputError) -> str:
    """What became of an input, as a line."""
    if isinstance(one, InputError):
        return "E" + json.dumps([one.source, one.problem, one.fix], ensure_ascii=False)
    return "A" + dumps(one)


def from_line(line: str) -> Prediction | InputError:
    """The inverse of `to_line`."""
    return InputError(*json.loads(line[1:])) if line.startswith("E") else loads(line[1:])


class Journal:
    """A context manager.

    Args:
        path: The file; what an earlier run wrote up to its last mark stays.

    Attributes:
        place: The last mark.
        counts: Of what stands before it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.place, self.counts = path, Place(), Counts()
        end = 0
        if path.exists():
            end = self._find_end()
        # Unbuffered: what a full disk did not take must not come after what is written next.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)

    def _find_end(self) -> int:
        """Reads the marks; returns the byte after the last whole one."""
        end = at = 0
        since = Counts()
        with self.path.open("rb") as file:
            for line in file:
                at += len(line)
                if line.startswith(b"E"):
                    since.errors += 1
                elif line.startswith(b"A"):
                    since.answers += 1
                elif line.startswith(b"M") and line.endswith(b"\n"):
                    self.place, end = Place(*json.loads(line[1:])), at
                    self.counts.answers += since.answers
                    self.counts.errors += since.errors
                    since = Counts()
        return end

    def add(self, window: Sequence[Prediction | InputError], place: Place) -> None:
        """Writes what became of a window, and that the job came to this place; on disk when this returns.

        Raises:
            OSError: The disk is full or gone; what was written before stays good.
        """
        lines = list(map(to_line, window))
        errors = sum(isinstance(one, InputError) for one in window)
        self.counts.errors += errors
        self.counts.answers += len(window) - errors
        lines.append("M" + json.dumps([place.group, place.item, place.inputs]))
        content = memoryview(("\n".join(lines) + "\n").encode())
        while content:
            content = content[self._file.write(content) :]
        os.fsync(self._file.fileno())
        self.place = place

    def __iter__(self) -> Iterator[Prediction | InputError]:
        """All that stands there, in order."""
        with self.path.open("rb") as file:
            for line in file:
                if not line.startswith(b"M"):
                    yield from_line(line.decode())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
