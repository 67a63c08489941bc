"""Where an output goes: a file here, or one behind a URL, which is made here and sent when it is whole."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from polysense.core.errors import InputError
from polysense.core.folders import cache_folder
from polysense.data.items import file_system, is_url, reason_of


class Output:
    """An output by name.

    Args:
        name: A path, or a URL that fsspec knows ("s3://bucket/answers.parquet").

    Attributes:
        path: The local file to make. That of a URL stands in the cache, by the URL, so that a job that was interrupted
            finds what it did.
    """

    def __init__(self, name: str | Path) -> None:
        self.name = str(name)
        self.remote = is_url(self.name)
        if self.remote:
            self._system, self._place = file_system(self.name)
            self.remote = "file" not in self._system.protocol
        if not self.remote:
            self.path = Path(self._place if is_url(self.name) else self.name)
            return
        folder = cache_folder() / "jobs" / hashlib.sha256(self.name.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / self.name.rpartition("/")[2]

    def send(self) -> None:
        """Puts what was made where it belongs; the file itself last, so that it stands for all.

        Raises:
            InputError: It cannot be written there; it stays here, and sending it again is all that is left to do.
        """
        if not self.remote:
            return
        try:
            for made in self._made():
                place = self._place + made.name.removeprefix(self.path.name)
                self._system.put(str(made), place, recursive=made.is_dir())
        except Exception as error:  # each store has errors of its own
            problem = f"it cannot be written ({reason_of(error)})"
            raise InputError(self.name, problem, f"check access to it; the answers are in {self.path}") from error

    def forget(self) -> None:
        """Removes what was made here, once it was sent and nobody will go on with it."""
        if self.remote:
            shutil.rmtree(self.path.parent)

    def _made(self) -> Iterator[Path]:
        """The output and what belongs to it."""
        for ending in (".errors.jsonl", ".masks", ""):
            path = self.path.with_name(self.path.name + ending)
            if path.exists():
                yield path
