"""What several commands take, and how texts on the command line become values."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class OnError(StrEnum):
    skip = "skip"
    fail = "fail"


class Engine(StrEnum):
    torch = "torch"
    onnx = "onnx"
    onnx_int8 = "onnx-int8"


Inputs = Annotated[list[str], typer.Argument(help="Files, folders (searched to the bottom) or quoted patterns.")]
Data = Annotated[Path, typer.Argument(help="A folder of labelled files or a table; docs/data.md shows the layouts.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one.")]
EngineName = Annotated[Engine, typer.Option("--engine", help="What runs the encoder; onnx engines need a CPU only.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all cores).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Inputs computed at a time.")]
BatchSizeOrChosen = Annotated[int | None, typer.Option(min=1, help="Inputs computed at a time (default: chosen).")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Answers' file: .jsonl, .json, .csv, .parquet; for boxes also .coco.json."),
]
Errors = Annotated[OnError, typer.Option("--on-error", help="What to do with an input that cannot be read.")]
BrokenShare = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of the files that may be unreadable (default: 0.05).")
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Findings about the data: a .json file.")]
Resume = Annotated[
    bool | None, typer.Option("--resume/--fresh", help="Go on with an interrupted run, or begin it anew.")
]
Lists = Annotated[
    list[str] | None, typer.Option("--list", help="A file that names inputs: .txt, .csv, .parquet; - for stdin.")
]
Column = Annotated[str | None, typer.Option(help="Column with the names, of a --list that is a table.")]
Shard = Annotated[
    str | None, typer.Option(help="Only a part of the inputs, 3/8: the third of eight; auto: as torchrun says.")
]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that read files (default: one a core; 0: none).")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which a file that hangs is left.")]
JsonProgress = Annotated[bool, typer.Option("--json-progress", help="Progress as lines of JSON on stderr.")]
Silent = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and no word on what is skipped.")]
Sources = Annotated[
    list[str] | None,
    typer.Argument(help="Files, folders (searched to the bottom), quoted patterns, tars, URLs such as s3://…"),
]
Target = Annotated[str | None, typer.Option(help="Column of the answer (tables) or of the forecast (series).")]


def numbers(text: str | None, option: str, example: str) -> tuple[float, ...] | None:
    """ "1,1.5" -> (1.0, 1.5)."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"numbers are wanted, such as {example}", param_hint=option) from None


def pairs(options: list[str] | None) -> dict[str, Any] | None:
    """["patch=8", "pool=mean"] -> {"patch": 8, "pool": "mean"}; values are JSON where they parse as such."""
    pairs = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option!r} is not KEY=VALUE")
        try:
            pairs[name] = json.loads(value)
        except json.JSONDecodeError:
            pairs[name] = value
    return pairs or None


def check_named(inputs: list[str] | None, lists: list[str] | None) -> None:
    """Asks for something to read."""
    if not inputs and not lists:
        raise typer.BadParameter("name files, or a --list of them", param_hint="INPUTS")
