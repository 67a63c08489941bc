"""Class folders out of a visitor's archive: nothing leaves its folder, and nothing is larger than was allowed."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from polysense.apps.demo.limits import MOST_EXAMPLES
from polysense.core.errors import InputError
from polysense.data.containers import check_zip
from polysense.data.dataset import SPLITS
from polysense.data.limits import check

ENCRYPTED = 1  # bit of a member's flags
DEEPEST = 8  # folders within folders


def unpack(archive: str | Path, folder: Path) -> Path:
    """Unpacks class folders.

    Args:
        archive: A zip file; what it promises is checked before anything is written, and Python's zipfile hands out no
            more of a member than was promised.
        folder: Where to, empty.

    Returns:
        The folder in which the class folders stand: often archives hold them within one more.

    Raises:
        InputError: It is no zip or a damaged one, it holds too much, links, passwords, or names that lead elsewhere.
    """
    name = Path(archive).name
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [one for one in packed.infolist() if not one.is_dir() and not _hidden(one.filename)]
            _check(packed, members, name)
            for member in members:
                place = folder / PurePosixPath(member.filename)
                place.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(member) as source, place.open("xb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise InputError(name, f"this is not a zip file that can be read ({error})", "pack it again") from error
    except OSError as error:  # two members of one name, a file where a folder must be, a name too long
        problem = f"its names cannot all stand side by side ({error.strerror})"
        raise InputError(name, problem, "give each file a short name of its own") from error
    return _root(folder)


def _check(packed: zipfile.ZipFile, members: list[zipfile.ZipInfo], name: str) -> None:
    """Everything that can be known from the archive's list."""
    if not members:
        raise InputError(name, "it holds no file", "put files into one folder per class and pack those")
    if len(members) > MOST_EXAMPLES:
        problem = f"it holds {len(members)} files, more than the {MOST_EXAMPLES} that are learnt from here"
        raise InputError(name, problem, "give fewer, or use polysense fit")
    check_zip(packed, name)
    for member in members:
        path, shown = PurePosixPath(member.filename), f"{name}: {PurePosixPath(member.filename).name}"
        check("bytes", member.file_size, shown)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in path.parts[0]:
            raise InputError(shown, "its name leads out of the archive", "pack it with plain names")
        if len(path.parts) > DEEPEST:
            raise InputError(shown, "it lies too deep", "put files into one folder per class")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):  # 0: packed where there are no such kinds
            raise InputError(shown, "it is a link or no plain file", "pack the file itself")
        if member.flag_bits & ENCRYPTED:
            raise InputError(shown, "it is locked with a password", "pack it without one")


def _hidden(name: str) -> bool:
    """What systems leave in archives."""
    path = PurePosixPath(name)
    return path.parts[:1] == ("__MACOSX",) or (path.name.startswith(".") and path.name != "..")


def _root(folder: Path) -> Path:
    """The folder with the classes: not one that only holds another folder with folders."""
    first, *others = folder.iterdir()
    if others or first.is_file() or first.name.lower() in SPLITS or not any(one.is_dir() for one in first.iterdir()):
        return folder
    return _root(first)
