"""Long work that a page watches: it runs in a thread, tells how far it is, and ends when told to or when time is up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polysense.apps.demo.limits import MOST_MINUTES
from polysense.apps.demo.logs import carried
from polysense.core.errors import InputError
from polysense.training.progress import Progress

THREAD = "polysense-fit"


class Cancelled(InputError):  # noqa: N818, it is no error
    """The visitor wants no more of it."""

    def __init__(self) -> None:
        super().__init__("fit", "it was cancelled", "start it again if you want it")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What was measured after an epoch; 0 is before joint training."""

    number: int
    metrics: Mapping[str, float]
    loss: float | None


class Watched(Progress):
    """What a fit tells; raises in the fit's own thread where it shall end.

    Args:
        seconds: That it may last.
    """

    def __init__(self, seconds: float = 60 * MOST_MINUTES) -> None:
        super().__init__(wanted=False)
        self.lines: list[str] = []  # of the check of the data, and what is solved for
        self.now = "looking at the data"
        self.seconds = seconds
        self._until = time.monotonic() + seconds
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ends the fit before its next batch."""
        self._stop.set()

    def working(self) -> None:
        if self._stop.is_set():
            raise Cancelled
        if time.monotonic() > self._until:
            problem = f"it took more than {self.seconds / 60:g} minutes"
            raise InputError("this", problem, "give less at a time, or use the command line")

    def say(self, text: str) -> None:
        self.working()
        if not text.strip().startswith(("epoch ", "strength ")):  # nor the table of what a probe has tried
            self.now = text.partition("\n")[0]
            self.lines += text.splitlines()

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self.working()
        self.now = f"epoch {epoch + 1}: step {step + 1} of {steps}, loss {loss:.3f}"

    @property
    def epochs(self) -> list[Epoch]:
        """So far."""
        return [Epoch(*one) for one in self.history]


@dataclass
class Run:
    """A fit, or another long answer, in a thread of its own.

    Attributes:
        act: Does it, telling the one that it is given.
        watched: What it tells.
        result: What it gave, once it has ended.
        seconds: That it took.
    """

    act: Callable[[Watched], Any]
    watched: Watched = field(default_factory=Watched)
    result: Any = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)

    def ticks(self, every: float = 0.5) -> Iterator[float]:
        """Runs it, yielding its seconds so far; it ends with whoever listens.

        Raises:
            InputError: See `polysense.fit`; it was cancelled, or took too long.
        """
        start, ended, faults = time.perf_counter(), threading.Event(), list[BaseException]()
        act = carried(lambda: self.act(self.watched))

        def run() -> None:
            try:
                self.result = act()
            except BaseException as error:  # raised again below, in the thread that listens
                faults.append(error)
            finally:
                ended.set()

        thread = threading.Thread(target=run, name=THREAD, daemon=True)
        thread.start()
        try:
            while not ended.wait(every):
                yield time.perf_counter() - start
        finally:
            self.watched.stop()
            thread.join()
            self.seconds = time.perf_counter() - start
        if faults:
            raise faults[0]


class Runs:
    """What visitors have begun: each ends their own, and no other."""

    def __init__(self) -> None:
        self._of: dict[str | None, Run] = {}  # by session

    @contextmanager
    def begun(self, session: str | None, run: Run) -> Iterator[Run]:
        """While this lasts, the visitor may end the run."""
        self._of[session] = run
        try:
            yield run
        finally:
            del self._of[session]

    def stop(self, session: str | None) -> None:
        """Ends what the visitor has begun, before its next batch; nothing where they have not."""
        if (run := self._of.get(session)) is not None:
            run.watched.stop()


def learn(task: str, data: Path, out: Path, method: str, epochs: int, minutes: float, told: Watched) -> Any:
    """Fits and keeps nothing but the bundle: no cache of features, no inputs in its card.

    Raises:
        InputError: See `polysense.fit`.
    """
    from polysense.training.fit import fit

    return fit(task, data, out, method=method, epochs=epochs, max_minutes=minutes, progress=told, cache=False)
