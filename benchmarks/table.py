"""The results table, row by row: `python benchmarks/table.py DATA OUT [ROW | ROW/RUN …] [--set '{"epochs": 0}']`.

DATA holds the public data sets, OUT receives views of them, bundles and `results.jsonl`, one line a row with its
baselines, the encoder's fingerprint, seconds and date; without rows, all of them. A row (see table_rows.py) is what
`polysense fit` and `polysense eval` do: the encoder stays frozen, validation is cut from the train part, the test part
is read by the measurement alone. At the end the latest line of each row is printed as a markdown table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sets import Run
from table_rows import ROWS, Row

from polysense.pipeline import Pipeline
from polysense.training.evaluate import evaluate
from polysense.training.fit import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--set", type=json.loads, default={}, help="options of fit in place of the rows' own, as JSON")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    wanted = [name.partition("/") for name in args.rows or ROWS]
    if unknown := [name for name, _, _ in wanted if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    for name, _, only in wanted:
        record = measure_row(name, only, args.data, args.out, args.set, args.device)
        print(json.dumps(record), flush=True)
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
    print(markdown([json.loads(line) for line in results.read_text().splitlines()]))


def measure_row(name: str, only: str, data: Path, out: Path, over: Mapping[str, Any], device: str) -> dict[str, Any]:
    """All runs of a row, or the one called `only`; see `markdown` for what a record is used for."""
    row = ROWS[name]
    options = {**row.options, **over}
    runs = [run for run in row.runs(data, out / "views") if only in ("", run.name)]
    if not runs:
        raise SystemExit(f"{name} has no run {only}")
    done = [measure_run(row, run, out / "bundles" / name / run.name, options, device) for run in runs]
    baselines = [result["baseline"] for result in done]
    return {
        "row": name,
        "protocol": row.protocol,
        "metric": done[0]["metric"] if len({result["metric"] for result in done}) == 1 else "score",
        "value": float(np.mean([result["value"] for result in done])),
        "baseline": {**row.baseline, **{k: float(np.mean([b[k] for b in baselines])) for k in baselines[0]}},
        "reach": row.reach,
        "larger_is_better": row.larger_is_better,
        "runs": {run.name: result for run, result in zip(runs, done, strict=True)},
        "of_runs": len(row.runs(data, out / "views")),
        "changed": dict(over),
        "encoder": done[0]["encoder"],
        "seconds": sum(result["seconds"] for result in done),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python benchmarks/table.py DATA OUT {name}{'/' * bool(only)}{only}"
        + (f" --set '{json.dumps(over)}'" if over else ""),
    }


def measure_run(row: Row, run: Run, bundle: Path, options: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Fits (where the row asks for it) and measures."""
    options = {**options, **run.options}
    started = time.perf_counter()
    validation: dict[str, float] = {}
    if row.ready:
        pipeline = row.ready().to(device)
    else:
        validation = fit(run.task or row.task, run.train, bundle, device=device, cache=False, **options).metrics
        pipeline = Pipeline.from_pretrained(bundle, device)
    seconds = time.perf_counter() - started
    metrics = row.measure(pipeline, run, options) if row.measure else evaluate(pipeline, run.test, split="test")
    metric = next(name for name in row.metrics if name in metrics)
    return {"metric": metric, "value": metrics[metric], "baseline": row.beside(run, options) if row.beside else {},
            "metrics": metrics, "validation": validation, "encoder": pipeline.encoder_hash,
            "seconds": round(seconds)}  # fmt: skip


def markdown(records: list[dict[str, Any]]) -> str:
    """The latest whole measurement of each row; rows that reach their aim, and those above every baseline, say so."""
    latest = {record["row"]: record for record in records if len(record["runs"]) == record["of_runs"]}
    lines = ["| row | protocol | baselines | polysense | reach | |", "|---|---|---|---|---|---|"]
    for name in [name for name in ROWS if name in latest]:
        record = latest[name]
        sign = 1 if record["larger_is_better"] else -1
        beaten = all(sign * record["value"] >= sign * value for value in record["baseline"].values())
        reached = record["reach"] is not None and sign * record["value"] >= sign * record["reach"]
        beside = ", ".join(f"{key} {shown(value)}" for key, value in record["baseline"].items())
        aim = "" if record["reach"] is None else shown(record["reach"])
        verdict = "reached" if reached else "above all baselines" if beaten and record["baseline"] else ""
        lines.append(f"| {name} | {record['protocol']} | {beside} | {shown(record['value'])} | {aim} | {verdict} |")
    return "\n".join(lines)


def shown(value: float) -> str:
    """Shares without the leading zero, as in docs/results.md."""
    return f"{value:.3f}".removeprefix("0") if abs(value) < 1 else f"{value:.4g}"


if __name__ == "__main__":
    main()
