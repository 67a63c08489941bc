"""What the user names -> the items that are meant, one after the other: files, folders, patterns, URLs, tars, lists.

Nothing is held but what must be: the names of one folder at a time, and sixteen bytes for each item given, so that none
comes twice. A million items of a list cost 93 MB here, those of one folder the names in it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from polysense.core.errors import InputError
from polysense.data.items import Item, ending_of, file_system, is_url, reason_of, told
from polysense.data.listing_lists import read_list
from polysense.data.listing_tars import TAR_ENDINGS, is_tar, members

__all__ = ["TAR_ENDINGS", "Item", "is_url", "list_items", "parse_shard", "read_list", "shard"]
T = TypeVar("T")


def list_items(names: Iterable[str], endings: Collection[str], *, strict: bool = True) -> Iterator[Item]:
    """Items in the order of the names, each once, the same on every machine.

    Args:
        names: Files (whatever their ending); folders (their files with one of the endings, at any depth, sorted by name
            folder by folder; hidden ones and folders behind links are left out); patterns (`photos/**/*.jpg`); URLs of
            any of these that fsspec knows; tars (their members with one of the endings, in the tar's order).
        endings: Lower case, with dot.
        strict: A name that stands for nothing is an error, before anything is given. Otherwise, as for names from a
            list, it becomes an item that says so when it is opened, and names are only looked at in their turn.

    Faults that show later (a tar that breaks off) become such items too.

    Raises:
        InputError: A name stands for nothing, or its URL cannot be reached.
    """
    endings, names = frozenset(endings), [names] if isinstance(names, str) else names
    if not strict:
        return _once(chain.from_iterable(_forgiving(name, endings) for name in names))
    return _once(chain.from_iterable([_started(name, endings) for name in names]))


def shard(items: Iterable[T], part: str) -> Iterator[T]:
    """The part of a stream that "3/8" says: its 3rd, 11th, … item. All eight parts together are the whole, once.

    Raises:
        InputError: See `parse_shard`.
    """
    number, count = parse_shard(part)
    return islice(items, number - 1, None, count)


def parse_shard(text: str) -> tuple[int, int]:
    """ "3/8" -> (3, 8); "auto" asks RANK (from 0) and WORLD_SIZE of the environment, as torchrun sets them.

    Raises:
        InputError: It is no such share, or the environment does not say.
    """
    if text == "auto":
        rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            problem = f"RANK is {rank or 'not set'} and WORLD_SIZE {world or 'not set'}"
            raise InputError("shard auto", problem, "start with torchrun, or say which part: 3/8")
        return int(rank) + 1, int(world)
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise InputError(f"shard {text}", "this is no part of a whole", "write it as 3/8: the third of eight")
    if not 1 <= int(number) <= int(count):
        fix = f"count from 1/{count} to {count}/{count}" if int(count) else "write it as 3/8: the third of eight"
        raise InputError(f"shard {text}", f"there is no part {number} of {count}", fix)
    return int(number), int(count)


def _once(items: Iterable[Item]) -> Iterator[Item]:
    """Leaves out items whose name came before."""
    seen: set[bytes] = set()
    for item in items:
        key = blake2b(item.name.encode("utf-8", "surrogateescape"), digest_size=16).digest()  # far smaller than a name
        if key not in seen:
            seen.add(key)
            yield item


def _forgiving(name: str, endings: Collection[str]) -> Iterator[Item]:
    if is_url(name) and not _is_file_url(name) and not _has_pattern(name) and ending_of(name) in endings:
        yield Item(name, name)  # asking after each of a million would take hours: opening it tells
        return
    try:
        yield from _started(name, endings)
    except InputError as error:
        yield Item(name, name, fault=error)


def _started(name: str, endings: Collection[str]) -> Iterator[Item]:
    """A name's items. Folders and patterns are asked for their first one at once; a tar, which would stay open, and a
    file only whether they exist.

    Raises:
        InputError: The name stands for nothing.
    """
    if is_url(name) and not _is_file_url(name):
        items = _of_url(name, endings)
    else:
        path = file_system(name)[1] if is_url(name) else name
        # A file's own name comes first: brackets in it are no pattern.
        found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not found:
            raise InputError(name, "there is no such file or folder", "check the name")
        found = [str(Path(one)) for one in found]  # "./a//b" is "a/b"
        if found == [str(Path(path))] and not os.path.isdir(path):
            return _of_file(found[0], endings)
        items = chain.from_iterable(_in_folder(one, endings) if os.path.isdir(one) else _of_file(one, endings)
                                    for one in found)  # fmt: skip
    first = next(items, None)
    if first is None:
        fix = f"it should hold files with {', '.join(sorted(endings))}; tars are named outright or by a pattern"
        raise InputError(name, "no readable file was found", fix)
    return chain([first], items)


def _of_file(place: str, endings: Collection[str]) -> Iterator[Item]:
    return members(place, endings) if is_tar(place) else iter([Item(place, place)])


def _in_folder(folder: str, endings: Collection[str]) -> Iterator[Item]:
    """Files below a folder; no more than the entries of the folders on the way are held."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((e.name, e.is_dir(follow_symlinks=False), e.is_file()) for e in found
                             if not e.name.startswith("."))  # fmt: skip
    except OSError as error:
        yield Item(folder, folder, fault=InputError(folder, f"the folder cannot be read ({reason_of(error)})",
                                                    "check its permissions"))  # fmt: skip
        return
    for name, is_folder, is_file in entries:
        path = name if folder == "." else os.path.join(folder, name)
        if is_folder:
            yield from _in_folder(path, endings)
        elif is_file and ending_of(name) in endings and not is_tar(name):
            yield Item(path, path)


def _of_url(url: str, endings: Collection[str]) -> Iterator[Item]:
    """Items behind a URL: of the file, folder or pattern that it names."""
    system, path = file_system(url)
    with told(url):
        if _has_pattern(url) and not system.exists(path):
            found = [(one, info["type"] == "directory") for one, info in sorted(system.glob(path, detail=True).items())]
        else:
            found = [(path, system.info(path)["type"] == "directory")]
        if not found:
            raise InputError(url, "there is no such file or folder", "check the name")
        places = []
        for one, is_folder in found:
            below = sorted(system.find(one), key=lambda p: p.split("/")) if is_folder else [one]
            if is_folder:
                below = [p for p in below if ending_of(p) in endings and not is_tar(p)
                         and not any(part.startswith(".") for part in p[len(one) :].split("/"))]  # fmt: skip
            places += below
    own = found == [(path, False)]
    return chain.from_iterable(_of_file(url if own else system.unstrip_protocol(p), endings) for p in places)


def _is_file_url(name: str) -> bool:
    return name.startswith(("file://", "local://"))


def _has_pattern(url: str) -> bool:
    """Whether a URL has a star or bracket; a question mark begins a query."""
    return "*" in url or "[" in url
