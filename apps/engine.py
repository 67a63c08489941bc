"""`polysense engine check`: whether a bundle may run with 8-bit weights."""

from __future__ import annotations

from pathlib import Path

import typer

from polysense.apps.inputs import check_model, choose_device


def check(bundle: str, data: Path, *, split: str, target: str | None, batch_size: int, threads: int | None) -> int:
    """Measures, prints the drop, keeps the finding; 0 if the engine onnx-int8 is allowed from now on, else 1."""
    from polysense.training.check_engine import check_engine

    check_model(bundle)
    choose_device("cpu", threads)
    found = check_engine(bundle, data, split=split, target=target, batch_size=batch_size)
    typer.echo(f"{bundle}: {found}")
    if found.passed:
        typer.echo(f"Use it: polysense predict {bundle} FILES --engine onnx-int8")
    return 0 if found.passed else 1
