"""Predictions -> one file, by its ending: .jsonl, .json, .csv, .parquet, .coco.json for boxes, .npy and .npz for
embeddings. What stands at the
path is always complete.

Rows are written as they come into a temporary file beside the target, which takes the target's name at the end: a run
that fails or is stopped leaves whatever stood there before. What is killed leaves that file too, so that those who can
go on say where it shall stand.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Mask, Prediction, Segments, Series

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


class Writer:
    """Base class: a context manager with `write`. Leaving it normally publishes the file, an exception discards it.

    `Mask` and `Segments` answers are too large for a row; class indices, or numbers of segments from 1 with 0 for none,
    go as PNG files into a folder `<out>.masks` and the row names the file in "mask".

    Args:
        path: The file to make. Its folder must exist.
        about: Columns that all rows have, after their own.
        escape: In .csv: make texts harmless that a spreadsheet would take for formulas.
        parts: Folder for what is not whole yet, on the same disk; None: beside the file.

    Raises:
        InputError: The folder is not there or cannot be written to.
    """

    binary: ClassVar[bool] = False

    def __init__(
        self,
        path: str | Path,
        about: Mapping[str, Any] | None = None,
        escape: bool = False,
        parts: Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.escape = escape
        self.about = dict(about or {})
        self.count = 0
        self.masks = self.path.with_name(self.path.name + ".masks")
        self._new_masks: Path | None = None
        if not self.path.parent.is_dir():
            raise InputError(path, "its folder does not exist", f"create {self.path.parent} first")
        if self.path.is_dir():
            raise InputError(path, "this is a folder", "name a file")
        self._unfinished = (parts or self.path.parent) / f".{self.path.name}.{os.getpid()}"
        self._part = Path(f"{self._unfinished}.part")
        self.file: IO[Any]
        try:
            self.file = self._part.open("wb") if self.binary else self._part.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise InputError(path, f"cannot be written ({error.strerror})", "choose another folder") from error

    def write(self, prediction: Prediction) -> None:
        """Adds one answer."""
        record = prediction.to_record()
        if isinstance(prediction, Mask):
            record["mask"] = self._write_mask(prediction.index, len(prediction.names), prediction.source)
        if isinstance(prediction, Segments):
            record["mask"] = self._write_mask(prediction.index + 1, len(prediction.labels) + 1, prediction.source)
        self.add(prediction, {**record, **self.about})
        self.count += 1

    def add(self, prediction: Prediction, record: dict[str, Any]) -> None:
        """Writes the record in the file's own format."""
        raise NotImplementedError

    def finish(self) -> None:
        """Writes what the format wants at the end."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
                self.file.close()
                self._publish()
        finally:
            self.discard()

    def discard(self) -> None:
        """Leaves nothing of what was written and not published."""
        try:
            self.file.close()
        finally:
            self._part.unlink(missing_ok=True)
            if self._new_masks is not None:
                shutil.rmtree(self._new_masks, ignore_errors=True)

    def _publish(self) -> None:
        if self._new_masks is not None:
            if self.masks.exists():
                shutil.rmtree(self.masks)
            self._new_masks.rename(self.masks)
            self._new_masks = None
        self._part.replace(self.path)

    def _write_mask(self, index: np.ndarray, count: int, source: str) -> str:
        """Writes indices below `count` as a PNG, one pixel each (a cloud's points as one row of pixels); returns its
        name."""
        from PIL import Image

        if self._new_masks is None:
            self._new_masks = Path(f"{self._unfinished}.masks")
            self._new_masks.mkdir()
        index = np.atleast_2d(index)
        # 8 bits hold 256 classes and open everywhere; more need the 16-bit kind.
        pixels = index.astype(np.uint8 if count <= 256 else np.uint16)
        stem = Path(source).stem or "mask"
        name = f"{self.count:06d}-{stem}.png"
        Image.fromarray(pixels).save(self._new_masks / name)
        return f"{self.masks.name}/{name}"


class JsonLinesWriter(Writer):
    """One JSON object a line; readable while it grows."""

    def add(self, prediction: Prediction, record: dict[str, Any]) -> None:
        self.file.write(_dumps(record) + "\n")


class JsonWriter(Writer):
    """One JSON array of objects."""

    def add(self, prediction: Prediction, record: dict[str, Any]) -> None:
        self.file.write(("[\n" if self.count == 0 else ",\n") + _dumps(record))

    def finish(self) -> None:
        self.file.write("\n]\n" if self.count else "[]\n")


class CocoWriter(Writer):
    """COCO detection json, see `coco_content`."""

    def __init__(self, path: str | Path, *options: Any) -> None:
        super().__init__(path, *options)
        self._answers: list[Boxes] = []

    def add(self, prediction: Prediction, record: dict[str, Any]) -> None:
        if not isinstance(prediction, Boxes):
            raise InputError(self.path, "this format holds boxes, and the answers are none", "write .jsonl instead")
        self._answers.append(prediction)

    def finish(self) -> None:
        from polysense.data.boxes_coco import coco_content

        info = {"info": self.about} if self.about else {}
        self.file.write(_dumps({**info, **coco_content(self._answers, self.path.parent)}) + "\n")


class TableWriter(Writer):
    """Base of the formats whose rows all have the same columns."""

    _columns: tuple[str, ...] = ()

    def check_columns(self, row: dict[str, Any]) -> None:
        self._columns = self._columns or tuple(row)
        if tuple(row) != self._columns:
            raise InputError(self.path, "answers of different kinds do not fit one table", "write .jsonl instead")


class CsvWriter(TableWriter):
    """A flat table: source, answer, confidence, then what the kind of answer adds (lists and maps as JSON).

    With `escape`, texts that a spreadsheet would compute (they begin with = + - @, a tab or a line break) get an
    apostrophe before them, as OWASP recommends against formulas in names of files or classes.

    A forecast has one row per step and variate: source, variate, step, time, mean, and a column per quantile.
    """

    _table: Any = None

    def add(self, prediction: Prediction, record: dict[str, Any]) -> None:
        for row in rows(prediction, record, self.about):
            self.check_columns(row)
            if self._table is None:
                self._table = csv.writer(self.file)
                self._table.writerow(row)
            cells = map(_cell, row.values())
            self._table.writerow([_unarmed(cell) for cell in cells] if self.escape else list(cells))

    def finish(self) -> None:
        if self._table is None:
            self.file.write("source,answer,confidence\n")


class ParquetWriter(TableWriter):
    """The same table as the CSV's with real types: vectors are lists of float32, maps stay JSON texts."""

    binary = True
    chunk = 1024  # rows kept in memory before they become a row group

    def __init__(self, path: str | Path, *options: Any) -> None:
        super().__init__(path, *options)
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def add(self, prediction: Prediction, record: dict[str, Any]) -> None:
        for row in rows(prediction, record, self.about):
            self.check_columns(row)
            self._rows.append({name: _cell(value) if isinstance(value, dict) else value for name, value in row.items()})
        if len(self._rows) >= self.chunk:
            self._flush()

    def finish(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._schema = _schema(self._rows)
            self._writer = pq.ParquetWriter(self.file, self._schema)
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        if table.num_rows:
            self._writer.write_table(table)
        self._rows = []


WRITERS: dict[str, type[Writer]] = {  # an ending that ends like another one comes before it
    ".coco.json": CocoWriter,
    ".jsonl": JsonLinesWriter,
    ".ndjson": JsonLinesWriter,
    ".json": JsonWriter,
    ".csv": CsvWriter,
    ".parquet": ParquetWriter,
}


def open_writer(
    path: str | Path, about: Mapping[str, Any] | None = None, escape: bool = False, parts: Path | None = None
) -> Writer:
    """Chooses the writer by the path's ending; see `Writer`.

    Raises:
        InputError: The ending is none that can be written, or the folder cannot be written to.
    """
    import polysense.data.array_writer  # noqa: F401 (registers .npy and .npz)

    name = Path(path).name.lower()
    writer: type[Writer] | None = next((WRITERS[end] for end in WRITERS if name.endswith(end)), None)
    if writer is None:
        raise InputError(path, f"cannot write {Path(path).suffix or 'a file without ending'}",
                         f"end the name with one of {', '.join(WRITERS)}")  # fmt: skip
    return writer(path, about, escape, parts)


def rows(
    prediction: Prediction, record: dict[str, Any], about: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The flat rows of one answer, those of a forecast with `about` at their end. A row's keys depend on the kind of
    answer alone, so that a table's columns agree."""
    about = about or {}
    if not isinstance(prediction, Series):
        yield record
        return
    for i, name in enumerate(prediction.names):
        for step, time in enumerate(prediction.times):
            row = {"source": prediction.source, "variate": name, "step": step + 1, "time": str(time)}
            row["mean"] = float(prediction.mean[step, i])
            row |= {f"q{level:g}": float(values[step, i]) for level, values in prediction.quantiles.items()}
            yield {**row, **about}


def _unarmed(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def _cell(value: Any) -> Any:
    return _dumps(value) if isinstance(value, dict | list | tuple) else value


def _dumps(value: Any) -> str:
    # NaN is no JSON; a missing number is null for every reader.
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError):
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _schema(rows: list[dict[str, Any]]) -> Any:
    """Column types of the first rows; a column that is empty there counts as a number (only `confidence` can be)."""
    import pyarrow as pa

    if not rows:
        return pa.schema([("source", pa.string()), ("answer", pa.string()), ("confidence", pa.float64())])
    schema = pa.Table.from_pylist(rows).schema
    fields = []
    for field in schema:
        kind = field.type
        if pa.types.is_null(kind):
            kind = pa.float64()
        elif field.name == "embedding":
            kind = pa.list_(pa.float32())
        elif field.name == "boxes":  # the first images may have none
            box = [("box", pa.list_(pa.float64())), ("label", pa.string()), ("score", pa.float64())]
            kind = pa.list_(pa.struct(box))
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)
