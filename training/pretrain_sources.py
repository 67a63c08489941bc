"""Data to pretrain on, whatever holds them: folders, lists, WebDataset shards, parquet, arrays.

Each source is indexable: what is drawn at a step depends on a random number alone, so a run resumes exactly at its step
and two processes need not share a reading position. WebDataset's own library streams its shards through a shuffling
buffer and can do neither; its format is plain tar, whose members are read here where they lie.

Only training parts are read: what lies in folders or files named val or test (and their kin) is left out.
"""

from __future__ import annotations

import glob
import itertools
import json
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polysense.core.errors import InputError
from polysense.data.dataset import class_folders, list_files
from polysense.data.layouts import split_of, split_of_path
from polysense.training.data import TABLES, endings, listed_files
from polysense.training.pretrain_config import DataPlan

LABEL_NAMES = ("label", "labels", "class", "cls", "target", "fine_label", "category")
VALUE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "audio", "wav", "flac", "ogg", "video", "mp4", "bytes")
IN_MEMORY = 2**31  # bytes of a parquet file that are kept; larger ones are drawn by groups of rows


class Source(Protocol):
    """One set of inputs.

    Attributes:
        name: For messages, logs and the card.
        classes: Names of the classes, in the order of the labels; empty where labels do not enter.
    """

    name: str
    classes: list[str]

    def __len__(self) -> int: ...

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Indices of a batch's inputs, with repeats."""

    def get(self, i: int) -> tuple[Any, int]:
        """What a tokenizer's `read` takes, and the class number (-1: none)."""


class ListSource:
    """Inputs of which paths or arrays are known."""

    def __init__(self, name: str, items: Sequence[Any], labels: Sequence[str] | None = None) -> None:
        self.name, self.items = name, list(items)
        self.classes = sorted(set(labels)) if labels else []
        number = {label: i for i, label in enumerate(self.classes)}
        self.labels = np.array([number[label] for label in labels] if labels else [-1] * len(self.items))

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        return rng.integers(len(self), size=count).tolist()

    def get(self, i: int) -> tuple[Any, int]:
        return self.items[i], int(self.labels[i])


class TarSource(ListSource):
    """WebDataset shards: files of one name before the first dot are one sample (`0001.jpg`, `0001.cls`).

    The headers are read once; an input is then read where it lies in its shard. Labels: `.cls` (a number or a name), or
    "label" (or "cls", "class") in `.json`.
    """

    def __init__(self, name: str, shards: Sequence[Path], wanted: Sequence[str], labelled: bool) -> None:
        self.shards = list(shards)
        places: list[tuple[int, int, int]] = []  # shard, offset, size
        labels: list[str] = []
        for number, shard in enumerate(self.shards):
            for place, label in _members(shard, wanted, labelled):
                places.append((number, *place))
                labels.append(label)
        if labelled and places and not all(labels):
            raise InputError(
                name, f"{labels.count('')} of its samples have no label", "add .cls files, or labels = false"
            )
        super().__init__(name, [], labels if labelled else None)
        self.places = np.array(places, np.int64).reshape(-1, 3)
        if not labelled:
            self.labels = np.full(len(places), -1)

    def __len__(self) -> int:
        return len(self.places)

    def get(self, i: int) -> tuple[bytes, int]:
        shard, offset, size = self.places[i].tolist()
        with self.shards[shard].open("rb") as file:
            file.seek(offset)
            return file.read(size), int(self.labels[i])


