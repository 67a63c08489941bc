"""Data to pretrain on, from what a configuration names: folders, patterns, shards, parquet, lists, arrays.

Only training parts are read: what lies in folders or files named val or test (and their kin) is left out.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polysense.core.errors import InputError
from polysense.data.dataset import class_folders, list_files
from polysense.data.layouts import split_of, split_of_path
from polysense.training.data import TABLES, endings, listed_files
from polysense.training.pretrain_config import DataPlan
from polysense.training.pretrain_containers import ListSource, ParquetSource, Source, TarSource

if TYPE_CHECKING:
    from polysense.data.time_series import SeriesFrame


def open_source(plan: DataPlan, modality: str, folder: Path) -> Source:
    """Opens one entry of a stream's data.

    Args:
        plan: The entry; relative paths begin at `folder`.
        modality: Decides which endings are read.
        folder: Where the configuration lies.

    Raises:
        InputError: Nothing is there, nothing readable, or labels are wanted and missing.
    """
    files = expand(plan.path, folder)
    wanted, first = endings(modality), files[0]
    if all(path.suffix.lower() == ".tar" for path in files):
        source: Source = TarSource(plan.path, _training(files), wanted, plan.labels)
    elif all(path.suffix.lower() == ".parquet" for path in files):
        source = ParquetSource(plan.path, _training(files), plan.label, plan.labels)
    elif first.is_dir():
        source = _folder(first, modality, plan)
    elif len(files) == 1 and modality == "point_cloud" and first.suffix.lower() in (".npy", ".npz", ".h5", ".hdf5"):
        from polysense.data.point_cloud import read_clouds_all

        _no_labels(plan, "an array")
        source = ListSource(plan.path, read_clouds_all(first))
    elif len(files) == 1 and first.suffix.lower() in TABLES and first.suffix.lower() not in wanted:
        source = _listed(first, modality, plan)
    else:
        _no_labels(plan, "single files")
        source = ListSource(plan.path, [path for path in _training(files) if path.suffix.lower() in wanted])
    if not len(source):
        fix = f"it should hold files with {', '.join(wanted)}; what is named val or test is left out"
        raise InputError(plan.path, f"no readable {modality.replace('_', ' ')} was found", fix)
    return source


def _folder(root: Path, modality: str, plan: DataPlan) -> Source:
    """Class folders, a folder of shards or parquet files, or any files below."""
    for ending, make in ((".tar", TarSource), (".parquet", None)):
        if shards := list_files(root, (ending,)):
            chosen = _training(shards, root)
            if make is not None:
                return TarSource(plan.path, chosen, endings(modality), plan.labels)
            return ParquetSource(plan.path, chosen, plan.label, plan.labels)
    if plan.labels:
        items = [item for item in class_folders(root, endings(modality)).items if item.split in ("", "train")]
        return ListSource(plan.path, [item.source for item in items], [item.target for item in items])
    files = list_files(root, endings(modality))
    return ListSource(
        plan.path, [path for path in files if split_of_path(path.relative_to(root).parts[:-1]) in ("", "train")]
    )


def open_series(
    plan: DataPlan, folder: Path, time: str | None, columns: Sequence[str] | None, steps: int
) -> tuple[list[SeriesFrame], int]:
    """The series of an entry that have at least so many steps, and how many files of its folders hold none.

    Folders of series hold notes too, whose endings are those of series; a file that is named outright must be one.

    Raises:
        InputError: Nothing is there, a named file cannot be read, or no series is long enough.
    """
    from polysense.data.time_series import SERIES_ENDINGS, read_series_all

    frames: list[SeriesFrame] = []
    left_out = 0
    for path in expand(plan.path, folder):
        inside = list_files(path, SERIES_ENDINGS) if path.is_dir() else [path]
        for file in _training(inside, path if path.is_dir() else None):
            try:
                frames += read_series_all(file, time=time, columns=columns)
            except InputError:
                if not path.is_dir():
                    raise
                left_out += 1
    long = [frame for frame in frames if len(frame.values) >= steps]
    if not long:
        fix = f"give files ({', '.join(SERIES_ENDINGS)}), or a smaller horizon"
        raise InputError(plan.path, f"no series of at least {steps} steps was found", fix)
    return long, left_out


def _listed(path: Path, modality: str, plan: DataPlan) -> Source:
    """A table whose first column (or `path`, `file`) names the files."""
    from polysense.tasks import TASKS

    if not plan.label:
        raise InputError(path, "the column of the classes is not named", 'name it: label = "COLUMN"')
    task = TASKS[f"{modality.replace('_', '-')}-classification"]
    items = [item for item in listed_files(path, task, plan.label).items if item.split in ("", "train")]
    return ListSource(
        plan.path, [item.source for item in items], [item.target for item in items] if plan.labels else None
    )


def _no_labels(plan: DataPlan, kind: str) -> None:
    if plan.labels:
        raise InputError(plan.path, f"{kind} have no classes", "set labels = false, or put files into class folders")


def _training(files: Sequence[Path], root: Path | None = None) -> list[Path]:
    """Files whose name (or folder below `root`) does not say that they measure."""

    def part(path: Path) -> str:
        inside = path.relative_to(root).parts[:-1] if root else ()
        return split_of_path(inside) or split_of(path.stem)

    return [path for path in files if part(path) in ("", "train")]


def expand(text: str, folder: Path) -> list[Path]:
    """Paths that a path, a pattern or braces stand for ("a-{00..11}.tar", "{train,extra}/*.tar"); at least one.

    Raises:
        InputError: There is nothing of that name.
    """
    found: list[Path] = []
    for name in braces(text):
        path = folder / Path(name).expanduser()
        matches = [path] if path.exists() else [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise InputError(
                path, "there is no such file or folder", "check the path; relative ones begin at the config"
            )
        found += matches
    return found


def braces(text: str) -> list[str]:
    """ "s-{08..10}.tar" -> s-08.tar, s-09.tar, s-10.tar; "{a,b}" -> a, b; several braces multiply."""
    parts: list[list[str]] = []
    for piece in re.split(r"(\{[^{}]*\})", text):
        if (span := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)) is not None:
            first, last = span.groups()
            parts.append([str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)])
        elif piece.startswith("{") and "," in piece:
            parts.append(piece[1:-1].split(","))
        else:
            parts.append([piece])
    return ["".join(chosen) for chosen in itertools.product(*parts)]
