"""A listing on disk: read again from any place, in memory that does not grow with it, and the same after a restart
whatever has come into the folders since."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from polysense.core.errors import InputError
from polysense.data.items import Item


class Spool:
    """Items in a file.

    Args:
        path: The file, which `fill` makes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count: int | None = None

    def fill(self, items: Iterable[Item]) -> Spool:
        """Writes a listing."""
        self._count = 0
        with self.path.open("w", encoding="utf-8") as file:
            for item in items:
                file.write(to_line(item) + "\n")
                self._count += 1
        return self

    def __len__(self) -> int:
        if self._count is None:
            with self.path.open("rb") as file:
                self._count = sum(1 for _ in file)
        return self._count

    def numbered(self, first: int = 0) -> Iterator[tuple[int, Item]]:
        """Items with their numbers, from the one of number `first` on."""
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(islice(file, first, None), first):
                yield number, from_line(line)


def to_line(item: Item) -> str:
    """An item as a line."""
    content = None if item.content is None else base64.b64encode(item.content).decode()
    fault = None if item.fault is None else [item.fault.source, item.fault.problem, item.fault.fix]
    # Escaped to ASCII: names of files need not be valid Unicode.
    return json.dumps([item.name, item.place, item.offset, item.size, content, fault])


def from_line(line: str) -> Item:
    """The inverse of `to_line`."""
    name, place, offset, size, content, fault = json.loads(line)
    return Item(name, place, offset, size, None if content is None else base64.b64decode(content),
                None if fault is None else InputError(*fault))  # fmt: skip
