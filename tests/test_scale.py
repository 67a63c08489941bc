"""The same job on Ray Data: equal answers, crashes that cost a row, going on in the middle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polysense.apps import cli

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
COUNT = 150  # more than one window


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        size = tuple(rng.integers(40, 200, 2).tolist())
        Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(size).save(f"in/{i:03d}.png")
    Path("in/077.png").write_bytes(b"no picture")
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", "image-classification", "in", "--top-k", "3", *arguments])
    return int(stopped.value.code or 0)


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_ray_answers_as_one_machine_does(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", "here.jsonl") == 3
    assert run("--engine", "ray", "--actors", "2", "--out", "there.jsonl") == 3
    here, there = rows("here.jsonl"), rows("there.jsonl")
    assert [row["source"] for row in there] == [row["source"] for row in here]
    assert len(there) == COUNT - 1
    for one, other in zip(here, there, strict=True):
        assert one["answer"] == other["answer"] and one["encoder"] == other["encoder"]
        assert list(one["scores"]) == list(other["scores"])
        np.testing.assert_allclose(list(one["scores"].values()), list(other["scores"].values()), atol=1e-5)
    assert Path("here.jsonl.errors.jsonl").read_bytes() == Path("there.jsonl.errors.jsonl").read_bytes()
    assert not ray.is_initialized()


def test_it_goes_on_on_ray(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polysense.data.journal import Journal, Place

    assert run("--engine", "ray", "--actors", "1", "--out", "whole.jsonl") == 3
    add = Journal.add

    def stop(self: Journal, window: Any, place: Place) -> None:
        if place.item > 130:
            raise KeyboardInterrupt
        add(self, window, place)

    monkeypatch.setattr(Journal, "add", stop)
    assert run("--engine", "ray", "--actors", "1", "--out", "o.jsonl") == 130
    monkeypatch.undo()
    monkeypatch.chdir(pictures)
    assert run("--engine", "ray", "--actors", "1", "--out", "o.jsonl", "--resume") == 3
    assert Path("o.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_no_cluster_there(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--engine", "ray", "--address", "127.0.0.1:1", "--out", "o.jsonl") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no Ray cluster" in line and "ray start --head" in line
