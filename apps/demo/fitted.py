"""Models that visitors have fitted: each is known by a secret name, which only its visitor is told."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict

from polysense.apps.demo.limits import KEPT, MOST_KEPT
from polysense.pipeline import Pipeline


class Fitted:
    """A few pipelines in memory; the one that was not used for longest makes room. Any thread may ask.

    Args:
        most: Pipelines at a time.
        seconds: That one is kept after it was last used.
    """

    def __init__(self, most: int = MOST_KEPT, seconds: float = KEPT) -> None:
        self.most, self.seconds = most, seconds
        self._kept: OrderedDict[str, tuple[Pipeline, float]] = OrderedDict()  # the longest unused first
        self._lock = threading.Lock()

    def keep(self, title: str, pipeline: Pipeline) -> str:
        """Keeps a pipeline; the name by which it is got again, which nobody guesses."""
        name = f"{title}-{secrets.token_hex(8)}"
        with self._lock:
            self._kept[name] = pipeline, time.monotonic()
            self._make_room()
        return name

    def get(self, name: str) -> Pipeline | None:
        """The pipeline, or None where there is none of this name any more."""
        with self._lock:
            self._make_room()
            if name not in self._kept:
                return None
            pipeline, _ = self._kept.pop(name)
            self._kept[name] = pipeline, time.monotonic()
            return pipeline

    def pipelines(self) -> list[Pipeline]:
        """All of them."""
        with self._lock:
            self._make_room()
            return [pipeline for pipeline, _ in self._kept.values()]

    def _make_room(self) -> None:
        since = time.monotonic() - self.seconds
        while self._kept and (len(self._kept) > self.most or next(iter(self._kept.values()))[1] < since):
            self._kept.popitem(last=False)
