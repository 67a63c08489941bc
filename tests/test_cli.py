"""The command line on a small pretended pipeline: what is printed, written and returned."""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import polysense
from polysense.apps import cli, inputs
from polysense.apps.flow import Reading
from polysense.core.errors import InputError, InputWarning
from polysense.core.predictions import Embedding, Labels, Prediction
from polysense.core.types import Sample
from polysense.tasks import TASKS


@dataclass
class Info:
    name: str
    task: str
    modality: str
    metrics: dict[str, float] = field(default_factory=dict)
    measured_on: str = "cats, test"
    licence: str = "Apache-2.0"
    default: bool = False
    path: Path = Path("bundles/x")


class PretendedTokenizer:
    """Reads a file's text; the text "bad" is a file that cannot be read, "table" one with two rows."""

    def read_all(self, path: Path) -> Iterator[Sample]:
        text = path.read_text()
        if text == "bad":
            raise InputError(path, "the file is empty", "give another")
        for row in range(2 if text == "table" else 1):
            source, word = (f"{path}#{row}", "row") if text == "table" else (str(path), text)
            yield Sample({"x": torch.zeros(1)}, source, {"text": word})

    def split(self, sample: Sample) -> list[Sample]:
        return [sample]


class PretendedPipeline:
    """Answers with the file's text."""

    def __init__(self, name: str, modality: str) -> None:
        self.name = self.task = name
        self.modality = modality
        self.tokenizer = PretendedTokenizer()
        self.encoder = SimpleNamespace(fingerprint=lambda: "0123")
        self.encoder_hash = "0123"
        self.device = torch.device("cpu")

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.zeros(1)}

    def answer(self, sequences: list[list[Sample]], *_: Any) -> list[Prediction]:
        return [self.answer_one(parts[0].source, parts[0].meta["text"]) for parts in sequences]

    def answer_one(self, source: str, text: str) -> Prediction:
        if self.task.endswith("-embedding"):
            return Embedding(np.full(3, len(text), np.float32), source)
        return Labels((text, "other", "third"), (0.7, 0.2, 0.1), (text,), source)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two good images and a bad one, as working directory; three pretended bundles."""
    infos = [
        Info("image-classification", "image-classification", "image", {"accuracy": 0.875}),
        Info("cells", "object-detection", "image", {"map": 0.1, "map50": 0.5}, default=True),
        Info("shapes", "point-cloud-classification", "point_cloud", {"f1": 0.5}, licence="terms " * 20),
    ]
    modality = {name: TASKS[name].modality for name in TASKS}
    monkeypatch.setattr(polysense, "bundles", lambda: infos, raising=False)
    monkeypatch.setattr(polysense, "load", lambda name, **_: PretendedPipeline(name, modality[name]), raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, text in {"in/a.jpg": "cat", "in/deep/b.PNG": "dog", "in/notes.txt": "1 2 3", "bad.jpg": "bad"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    return int(stopped.value.code or 0)


def test_help_loads_nothing_heavy() -> None:
    heavy = "torch numpy pandas rich PIL gradio"
    code = f"import sys, polysense.apps.cli; print(sorted(set('{heavy}'.split()) & {{*sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("predict", "embed", "fit", "eval", "models", "try"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("polysense ")


def test_predict_prints_tabs_into_a_pipe(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "image-classification", "in") == 0
    assert capsys.readouterr().out.splitlines() == ["in/a.jpg\tcat\t0.700", "in/deep/b.PNG\tdog\t0.700"]


def test_predict_top_k(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "image-classification", "in/a.jpg", "--top-k", "2") == 0
    assert capsys.readouterr().out.splitlines() == ["in/a.jpg\tcat 0.700, other 0.200\t0.700"]
    assert run("predict", "image-classification", "in/a.jpg", "--top-k", "2", "--out", "o.jsonl") == 0
    assert json.loads(Path("o.jsonl").read_text())["scores"] == {"cat": 0.7, "other": 0.2}


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_predict_writes_a_file(files: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    assert run("predict", "image-classification", "in/**/*", "in/a.jpg", "--out", f"o{ending}") == 0
    read = {".jsonl": lambda p: pd.read_json(p, lines=True), ".json": pd.read_json, ".csv": pd.read_csv,
            ".parquet": pd.read_parquet}[ending]  # fmt: skip
    table = read(f"o{ending}")
    # A pattern takes folders and files as they come; every file once.
    assert sorted(table.source) == ["in/a.jpg", "in/deep/b.PNG", "in/notes.txt"]
    output = capsys.readouterr()
    assert output.out == ""
    assert "3 answers" in output.err


def test_a_bad_file_is_named_and_the_rest_answered(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "image-classification", "bad.jpg", "in", "--out", "o.jsonl") == 3
    assert "skipped: bad.jpg: the file is empty" in capsys.readouterr().err
    assert len(Path("o.jsonl").read_text().splitlines()) == 2


def test_nothing_readable_is_an_error_without_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "image-classification", "bad.jpg", "--out", "o.jsonl") == 1
    assert not Path("o.jsonl").exists()
    assert "error:" in capsys.readouterr().err


def test_on_error_fail_stops(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", "image-classification", "in", "bad.jpg", "--on-error", "fail", "--out", "o.csv") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: bad.jpg: the file is empty; give another."]
    assert not Path("o.csv").exists()


def test_a_stopped_run_leaves_no_file(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: PretendedPipeline, *_: Any) -> list[Prediction]:
        raise KeyboardInterrupt

    monkeypatch.setattr(PretendedPipeline, "answer", stop)
    before = sorted(files.rglob("*"))
    assert run("predict", "image-classification", "in", "--out", "o.jsonl") == 130
    assert sorted(files.rglob("*")) == before


def test_debug_shows_the_traceback(files: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        cli.main(["predict", "image-classification", "bad.jpg", "--on-error", "fail", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "image-clasification", "in"], "did you mean image-classification?"),
        (["predict", "in/bundle", "in"], "in/bundle: there is no such folder"),
        (["predict", "xyz", "in"], "choose one of: audio-embedding, audio-meaning, cells, image-classification"),
        (["predict", "image-classification", "nowhere"], "nowhere: there is no such file"),
        (["predict", "image-classification", "*.gif"], "there is no such file"),
        (["predict", "image-classification", "in", "--out", "o.xlsx"], ".parquet"),
        (["predict", "image-classification", "in", "--device", "warp9"], "no such device"),
        (["predict", "image-classification", "empty"], "no readable file"),
        (["embed", "in/notes.txt"], "--modality"),
        (["eval", "image-classification", "in", "--json", "nowhere/m.json"], "nowhere/m.json: its folder does not"),
        (["embed", "in", "--modality", "smell"], "choose one of: audio, image"),
    ],
)
def test_errors_are_one_line(files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    (files / "empty").mkdir()
    assert run(*arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_wrong_usage_is_exit_code_2(files: Path) -> None:
    assert run("predict") == 2
    assert run("predict", "image-classification", "in", "--batch-size", "0") == 2
    assert run("fit", "t", "d", "--out", "o", "--head", "novalue") == 2
    assert run("fit", "t", "d", "--out", "o", "--lr=-1") == 2
    assert run("fit", "t", "d", "--out", "o", "--val-share", "5") == 2


def test_pictures(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polysense.apps import pictures

    made: list[Path] = []
    monkeypatch.setattr(pictures, "draw", lambda answer, source, path, modality=None: made.append(path))
    (files / "in" / "deep" / "a.jpg").write_text("cow")
    (files / "t.csv").write_text("table")
    assert run("predict", "image-classification", "in", "t.csv", "--pictures", "p") == 0
    assert [str(path) for path in made] == ["p/a.png", "p/a-2.png", "p/b.png", "p/t-0.png", "p/t-1.png"]


def test_embed_mixes_modalities(files: Path) -> None:
    (files / "in" / "s.wav").write_text("sound")
    assert run("embed", "in/a.jpg", "in/s.wav", "--out", "v.npz") == 0
    with np.load("v.npz", allow_pickle=False) as arrays:
        assert arrays["sources"].tolist() == ["in/a.jpg", "in/s.wav"]
        assert arrays["modalities"].tolist() == ["image", "audio"]
        np.testing.assert_array_equal(arrays["vectors"], [[3, 3, 3], [5, 5, 5]])
    assert run("embed", "in", "--out", "v.npy") == 0
    assert np.load("v.npy").shape == (3, 3)
    assert run("embed", "in", "--out", "v.parquet") == 0
    assert len(pd.read_parquet("v.parquet").embedding[0]) == 3


def test_embed_a_table(tmp_path: Path) -> None:
    """The columns come from the table itself."""
    pd.DataFrame({"height": [1.0, 2.0, 3.0], "kind": ["a", "b", "a"]}).to_csv(tmp_path / "t.csv", index=False)
    assert run("embed", str(tmp_path / "t.csv"), "--modality", "tabular", "--out", str(tmp_path / "v.npy")) == 0
    assert np.load(tmp_path / "v.npy").shape[0] == 3


def test_models(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["image-classification", "image-classification", "accuracy", "0.875", "Apache-2.0"] in lines
    assert ["cells", "*", "object-detection", "map50", "0.500", "Apache-2.0"] in lines
    assert next(x for x in lines if x[0] == "shapes")[:3] == ["shapes", "point-cloud-classification", "terms"]


def test_tables_fit_a_narrow_terminal(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from polysense.apps.learn import show_metrics

    monkeypatch.setenv("COLUMNS", "80")
    assert run("models") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    show_metrics({"accuracy": 0.5}, "point-cloud-classification on validation data")
    assert capsys.readouterr().out.startswith("point-cloud-classification on validation data\n")


def test_fit_passes_only_what_was_given(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fit(task: str, data: Path, out: Path, **options: Any) -> SimpleNamespace:
        seen.update(options, task=task, data=data, out=out)
        return SimpleNamespace(metrics={"accuracy": 0.5}, seconds=1.0, epochs=2, path=out)

    monkeypatch.setitem(sys.modules, "polysense.training.fit", SimpleNamespace(fit=fit))
    assert run("fit", "image-classification", "in", "--out", "b", "--epochs", "3", "--tokenizer", "size=96",
               "--tokenizer", "name=x", "--device", "cpu", "-q") == 0  # fmt: skip
    assert seen == {"task": "image-classification", "data": Path("in"), "out": Path("b"), "epochs": 3,
                    "tokenizer_options": {"size": 96, "name": "x"}, "device": "cpu", "encoder": "embedded",
                    "train": "tokenizer+head", "progress": False}  # fmt: skip


def test_eval_writes_json(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Any] = {}

    def evaluate(bundle: str, data: Path, **options: Any) -> dict[str, float]:
        seen.update(options)
        warnings.warn("in: 3 images are not there", InputWarning, stacklevel=1)
        warnings.warn("deprecated", UserWarning, stacklevel=1)
        return {"accuracy": 0.25}

    monkeypatch.setitem(sys.modules, "polysense.training.evaluate", SimpleNamespace(evaluate=evaluate))
    assert run("eval", "image-classification", "in", "--json", "m.json", "--split", "val", "--device", "cpu") == 0
    assert json.loads(Path("m.json").read_text()) == {"accuracy": 0.25}
    assert seen == {"split": "val", "batch_size": 16, "device": "cpu", "engine": "torch"}
    screen = capsys.readouterr()
    assert "0.2500" in screen.out
    assert screen.err == "note: in: 3 images are not there\n"  # and not what a library tells developers


def test_our_own_faults_keep_their_traceback() -> None:
    assert cli.explain(TypeError("x")) is None
    assert cli.explain(ValueError("two\nlines")) == "two lines (--debug shows where)"


def test_a_file_named_like_a_pattern_is_found(files: Path) -> None:
    (files / "x[1].jpg").write_text("cat")
    assert inputs.expand(["x[1].jpg"], (".jpg",)) == [Path("x[1].jpg")]


def test_words_in_a_folder_are_texts_and_numbers_are_not(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear all, it rained the whole week, so we stayed inside and read.")
    (tmp_path / "scan.txt").write_text("0.1 0.2 0.3\n0.4 0.5 0.6\n")

    def sort(name: Path) -> dict[str, list[str]]:
        names = [str(name)]
        groups = inputs.sort_items(partial(Reading().items, names), names, None, ["image", "point_cloud", "text"])
        return {modality: [item.name for item in items] for modality, items in groups.items()}

    assert sort(tmp_path / "letter.txt") == {"text": [str(tmp_path / "letter.txt")]}
    with pytest.raises(InputError, match="point_cloud or text"):
        sort(tmp_path / "scan.txt")
    with pytest.warns(InputWarning, match=r"scan\.txt is left out, .* --modality says it"):
        assert sort(tmp_path) == {"text": [str(tmp_path / "letter.txt")]}


def test_zero_shot_options_belong_to_zero_shot(files: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("predict", "cells", "in/a.jpg", "--none", "other") == 2
    assert "zero-shot" in capsys.readouterr().err
    assert run("predict", "zero-shot", "in/a.jpg") == 1
    assert "--labels" in capsys.readouterr().err
    assert run("predict", "cells", "in/a.jpg", "--labels", "a, b") == 1
    assert "its classes were trained" in capsys.readouterr().err


def test_zero_shot_from_file_to_answer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from polysense.apps.examples import chair, lion, rain, weather

    (tmp_path / "mixed").mkdir()
    for name, make in {"lion.jpg": lion, "rain.wav": rain, "chair.ply": chair, "day.txt": weather}.items():
        make(tmp_path / "mixed" / name)
    out = tmp_path / "answers.csv"
    labels = "lion, rain, chair, weather forecast"
    assert run("predict", "zero-shot", str(tmp_path / "mixed"), "--labels", labels, "--out", str(out)) == 0
    answers = {Path(row.source).name: row.answer for row in pd.read_csv(out).itertuples()}
    assert [answers[name] for name in ("lion.jpg", "rain.wav", "chair.ply")] == ["lion", "rain", "chair"]
    assert "day.txt" in answers
    (tmp_path / "few" / "lion").mkdir(parents=True)
    lion(tmp_path / "few" / "lion" / "a.jpg")
    shown = ["--examples", str(tmp_path / "few")]
    assert run("predict", "zero-shot", str(tmp_path / "mixed" / "rain.wav"), "--labels", labels, *shown) == 1
    assert "it holds no audio examples" in capsys.readouterr().err
