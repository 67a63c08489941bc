"""The benchmarks' own arithmetic: which rows of data teach and measure, how arms are scored, what tables say."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.core.types import Tokens
from polysense.heads.pool import Pool
from polysense.tasks import TASKS
from polysense.training.fit import fit

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are scripts beside each other, not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_row_names_a_task_and_options_of_fit() -> None:
    from table_rows import ROWS

    known = set(inspect.signature(fit).parameters)
    for name, row in ROWS.items():
        assert row.task in TASKS, name
        assert set(row.options) <= known, name


def test_evidence_covers_every_row_that_it_does_not_leave_out() -> None:
    from evidence import LEFT_OUT, OPTIONS, RUNS, SIZES
    from table_rows import ROWS

    assert set(LEFT_OUT) | set(SIZES) | set(OPTIONS) | set(RUNS) <= set(ROWS)


def test_a_left_out_speaker_teaches_nothing_and_no_test_part_teaches(tmp_path: Path) -> None:
    from sets import FSDD_SPEAKERS, unheard_speakers

    for part, index in (("train", 7), ("test", 2)):
        for speaker in FSDD_SPEAKERS:
            file = tmp_path / "data/audio/fsdd" / part / f"3_{speaker}_{index}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    runs = unheard_speakers(tmp_path / "data", tmp_path / "views")
    assert [run.name for run in runs] == list(FSDD_SPEAKERS)
    for run in runs:
        taught = [file.name for file in run.train.glob("train/*/*.wav")]
        assert len(taught) == 3
        assert not any(run.name in name or name.endswith("_2.wav") for name in taught)
        assert sorted(f.name for f in run.test.glob("test/3/*.wav")) == [f"3_{run.name}_2.wav", f"3_{run.name}_7.wav"]


def test_rows_of_a_table_measure_once_in_all_folds(tmp_path: Path) -> None:
    from sets import adult

    folder = tmp_path / "tabular/adult"
    folder.mkdir(parents=True)
    (folder / "adult.data").write_text("\n".join(f"{i}, a" for i in range(13)) + "\n\n")
    runs = adult(tmp_path, tmp_path / "views")
    measured = [row for run in runs for row in run.test.read_text().splitlines()]
    assert sorted(measured) == sorted(f"{i}, a" for i in range(13))
    for run in runs:
        assert not set(run.train.read_text().splitlines()) & set(run.test.read_text().splitlines())


def test_m4_lines_of_different_lengths_are_read(tmp_path: Path) -> None:
    import gzip

    from sets import read_m4

    for part, text in (("train", "W1,1,2,3\nW2,5,,\n"), ("test", "W2,6,7\nW1,4,5\n")):
        with gzip.open(tmp_path / f"{part}.csv.gz", "wt") as file:
            file.write(text)
    (name, history, future), (_, short, _) = read_m4(tmp_path)
    assert name == "W1" and history.tolist() == [1, 2, 3] and future.tolist() == [4, 5] and short.tolist() == [5]


def test_seasonal_naive_repeats_the_last_season(tmp_path: Path) -> None:
    import gzip

    from sets import Run
    from table_baselines import naive

    for part, text in (("train", "H1,9,1,3\n"), ("test", "H1,1,3,1\n")):
        with gzip.open(tmp_path / f"{part}.csv.gz", "wt") as file:
            file.write(text)
    run = Run(tmp_path, tmp_path)
    assert naive(2, "seasonal")(run, {}) == {"seasonal": 0.0}
    assert naive(1, "last")(run, {})["last"] == pytest.approx(2 / 3 * 100)


def test_models_of_scikit_learn_read_words_and_numbers(tmp_path: Path) -> None:
    from sets import Run
    from table_baselines import gradient_boosting, linear_model, random_forest

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        rows = [(rng.choice(["u", "v"]), rng.normal()) for _ in range(200)]
        (tmp_path / f"{part}.csv").write_text("\n".join(f"{w},{x:.3f},{'p' if w == 'u' else 'q'}" for w, x in rows))
    run = Run(tmp_path / "train.csv", tmp_path / "test.csv")
    assert gradient_boosting(run, {}) == {"gradient boosting": 1.0}
    assert random_forest(run, {}) == {"random forest": 1.0} and linear_model(run, {}) == {"linear": 1.0}


def test_small_tables_stand_in_one_table() -> None:
    from tables_sklearn import markdown

    one = {"table": "a", "model": "polysense", "validation": 0.5, "test": 0.75, "seconds": 3.0}
    found = markdown([one, {**one, "validation": 1.0, "seconds": 5.0}, {**one, "table": "b"},
                      {"table": "a", "model": "linear", "test": 0.25, "seconds": 0.1}])  # fmt: skip
    assert found.splitlines()[2:] == ["| polysense | .750 / .750 (4 s) | .500 / .750 (3 s) |",
                                      "| linear | .250 (0 s) |  |"]  # fmt: skip


def test_the_table_takes_the_latest_whole_measurement() -> None:
    from table import markdown

    def record(value: float, runs: int, **changed: Any) -> dict[str, Any]:
        return {"row": "gunpoint", "protocol": "split", "value": value, "baseline": {"1-NN": 0.91}, "reach": 0.98,
                "larger_is_better": True, "of_runs": 2, "runs": {str(i): {} for i in range(runs)},
                **changed}  # fmt: skip

    assert "| .950 | .980 | above all baselines |" in markdown([record(0.2, 2), record(0.95, 2), record(0.99, 1)])
    assert "| .900 | .980 |  |" in markdown([record(0.9, 2)])
    below = record(0.9, 2, larger_is_better=False, reach=0.95)
    assert "| .900 | .950 | reached |" in markdown([below])


def task_of(kind: str, x: torch.Tensor, y: torch.Tensor, owner: torch.Tensor) -> Any:
    from evidence_tokens import Part, Task

    tokens = [Tokens(part, None, torch.zeros(*part.shape[:2], 1)) for part in x.split(8)]
    part = Part(tokens, owner, np.arange(int(owner.max()) + 1), y, torch.ones(len(y)), np.empty(0), np.empty((0, 3)))
    return Task(part, part, Pool(x.shape[2], ("mean",)), (), kind)


def identity(width: int) -> Encoder:
    return Encoder(EncoderConfig(width=width, depth=1, heads=1, final_norm=False)).start_as_identity().freeze()


def test_no_encoder_leaves_tokens_as_they_are_and_the_head_separates_them() -> None:
    from evidence_tokens import pooled, score, solve

    generator = torch.Generator().manual_seed(0)
    label = torch.arange(40) % 2
    x = torch.randn(40, 3, 8, generator=generator)
    x[:, :, 0] += 4.0 * label[:, None]
    task = task_of("classification", x, torch.nn.functional.one_hot(label, 2).float(), torch.arange(40))
    found = pooled(identity(8), task, task.train, "cpu")
    assert torch.allclose(found, torch.nn.functional.layer_norm(x.mean(1), (8,)), atol=1e-6)
    with torch.inference_mode():
        assert score(task, solve(task, found, torch.arange(40))(found), task.test) > 0.9


def test_sequences_of_one_example_answer_together() -> None:
    from evidence_tokens import score

    owner = torch.tensor([0, 0, 0, 1])
    y = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    task = task_of("classification", torch.zeros(4, 1, 2), y, owner)
    out = torch.tensor([[0.0, 1.0], [3, 0], [0, 1], [0, 1]])  # two of three windows err, their mean does not
    assert score(task, out, task.test) == 1.0


def test_forecasts_are_scored_in_their_own_units() -> None:
    from evidence_tokens import score

    task = task_of("mse", torch.zeros(1, 1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    task.test.truth, task.test.scale = np.array([[12.0, np.nan]]), np.array([[10.0, 2.0, 4.0]])
    assert score(task, torch.tensor([[3.0, 0.0]]), task.test) == pytest.approx(1.0)  # 16 for 12, deviation 4
    task.kind = "smape"
    assert score(task, torch.tensor([[3.0, 0.0]]), task.test) == pytest.approx(200 * 4 / 28)


def test_a_forecast_of_more_inputs_than_windows_is_the_plain_ridge() -> None:
    from evidence_tokens import STRENGTHS, principal, stretches
    from sklearn.linear_model import Ridge

    z = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    y = z[:, :3].numpy()
    basis = principal(z)
    turned = Ridge(STRENGTHS[2]).fit((z @ basis).numpy(), y)
    assert np.allclose(Ridge(STRENGTHS[2]).fit(z.numpy(), y).coef_, turned.coef_ @ basis.T.numpy(), atol=1e-4)
    folds = stretches(np.random.default_rng(0).permutation(20))
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(20))
    assert all(len(taught) == 16 for taught, _ in folds)


def test_tuning_lowers_the_loss_and_leaves_the_frozen_encoder_alone() -> None:
    from evidence import tune
    from evidence_tokens import pooled, solve

    torch.manual_seed(0)
    x = torch.randn(32, 4, 16)
    y = (x[:, :1, 0] * x[:, 1:2, 0]).sign()  # no linear function of the mean
    task = task_of("regression", x, y, torch.arange(32))
    encoder = Encoder(EncoderConfig(width=16, depth=2, heads=2, final_norm=False)).freeze()
    before, rows = encoder.fingerprint(), torch.arange(32)

    def loss(encoder: Encoder, linear: torch.nn.Linear) -> float:
        with torch.inference_mode():
            return float((linear(pooled(encoder, task, task.train, "cpu")) - y).square().mean())

    linear = solve(task, pooled(encoder, task, task.train, "cpu"), rows)
    tuned = tune(encoder, linear, task, rows, 0, 40 * 32 * 4, "cpu")
    assert loss(tuned, linear) < loss(encoder, linear)
    assert encoder.fingerprint() == before and tuned.fingerprint() != before


def test_evidence_is_shown_with_its_spread_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    from evidence import finished, key_of, markdown

    lines = [{"row": "gunpoint", "arm": "joint", "seed": seed, "value": value, "metric": "accuracy", "train": 50,
              "test": 150, "larger_is_better": True, "encoder": "e", "tokenizer": "t", "tuning_tokens": 0}
             for seed, value in enumerate((0.9, 0.8, 0.7))]  # fmt: skip
    assert "| gunpoint | accuracy | 50 / 150 | .800 ± .100 |" in markdown(lines)
    (tmp_path / "evidence.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = finished(tmp_path / "evidence.jsonl")
    assert key_of(lines[0]) in done and key_of({**lines[0], "encoder": "another"}) not in done
