"""What the demo is started with, and how much a stranger's file may hold."""

from __future__ import annotations

import ipaddress
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from polysense.core.errors import InputError
from polysense.data.limits import Limits, limits

UPLOADED, EXAMPLES = "uploads", "examples"  # folders within the demo's own
UPLOADS = (300, 1800)  # seconds: every 5 minutes, files older than half an hour are deleted
MOST_FILES = 500  # in a batch
MOST_FITTED = 50_000  # rows of a table that is fitted in the page, while others wait
MOST_EXAMPLES = 2000  # files that a model is fitted to in the page
MOST_EPOCHS, MOST_MINUTES = 20, 10  # of such a fit, from the archive to the model
MOST_KEPT, KEPT = 32, 3600  # models that visitors have fitted, at a time, and seconds from their last use
QUEUE = 64  # calls that may wait
AT_ONCE, TOGETHER = 6, 40  # largest files that one request may bring, and that lie there at a time
MOST_SECONDS = 120  # of computing one answer: then it is given up, since others wait
SESSIONS = 100  # visitors whose fitted model is kept; the one who was away longest loses it first
# Far below what the library allows: here anybody may upload, and a few waiting files must not fill the memory.
VISITORS = Limits(bytes=50_000_000, unpacked=500_000_000, pixels=60_000_000, frames=200_000, seconds=1800,
                  points=5_000_000, rows=200_000, cells=20_000_000, characters=5_000_000)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """How the demo is served.

    Attributes:
        host: Address to listen at; the loopback address keeps it to this machine.
        port: None takes the first free one from 7860 on.
        auth: User and password that every visitor must give.
        root_path: The path under which a proxy serves it ("/demo").
        share: Ask Gradio for a public link, which sends all traffic through its server.
        bundles: Folders of further models.
        max_mb: Largest file, in millions of bytes.
        concurrency: Calls computed at a time; others wait in the queue.
        batch: Equal questions of several visitors that are answered as one; 1: each alone.
        log: File for a line about each call, "-" for stdout.
        index: Folder or address of an index of embeddings, in which neighbours are looked for too.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    auth: tuple[str, str] | None = None
    root_path: str = ""
    share: bool = False
    bundles: Sequence[Path] = ()
    max_mb: float = 50.0
    concurrency: int = 1
    batch: int = 8
    log: str | None = None
    index: str | None = None

    @property
    def gathered(self) -> int:
        """Questions that are read at a time."""
        return max(self.batch, self.concurrency)

    @property
    def room(self) -> tuple[float, float]:
        """Bytes that one request may bring, and that all uploads may have together."""
        return AT_ONCE * self.max_mb * 1e6, TOGETHER * self.max_mb * 1e6

    @property
    def is_open(self) -> bool:
        """Whether strangers may reach it without a password."""
        try:
            local = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            local = self.host == "localhost"
        return self.auth is None and (self.share or not local)


def fresh(folder: Path, name: str) -> Path:
    """A new path to write for a download, where Gradio deletes it as it deletes uploads; `folder` is the demo's own."""
    return Path(tempfile.mkdtemp(dir=folder / UPLOADED)) / name


def parse_auth(text: str | None) -> tuple[str, str] | None:
    """ "anna:secret" -> ("anna", "secret").

    Raises:
        InputError: One of them is missing.
    """
    if text is None:
        return None
    user, _, password = text.partition(":")
    if not user or not password:
        raise InputError("--auth", "it has no user or no password", "write user:password")
    return user, password


def for_visitors(max_mb: float) -> dict[str, int]:
    """The limits of what visitors give; those that `--limit` has changed stay as the command line says."""
    usual, given = Limits(), limits()
    mine = {field.name: getattr(VISITORS, field.name) for field in fields(Limits)}
    mine["bytes"] = int(max_mb * 1e6)
    return {name: amount for name, amount in mine.items() if getattr(given, name) == getattr(usual, name)}
