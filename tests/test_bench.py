"""The bench: every case runs, contestants take turns, and what was not measured says why."""

import csv
import math
import time

import pytest
import torch
from PIL import Image

from polysense.apps import bench as module
from polysense.apps import cli
from polysense.apps.bench import CASES, bench
from polysense.apps.bench_race import Race, Row, machine_facts, run_race
from polysense.core.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("name", CASES)
def test_every_case_runs_and_its_contestants_agree(name):
    races = list(CASES[name](True))
    assert races and CASES[name].__doc__
    for race in races:
        rows = run_race(race, 0.01, least=1, most=1)
        assert [row.contestant for row in rows] == list(race.runs) and len(rows) > 1
        assert {row.case for row in rows} == {name}
        assert set(race.wanted or {}) <= set(race.runs)
        for row in rows:
            assert row.note.startswith("unmeasured: ") if row.rounds == 0 else row.ms > 0 and not row.note
            # 8-bit weights round; all else is the same to float32's rounding.
            assert math.isnan(row.difference) or row.difference < (0.1 if "int8" in row.contestant else 1e-4)


def test_contestants_that_should_agree_are_compared():
    """NaN passes the check above: some must be numbers."""
    compared = {name: [row.difference for race in CASES[name](True) for row in run_race(race, 0.01, 1, 1)]
                for name in ("padded", "windows", "knn", "engines")}  # fmt: skip
    assert all(any(not math.isnan(value) for value in values) for values in compared.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("gpu")])
def test_without_a_gpu_its_cases_are_unmeasured(name):
    for race in CASES[name](False):
        assert {row.note for row in run_race(race, 1)} == {"unmeasured: no CUDA device"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("gpu")])
def test_gpu_cases_are_measured(name):
    for race in CASES[name](True):
        assert all(row.rounds > 0 for row in run_race(race, 0.01, 1, 1))


def test_turns_are_taken_and_ratios_formed_within_a_round():
    calls = []

    def runner(name, seconds):
        def run():
            calls.append(name)
            time.sleep(seconds)
            return torch.ones(2) if name == "slow" else torch.ones(2) + 1e-3

        return run

    race = Race(
        "x", "y", {"slow": runner("slow", 0.012), "fast": runner("fast", 0.004), "gone": "not here"}, {"fast": 2}
    )
    slow, fast, gone = run_race(race, seconds=9, most=4)
    assert calls[:4] == ["slow", "fast", "slow", "fast"]  # first calls, then how long a turn must be
    assert calls[4:] == ["slow", "fast", "fast", "slow"] * 2
    assert slow.rounds == fast.rounds == 4 and (slow.speedup, slow.difference) == (1, 0)
    assert fast.speedup_q1 <= fast.speedup <= fast.speedup_q3 and fast.speedup > 1
    assert fast.difference == pytest.approx(1e-3, rel=1e-3) and fast.wanted == 2
    assert (gone.note, gone.rounds) == ("unmeasured: not here", 0) and math.isnan(gone.ms)


def test_a_slow_race_ends_early():
    assert run_race(Race("x", "y", {"a": lambda: time.sleep(0.01)}), seconds=1e-4, least=9)[0].rounds == 3


def test_short_runs_are_repeated_within_a_turn():
    calls = []
    run_race(Race("x", "y", {"a": lambda: calls.append(1)}), seconds=0, least=2)
    assert len(calls) > 100


def test_a_baseline_that_is_missing_leaves_the_others_their_times():
    rows = run_race(Race("x", "y", {"a": "gone", "b": lambda: None}), 0, least=2)
    assert math.isnan(rows[1].speedup) and rows[1].ms > 0


def test_files(tmp_path, monkeypatch):
    def lengths(quick):
        """Mixers."""
        runs = {f"pool, {n} tokens": int for n in (64, 128, 256, 512)}
        yield Race("lengths", "", runs | {"attention, 64 tokens": int, "attention, 128 tokens": "too long"})

    monkeypatch.setattr(module, "CASES", {"padded": CASES["padded"], "lengths": lengths, "gpu-rate": CASES["gpu-rate"]})
    rows = bench(tmp_path / "new", quick=True)
    with (tmp_path / "new" / "bench.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["contestant"] for line in lines] == [row.contestant for row in rows]
    assert {line["case"] for line in lines} == {"padded", "lengths", "gpu-rate"}
    for name in ("machine", "date", "torch", "threads", "load", "onnxruntime"):
        assert all(line[name] for line in lines)
    assert lines[1]["contestant"] == "packed" and float(lines[1]["speedup"]) > 0 and lines[1]["wanted"] == "2.1"
    missing = [line for line in lines if line["note"] == "unmeasured: too long"]
    assert len(missing) == 1 and missing[0]["ms"] == missing[0]["speedup"] == ""
    for name in ("bench.png", "lengths.png"):
        picture = Image.open(tmp_path / "new" / name).convert("L")
        assert min(picture.size) > 200 and picture.getextrema()[0] < 100


def test_no_curves_without_mixers(tmp_path):
    bench(tmp_path, ["gpu-rate"], quick=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.csv", "bench.png"]


def test_a_wrong_name_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="no such case; did you mean padded"):
        bench(tmp_path / "out", ["paded"])
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(module, "bench", lambda out, only, **rest: seen.update(out=out, only=list(only), **rest))
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "-o", str(tmp_path), "--only", "fps", "--only", "knn", "--quick"])
    assert not end.value.code
    assert seen == {"out": tmp_path, "only": ["fps", "knn"], "quick": True, "threads": None}


def test_facts_name_the_machine():
    facts = machine_facts()
    assert facts["torch"] == torch.__version__.split("+")[0] and facts["threads"] == torch.get_num_threads()
    assert not set(facts) & set(Row.__dataclass_fields__)


def test_help_names_every_case():
    from polysense.apps.cli import ONLY_HELP

    assert all(name in ONLY_HELP for name in CASES)
