"""One line of JSON for each call: what was asked of which model and how it ended, and nothing that a visitor gave.

{"time": "2026-01-31T12:00:00.000Z", "endpoint": "/image", "seconds": 0.12, "tokens": 196, "models": ["tiny200"],
"outcome": "ok", "error": null}

`outcome`: "ok"; "refused", what the visitor can mend; "cancelled"; or "failed", what they cannot. `error` is a kind,
not a sentence, since sentences name files. A click on an example has no endpoint.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from polysense.core.errors import InputError

YOURS = "fitted by a visitor"  # their own names are secrets


@dataclass
class Call:
    """What is known of a call beside its time."""

    tokens: int = 0
    models: list[str] = field(default_factory=list)


class _Now(threading.local):
    call: Call | None = None  # that this thread works on


_now = _Now()


def note(model: str | None = None, tokens: int = 0) -> None:
    """Adds to what is known of the call that this thread works on, if it is one."""
    if (call := _now.call) is not None:
        call.tokens += tokens
        if model is not None and model not in call.models:
            call.models.append(model)


def carried(act: Callable[[], Any]) -> Callable[[], Any]:
    """The same action, whatever thread runs it: what it notes is of the call that this thread works on."""
    call = _now.call

    def run() -> Any:
        with _working_on(call):
            return act()

    return run


@contextmanager
def opened(place: str | None) -> Iterator[Log]:
    """A log that adds to a file, or with "-" writes to stdout.

    Raises:
        InputError: The file cannot be written.
    """
    if place is None or place == "-":
        yield Log(sys.stdout if place else None)
        return
    try:
        file = Path(place).expanduser().open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(place, f"it cannot be written ({error.strerror})", "choose another --log") from error
    with file:
        yield Log(file)


class Log:
    """Where the lines go; None: nowhere."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()

    def watched(self, act: Callable[..., Any], endpoint: str | None) -> Callable[..., Any]:
        """The same action, of which each call writes a line; of a generator, when it has ended."""
        if inspect.isgeneratorfunction(act):

            @functools.wraps(act)
            def follow(*arguments: Any) -> Iterator[Any]:
                call, steps = Call(), act(*arguments)
                with self._timed(call, endpoint):
                    try:
                        while True:
                            with _working_on(call):  # each step may run in another thread
                                try:
                                    step = next(steps)
                                except StopIteration:
                                    return
                            yield step
                    finally:
                        steps.close()

            return follow

        @functools.wraps(act)
        def run(*arguments: Any) -> Any:
            call = Call()
            with self._timed(call, endpoint), _working_on(call):
                return act(*arguments)

        return run

    @contextmanager
    def _timed(self, call: Call, endpoint: str | None) -> Iterator[None]:
        start, fault = time.perf_counter(), None
        try:
            yield
        except BaseException as error:
            fault = error.__cause__ or error  # what is shown to the visitor was raised from what happened
            raise
        finally:
            self._write(
                {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                    "endpoint": f"/{endpoint}" if endpoint else None,
                    "seconds": round(time.perf_counter() - start, 4),
                    "tokens": call.tokens,
                    "models": call.models,
                    "outcome": _outcome(fault),
                    "error": None if fault is None else type(fault).__name__,
                }
            )

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            with self._lock:
                print(json.dumps(line), file=self._file, flush=True)


@contextmanager
def _working_on(call: Call | None) -> Iterator[None]:
    before, _now.call = _now.call, call
    try:
        yield
    finally:
        _now.call = before


def _outcome(fault: BaseException | None) -> str:
    if fault is None:
        return "ok"
    if isinstance(fault, GeneratorExit) or type(fault).__name__ == "Cancelled":
        return "cancelled"
    return "refused" if isinstance(fault, InputError | MemoryError) else "failed"
