"""Where uploads lie: how much they may hold together, and that none outlives its time.

Gradio's own deleting does not do: it stops for good where a file is added meanwhile or a folder's path was given, and
knows nothing of uploads that broke off or went by another field's name, of empty folders, or of what a library left.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from polysense.apps.demo.periodic import repeated
from polysense.core.errors import InputError
from polysense.data.limits import in_words


class Uploads:
    """A folder of uploads and of what is made of them.

    Args:
        folder: The folder, resolved.
        at_once: Bytes that one request may bring.
        together: Bytes that the folder may hold.
    """

    def __init__(self, folder: Path, at_once: float, together: float) -> None:
        self.folder, self.at_once, self.together = folder, at_once, together
        self._coming = 0  # bytes of requests under way; only the server's loop touches it

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Room for a request of so many bytes, while it comes.

        Raises:
            InputError: It is too large, or too much is held.
        """
        import anyio

        if size > self.at_once:
            problem = f"it has {in_words(size)} bytes, more than the {in_words(self.at_once)} of one request"
            raise InputError("upload", problem, "send fewer or smaller files")
        self._coming += size
        try:
            held = await anyio.to_thread.run_sync(self.held)
            if held + self._coming > self.together:
                problem = "the demo holds too many files of its visitors at the moment"
                raise InputError("upload", problem, "try again later: they are deleted within the hour")
            yield
        finally:
            self._coming -= size

    def held(self) -> int:
        """Bytes in the folder."""
        total = 0
        for parent, folders, files in os.walk(self.folder):  # passes over folders that are deleted meanwhile
            for name in folders + files:
                with suppress(OSError):  # deleted meanwhile
                    total += os.lstat(os.path.join(parent, name)).st_size
        return total

    def files(self) -> set[Path]:
        """All that is in it, but folders."""
        return {place for place in self.folder.rglob("*") if not place.is_dir() or place.is_symlink()}

    def sweep(self, age: float, keep: set[Path], lists: Sequence[set[str]] = ()) -> None:
        """Deletes files that were not touched for `age` seconds, and folders that are empty for as long.

        Args:
            age: Seconds; by the time of the last change of the file's state, which copying cannot set back.
            keep: Files that stay.
            lists: Sets of paths, from which those are taken that are deleted.
        """
        before = time.time() - age
        for parent, folders, files in os.walk(self.folder, topdown=False):
            for name in files + folders:
                place = Path(parent, name)
                # In use again, filled or deleted in this moment: it stays, or is no more.
                with suppress(OSError):
                    if place in keep or place.lstat().st_ctime > before:
                        continue
                    if place.is_dir() and not place.is_symlink():
                        place.rmdir()  # full ones refuse
                    else:
                        place.unlink()
                        for listed in lists:
                            listed.discard(str(place))

    @contextmanager
    def swept(self, every: float, age: float, lists: Sequence[set[str]] = ()) -> Iterator[None]:
        """Sweeps while the context lasts; what lies there at its beginning stays."""
        keep = self.files()
        with repeated(lambda: self.sweep(age, keep, lists), every, "polysense-sweep"):
            yield
