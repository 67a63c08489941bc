"""`polysense bench`: how fast the kernels and engines are on this machine, against what else there is.

Writes `bench.csv` (one row a contestant, with machine, date and versions) and pictures. Cases are functions that yield
races; to add one, write it and name it in `CASES`.
"""

from __future__ import annotations

import csv
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from polysense.apps import bench_encoders, bench_operators
from polysense.apps.bench_race import Race, Row, columns, machine_facts, run_race
from polysense.apps.inputs import choose_device, unknown

CASES: dict[str, Callable[[bool], Iterator[Race]]] = {
    "padded": bench_encoders.padded,
    "windows": bench_operators.windows,
    "lengths": bench_operators.lengths,
    "fps": bench_operators.fps,
    "knn": bench_operators.knn,
    "engines": bench_encoders.engines,
    "variants": bench_encoders.variants,
    "dense": bench_encoders.dense,
    "gpu-padded": bench_encoders.gpu_padded,
    "gpu-sigmoid": bench_encoders.gpu_sigmoid,
    "gpu-rate": bench_encoders.gpu_rate,
}
SECONDS = 6.0  # of rounds a race; with --quick a fiftieth


def bench(out: Path, only: Sequence[str] = (), *, quick: bool = False, threads: int | None = None) -> list[Row]:
    """Runs cases and writes `bench.csv`, `bench.png` and, where mixers were measured, `lengths.png`.

    Args:
        out: Folder, made if it is not there.
        only: Names in `CASES`; none stands for all.
        quick: Tiny sizes in a few seconds, to see that everything runs; the figures tell nothing.
        threads: CPU threads.

    Raises:
        InputError: There is no such case.
    """
    for name in only:
        if name not in CASES:
            raise unknown(name, "case", CASES)
    choose_device("cpu", threads)
    facts = machine_facts()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in only or CASES:
        Console().print(f"{name}: {(CASES[name].__doc__ or '').splitlines()[0]}", style="italic", highlight=False)
        for race in CASES[name](quick):
            found = run_race(race, SECONDS / 50 if quick else SECONDS, least=2 if quick else 5)
            show(found)
            rows += found
            write_csv(out / "bench.csv", rows, facts)  # as it goes: a long run that is stopped keeps what it has
        gc.collect()
    from polysense.apps.bench_pictures import draw

    for path in draw(rows, facts, out):
        Console().print(f"Picture: {path}", highlight=False)
    Console().print(f"Figures: {out / 'bench.csv'}", highlight=False)
    return rows


def write_csv(path: Path, rows: Iterable[Row], facts: Mapping[str, Any]) -> None:
    """One line a contestant; empty where a number was not measured."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(facts))
        writer.writeheader()
        for row in rows:
            values = {
                name: f"{value:.5g}" if isinstance(value, float) else value for name, value in asdict(row).items()
            }
            writer.writerow({name: "" if value == "nan" else value for name, value in values.items()} | dict(facts))


def show(rows: Sequence[Row]) -> None:
    """A race on the screen."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "time", "speed-up", "quartiles", "aim", "difference"):
        table.add_column(heading, no_wrap=True)
    Console().print(rows[0].setting, style="bold", highlight=False)
    from polysense.apps.bench_pictures import milliseconds

    for row in rows:
        if row.note:
            Console().print(f"{row.contestant}  {row.note}", highlight=False)
            continue
        speed = ("", "") if row.contestant == row.baseline or row.speedup != row.speedup else (
            f"{row.speedup:.2f}×", f"{row.speedup_q1:.2f}–{row.speedup_q3:.2f}")  # fmt: skip
        aim = "" if row.wanted != row.wanted else f"{row.wanted:g}×"
        far = "" if row.difference != row.difference or row.contestant == row.baseline else f"{row.difference:.0e}"
        table.add_row(row.contestant, milliseconds(row.ms), *speed, aim, far)
    if table.rows:
        Console().print(table, highlight=False)
