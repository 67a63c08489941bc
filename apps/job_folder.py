"""What a job keeps beside its output until it is done: the hidden folder `.OUT.job`.

`settings.json` says what the job is, and is written last, when the lists of inputs (`inputs-*`) are whole; `answers` is
the journal of what was done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from polysense.core.errors import InputError
from polysense.data.journal import Journal
from polysense.data.spool import Spool


class JobFolder:
    """A context manager that holds the folder for this process alone.

    Args:
        out: The output that the job is to write.
        resume: True goes on where an interrupted job stopped, False begins anew; None does neither.

    Raises:
        InputError: An interrupted job stands there and it was not said what shall become of it, another process works
            on it, or the folder cannot be made.
    """

    def __init__(self, out: Path, resume: bool | None = None) -> None:
        self.out = out
        self.path = out.with_name(f".{out.name}.job")
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = _lock(self.path / "lock")
        except BlockingIOError:
            raise InputError(out, "another run is writing it", "wait for its end, or choose another name") from None
        except OSError as error:
            raise InputError(
                out, f"its folder cannot be written to ({error.strerror})", "choose another one"
            ) from error
        # Without settings, the listing was not finished: there is nothing to go on with.
        if resume is False or not self.begun:
            self._empty()
        elif resume is None:
            with self.journal() as journal:
                done = journal.counts.answers + journal.counts.errors
            if done:
                self._lock.close()
                problem = f"an interrupted run of it stands beside it, {done} inputs done"
                raise InputError(out, problem, "add --resume to go on, or --fresh")
            self._empty()

    @property
    def begun(self) -> bool:
        return (self.path / "settings.json").is_file()

    def check(self, settings: Mapping[str, Any]) -> None:
        """Makes sure that the job that is to go on is this one.

        Raises:
            InputError: Something is not as it was when it began.
        """
        now = json.loads(json.dumps(dict(settings), default=str))
        before = json.loads((self.path / "settings.json").read_text(encoding="utf-8"))
        for name in sorted(before.keys() | now.keys(), key=lambda name: name.endswith("sha256")):
            old, new = before.get(name), now.get(name)
            if old != new:
                problem = f"{name} was {old} when this run began and is {new} now"
                if name.endswith("sha256"):
                    problem = f"the {name.removesuffix('_sha256')} are not those that this run began with"
                raise InputError(self.out, problem, "give what was there before, or begin anew with --fresh")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Says which job this is, once its inputs are listed."""
        part = self.path / "settings.part"
        part.write_text(json.dumps(dict(settings), indent=1, default=str), encoding="utf-8")
        part.replace(self.path / "settings.json")

    def spool(self, group: str) -> Spool:
        """The inputs of one kind."""
        return Spool(self.path / f"inputs-{group}")

    def journal(self) -> Journal:
        return Journal(self.path / "answers")

    def parts(self) -> Path:
        """An empty folder for outputs that are not whole yet: what is left there when this is killed goes with it."""
        path = self.path / "parts"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def remove(self) -> None:
        """When the output is whole."""
        self._empty()
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _empty(self) -> None:
        (self.path / "settings.json").unlink(missing_ok=True)  # first, or what is left would look whole
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def __enter__(self) -> JobFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock.closed:
            return
        with self.journal() as journal:
            nothing = not (journal.counts.answers or journal.counts.errors)
        if nothing:
            self.remove()
        self._lock.close()


def _lock(path: Path) -> IO[bytes]:
    """Opens a file that no other process may open so; the system lets go of it whatever becomes of this process.

    Raises:
        BlockingIOError: Another one holds it.
    """
    file = path.open("wb")
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
    return file
