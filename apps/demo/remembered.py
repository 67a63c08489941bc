"""Answers to the page's own examples, kept in memory: the second click computes nothing.

Only answers to examples as the page shows them are kept, none to anything that a visitor gave. Files that an answer
brings are written anew each time, since Gradio deletes them after a while.
"""

from __future__ import annotations

import filecmp
import functools
import inspect
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polysense.apps.demo.limits import EXAMPLES, UPLOADED, fresh

MOST = 48  # answers at a time
MEMORY, LARGEST = 128_000_000, 64_000_000  # bytes of pictures, arrays and files: of all together, and of one
LONGEST = 500  # characters of what was chosen beside an example

Answers = tuple[Any, ...]


class Remembered:
    """A few answers; the one that was not asked for longest makes room. Any thread may ask.

    Args:
        folder: The demo's own; in it lie the examples, and what is made for visitors.
        most: Answers at a time.
        memory: Bytes that they may take.
    """

    def __init__(self, folder: Path, most: int = MOST, memory: int = MEMORY) -> None:
        self.folder, self.most, self.memory = folder, most, memory
        self._kept: OrderedDict[tuple[Any, ...], tuple[Answers, int]] = OrderedDict()  # and the bytes that each takes
        self._lock = threading.Lock()

    def answering(
        self,
        act: Callable[..., Any],
        rows: Sequence[Sequence[Any]],
        also: int = 0,
        secret: Callable[[str], bool] = lambda _: False,
    ) -> Callable[..., Any]:
        """The same action, which answers examples from memory once it has answered them.

        Args:
            act: Its arguments: as many as a row has, `also` others, and perhaps a request. It may be a generator, of
                which the last answer is kept.
            rows: The examples.
            also: What was chosen beside them.
            secret: Which choice is a visitor's own, so that nothing is kept.
        """

        def key(arguments: Sequence[Any]) -> tuple[Any, ...] | None:
            number = next((i for i, row in enumerate(rows) if self._is(row, arguments[: len(row)])), None)
            if number is None:
                return None
            chosen = arguments[len(rows[number]) :][:also]
            if any(isinstance(one, str) and secret(one) for one in arguments):
                return None
            try:
                written = json.dumps(chosen)
            except TypeError:  # what only this visitor has, such as a model
                return None
            return (act, number, written) if len(written) <= LONGEST else None

        if inspect.isgeneratorfunction(act):

            @functools.wraps(act)
            def follow(*arguments: Any) -> Iterator[Any]:
                place = key(arguments)
                if (found := self._find(place)) is not None:
                    yield found
                    return
                last = None
                for step in act(*arguments):
                    last = None if place is None else self._read(step)  # before Gradio takes it apart
                    yield step
                self._keep(place, last)

            return follow

        @functools.wraps(act)
        def run(*arguments: Any) -> Any:
            place = key(arguments)
            found = self._find(place)
            if found is None:
                found = act(*arguments)
                self._keep(place, None if place is None else self._read(found))
            return found

        return run

    def _is(self, row: Sequence[Any], given: Sequence[Any]) -> bool:
        """Whether the inputs are just this example: Gradio hands over copies of its files."""
        return len(row) == len(given) and all(map(self._same, row, given))

    def _same(self, ours: Any, theirs: Any) -> bool:
        if isinstance(ours, list | tuple):
            return isinstance(theirs, list | tuple) and len(ours) == len(theirs) and all(map(self._same, ours, theirs))
        if isinstance(ours, str) and Path(ours).parent == self.folder / EXAMPLES:
            same_name = isinstance(theirs, str) and Path(theirs).name == Path(ours).name
            return same_name and Path(theirs).is_file() and filecmp.cmp(ours, theirs, shallow=False)
        return (ours or None) == (theirs or None)

    def _find(self, place: tuple[Any, ...] | None) -> Answers | None:
        with self._lock:
            if place is None or place not in self._kept:
                return None
            self._kept.move_to_end(place)
            answers, _ = self._kept[place]
        return self._written(answers)

    def _keep(self, place: tuple[Any, ...] | None, answers: Any) -> None:
        if place is None or not isinstance(answers, tuple) or (size := _size(answers)) > LARGEST:
            return
        with self._lock:
            self._kept[place] = answers, size
            while len(self._kept) > self.most or sum(size for _, size in self._kept.values()) > self.memory:
                self._kept.popitem(last=False)

    def _read(self, value: Any) -> Any:
        """What an answer holds, in place of a file what stands in it; Gradio changes the containers it is given."""
        if isinstance(value, str) and (self.folder / UPLOADED) in Path(value).parents:
            return _File(Path(value).name, Path(value).read_bytes())
        return _within(value, self._read)

    def _written(self, value: Any) -> Any:
        if isinstance(value, _File):
            path = fresh(self.folder, value.name)
            path.write_bytes(value.content)
            return str(path)
        return _within(value, self._written)


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    content: bytes


def _within(value: Any, act: Callable[[Any], Any]) -> Any:
    """A container of the same kind with `act` of what it holds; anything else as it is."""
    if isinstance(value, list | tuple):
        return [*map(act, value)] if isinstance(value, list) else (*map(act, value),)
    return {name: act(one) for name, one in value.items()} if isinstance(value, dict) else value


def _size(value: Any) -> int:
    """Bytes of the pictures, arrays and files in an answer."""
    if isinstance(value, dict | list | tuple):
        return sum(map(_size, value.values() if isinstance(value, dict) else value))
    if isinstance(value, _File):
        return len(value.content)
    if hasattr(value, "getbands"):  # a picture
        return value.width * value.height * len(value.getbands())
    size = getattr(value, "nbytes", 0)
    return size if isinstance(size, int) else 0
