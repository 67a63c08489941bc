"""How far a job is: a bar on a terminal, nothing into a pipe, lines of JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

EVERY = 1.0  # seconds between lines of JSON


class Progress:
    """A context manager; everything goes to stderr.

    Args:
        total: Files to read.
        before: Files that an earlier run has read.
        as_json: Lines of JSON: done, total, answers, errors, rate (files a second), eta (seconds).
        quiet: Nothing at all.
    """

    def __init__(self, total: int, before: int = 0, *, as_json: bool = False, quiet: bool = False) -> None:
        self.total, self.before, self.as_json = total, before, as_json
        self.start = self.last = time.monotonic()
        self._bar: Any = None
        if not as_json and not quiet and total > 1 and sys.stderr.isatty():
            self._bar = _make_bar()
            self._task = self._bar.add_task("Reading", total=total, completed=before, errors=0)

    def update(self, done: int, answers: int, errors: int) -> None:
        """Says where the job is: files read, answers given, errors met, all since its beginning."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, errors=errors)
        if self.as_json and (now - self.last >= EVERY or done >= self.total):
            self.last = now
            rate = (done - self.before) / max(now - self.start, 1e-9)
            eta = None if rate == 0 else round((self.total - done) / rate, 1)
            print(json.dumps({"done": done, "total": self.total, "answers": answers, "errors": errors,
                              "rate": round(rate, 3), "eta": eta}), file=sys.stderr, flush=True)  # fmt: skip

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    class Rate(TextColumn):
        def __init__(self) -> None:
            super().__init__("")

        def render(self, task: Any) -> Any:
            from rich.text import Text

            return Text(f"{task.speed or 0:.1f}/s")

    return Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
               TextColumn("{task.fields[errors]} errors"), console=Console(stderr=True), transient=True)  # fmt: skip
