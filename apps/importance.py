"""`polysense importance`: what each column of a table is worth to a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from polysense.apps.inputs import check_model, choose_device


def columns(model: str, table: Path, *, device: str = "auto", threads: int | None = None, **options: Any) -> None:
    """Measures and shows; options are those of `polysense.training.importance.column_importance`.

    Raises:
        InputError: See there.
    """
    from polysense.training.importance import column_importance

    check_model(model)
    metric, found = column_importance(model, table, device=choose_device(device, threads), **options)
    rows = [(one.column, f"{one.mean:.4f}", f"{one.spread:.4f}") for one in found.columns]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{metric} {abs(found.score):.4f} on {found.rows} rows; what is lost where a column is shuffled"
    Console().print(title, style="italic", highlight=False)
    shown = Table("column", "lost", "±", header_style="bold", box=None, pad_edge=False)
    for name, lost, spread in rows:
        shown.add_row(escape(name), lost, spread)
    Console().print(shown)
