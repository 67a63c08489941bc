"""Small tables beside scikit-learn in one run: `python benchmarks/tables_sklearn.py DATA OUT [TABLE …] [--test]`.

Each table is fitted without and with each of the tokenizer's mixers; every choice between them is to be made by the
validation parts, which are cut from the train part. With --test the quarter that measures (see `sets.small_tables`) is
read too, by polysense and by scikit-learn's models with default settings, which learn from the whole train part.
Figures are accuracy or R², with the seconds that learning took; all lines go to OUT/tables_sklearn.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sets import SMALL_TABLES, Run, small_tables
from table import shown
from table_baselines import gradient_boosting, linear_model, random_forest

from polysense.tokenizers.tabular_mixer import MIXERS
from polysense.training.evaluate import evaluate
from polysense.training.fit import fit

BASELINES = (gradient_boosting, random_forest, linear_model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(SMALL_TABLES))
    parser.add_argument("--mixers", nargs="*", default=MIXERS, choices=MIXERS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--test", action="store_true", help="read the rows that measure")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(SMALL_TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; choose from {', '.join(SMALL_TABLES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for run in small_tables(args.data, args.out / "views"):
        if args.tables and run.name not in args.tables:
            continue
        for mixer in args.mixers:
            for seed in args.seeds:
                records.append(fitted(run, mixer, seed, args.out, args.test))
        if args.test:
            records += [baseline(run, measure) for measure in BASELINES]
    with (args.out / "tables_sklearn.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    print(markdown(records))


def fitted(run: Run, mixer: str, seed: int, out: Path, test: bool) -> dict[str, Any]:
    """A fit with all else at its default."""
    bundle = out / "bundles" / run.name / f"{mixer}-{seed}"
    result = fit(
        run.task, run.train, bundle, target="-1", seed=seed, tokenizer_options={"mixer": mixer}, progress=False
    )
    metric = "r2" if run.task.endswith("regression") else "accuracy"
    record = {"table": run.name, "model": f"polysense, mixer {mixer}", "seed": seed, "metric": metric,
              "validation": result.metrics[metric], "epochs": result.epochs,
              "seconds": round(result.seconds, 1)}  # fmt: skip
    if metric == "accuracy":
        record["validation_log_loss"] = result.metrics["log_loss"]
    if test:
        record["test"] = evaluate(bundle, run.test)[metric]
    print(json.dumps(record), flush=True)
    return record


def baseline(run: Run, measure: Any) -> dict[str, Any]:
    started = time.perf_counter()
    ((name, value),) = measure(run, {}).items()
    record = {"table": run.name, "model": name, "test": value, "seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(record), flush=True)
    return record


def markdown(records: list[dict[str, Any]]) -> str:
    """One row a model, one column a table: validation / test (seconds), means over the seeds."""
    tables = list(dict.fromkeys(record["table"] for record in records))
    lines = [f"| model | {' | '.join(tables)} |", "|---" * (len(tables) + 1) + "|"]
    for model in dict.fromkeys(record["model"] for record in records):
        cells = []
        for table in tables:
            own = [record for record in records if record["model"] == model and record["table"] == table]
            mean = {key: sum(record[key] for record in own) / len(own)
                    for key in ("validation", "test", "seconds") if key in own[0]}  # fmt: skip
            figures = [shown(mean[key]) for key in ("validation", "test") if key in mean]
            cells.append(f"{' / '.join(figures)} ({mean['seconds']:.0f} s)")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
