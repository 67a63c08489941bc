"""Small tables beside scikit-learn in one run: `python benchmarks/tables_sklearn.py DATA OUT [TABLE …] [--test]`.

Each table is fitted without and with each of the tokenizer's mixers; every choice between them is to be made by the
validation parts, which are cut from the train part. With --test the quarter that measures (see `sets.small_tables`) is
read too, by polysense and by scikit-learn's models with default settings, which learn from the whole train part.
Figures are accuracy or R², with the seconds that learning took of processors; all lines go to OUT/tables_sklearn.jsonl,
and the table at the end is of all that stand there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
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
    parser.add_argument("--epochs", type=int, help="of joint training at most: of mixers, and of all without trees")
    parser.add_argument("--no-trees", action="store_true", help="what tokens and encoder do by themselves")
    parser.add_argument("--test", action="store_true", help="read the rows that measure")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(SMALL_TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; choose from {', '.join(SMALL_TABLES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {run.name: run for run in small_tables(args.data, args.out / "views")}
    place = args.out / "tables_sklearn.jsonl"
    with place.open("a") as file:
        for run in (runs[name] for name in args.tables or runs):
            for record in records_of(run, args):
                print(json.dumps(record), flush=True)
                file.write(json.dumps(record) + "\n")
    print(markdown([json.loads(line) for line in place.read_text().splitlines()]))


def records_of(run: Run, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for mixer, seed in product(args.mixers, args.seeds):
        options = {"epochs": args.epochs if mixer != "none" or args.no_trees else None, "seed": seed,
                   "tokenizer_options": {"mixer": mixer, "boost": not args.no_trees}}  # fmt: skip
        yield fitted(run, options, args.out, args.test)
    if args.test and not args.no_trees:
        yield from (baseline(run, measure) for measure in BASELINES)


def fitted(run: Run, options: dict[str, Any], out: Path, test: bool) -> dict[str, Any]:
    """A fit with all else at its default."""
    front, started = options["tokenizer_options"], time.process_time()
    model = f"polysense{'' if front['boost'] else ' without trees'}, mixer {front['mixer']}"
    bundle = out / "bundles" / run.name / f"{model}-{options['seed']}"
    result = fit(run.task, run.train, bundle, target="-1", progress=False, **options)
    seconds = time.process_time() - started
    metric = "r2" if run.task.endswith("regression") else "accuracy"
    record = {"table": run.name, "model": model, "seed": options["seed"], "metric": metric,
              "validation": result.metrics[metric], "epochs": result.epochs,
              "seconds": round(seconds, 1)}  # fmt: skip
    if metric == "accuracy":
        record["validation_log_loss"] = result.metrics["log_loss"]
    if test:
        record["test"] = evaluate(bundle, run.test)[metric]
    return record


def baseline(run: Run, measure: Any) -> dict[str, Any]:
    started = time.process_time()
    ((name, value),) = measure(run, {}).items()
    return {"table": run.name, "model": name, "test": value, "seconds": round(time.process_time() - started, 1)}


def markdown(records: list[dict[str, Any]]) -> str:
    """One row a model, one column a table: validation / test (seconds), means over the seeds."""
    tables = list(dict.fromkeys(record["table"] for record in records))
    lines = [f"| model | {' | '.join(tables)} |", "|---" * (len(tables) + 1) + "|"]
    for model in dict.fromkeys(record["model"] for record in records):
        own = [record for record in records if record["model"] == model]
        cells = [cell([record for record in own if record["table"] == table]) for table in tables]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(records: list[dict[str, Any]]) -> str:
    if not records:
        return ""
    mean = {key: np.mean([record[key] for record in records]) for key in ("validation", "test", "seconds")
            if key in records[0]}  # fmt: skip
    return f"{' / '.join(shown(mean[key]) for key in mean if key != 'seconds')} ({mean['seconds']:.0f} s)"


if __name__ == "__main__":
    main()
