"""`polysense impute`: a file of series without its gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polysense
from polysense.apps.inputs import check_model, choose_device
from polysense.apps.result_files import TABLES, open_files, write_table
from polysense.apps.screen import note
from polysense.impute import impute as run


def impute(
    bundle: str, data: Path, out: Path, *, device: str = "auto", threads: int | None = None, **options: Any
) -> None:
    """Fills and writes; other options are those of `polysense.impute.impute`.

    Args:
        bundle: A forecaster's name, its task or a folder.
        data: File of series.
        out: File for the whole series: .csv or .parquet.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.

    Raises:
        InputError: See there; or the file cannot be written, which is found before the work begins.
    """
    check_model(bundle)
    with open_files(data, {out: TABLES}) as files:
        table = run(polysense.load(bundle, device=choose_device(device, threads)), data, **options)
        write_table(table, files[out], out.suffix.lower())
    marks = table.iloc[:, -1]  # "filled", the last column
    note(f"filled {(marks != '').sum()} of {len(table)} rows, marked in the column {marks.name}: {out}")
