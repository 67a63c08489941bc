"""Ways to fine-tune beside one another: `python benchmarks/adapters.py DATA OUT [ROW …] [--methods lora,full]`.

Each row of table_rows.py named is fitted once for each method with the tokenizer as it is, so that what differs is what
the method may change: `probe` the head, `head` the head by gradient descent, `full` all weights of the encoder (in a
copy), the others an adapter. Prints a markdown table of the metric on the test part, parameters within the encoder
and seconds, and writes `adapters.jsonl`; what stands there already is not measured again. With `--encoder random:NAME`
the same on an encoder that knows nothing: shapes and files alone are at stake then.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from table_rows import ROWS

from polysense.backbone.adapters import AdaptedEncoder
from polysense.pipeline import Pipeline
from polysense.training.evaluate import evaluate
from polysense.training.fit import fit

USUAL = ("esc10", "cifar_5k", "xray", "bimnet", "osuleaf", "bccd")
METHODS = ("probe", "head", "lora", "dora", "vera", "ia3", "houlsby", "pfeiffer", "parallel", "conv", "prompts",
           "deep-prompts", "prefix", "scale", "bitfit", "full")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of table_rows.py; default: {', '.join(USUAL)}")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--encoder", default="embedded")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "adapters.jsonl"
    records = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(record["row"], record["method"]) for record in records}
    for row in args.rows or USUAL:
        for method in args.methods:
            if (row, method) in done:
                continue
            records.append(measure_method(row, method, args))
            print(json.dumps(records[-1]), flush=True)
            with kept.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    print(markdown(records))


def measure_method(name: str, method: str, args: argparse.Namespace) -> dict[str, Any]:
    """One fit and its measurement on the test part of the row's first run."""
    row = ROWS[name]
    run = row.runs(args.data, args.out / "views")[0]
    options = {**row.options, **run.options, "epochs": args.epochs, "patience": args.epochs, "train": "head",
               "encoder": args.encoder, "cache": False}  # fmt: skip
    started = time.perf_counter()
    result = fit(run.task or row.task, run.train, args.out / "bundles" / f"{name}-{method}", method=method, **options)
    seconds = time.perf_counter() - started
    pipeline = Pipeline.from_pretrained(result.path)
    metrics = evaluate(pipeline, run.test, split="test")
    metric = next(one for one in row.metrics if one in metrics)
    return {"row": name, "method": method, "metric": metric, "value": metrics[metric],
            "validation": result.metrics[metric], "adapter": adapter_size(pipeline), "seconds": round(seconds),
            "epochs": args.epochs, "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def adapter_size(pipeline: Pipeline) -> int:
    """Parameters of the encoder that the method has of its own."""
    if not isinstance(pipeline.encoder, AdaptedEncoder):
        return 0
    return sum(parameter.numel() for parameter in pipeline.encoder.adapter_parameters().values())


def markdown(records: list[dict[str, Any]]) -> str:
    """A line for each method, a column for each row."""
    rows = list(dict.fromkeys(record["row"] for record in records))
    by = {(record["row"], record["method"]): record for record in records}
    lines = ["| method | parameters | " + " | ".join(rows) + " |", "|---|---|" + "---|" * len(rows)]
    for method in dict.fromkeys(record["method"] for record in records):
        cells = [by.get((row, method)) for row in rows]
        shown = ["" if one is None else f"{one['value']:.3f} ({one['seconds']} s)" for one in cells]
        size = next(one["adapter"] for one in cells if one is not None)
        lines.append(f"| {method} | {size:,} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
