"""A name -> class table: one instance per kind of component (tokenizers, heads, tasks)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps public names to components and explains itself when a name is wrong.

    Args:
        kind: What the table holds, singular, for messages ("tokenizer").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Class decorator: `@TOKENIZERS.register("image")`. A name can be taken once."""

        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"the {self.kind} name {name!r} is taken by {self._items[name]!r}")
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise ValueError(f"unknown {self.kind} {name!r}; choose one of: {', '.join(self)}")
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
