"""Examples: complete, the same every time, and readable by the readers of their modality."""

from pathlib import Path

import numpy as np
import pytest

import polysense.data.audio
import polysense.data.image
import polysense.data.point_cloud
import polysense.data.table
import polysense.data.time_series
import polysense.data.video
from polysense.apps import examples, try_it
from polysense.apps.examples import Example, make_examples
from polysense.apps.inputs import endings
from polysense.core.errors import InputError
from polysense.core.predictions import Labels
from polysense.tasks import TASKS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return make_examples(tmp_path_factory.mktemp("examples") / "new")


def test_all_six_modalities_and_existing_tasks(made: list[Example]) -> None:
    assert {example.modality for example in made} == set(polysense.tasks.MODALITIES)
    for example in made:
        assert TASKS[example.task].modality == example.modality
        assert example.path.suffix in endings(example.modality)
    assert (made[0].path.parent / "SOURCES.txt").is_file()


def test_they_are_the_same_every_time(made: list[Example], tmp_path: Path) -> None:
    for example in make_examples(tmp_path):
        first = made[0].path.parent / example.path.name
        if example.path.suffix == ".mp4":  # x264 does not promise the same bytes
            one, two = (polysense.data.video.read_video(path).frames.astype(int) for path in (first, example.path))
            assert one.shape == two.shape and np.abs(one - two).mean() < 5
        else:
            assert first.read_bytes() == example.path.read_bytes(), example.path.name


def test_readers_read_them(tmp_path: Path) -> None:
    for name in examples.MAKERS:
        examples.MAKERS[name](tmp_path / name)
    assert polysense.data.image.read_image(tmp_path / "smear.png").size == (640, 480)
    for name in ("flower.jpg", "china.jpg", "lion.jpg"):
        assert min(polysense.data.image.read_image(tmp_path / name).size) > 200
    assert polysense.data.video.read_video(tmp_path / "shapes.mp4", 4).duration == pytest.approx(3, abs=0.1)
    for name in ("clock.wav", "rain.wav"):
        recording = polysense.data.audio.read_audio(tmp_path / name)
        assert recording.duration == pytest.approx(5)
        assert 0.5 < np.abs(recording.wave).max() <= 1
    chair = polysense.data.point_cloud.read_cloud(tmp_path / "chair.ply").xyz
    assert chair.shape == (4096, 3)
    np.testing.assert_allclose(np.ptp(chair, axis=0), [0.45, 0.45, 0.95], atol=0.03)
    series = polysense.data.time_series.read_series(tmp_path / "energy.csv")
    assert series.names == ["load", "price", "temperature"]
    assert len(series.values) == 1344
    assert np.isnan(series.values).any()
    motion = polysense.data.time_series.read_series_all(tmp_path / "motion.ts")
    assert [frame.values.shape for frame in motion] == [(100, 6)] * 2
    people = polysense.data.table.read_table(tmp_path / "people.csv")
    assert people.shape == (6, 14)
    assert people.isna().to_numpy().sum() == 2


class Pretended:
    encoder_hash = "abc"

    def __call__(self, sources: list[Path]) -> list[Labels]:
        return [Labels(("[x]", "y"), (0.9, 0.1), ("[x]",), f"{source}#{i}") for source in sources for i in range(5)]


def test_try_shows_every_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    people = tmp_path / "inputs" / "people.csv"

    def make(folder: Path) -> list[Example]:
        folder.mkdir(parents=True)
        examples.people(people)
        return [Example("tabular-classification", people, "tabular")]

    monkeypatch.setattr(try_it, "make_examples", make)
    monkeypatch.setattr(try_it.polysense, "load", lambda name: Pretended())
    assert try_it.try_it(tmp_path) == 0
    text = capsys.readouterr().out
    assert "people.csv#0" in text
    assert "[x]" in text
    assert "and 2 more" in text
    assert "one frozen encoder" in text
    pictures = sorted(path.name for path in (tmp_path / "pictures" / "tabular-classification").iterdir())
    assert pictures == ["people-0.png", "people-1.png", "people-2.png"]


def test_try_fails_when_an_example_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                        capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    def load(name: str) -> Pretended:
        raise InputError(name, "no bundle is there", "train one")

    monkeypatch.setattr(
        try_it, "make_examples", lambda folder: [Example("forecasting", folder / "x.csv", "time_series")]
    )
    monkeypatch.setattr(try_it.polysense, "load", load)
    assert try_it.try_it(tmp_path) == 1
    assert "failed" in capsys.readouterr().out
