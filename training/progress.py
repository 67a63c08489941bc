"""Progress of a training on a terminal: one live line, and a lasting line for each epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polysense.pipeline import Pipeline
    from polysense.training.examples import Examples


def unheard() -> None:
    """What hears of work where nobody listens."""


class Progress:
    """Writes to stderr; nothing at all when not wanted, no live line when stderr is not a terminal.

    Whoever wants to show a training elsewhere overrides its methods; what they raise ends the training.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted
        self.live = wanted and sys.stderr.isatty()
        self.history: list[tuple[int, dict[str, float], float | None]] = []  # epochs, their metrics and losses
        self._started = time.perf_counter()
        self._last = 0.0

    def say(self, text: str) -> None:
        if self.wanted:
            print(("\r\x1b[K" if self.live else "") + text, file=sys.stderr, flush=True)

    def working(self) -> None:
        """Hears that a batch is about to be read, by the probe too."""

    def measured(self, pipeline: Pipeline, validation: Examples) -> None:
        """Hears of the best state when it has been measured, before the validation part may teach it too."""

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        now = time.perf_counter()
        if self.live and now - self._last > 0.2:
            self._last = now
            print(f"\r\x1b[Kepoch {epoch + 1}: step {step + 1}/{steps}, loss {loss:.4f}", end="", file=sys.stderr)

    def epoch(self, epoch: int, epochs: int, metrics: Mapping[str, float], loss: float | None) -> None:
        self.history.append((epoch, dict(metrics), loss))
        shown = ", ".join(f"{name} {value:.4f}" for name, value in list(metrics.items())[:4])
        trained = f"loss {loss:.4f}, " if loss is not None else "before joint training: "
        seconds = time.perf_counter() - self._started
        self.say(f"epoch {epoch}/{epochs}: {trained}validation {shown} ({seconds:.0f} s)")
