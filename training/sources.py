"""Opened training data: one interface over labelled files, tables and series to forecast.

`Sources` knows its parts (train, val, test), what a head and a tokenizer must be told, and gives `Examples`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from polysense.core.errors import InputError
from polysense.data.dataset import SPLITS, Dataset, Item
from polysense.data.time_series_roles import PLAIN, Roles
from polysense.tasks import Task
from polysense.tokenizers.base import Tokenizer
from polysense.tokenizers.tabular_schema import as_text, to_numbers
from polysense.training.data import column_names, load_dataset
from polysense.training.examples import Examples, FileExamples, TableExamples, WindowExamples

if TYPE_CHECKING:
    import pandas as pd

    from polysense.data.time_series import SeriesFrame


MOST_WINDOWS = 100  # of each series where there are several
MOST_ALONE = 100_000  # of a single series to learn or choose from: neighbouring ones say nearly the same
LONG = 256  # steps of history from which patches no longer overlap
OWN_RANK, MOST_OWN = 64, 64  # rank of each variate's own correction, and most variates that get one
MOST_CELLS = 100_000  # of a table whose columns are tokens of their own: the encoder's time grows with their number


class Sources(Protocol):
    """Training data of any kind."""

    def splits(self) -> list[str]:
        """Parts that the data have; [""] where they have none."""

    def with_validation(self, share: float, seed: int) -> Sources:
        """The same data with a "train" and a "val" part."""

    def examples(
        self, tokenizer: Tokenizer, split: str, augment: bool = False, extras: Sequence[str] = ()
    ) -> Examples: ...

    def head_options(self) -> dict[str, Any]:
        """What a head must be told (classes, names …)."""

    def tokenizer_options(self) -> dict[str, Any]:
        """What a tokenizer must be told."""

    def tokenizer_sources(self) -> list[Any]:
        """Training sources from which a tokenizer may complete its configuration."""

    def data_options(self) -> dict[str, Any]:
        """Arguments of `open_sources` that read other data in the same way."""


def open_sources(
    task: Task,
    path: str | Path,
    *,
    target: str | None = None,
    time: str | None = None,
    horizon: int = 96,
    context: int = 96,
    borders: Sequence[float] = (0.7, 0.1, 0.2),
    known: str | Sequence[str] | None = None,
    static: str | Sequence[str] | None = None,
    series: str | None = None,
    ignore: int | None = None,
    column: str | None = None,
) -> Sources:
    """Opens training data.

    Args:
        task: Decides how they are read.
        path: See `load_dataset`; a table for tabular tasks; a series file for forecasting.
        target: Column to learn: by name, or by number (-1: the last) where there is no header.
        time: Time column of a series.
        horizon: Steps to forecast.
        context: Steps of history to read.
        borders: Parts of a series in time: train, val, test as shares (up to 1) or as numbers of rows.
        known: Columns of a series whose future is known, as names or "a, b"; "calendar": hour, weekday and season.
        static: Columns that are constant in a series, likewise.
        series: Column of a long table that says which series a row belongs to.
        ignore: Number in masks that stands for no class.
        column: Of a table of texts, that holds them.
    """
    if task.kind == "forecasting":
        roles = Roles(tuple(_listed(known)), tuple(_listed(static)), series)
        return SeriesSources.open(path, target, time, horizon, context, borders, roles)
    if task.modality == "tabular":
        return TableSources.open(path, target, task)
    given: dict[str, Any] = {"target": target, "ignore": ignore, "column": column}
    options = {name: value for name, value in given.items() if value is not None}
    return FileSources(load_dataset(task, path, **options), task, options)


@dataclass(frozen=True)
class FileSources:
    """Labelled files (or in-memory series)."""

    dataset: Dataset
    task: Task
    options: dict[str, Any] = field(default_factory=dict)  # how they were read

    def splits(self) -> list[str]:
        return sorted({item.split for item in self.dataset.items})

    def with_validation(self, share: float, seed: int) -> FileSources:
        return FileSources(self.dataset.with_validation(share, seed), self.task, self.options)

    def examples(
        self, tokenizer: Tokenizer, split: str, augment: bool = False, extras: Sequence[str] = ()
    ) -> FileExamples:
        return FileExamples(self.dataset.part(split), tokenizer, self.task.modality, augment, extras)

    def head_options(self) -> dict[str, Any]:
        if self.task.modality == "video":  # what moves tells more than the one strongest token
            return {**self._answers(), "pooling": ("mean", "change")}
        if self.task.modality == "time_series" and self.task.kind == "classification":
            return {**self._answers(), "pooling": ("mean", "std"), "layers": (0,)}
        if self.task.modality == "audio":  # what each column of tokens tells is another thing
            return {**self._answers(), "pooling": ("columns", "peaks"), "layers": (0,)}
        if self.task.modality == "text":  # the sentence encoder that begins the tokenizer was made for the mean
            return {**self._answers(), "pooling": ("mean",), "layers": (0,)}
        return self._answers()

    def _answers(self) -> dict[str, Any]:
        """Classes, or names and scale of numbers."""
        if self.task.kind == "regression":
            values = np.array([[item.target[name] for name in self.dataset.classes] for item in self._train()])
            return regression_options(self.dataset.classes, values)
        options: dict[str, Any] = {"classes": tuple(self.dataset.classes)}
        if self.task.kind == "multilabel":
            options["multi_label"] = True
        if self.task.head == "queries":
            options |= {"things": tuple(self.dataset.things),
                        "answer": "instance" if self.task.kind == "instances" else "panoptic"}  # fmt: skip
        return options

    def tokenizer_options(self) -> dict[str, Any]:
        if self.task.modality == "text":  # the column that was learnt from is the one to read later
            columns = {getattr(item.source, "column", "") for item in self.dataset.items}
            return {"column": columns.pop()} if len(columns) == 1 and columns != {""} else {}
        # Series to learn from are read whole: all variates in one sequence, with their level.
        if self.task.modality != "time_series":
            return {}
        frames = [item.source for item in self._train()]
        lengths = [len(frame.values) if hasattr(frame, "values") else 512 for frame in frames]
        longest = max(lengths, default=512)
        patch = int(np.clip(2 ** round(math.log2(max(longest, 16) / 12)), 2, 16))
        whole = {"channels": -1, "context": max(longest, 16), "patch": patch, "stride": patch // 2}
        if self.task.kind == "classification":
            return {**whole, "form": "kernels", "center": "data"}
        return {**whole, "levels": True}

    def tokenizer_sources(self) -> list[Any]:
        return [item.source for item in self._train()]

    def data_options(self) -> dict[str, Any]:
        return self.options

    def _train(self) -> list[Item]:
        return [item for item in self.dataset.items if item.split in ("train", "")]


@dataclass(frozen=True)
class TableSources:
    """Rows of a table with one or more columns to learn."""

    frame: pd.DataFrame
    names: tuple[str, ...]  # target columns
    task: Task
    parts: np.ndarray = field(default_factory=lambda: np.array([]))  # each row's part, or "" ; empty: no parts
    unlabelled: int = 0  # rows that were left out for lack of a target

    @classmethod
    def open(cls, path: str | Path, target: str | None, task: Task) -> TableSources:
        from polysense.data.table import read_table, require_columns

        if target is None:
            raise InputError(path, "the column to learn is not named", "name it with --target (or -1 for the last one)")
        frame = read_table(path)
        names = tuple(column_names(frame, target, path))
        require_columns(frame, names, path)
        if task.kind == "regression":
            frame = frame.assign(**{name: to_numbers(frame[name], name, path) for name in names})
        known = frame[list(names)].notna().all(axis=1)
        if not known.any():
            raise InputError(path, f"the target column {', '.join(names)} is empty", "fill it, or name another one")
        parts = split_column(frame, names)
        if len(parts):
            frame = frame.drop(columns="split")
        if task.kind == "multilabel":  # a row may have none of the labels
            return cls(frame, names, task, parts)
        parts = parts[known.to_numpy()] if len(parts) else parts
        return cls(frame[known].reset_index(drop=True), names, task, parts, int((~known).sum()))

    def splits(self) -> list[str]:
        return sorted(set(self.parts.tolist())) or [""]

    def with_validation(self, share: float, seed: int) -> TableSources:
        labels = self.targets(self.frame) if self.task.kind == "classification" else [None] * len(self.frame)
        items = [Item(i, label) for i, label in enumerate(labels)]
        if len(self.parts):
            items = [replace(item, split=str(part)) for item, part in zip(items, self.parts, strict=True)]
        parts = np.array([item.split for item in Dataset(items).with_validation(share, seed).items])
        return replace(self, parts=parts)

    def _rows(self, split: str) -> pd.DataFrame:
        return self.frame if not split else self.frame[self.parts == split].reset_index(drop=True)

    def targets(self, frame: pd.DataFrame) -> list[Any]:
        if self.task.kind == "multilabel":
            labels = as_text(frame[self.names[0]]).fillna("")
            return [[p.strip() for p in str(value).split(";") if p.strip()] for value in labels]
        if self.task.kind == "classification":
            return [str(value) for value in as_text(frame[self.names[0]])]
        return cast(list[Any], frame[list(self.names)].astype(float).to_dict("records"))

    def examples(
        self, tokenizer: Tokenizer, split: str, augment: bool = False, extras: Sequence[str] = ()
    ) -> TableExamples:
        frame = self._rows(split)
        return TableExamples(frame.drop(columns=list(self.names)), self.targets(frame), tokenizer)

    def head_options(self) -> dict[str, Any]:
        frame = self._rows("train" if len(self.parts) else "")
        if self.task.kind == "regression":
            # Linear, so that it is solved for rather than descended to.
            numbers = regression_options(self.names, frame[list(self.names)].to_numpy(np.float64))
            return {**numbers, **self._reading(), "hidden": 0}
        targets = self.targets(self.frame)
        names = {name for t in targets for name in ([t] if isinstance(t, str) else t)}
        return {**self._reading(), "classes": tuple(sorted(names)), "multi_label": self.task.kind == "multilabel"}

    def _reading(self) -> dict[str, Any]:
        """What heads read: the last token, which the trees make, before and after it has seen the columns."""
        return {"pooling": ("mean", "last") if self._columns_apart() else ("last",), "layers": (0,)}

    def _columns_apart(self) -> bool:
        return self.frame.size <= MOST_CELLS

    def tokenizer_options(self) -> dict[str, Any]:
        return {"boost": True, "tokens": "columns" if self._columns_apart() else "row"}

    def tokenizer_sources(self) -> list[Any]:
        return [self._rows("train" if len(self.parts) else "").drop(columns=list(self.names))]

    def data_options(self) -> dict[str, Any]:
        return {"target": ",".join(self.names)}


def split_column(frame: pd.DataFrame, targets: Sequence[str]) -> np.ndarray:
    """Each row's part where a column `split` says it ("" where it is empty); nothing where there is no such column.

    A column of that name which holds anything else than names of parts is an input like any other.
    """
    if "split" not in frame.columns or "split" in targets:
        return np.array([])
    words = frame["split"].fillna("").astype(str).str.lower()
    if not words.isin(["", *SPLITS]).all() or (words == "").all():
        return np.array([])
    return np.array([SPLITS.get(word, "") for word in words])


@dataclass(frozen=True)
class SeriesSources:
    """Series to forecast, cut into parts by time; each part's windows may look back into the one before."""

    frames: list[SeriesFrame]
    horizon: int
    context: int
    borders: tuple[float, ...]
    options: dict[str, Any]
    extra: tuple[SeriesFrame, ...] = ()  # further series, all of which is for learning
    least: int | None = None  # steps of a window's future that must be in its part; None: the whole horizon
    most: int = MOST_WINDOWS  # windows of each series and part where there are several series
    most_extra: int = MOST_WINDOWS  # and of each further one
    head: dict[str, Any] = field(default_factory=dict)  # what the head is told beside

    @classmethod
    def open(
        cls,
        path: str | Path,
        target: str | None,
        time: str | None,
        horizon: int,
        context: int,
        borders: Sequence[float],
        roles: Roles = PLAIN,
    ) -> SeriesSources:
        from polysense.data.time_series import SERIES_ENDINGS, read_series_all

        if min(borders) < 0 or (max(borders) <= 1 and sum(borders) > 1 + 1e-6):
            given = ",".join(f"{border:g}" for border in borders)
            raise InputError(f"borders {given}", "they are no parts of a series", "give shares such as 0.7,0.1,0.2")
        columns = None if target is None else _listed(target)
        files = [Path(path)]
        if Path(path).is_dir():
            from polysense.data.dataset import list_files

            files = list_files(Path(path), SERIES_ENDINGS)
            if not files:
                raise InputError(path, "no series was found", f"put files ({', '.join(SERIES_ENDINGS)}) into it")
        frames = [frame for file in files for frame in read_series_all(file, time=time, columns=columns, roles=roles)]
        options = {"target": target, "time": time, "horizon": horizon, "context": context, "borders": list(borders),
                   "known": list(roles.known) or None, "static": list(roles.static) or None,
                   "series": roles.series}  # fmt: skip
        return cls(frames, horizon, context, tuple(borders), {k: v for k, v in options.items() if v is not None})

    def splits(self) -> list[str]:
        return ["test", "train", "val"]

    def with_validation(self, share: float, seed: int) -> SeriesSources:
        return self

    def _part(self, frame: SeriesFrame, split: str) -> tuple[SeriesFrame, range]:
        """The series up to the end of a part, and rows at which the part's windows end.

        A window's whole horizon lies in the part, or `least` of its steps: the rest is unknown then.
        """
        length = len(frame.values)
        sizes = [round(b * length) if b <= 1 else int(b) for b in self.borders]
        first = {"train": 0, "val": sizes[0], "test": sizes[0] + sizes[1]}[split]
        last = min(first + sizes[("train", "val", "test").index(split)], length)
        most: int | None = self.most
        if len(self.frames) + len(self.extra) == 1:  # of many series none may drown the others
            most = None if split == "test" else MOST_ALONE
        return self._cut(frame, None if split == "train" else first, last, most)

    def _cut(self, frame: SeriesFrame, first: int | None, last: int, most: int | None) -> tuple[SeriesFrame, range]:
        future = self.horizon if self.least is None else min(self.least, self.horizon)
        if first is None:  # a short series gives short histories rather than nothing
            first = min(self.context, max(last - future if self.least is None else last // 3, 1))
        ends = range(max(first, 1), last - future + 1)
        if most is not None:
            ends = ends[:: max(1, math.ceil(len(ends) / most))]
        times = None if frame.times is None else frame.times[:last]
        return replace(frame, values=frame.values[:last], times=times), ends

    def examples(
        self, tokenizer: Tokenizer, split: str, augment: bool = False, extras: Sequence[str] = ()
    ) -> WindowExamples:
        parts = [self._part(frame, split) for frame in self.frames]
        if split == "train":
            parts += [self._cut(frame, None, len(frame.values), self.most_extra) for frame in self.extra]
        if not any(len(rows) for _, rows in parts):
            longest = max(len(frame.values) for frame in self.frames)
            raise InputError(self.frames[0].source, f"no window of {self.horizon} steps fits into its {split} part",
                             f"ask for a shorter horizon; the longest series has {longest} rows")  # fmt: skip
        frames, ends = zip(*parts, strict=True)
        return WindowExamples(frames, ends, cast(Any, tokenizer), self.horizon)

    def head_options(self) -> dict[str, Any]:
        """Horizon, and each variate's deviation and mean in the train part, where there is one series."""
        scales: dict[str, float] = {}
        means: dict[str, float] = {}
        for frame in self.frames:
            length = len(frame.values)
            size = round(self.borders[0] * length) if self.borders[0] <= 1 else int(self.borders[0])
            known = frame.values[:size]
            for name, column in zip(frame.names, known.T, strict=True):
                column = column[np.isfinite(column)]
                scales.setdefault(name, float(column.std()) if len(column) else 0.0)
                means.setdefault(name, float(column.mean()) if len(column) else 0.0)
        # A variate that stands still while training counts in its own units.
        full = tuple((name, value if value > 0 else 1.0) for name, value in scales.items())
        options = {"horizon": self.horizon, "variate_scale": full if len(self.frames) == 1 else (), **self.head}
        if len(self.frames) == 1 and len(full) <= MOST_OWN:
            options |= {"variate_mean": tuple(means.items()), "own": OWN_RANK}
        return options

    def tokenizer_options(self) -> dict[str, Any]:
        patch = int(np.clip(2 ** round(math.log2(max(self.context, 8) / 6)), 2, 16))
        stride = max(patch // 2, 1) if self.context <= LONG else patch
        beside: dict[str, Any] = {
            name: self.options[name] for name in ("known", "static", "series") if name in self.options
        }
        return {"context": self.context, "fixed_context": True, "patch": patch, "stride": stride, "center": "last",
                "time": self.options.get("time"), "columns": self.columns(), **beside,
                "ahead": self.horizon}  # fmt: skip

    def columns(self) -> list[str] | None:
        """Variates that were asked for by name: a saved forecaster answers for these alone."""
        target = self.options.get("target")
        return None if target is None else _listed(target)

    def tokenizer_sources(self) -> list[Any]:
        """The training parts alone: what a tokenizer learns of them may not have seen what measures it."""
        parts = [self._part(frame, "train")[0] for frame in self.frames]
        return [frame for frame in (*parts, *self.extra) if np.isfinite(frame.values).any()]

    def data_options(self) -> dict[str, Any]:
        return self.options


def _listed(names: str | Sequence[str] | None) -> list[str]:
    """Names, or "a, b"."""
    parts = names.split(",") if isinstance(names, str) else list(names or ())
    return [name.strip() for name in parts if name.strip()]


def regression_options(names: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    std = values.std(0)
    return {"names": tuple(names), "mean": tuple(values.mean(0).tolist()),
            "std": tuple(np.where(std > 0, std, 1.0).tolist())}  # fmt: skip
