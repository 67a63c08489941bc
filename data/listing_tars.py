"""Members of tars as items: where each begins and ends, found by reading the headers alone.

Of a compressed tar a member that is not too large is read on the way, for finding it again means to unpack all that
stands before it. What a header claims is never believed beyond `CARRIED` bytes at a time.
"""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from typing import IO, Any

from polysense.core.errors import InputError
from polysense.data.items import AGAIN, Item, ending_of, opened, reason_of, unpacked

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
CARRIED = 64_000_000  # bytes; larger members of compressed tars are unpacked again when they are opened


def is_tar(name: str) -> bool:
    """Whether a path or URL ends like a tar."""
    return name.partition("?")[0].lower().endswith(TAR_ENDINGS)


def members(place: str, endings: Collection[str]) -> Iterator[Item]:
    """Items called "shard.tar#photos/1.jpg", in the tar's order. Only files count: no links, folders, devices.

    A fault is the last item: what came before it is good.

    Args:
        place: Path or URL of the tar.
        endings: Lower case, with dot; of the files of one key (WebDataset: 1.jpg, 1.cls) they say which is an input.
    """
    count = 0
    try:
        with opened(place, place) as raw:
            for item in _walk(raw, place, endings):
                count += 1
                yield item
        if not count:
            fix = f"it should hold files with {', '.join(sorted(endings))}"
            raise InputError(place, "the tar holds no readable file", fix)
    except InputError as error:
        yield Item(place, place, fault=error)


def _walk(raw: IO[bytes], place: str, endings: Collection[str]) -> Iterator[Item]:
    try:
        file = _Careful(unpacked(raw))
        carry = file.file is not raw
        with tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would remember every one
                if not member.isreg() or ending_of(member.name) not in endings:
                    continue
                name = f"{place}#{_plain(member.name)}"
                if member.issparse():
                    fault = InputError(name, "the tar stores it with holes", "pack it without --sparse")
                    yield Item(name, place, fault=fault)
                    continue
                content = None
                if carry and member.size <= CARRIED:
                    file.seek(member.offset_data)
                    content = file.read(member.size)
                    if len(content) < member.size:
                        raise EOFError("a member is cut short")
                yield Item(name, place, member.offset_data, member.size, content)
            if file.latest.strip(b"\0"):  # tarfile stops quietly at a header that is none
                raise tarfile.ReadError("a header in the middle is damaged")
    except Exception as error:  # those of tarfile, of three decompressors, and whatever a mad header leads to
        problem = f"the tar is damaged or cut short ({reason_of(error)})"
        raise InputError(place, problem, AGAIN) from error


class _Careful:
    """A file that hands out no more than `CARRIED` bytes at once, however long a header claims to be; it remembers the
    latest ones, which were a header's where `tarfile` ends."""

    def __init__(self, file: Any) -> None:
        self.file, self.latest = file, b""

    def read(self, size: int) -> bytes:
        if size > CARRIED:
            raise tarfile.ReadError(f"a header claims to be {size} bytes long")
        self.latest = self.file.read(size)
        return self.latest

    def seek(self, place: int) -> int:
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


def _plain(name: str) -> str:
    """A member's name with what no terminal or file of answers should meet written out ("\\x1b")."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
