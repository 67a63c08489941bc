"""What clients of `demo_load.py` ask: inputs of their own, and the library's answer to each of these very files.

No two clients share an input, so that an answer which went to the wrong one shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

AUTO = "by its ending"
HORIZON = 24


@dataclass(frozen=True)
class Ask:
    """A call and what it must give.

    Attributes:
        endpoint: Its name.
        values: Arguments; a Path is a file to upload, and so is each of a list of Paths.
        pick: What is compared of the answer.
        expected: The library's own answer.
        within: By how much numbers may differ; see `same`.
    """

    endpoint: str
    values: tuple[Any, ...]
    pick: Callable[[Any], Any]
    expected: Any
    within: float = 1e-4

    def is_answer(self, answer: Any) -> bool:
        """Whether this is what the library says."""
        return same(self.pick(answer), self.expected, self.within)


ROUNDED = 1.1e-3  # confidences of tables have three digits, and may be rounded to either side


def image(path: Path, rng: np.random.Generator, photo: str) -> None:
    """A part of a photo, turned a little."""
    from PIL import Image

    source = Image.open(example(photo)).convert("RGB")
    width, height = source.size
    share = rng.uniform(0.7, 0.95)
    left, top = rng.uniform(0, 1 - share, 2) * (width, height)
    part = source.rotate(rng.uniform(-8, 8)).crop(
        (int(left), int(top), int(left + share * width), int(top + share * height))
    )
    part.resize((320, round(320 * part.height / part.width))).save(path)


def sound(path: Path, rng: np.random.Generator, name: str) -> None:
    """A recording, slower or faster, and louder or softer."""
    import soundfile

    wave, rate = soundfile.read(example(name))
    at = np.arange(0, len(wave) - 1, rng.uniform(0.8, 1.25))
    soundfile.write(path, rng.uniform(0.3, 1) * np.interp(at, np.arange(len(wave)), wave), rate)


def film(path: Path, rng: np.random.Generator) -> None:
    """A second of a part of a photo that moves."""
    from PIL import Image

    from polysense.apps.examples import _film

    source = Image.open(example(str(rng.choice(["lion.jpg", "flower.jpg", "china.jpg"])))).convert("RGB")
    width, height = source.size
    x, y = rng.uniform(0, 0.3, 2)
    boxes = [(x * width + i, y * height, (x + 0.6) * width + i, (y + 0.6) * height) for i in range(16)]
    _film(path, [source.resize((160, 120), box=box) for box in boxes])


def cloud(path: Path, rng: np.random.Generator, name: str) -> None:
    """A scan, turned about its upright, stretched, thinned."""
    from polysense.apps.examples import _write_ply
    from polysense.data.point_cloud import read_cloud

    points = read_cloud(example(name)).xyz
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    _write_ply(path, (points * rng.uniform(0.7, 1.4, 3))[rng.random(len(points)) < 0.7] @ turn.T)


def series(path: Path, rng: np.random.Generator) -> None:
    """Some weeks of an hourly table, in other units."""
    import pandas as pd

    table = pd.read_csv(example("energy.csv"))
    start = int(rng.integers(0, 300))
    table = table.iloc[start : start + int(rng.integers(600, 1000))][["time", "load", "price"]]
    table[["load", "price"]] = (table[["load", "price"]] * rng.uniform(0.5, 3) + rng.uniform(0, 50)).round(2)
    table.to_csv(path, index=False)


def people(path: Path, rng: np.random.Generator) -> None:
    """Rows of a census, with other ages and hours."""
    import pandas as pd

    table = pd.read_csv(example("people.csv"))
    table["age"] = rng.integers(18, 80, len(table))
    table["hours-per-week"] = rng.integers(10, 70, len(table))
    table["fnlwgt"] += rng.integers(0, 5000, len(table))
    table.to_csv(path, index=False)


def example(name: str) -> Path:
    """An example file, made once."""
    import tempfile

    from polysense.apps.examples import MAKERS

    path = Path(tempfile.gettempdir()) / "polysense-load-examples" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        MAKERS[name](path)
    return path


KINDS = ("tiny200", "blood-cells", "scenes", "esc10", "digits", "clips101", "furniture", "any-series", "adult", "batch",
         "cifar10", "compare", "name")  # fmt: skip


class Asks:
    """Makes asks; pipelines are loaded once.

    Args:
        folder: Where their files go.
        words: Whether the extra `text` is there: without it nothing is compared or named by words.
    """

    def __init__(self, folder: Path, words: bool) -> None:
        self.folder, self.kinds = folder, KINDS if words else KINDS[:-2]
        self._pipelines: dict[str, Any] = {}

    def make(self, client: int, count: int) -> list[Ask]:
        """`count` asks of one client, of all kinds in turn; clients begin with different ones."""
        rng = np.random.default_rng((7, client))
        kinds = [self.kinds[(client + i) % len(self.kinds)] for i in range(min(count, len(self.kinds)))]
        made = [self._ask(kind, self.folder / f"{client:03d}-{kind}", rng) for kind in kinds]
        return [made[i % len(made)] for i in range(count)]

    def _ask(self, kind: str, at: Path, rng: np.random.Generator) -> Ask:
        if kind in ("tiny200", "cifar10", "blood-cells", "scenes"):
            photo = {"blood-cells": "smear.png", "scenes": "china.jpg", "cifar10": "flower.jpg"}.get(kind, "lion.jpg")
            image(path := at.with_suffix(".png"), rng, photo)
            return self._one("/image", path, kind)
        if kind in ("esc10", "digits"):
            sound(path := at.with_suffix(".wav"), rng, "rain.wav" if kind == "esc10" else "clock.wav")
            return self._one("/audio", path, kind)
        if kind == "clips101":
            film(path := at.with_suffix(".mp4"), rng)
            return self._one("/video", path, kind)
        if kind == "furniture":
            cloud(path := at.with_suffix(".ply"), rng, str(rng.choice(["chair.ply", "table.ply"])))
            return self._one("/point_cloud", path, kind)
        return {"any-series": self._forecast, "adult": self._rows, "batch": self._batch, "compare": self._compare,
                "name": self._name}[kind](at, rng)  # fmt: skip

    def _pipeline(self, name: str) -> Any:
        import polysense

        if name not in self._pipelines:
            self._pipelines[name] = polysense.load(name)
        return self._pipelines[name]

    def _one(self, endpoint: str, path: Path, model: str) -> Ask:
        expected = in_grid(self._record(path, model))
        return Ask(endpoint, (path, model, 5), lambda answer: in_grid(answer[3]), expected)

    def _record(self, path: Path, model: str) -> Any:
        from polysense.apps.demo.page import named

        return named(self._pipeline(model)(path)[0]).to_record()

    def _forecast(self, at: Path, rng: np.random.Generator) -> Ask:
        import pandas as pd

        series(path := at.with_suffix(".csv"), rng)
        frame = self._pipeline("any-series")(pd.read_csv(path), horizon=HORIZON)[0].to_frame()
        return Ask("/forecast", (path, "any-series", "time", ["load", "price"], HORIZON),
                   lambda answer: [row[1:] for row in answer[3]["data"]], frame.to_numpy().tolist())  # fmt: skip

    def _rows(self, at: Path, rng: np.random.Generator) -> Ask:
        people(path := at.with_suffix(".csv"), rng)
        found = self._pipeline("adult")(path)
        rows = [[one.answer(), round(one.confidence, 3)] for one in found]

        def pick(answer: Any) -> Any:
            return [[said, float(sure)] for _, said, sure in answer[0]["data"]]

        return Ask("/predict_table", (path, "adult"), pick, rows, ROUNDED)

    def _batch(self, at: Path, rng: np.random.Generator) -> Ask:
        paths = [at.with_name(f"{at.name}-{i}.jpg") for i in range(3)]
        for path, photo in zip(paths, ("lion.jpg", "flower.jpg", "china.jpg"), strict=True):
            image(path, rng, photo)
        found = self._pipeline("caltech101")(paths)
        rows = [[path.name, one.answer(), round(one.confidence, 3)] for path, one in zip(paths, found, strict=True)]
        return Ask("/batch", (paths, "caltech101", ".csv"),
                   lambda answer: [[*row[:2], float(row[2])] for row in answer[0]["data"]], rows, ROUNDED)  # fmt: skip

    def _compare(self, at: Path, rng: np.random.Generator) -> Ask:
        from polysense.backbone.anchor import load_anchor
        from polysense.words import word_vectors

        sound(path := at.with_suffix(".wav"), rng, "rain.wav")
        words = f"rain on roof number {rng.integers(1000)}"
        vector = self._pipeline("audio-meaning")(path)[0].vector
        cosine = float(vector @ word_vectors(load_anchor("minilm"), [[words]])[0].detach().numpy())
        return Ask("/compare", (path, "", AUTO, None, words, AUTO), lambda answer: answer[0], cosine)

    def _name(self, at: Path, rng: np.random.Generator) -> Ask:
        from polysense.zero_shot import zero_shot

        labels = [str(label) for label in rng.permutation(["lion", "fish", "bicycle", "cup of coffee", "tree"])[:4]]
        image(path := at.with_suffix(".png"), rng, "lion.jpg")
        found = zero_shot("image", labels)(path)[0]
        scores = dict(zip(found.names, map(float, found.scores), strict=True))
        return Ask("/name", (path, "", AUTO, ", ".join(labels), ""), lambda answer: answer[2]["scores"], scores)


def same(one: Any, two: Any, within: float) -> bool:
    """Whether two answers are equal: words exactly, numbers within a share of their size (of one, where smaller)."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key], within) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(same(a, b, within) for a, b in zip(one, two, strict=True))
    if isinstance(one, float | int) and isinstance(two, float | int):
        return math.isclose(one, two, rel_tol=within, abs_tol=within)
    return bool(one == two)


def in_grid(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose boxes are in units of 200 pixels: they are written to a hundredth of one."""
    boxes = [{**one, "box": [value / 200 for value in one["box"]]} for one in record.get("boxes", [])]
    return {**record, "boxes": boxes}
