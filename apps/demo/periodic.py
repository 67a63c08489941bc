"""What the demo does now and then while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def repeated(act: Callable[[], Any], every: float, name: str) -> Iterator[None]:
    """Does it every so many seconds, in a thread of this name, while the context lasts."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every):
            act()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
