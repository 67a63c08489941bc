"""Permutation importance: the columns that matter come first, and scikit-learn finds the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.inspection import permutation_importance

import polysense
from polysense.apps.cli import main
from polysense.core.errors import InputError
from polysense.importance import Importances, bounded, importance, shuffled
from polysense.pipeline import Pipeline
from polysense.training.examples import Examples
from polysense.training.importance import column_importance, examples_importance
from polysense.training.progress import Progress

MATTER = ("length", "kind")
QUICK: Any = {"cache": False, "card": False, "check": False, "tokenizer_options": {"tokens": "row", "boost": False}}


def table(n: int, seed: int, numbers: bool = False) -> pd.DataFrame:
    """Six columns, of which two say what is to be predicted; one of the others names each row and is not read."""
    rng = np.random.default_rng(seed)
    days = pd.to_timedelta(rng.integers(99, size=n), "D")
    frame = pd.DataFrame({
        "noise": rng.normal(0, 1, n), "length": rng.normal(0, 1, n), "colour": rng.choice(["red", "blue"], n),
        "kind": rng.choice(["a", "b"], n), "day": pd.Timestamp("2026-01-01") + days,
        "name": [f"row {i}" for i in range(n)],
    })  # fmt: skip
    value = 2 * frame["length"] + 2 * (frame["kind"] == "a")
    frame.loc[rng.random(n) < 0.1, "noise"] = np.nan
    return (
        frame.assign(cost=value, size=-3 * frame["length"])
        if numbers
        else frame.assign(grown=np.where(value > 1, "y", "n"))
    )


class Measuring(Progress):
    """Measures importances where a fit has measured, on the rows that it held out."""

    def __init__(self) -> None:
        super().__init__(wanted=False)

    def measured(self, pipeline: Pipeline, validation: Examples) -> None:
        self.rows = validation.frame  # type: ignore[attr-defined]
        self.metric, self.found = examples_importance(pipeline, validation, repeats=2)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, Measuring]]:
    path = tmp_path_factory.mktemp("tables") / "learn.csv"
    table(240, 0).to_csv(path, index=False)
    told = Measuring()
    yield polysense.fit("tabular-classification", path, target="grown", progress=told, **QUICK), told


def by_column(found: Importances) -> dict[str, float]:
    return {one.column: one.mean for one in found.columns}


def test_two_of_six_columns_matter(fitted: tuple[Pipeline, Measuring], tmp_path: Path) -> None:
    pipeline, _ = fitted
    table(100, 1).to_csv(tmp_path / "new.csv", index=False)
    metric, found = column_importance(pipeline, tmp_path / "new.csv", repeats=2)
    names = [one.column for one in found.columns]
    assert metric == "accuracy" and found.score > 0.85 and (found.rows, found.repeats) == (100, 2)
    assert set(names[:2]) == set(MATTER) and len(names) == 6
    means = by_column(found)
    assert min(means[name] for name in MATTER) > 0.15
    assert all(abs(means[name]) < 0.05 for name in names if name not in MATTER) and means["name"] == 0
    again = column_importance(pipeline, tmp_path / "new.csv", repeats=2, batch_size=7)[1]
    assert by_column(again) == pytest.approx(means)  # however the rows are batched
    other = column_importance(pipeline, tmp_path / "new.csv", repeats=2, seed=1)[1]
    assert by_column(other) != means


class Predictor:
    """The pipeline, as scikit-learn asks predictors."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def fit(self, x: Any, y: Any) -> None: ...

    def score(self, x: pd.DataFrame, y: Any) -> float:
        return float(np.mean([one.answer() == truth for one, truth in zip(self.pipeline(x, 256), y)]))


def test_scikit_learn_finds_the_same(fitted: tuple[Pipeline, Measuring]) -> None:
    pipeline, _ = fitted
    frame = table(60, 2)
    rows, truth = frame.drop(columns="grown"), list(frame["grown"])
    score = lambda answers, targets: float(np.mean([a.answer() == t for a, t in zip(answers, targets)]))  # noqa: E731
    ours = by_column(importance(pipeline, rows, truth, score, repeats=4))
    theirs = permutation_importance(Predictor(pipeline), rows, truth, n_repeats=4, random_state=0)
    for name, mean, std in zip(rows.columns, theirs.importances_mean, theirs.importances_std):
        assert ours[name] == pytest.approx(
            mean, abs=4 * std * (2 / 4) ** 0.5 + 1 / 60
        )  # a row, and what two means of four differ by


