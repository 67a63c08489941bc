"""One fit and one eval per modality on public data: `python benchmarks/first_table.py DATA OUT [ROW …]`.

DATA holds the data sets named in docs/results.md; OUT receives bundles and `results.jsonl`, one line a row. Every row
is what `polysense fit` and `polysense eval` do with the printed command; test parts are read by the eval alone.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from polysense.training.evaluate import evaluate
from polysense.training.fit import fit

Row = tuple[str, str, str, dict[str, Any]]  # task, data set, part to measure, options of `fit`
DENSE = {"tokenizer_options": {"stride": 16, "size": 400}, "settled_lr": 0.0, "augment": True, "batch_size": 8}
ROWS: dict[str, Row] = {
    "ett": ("forecasting", "timeseries_forecasting/ETTh1/ETTh1.csv", "test",
            {"horizon": 96, "context": 96, "borders": (8640, 2880, 2880), "time": "date", "epochs": 2,
             "settled_lr": 0.0}),
    "esc10": ("audio-classification", "audio/esc10", "test", {"epochs": 0}),
    "gunpoint": ("time-series-classification", "timeseries_classification/GunPoint", "test",
                 {"epochs": 40, "patience": 15}),
    "fight": ("video-classification", "video/fight_surv", "test",
              {"epochs": 0, "tokenizer_options": {"frames": 16}}),
    "dales": ("point-cloud-classification", "pointcloud/dales_objects", "test", {"epochs": 15, "augment": True}),
    "adult": ("tabular-classification", "tabular/adult/adult.data", "test",
              {"target": "-1", "epochs": 6, "max_minutes": 8}),
    "cifar": ("image-classification", "image/cifar10", "test", {"epochs": 0, "batch_size": 64}),
    "bccd": ("object-detection", "detection/bccd", "test", {"epochs": 14, "patience": 14, **DENSE}),
    "camvid": ("image-segmentation", "segmentation/camvid", "test",
               {"epochs": 10, "patience": 10, "ignore": 11, **DENSE}),
}  # fmt: skip


def view(name: str, data: Path, out: Path) -> Path:
    """The data set with a test part that training does not see, where its own layout does not say it to `fit`."""
    root = out / "views" / name
    if name == "bccd":  # the official val list measures; validation is cut from train
        sets = root / "ImageSets" / "Main"
        sets.mkdir(parents=True, exist_ok=True)
        for folder in ("JPEGImages", "Annotations"):
            (root / folder).unlink(missing_ok=True)
            (root / folder).symlink_to((data / folder).resolve())
        for part, official in (("train", "train"), ("test", "val")):
            shutil.copyfile(data / "ImageSets" / "Main" / f"{official}.txt", sets / f"{part}.txt")
        return root
    if name == "adult":  # every fifth row of the official train file measures
        root.mkdir(parents=True, exist_ok=True)
        rows = data.read_text().splitlines()
        for part in ("train", "test"):
            kept = [row for i, row in enumerate(rows) if row.strip() and (i % 5 == 0) == (part == "test")]
            (root / f"{part}.csv").write_text("\n".join(kept) + "\n")
        return root / "train.csv"
    if name != "esc10":
        return data
    for file in sorted(data.glob("*/*.ogg")):
        part = root / ("test" if file.name.startswith("4-") else "train") / file.parent.name
        part.mkdir(parents=True, exist_ok=True)
        link = part / file.name
        if not link.exists():
            link.symlink_to(file.resolve())
    return root


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[3:] or ROWS:
        task, path, part, options = ROWS[name]
        source = view(name, data / path, out)
        started = time.perf_counter()
        fit(task, source, out / name, **options)
        seconds = time.perf_counter() - started
        measured = source.with_name("test.csv") if name == "adult" else source
        metrics = evaluate(out / name, measured, split=part)
        record = {"row": name, "task": task, "part": part, "metrics": metrics, "fit_seconds": round(seconds),
                  "date": time.strftime("%Y-%m-%d")}  # fmt: skip
        print(json.dumps(record), flush=True)
        with (out / "results.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