def _members(shard: Path, wanted: Sequence[str], labelled: bool) -> Iterator[tuple[tuple[int, int], str]]:
    """(offset, size) and label of each sample of a shard."""
    found: OrderedDict[str, tuple[int, int]] = OrderedDict()
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, file = member.name.rpartition("/")
                stem, dot, ending = file.partition(".")
                if not member.isfile() or not dot or file.startswith("."):
                    continue
                key, ending = f"{folder}/{stem}", ending.lower()
                if f".{ending}" in wanted:
                    found.setdefault(key, (member.offset_data, member.size))
                elif labelled and ending in ("cls", "json"):
                    content = tar.extractfile(member)
                    label = _label(content.read() if content else b"", ending)
                    labels[key] = label or labels.get(key, "")
    except (tarfile.TarError, OSError) as error:
        fix = "give plain .tar files; compressed ones must be unpacked first (gunzip), inputs are read where they lie"
        raise InputError(shard, f"it cannot be read as a tar archive ({error})", fix) from error
    yield from ((place, labels.get(key, "")) for key, place in found.items())


def _label(content: bytes, ending: str) -> str:
    text = content.decode("utf-8", "replace").strip()
    if ending == "cls":
        return text
    try:
        told = json.loads(text)
    except json.JSONDecodeError:
        return ""
    named = told if isinstance(told, dict) else {}
    return next((str(named[name]) for name in LABEL_NAMES if name in named), "")


class ParquetSource:
    """Rows of parquet files with a column of encoded inputs (bytes, or Hugging Face's {bytes, path}).

    Up to 2 GiB stay in memory; of larger ones each batch takes its rows from few row groups: shuffle such files once.
    """

    MOST = 4  # row groups of a batch, and those that are kept

    def __init__(self, name: str, files: Sequence[Path], label: str | None, labelled: bool) -> None:
        import pyarrow.parquet as pq

        self.name, self.files, self.classes = name, list(files), []
        groups, labels, self.size = [], [], 0
        for number, path in enumerate(self.files):
            try:
                file = pq.ParquetFile(path)
            except (OSError, ValueError) as error:
                raise InputError(path, f"it is no parquet file ({error})", "export it again") from error
            names = file.schema_arrow.names
            self.column = next((column for column in VALUE_NAMES if column in names), "")
            if not self.column:
                fix = f"call the column of encoded inputs one of: {', '.join(VALUE_NAMES)}"
                raise InputError(path, f"none of its columns ({', '.join(names[:8])}) holds inputs", fix)
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                groups.append((number, group, about.num_rows))
                self.size += about.total_byte_size
            if labelled:
                column = label or next((one for one in LABEL_NAMES if one in names), "")
                if column not in names:
                    raise InputError(
                        path, f"it has no column {column or 'label'!r}", "name it: label = …, or labels = false"
                    )
                labels += [str(value) for value in file.read(columns=[column])[column].to_pylist()]
        self.groups = np.array(groups, np.int64).reshape(-1, 3)
        self.starts = np.concatenate([[0], self.groups[:, 2].cumsum()])
        self.classes = sorted(set(labels))
        number_of = {value: i for i, value in enumerate(self.classes)}
        self.labels = np.array([number_of[value] for value in labels]) if labelled else np.full(len(self), -1)
        self._kept: OrderedDict[int, list[Any]] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        if self.size <= IN_MEMORY:
            return rng.integers(len(self), size=count).tolist()
        rows = self.groups[:, 2]
        few = rng.choice(len(rows), size=self.MOST, p=rows / rows.sum())
        return [int(self.starts[g] + rng.integers(rows[g])) for g in few[rng.integers(self.MOST, size=count)]]

    def get(self, i: int) -> tuple[Any, int]:
        group = int(np.searchsorted(self.starts, i, "right")) - 1
        value = self._group(group)[i - int(self.starts[group])].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        return value, int(self.labels[i])

    def _group(self, group: int) -> Any:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        import pyarrow.parquet as pq

        number, place, _ = self.groups[group].tolist()
        file = pq.ParquetFile(self.files[number])
        self._kept[group] = file.read_row_group(place, columns=[self.column])[self.column]
        while self.size > IN_MEMORY and len(self._kept) > self.MOST:
            self._kept.popitem(last=False)
        return self._kept[group]


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
        raise InputError(plan.path, f"no readable {modality.replace('_', ' ')} was found",
                         f"it should hold files with {', '.join(wanted)}")  # fmt: skip
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
