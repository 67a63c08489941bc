"""One input of many by name: a file on disk, behind a URL, or a member of a tar; a reader gets a local path to it.

Items hold strings and numbers, never open files, so that they travel to other processes as they are.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from polysense.core.errors import InputError
from polysense.data.limits import check

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CHUNK = 1 << 22  # bytes copied at a time
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What a temporary file keeps of a name: up to two endings (.csv.gz, .pcd.bin) of plain characters.
ENDING = re.compile(r"(\.[A-Za-z0-9_]{1,16}){1,2}$")
AGAIN = "copy or download it again"


@dataclass(frozen=True, slots=True)
class Item:
    """An input and where its bytes are.

    Attributes:
        name: What is shown, and written as an answer's source; different for every item of a listing.
        place: A local path or a URL: of the file, or of the tar that holds it.
        offset: Of a tar's member, where it begins in the (unpacked) tar.
        size: Of a tar's member, its bytes; -1: the item is a file of its own.
        content: The bytes themselves, where they had to be read while listing.
        fault: Why it cannot be read, where the listing met that; opening the item raises it.
    """

    name: str
    place: str
    offset: int = 0
    size: int = -1
    content: bytes | None = None
    fault: InputError | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a file on this machine, which is read where it lies."""
        return self.size < 0 and self.content is None and not is_url(self.place)

    @contextmanager
    def open_local(self) -> Iterator[Path]:
        """A path that a reader can read: of the file itself, or of a temporary copy with the same ending.

        A copy lies in a temporary folder of its own, whatever the item is called, and is removed afterwards.

        Raises:
            InputError: The listing found a fault, or the bytes cannot be fetched or are too many. One that is raised
                while the path is read names the item, not the copy.
        """
        if self.fault is not None:
            raise self.fault
        if self.is_local:
            yield Path(self.place)
            return
        ending = ENDING.search(_last_part(self.name))
        with tempfile.TemporaryDirectory(prefix="polysense-") as folder:
            path = Path(folder) / f"input{ending[0] if ending else ''}"
            with path.open("wb") as target:
                self._fetch(target)
            try:
                yield path
            except InputError as error:
                raise InputError(error.source.replace(str(path), self.name), error.problem, error.fix) from error

    def _fetch(self, target: IO[bytes]) -> None:
        if self.content is not None:
            target.write(self.content)
            return
        check("bytes", self.size, self.name)
        with opened(self.place, self.name) as file, told(self.name):
            if self.size < 0:
                while chunk := file.read(CHUNK):
                    target.write(chunk)
                    check("bytes", target.tell(), self.name)
                return
            file = unpacked(file)
            file.seek(self.offset)
            left = self.size
            while left and (chunk := file.read(min(CHUNK, left))):
                target.write(chunk)
                left -= len(chunk)
        if left:
            raise InputError(self.name, f"the tar is cut short: {left} of its {self.size} bytes are missing", AGAIN)


def is_url(place: str) -> bool:
    """Whether a name says how it is reached ("s3://…", also "file://…")."""
    return URL.match(place) is not None


def _last_part(name: str) -> str:
    """A file's own name, without the folders and without what follows a "?" in a URL."""
    return re.split(r"[/\\]", name.partition("?")[0] if is_url(name) else name)[-1]


def ending_of(name: str) -> str:
    """The ending of a path or URL, lower case, with dot; "" where there is none."""
    return os.path.splitext(_last_part(name))[1].lower()


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """fsspec's file system for a URL, and the path in it.

    Raises:
        InputError: The protocol is unknown, or what reads it is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        problem = f"the package that reads {url.partition('://')[0]}:// is missing ({reason_of(error)})"
        raise InputError(url, problem, "install it, such as pip install s3fs for s3://, gcsfs for gs://") from error
    except ValueError as error:
        problem = f"there is no protocol {url.partition('://')[0]}://"
        raise InputError(url, problem, "give a path, or a URL such as s3://, gs://, https:// or file://") from error


@contextmanager
def opened(place: str, name: str) -> Iterator[IO[bytes]]:
    """A file opened for reading bytes, on this machine or behind a URL."""
    with ExitStack() as stack:
        with told(name):
            if is_url(place):
                system, path = file_system(place)
                file = stack.enter_context(system.open(path, "rb"))
            else:
                file = stack.enter_context(open(place, "rb"))
        yield file


@contextmanager
def told(name: str) -> Iterator[None]:
    """Faults of reading in one sentence; an `InputError` stays what it is."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(name, "there is no such file", "check the name") from error
    except Exception as error:  # each store has errors of its own, and each decompressor
        raise InputError(name, f"it cannot be read ({reason_of(error)})", f"check access to it, or {AGAIN}") from error


def reason_of(error: Exception) -> str:
    """The first line of what an error says."""
    said = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "")
    return said.strip().rstrip(".") or type(error).__name__


def unpacked(file: IO[bytes]) -> Any:
    """The bytes of a tar, unpacked on the way where it is compressed; its content tells.

    Returns:
        A file that reads and seeks; going back in a compressed one means to begin again.
    """
    head = file.read(512)
    file.seek(0)
    if head[257:262] == b"ustar":
        return file
    if head[:2] == b"\x1f\x8b":
        import gzip

        return gzip.open(file)
    if head[:3] == b"BZh":
        import bz2

        return bz2.open(file)
    if head[:6] == b"\xfd7zXZ\0":
        import lzma

        return lzma.open(file)
    return file
