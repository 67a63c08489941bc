"""Memory that was freed goes back to the system.

The C library keeps what threads have freed, in an arena for each of them: under load the process grew by half a
gigabyte that nothing used. It gives it back when it is told to.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRIM = 10.0  # seconds


@contextmanager
def trimmed(every: float = TRIM) -> Iterator[None]:
    """Tells it so while the context lasts; does nothing where the C library cannot (outside Linux, musl)."""
    trim, ended = _trim(), threading.Event()
    if trim is None:
        yield
        return

    def run() -> None:
        while not ended.wait(every):
            trim(0)

    thread = threading.Thread(target=run, name="polysense-trim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
