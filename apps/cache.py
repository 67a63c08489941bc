"""`polysense cache`: the features that fits have kept, on the screen."""

from __future__ import annotations

import time

import typer
from rich.console import Console
from rich.table import Table

from polysense.training.feature_store import Entry, as_bytes, entries, limit_bytes, store_folder, trim


def cache(*, clear: bool, limit: float | None) -> None:
    """Lists entries, the one used last first; or removes all, or what does not fit into `limit` GB, first."""
    if clear or limit is not None:
        removed = trim(0 if clear or limit is None else as_bytes(limit, "--limit"))
        typer.echo(f"removed {len(removed)} entries, {megabytes(sum(entry.size for entry in removed))}")
    if not clear:
        show(entries())


def show(found: list[Entry]) -> None:
    """A table, and what all take together."""
    if found:
        table = Table(header_style="bold", box=None, pad_edge=False)
        for column in ("task", "rows", "size", "used"):
            table.add_column(column, no_wrap=True)
        table.add_column("data", overflow="fold")
        for entry in found:
            about = entry.about()
            size, used = megabytes(entry.size), ago(time.time() - entry.used)
            table.add_row(about.get("task", "damaged"), about.get("rows", ""), size, used, about.get("data", ""))
        Console().print(table)
    total = megabytes(sum(entry.size for entry in found))
    typer.echo(f"{len(found)} entries, {total} of {megabytes(limit_bytes())}, in {store_folder()}")


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def ago(seconds: float) -> str:
    """ "3 h ago"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