def test_a_fit_tells_of_the_rows_that_it_held_out(fitted: tuple[Pipeline, Measuring]) -> None:
    pipeline, told = fitted
    assert told.found.score == pytest.approx(pipeline.metrics["accuracy"])  # the very rows, before they taught too
    assert told.found.rows == len(told.rows) == round(0.15 * 240) and "grown" not in told.rows
    assert set(one.column for one in told.found.columns[:2]) == set(MATTER)


def test_several_numbers_and_errors(tmp_path: Path) -> None:
    table(120, 0, numbers=True).to_csv(tmp_path / "learn.csv", index=False)
    pipeline = polysense.fit("tabular-regression", tmp_path / "learn.csv", target="cost,size", progress=False,
                             **QUICK)  # fmt: skip
    table(60, 1, numbers=True).to_csv(tmp_path / "new.csv", index=False)
    metric, found = column_importance(pipeline, tmp_path / "new.csv", repeats=1)
    assert metric == "r2" and found.columns[0].column == "length" and found.columns[1].column == "kind"
    metric, errors = column_importance(pipeline, tmp_path / "new.csv", repeats=1, metric="mse", seed=3)
    assert metric == "mse" and errors.score < 0 < errors.columns[0].mean  # errors grow
    with pytest.raises(InputError, match="metric accuracy: it is not measured here; choose one of: mse"):
        column_importance(pipeline, tmp_path / "new.csv", metric="accuracy")


def test_few_rows_and_little_time(fitted: tuple[Pipeline, Measuring]) -> None:
    pipeline, _ = fitted
    frame = table(300, 3)
    rows, truth = frame.drop(columns="grown"), list(frame["grown"])
    asked: list[int] = []

    def score(answers: Any, targets: Any) -> float:
        asked.append(len(targets))
        return 0.0

    found = importance(pipeline, rows, truth, score, most=30, repeats=2)
    assert set(asked) == {30} and found.rows == 30 and len(asked) == 1 + 2 * 5  # names are not read
    found = importance(pipeline, rows, truth, score, seconds=1e-6)
    assert (found.rows, found.repeats) == (20, 1)
    assert bounded(5, 100, 10, seconds=3.0, once=0.1) == (3, 100)
    assert bounded(5, 100, 10, seconds=0.5, once=0.1) == (1, 50)


def test_a_column_is_shuffled_and_no_other() -> None:
    frame = table(50, 0)
    first, second = shuffled(frame, "length", 2, np.random.default_rng(0))
    assert sorted(first["length"]) == sorted(frame["length"]) and list(first["length"]) != list(frame["length"])
    assert list(first["length"]) != list(second["length"])
    pd.testing.assert_frame_equal(first.drop(columns="length"), frame.drop(columns="length"))


def test_nothing_changes_in_the_pipeline(fitted: tuple[Pipeline, Measuring]) -> None:
    pipeline, _ = fitted
    before = {name: value.clone() for name, value in pipeline.state_dict().items()}
    frame = table(40, 4)
    state = torch.random.get_rng_state()
    importance(pipeline, frame.drop(columns="grown"), list(frame["grown"]), lambda *_: 0.0, repeats=1)
    assert all(value.equal(before[name]) for name, value in pipeline.state_dict().items())
    assert torch.random.get_rng_state().equal(state)


def test_the_command(fitted: tuple[Pipeline, Measuring], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted[0].save_pretrained(tmp_path / "model")
    table(60, 5).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(SystemExit, match="0"):
        main(["importance", str(tmp_path / "model"), str(tmp_path / "new.csv"), "--repeats", "1"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {name for name, *_ in lines[:2]} == set(MATTER) and len(lines) == 6 and float(lines[0][1]) > 0.1
    for arguments, sentence in (
        (["digits", "new.csv"], "digits: it reads no tables"),
        ([str(tmp_path / "model"), str(tmp_path / "new.csv"), "--target", "age"], "there is no column 'age'"),
    ):
        with pytest.raises(SystemExit, match="1"):
            main(["importance", *arguments])
        assert sentence in capsys.readouterr().err


def test_bad_input_gets_one_sentence(fitted: tuple[Pipeline, Measuring], build: Any) -> None:
    pipeline, _ = fitted
    frame = table(10, 0)
    rows, truth = frame.drop(columns="grown"), list(frame["grown"])
    for arguments, sentence in (
        ((pipeline, rows, truth[:3], lambda *_: 0.0), "there are 10, with 3 targets"),
        ((pipeline, rows.drop(columns="kind"), truth, lambda *_: 0.0), "no column 'kind'"),
        ((build("image-classification"), rows, truth, lambda *_: 0.0), "it reads no tables"),
    ):
        with pytest.raises(InputError, match=sentence):
            importance(*arguments)
    with pytest.raises(InputError, match="nothing would be measured"):
        importance(pipeline, rows, truth, lambda *_: 0.0, repeats=0)
