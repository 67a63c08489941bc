"""Containers of inputs to pretrain on: lists of files, WebDataset shards, parquet files.

Each is indexable: what is drawn at a step depends on a random number alone, so a run resumes exactly and two processes
need not share a reading position. WebDataset's own library streams its shards through a shuffling buffer and can do
neither; its format is plain tar, whose members are read here where they lie.
"""

from __future__ import annotations

import json
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polysense.core.errors import InputError

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
