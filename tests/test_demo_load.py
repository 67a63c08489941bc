"""Many clients at once, each with inputs of its own; clients that are killed; a proxy that serves it under a path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polysense.apps.demo.app import served
from polysense.apps.demo.limits import Options

gradio_client = pytest.importorskip("gradio_client")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks are scripts beside each other, not a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(Options(max_mb=2)) as (_, address):
        yield address


def test_what_counts_as_the_same_answer() -> None:
    from demo_inputs import same

    one = {"answer": "lion", "scores": [0.5, 200.0, None, True]}
    assert same(one, {"answer": "lion", "scores": [0.50009, 200.01, None, True]}, 1e-4)
    for other in ({"answer": "lion", "scores": [0.5002, 200.0, None, True]}, {"answer": "lions", "scores": [0.5]},
                  {"answer": "lion", "scores": [0.5, 200.0, None]}, {"answer": "lion"}):  # fmt: skip
        assert not same(one, other, 1e-4)


def test_figures_of_a_run() -> None:
    from demo_load import Call, quarters, spread

    calls = [Call("/image", float(i + 1), 1.0, True) for i in range(8)]
    memory = [(0.5 + i / 2, 100.0 + i) for i in range(16)]
    assert quarters(calls, memory) == [101.5, 105.0, 109.0, 113.0]  # a reading on a border counts on both sides
    assert spread([float(i) for i in range(1, 101)]) == {"calls": 100, "p50": 50.5, "p95": 95.0, "longest": 100.0}


@pytest.mark.slow
def test_clients_get_their_own_answers_while_others_are_killed(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demo_inputs import Asks
    from demo_load import COMPUTED, WAITING, kill_one, run, wait_until_idle

    monkeypatch.setattr("demo_load.COPIES", 15)
    asks = Asks(tmp_path, words=False)
    asks.kinds = ("tiny200", "esc10", "furniture", "adult", "any-series", "digits")
    wanted = [asks.make(client, 3) for client in range(8)]

    def kill() -> None:
        for state in (WAITING, COMPUTED):
            kill_one(address, next(ask.values[0] for ask in wanted[0] if ask.endpoint == "/image"), state)

    calls = run(address, wanted, kill)
    assert [(call.endpoint, call.error) for call in calls if not call.right] == []
    assert len(calls) == 24 and len({str(ask.expected) for asks in wanted for ask in asks}) == 24
    assert wait_until_idle(address, 30) < 30
    asks.kinds = ("batch",)  # in the place where the killed one's call is still computed: it is over when this is
    assert [call.right for call in run(address, [asks.make(8, 1)])] == [True]


@pytest.mark.slow
def test_a_process_of_its_own_under_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import demo_load

    arguments = ["demo_load.py", str(tmp_path), "--clients", "12", "--requests", "10", "--kills", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        demo_load.main()
    told = capsys.readouterr().out
    assert "errors: 0\nwrong: 0\nclients killed: 4" in told
