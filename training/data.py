"""`load_dataset(task, path)`: the field's layouts on disk -> labelled items, for every task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zipfile import BadZipFile

import numpy as np

from polysense.core.errors import InputError
from polysense.data.dataset import SPLITS, Dataset, Item, class_folders
from polysense.tasks import Task
from polysense.tokenizers.tabular_schema import as_text, to_numbers

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".data", ".txt")


def endings(modality: str) -> Sequence[str]:
    """File endings of a modality whose files stand in class folders."""
    if modality == "image":
        from polysense.data.image import IMAGE_ENDINGS

        return IMAGE_ENDINGS
    if modality == "video":
        from polysense.data.video import VIDEO_ENDINGS

        return VIDEO_ENDINGS
    if modality == "audio":
        from polysense.data.audio import AUDIO_ENDINGS

        return AUDIO_ENDINGS
    if modality == "point_cloud":
        from polysense.data.point_cloud import CLOUD_ENDINGS

        return CLOUD_ENDINGS
    if modality == "text":
        return (".txt", ".md")
    from polysense.data.time_series import SERIES_ENDINGS

    return SERIES_ENDINGS


def load_dataset(
    task: Task,
    path: str | Path,
    *,
    target: str | None = None,
    ignore: int | None = None,
    column: str | None = None,
) -> Dataset:
    """Reads the labelled inputs of every task but forecasting and tables, which are frames (see `examples`).

    Args:
        task: Decides which layouts are looked for.
        path: A folder (class folders; image and mask folders; a detection layout; a layout of segments; clouds with
            per-point labels), a COCO json, a UCR `.ts` file or a folder with `*_TRAIN.ts` and `*_TEST.ts`, or a
            csv/parquet list whose first column is a path and whose `target` column is the label (several labels joined
            by `;`); for texts a table or jsonl with a text and its label in each row.
        target: Label column of a list or of a table of texts.
        ignore: Number in masks that stands for no class.
        column: Of a table of texts, that holds them; None: the one that looks like it.

    Raises:
        InputError: Nothing usable is there.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(path, "there is no such file or folder", "check the path")
    if task.kind == "detection":
        from polysense.data.boxes import load_boxes

        return load_boxes(path)
    if task.head == "queries":
        from polysense.data.segments_layouts import load_segments

        return load_segments(path)
    if task.kind == "segmentation" and task.modality == "image":
        from polysense.data.masks import load_masks

        return load_masks(path, ignore=ignore)
    if task.kind == "segmentation":
        return labelled_clouds(path)
    if task.modality == "time_series" and (path.suffix == ".ts" or list(path.glob("*.ts"))):
        return ucr_files(path)
    if path.is_file() and path.suffix.lower() in TABLES and task.modality != "text":
        return listed_files(path, task, target)
    if task.modality == "text" and path.is_file():
        return labelled_texts(path, task, target, column)
    if task.kind != "classification":
        fix = "give a csv or parquet list: first column the file, --target names the column to learn"
        raise InputError(path, f"{task.name} cannot be learnt from folders", fix)
    return class_folders(path, endings(task.modality))


def ucr_files(path: Path) -> Dataset:
    """UCR/UEA `.ts` files: `X_TRAIN.ts` and `X_TEST.ts` in a folder, or one file."""
    from polysense.data.time_series import read_series_all

    files = [path] if path.is_file() else sorted(path.glob("*.ts"))
    items = []
    for file in files:
        name = file.stem.upper()
        split = next((part.lower() for part in ("TRAIN", "TEST", "VAL") if name.endswith(part)), "")
        for frame in read_series_all(file):
            if frame.label is None:
                raise InputError(file, "its series have no class labels", "give a .ts file with @classLabel true")
            items.append(Item(frame, frame.label, split))
    return Dataset(items, sorted({item.target for item in items}))


def listed_files(path: Path, task: Task, target: str | None) -> Dataset:
    """A table of files: the first column (or `path`/`file`) names them, relative to the table; `split` is optional."""
    from polysense.data.table import read_table, require_columns

    table = read_table(path)
    column = next((name for name in ("path", "file", "filename", "source") if name in table.columns), table.columns[0])
    if target is None:
        raise InputError(path, "the column to learn is not named", "name it with --target")
    names = [name.strip() for name in target.split(",")]
    require_columns(table, [column, *names], path)
    if task.kind == "regression":
        table = table.assign(**{name: to_numbers(table[name], name, path) for name in names})
    needed = [column] if task.kind == "multilabel" else [column, *names]  # a file may have none of several labels
    known = table[needed].notna().all(axis=1)
    table = table[known]
    if not table[names].notna().all(axis=1).any():
        raise InputError(path, f"the target column {', '.join(names)} is empty", "fill it, or name another one")
    dataset = _dataset([path.parent / str(file) for file in table[column]], table, names, task)
    return replace(dataset, unlabelled=int((~known).sum()))


