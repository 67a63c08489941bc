"""Memory that was freed goes back to the system.

The C library keeps what threads have freed, in an arena for each of them: under load the process grew by half a
gigabyte that nothing used. It gives it back when it is told to.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from polysense.apps.demo.periodic import repeated

TRIM = 10.0  # seconds


@contextmanager
def trimmed(every: float = TRIM) -> Iterator[None]:
    """Tells it so while the context lasts; does nothing where the C library cannot (outside Linux, musl)."""
    trim = _trim()
    if trim is None:
        yield
        return
    with repeated(lambda: trim(0), every, "polysense-trim"):
        yield


def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