def labelled_texts(path: Path, task: Task, target: str | None, column: str | None) -> Dataset:
    """A table (csv, tsv, parquet, xlsx, jsonl) with a text and its label in each row; `split` is optional.

    Rows without a label are left out.
    """
    from polysense.data.table import require_columns
    from polysense.data.text import read_text_table, text_column, texts_of

    table = read_text_table(path)
    if target is None:
        raise InputError(path, "the column to learn is not named", "name it with --target (or -1 for the last one)")
    names = column_names(table, target, path)
    require_columns(table, names, path)
    chosen = column or text_column(table, path, without=names)
    if chosen in names:
        raise InputError(path, f"the column {chosen!r} is both text and target", "name two different columns")
    if task.kind == "regression":
        table = table.assign(**{name: to_numbers(table[name], name, path) for name in names})
    rows = len(table)
    if task.kind != "multilabel":
        table = table[table[names].notna().all(axis=1)]
    if table.empty or not table[names].notna().any(axis=None):
        raise InputError(path, f"the target column {', '.join(names)} is empty", "fill it, or name another one")
    return replace(_dataset(texts_of(table, chosen, path), table, names, task), unlabelled=rows - len(table))


def _dataset(sources: Iterable[Any], table: pd.DataFrame, names: Sequence[str], task: Task) -> Dataset:
    """Items of a table's rows, whose inputs are given."""
    targets = _targets(table, names, task)
    splits = [""] * len(table)
    if "split" in table.columns:
        splits = [SPLITS.get(name.lower(), name) for name in table["split"].fillna("").astype(str)]
    labels = [label for target in targets for label in (target if isinstance(target, list) else [target])]
    classes = list(names) if task.kind == "regression" else sorted(set(labels))
    return Dataset([Item(*row) for row in zip(sources, targets, splits, strict=True)], classes)


def column_names(table: pd.DataFrame, target: str, path: str | Path) -> list[str]:
    """The columns that `--target` means: names joined by commas, or one number (-1: the last)."""
    if target.lstrip("-").isdigit() and target not in table.columns:
        if not -table.shape[1] <= int(target) < table.shape[1]:
            raise InputError(path, f"it has no column number {target}", f"it has {table.shape[1]} columns")
        return [str(table.columns[int(target)])]
    return [name.strip() for name in target.split(",")]


def _targets(table: pd.DataFrame, names: Sequence[str], task: Task) -> list[Any]:
    """Each row's target, as `Item.target`."""
    if task.kind == "regression":
        return cast(list[Any], table[list(names)].to_dict("records"))
    labels = [str(label) for label in as_text(table[names[0]]).fillna("")]
    if task.kind == "multilabel":
        return [[part.strip() for part in label.split(";") if part.strip()] for label in labels]
    return labels


def labelled_clouds(path: Path) -> Dataset:
    """npz files with `xyz` (n, 3) and integer `labels` (n,), in `train/`, `val/`, `test/` or one folder."""
    from polysense.data.containers import array_shapes
    from polysense.data.dataset import list_files
    from polysense.data.masks import IGNORE

    items = []
    for file in list_files(path, (".npz",)):
        split = SPLITS.get(file.parent.name.lower(), "")
        try:
            with file.open("rb") as opened:
                array_shapes(opened, file)  # refuses what would unfold to more than memory holds
                labels = np.load(opened, allow_pickle=False)["labels"].astype(np.int64)
        except InputError:
            raise
        except (KeyError, OSError, ValueError, BadZipFile) as error:
            raise InputError(file, "it has no array `labels`", "save arrays xyz (n, 3) and labels (n,)") from error
        items.append(Item(file, labels, split))
    if not items:
        raise InputError(path, "no .npz cloud was found", "save each cloud as npz with arrays xyz and labels")
    count = 1 + max(int(item.target.max(initial=-1, where=item.target != IGNORE)) for item in items)
    if not count:
        raise InputError(path, "no point is labelled", "give labels from 0; 255 and negative ones are left out")
    return Dataset(items, [f"class_{i}" for i in range(count)])
