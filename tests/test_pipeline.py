"""The pipeline: any number of sources, one answer for each input, in order; and what importing costs."""

import copy
import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from polysense.core.errors import InputError
from polysense.core.predictions import Labels, Series
from polysense.pipeline import Pipeline, is_batch, is_many
from polysense.tasks import TASKS
from polysense.tokenizers.image import ImageConfig, ImageTokenizer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def images(build):
    return build("image-classification")


@pytest.fixture(scope="module")
def forecasts(build):
    return build("forecasting")


def test_sources_in_every_form(images, make, tmp_path, numbers):
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.png")
        make("image", number).save(paths[-1])
    expected = [numbers(images(path)[0]) for path in paths]
    forms = {"list": paths, "generator": (path for path in paths), "map": map(str, paths),
             "bytes": [path.read_bytes() for path in paths], "images": [Image.open(path) for path in paths],
             "arrays": [np.array(Image.open(path)) for path in paths]}  # fmt: skip
    for name, sources in forms.items():
        answers = images(sources, batch_size=2)
        assert len(answers) == 3, name
        for answer, numbers_wanted in zip(answers, expected, strict=True):
            np.testing.assert_allclose(numbers(answer), numbers_wanted, atol=1e-5, err_msg=name)
    assert [answer.source for answer in images(paths)] == [str(path) for path in paths]
    assert images([]) == []


def test_open_file_is_one_source(images, make):
    file = io.BytesIO()
    make("image").save(file, "PNG")
    file.seek(0)
    assert len(images(file)) == 1


@pytest.mark.parametrize(("sources", "many"), [([], True), (iter([]), True), ((0 for _ in []), True), ("a.png", False),
                                               ((np.zeros(9), 8000), False), (io.BytesIO(), False), ({"a": 1}, False),
                                               (np.zeros((2, 3)), False), (b"", False)])  # fmt: skip
def test_what_counts_as_many(sources, many):
    assert is_many(sources) == many


def test_row_with_a_column_called_meta_is_no_batch(images, make):
    assert not is_batch({"meta": 1, "size": 2.0}) and not is_batch({"meta": [1, 2], "size": [2.0, 3.0]})
    batch = images.tokenizer.collate([images.tokenizer.read(make("image"))])
    assert is_batch(batch) and images(batch)["logits"].shape == (1, 3)


@pytest.fixture
def mixed(tmp_path, make):
    """Good, absent, good, damaged, good."""
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number in (0, 2, 4):
        make("image", number).save(paths[number])
    paths[3].write_bytes(paths[2].read_bytes()[:60])
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_skip_keeps_the_order(images, mixed, batch_size):
    answers = list(images.stream(mixed, batch_size, on_error="skip"))
    assert [type(answer) for answer in answers] == [Labels, InputError, Labels, InputError, Labels]
    assert [answer.source for answer in answers] == [str(path) for path in mixed]


def test_skip_when_nothing_can_be_read(images, mixed):
    answers = list(images.stream([mixed[1], mixed[3]], on_error="skip"))
    assert [type(answer) for answer in answers] == [InputError] * 2


def test_raise_names_the_file(images, mixed):
    with pytest.raises(InputError, match=r"1\.png.*no such file"):
        images(mixed)
    with pytest.raises(ValueError, match="skip"):
        list(images.stream(mixed, on_error="ignore"))
    with pytest.raises(ValueError, match="batch_size is at least 1"):
        list(images.stream(mixed, batch_size=0))


def test_stream_reads_no_further_than_it_answers(images, make):
    read = []

    def sources():
        for number in range(100):
            read.append(number)
            yield make("image", number)

    stream = images.stream(sources(), batch_size=4)
    next(stream)
    assert len(read) == 4


def test_many_unusable_sources_do_not_pile_up(images):
    read = []

    def sources():
        for number in range(1000):
            read.append(number)
            yield f"absent-{number}.png"

    next(images.stream(sources(), batch_size=4, on_error="skip"))
    assert len(read) == 16


def test_table_gives_one_answer_a_row(build, table, numbers, tmp_path):
    pipeline = build("tabular-classification")
    frame = table(11)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    answers = pipeline(tmp_path / "rows.csv", batch_size=4)
    assert [answer.source for answer in answers] == [f"{tmp_path / 'rows.csv'}#{row}" for row in range(11)]
    for rows in (frame, frame.to_dict("records"), frame.to_dict("list")):
        for one, other in zip(answers, pipeline(rows), strict=True):
            np.testing.assert_allclose(numbers(one), numbers(other), atol=1e-5)
    assert len(pipeline([frame, frame.head(2)])) == 13


def test_row_dict_with_a_column_called_meta(encoder):
    rows = [{"meta": "x" if i % 2 else "y", "size": float(i * i)} for i in range(30)]
    pipeline = Pipeline.build("tabular-embedding", encoder=encoder, sources=[pd.DataFrame(rows)])
    assert len(pipeline(rows[0])) == 1 and len(pipeline(rows)) == 30


def test_no_table_embedding_ships():
    with pytest.raises(InputError, match="its columns differ from table to table"):
        Pipeline.from_pretrained("tabular-embedding")


def test_windows_of_a_recording_become_one_answer(build, make):
    pipeline = build("audio-classification")
    rng = np.random.default_rng(0)
    long, short = (rng.normal(0, 0.1, 16_000 * 4), 16_000), make("audio", 1)
    parts = pipeline.tokenizer.split(pipeline.tokenizer.read(long))
    assert len(parts) == 4
    with torch.inference_mode():
        logits = pipeline(pipeline.tokenizer.collate(parts))["logits"].mean(0)
    expected = dict(zip(pipeline.head.config.classes, logits.softmax(0).tolist(), strict=True))
    for batch_size in (1, 3, 16):
        answers = pipeline([short, long, short], batch_size=batch_size)
        assert len(answers) == 3 and answers[0].scores == pytest.approx(answers[2].scores, abs=1e-5)
        for name, value in zip(answers[1].names, answers[1].scores, strict=True):
            assert value == pytest.approx(expected[name], abs=1e-5)


def wave(variates: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (60, variates)) + 100 * np.arange(variates)
    return pd.DataFrame(values, pd.date_range("2024-01-01", periods=60, freq="D"), [f"v{i}" for i in range(variates)])


def test_variates_stay_in_order(forecasts):
    answers = forecasts([wave(3), wave(1), wave(5, 2)], batch_size=2)
    assert [answer.names for answer in answers] == [[f"v{i}" for i in range(n)] for n in (3, 1, 5)]
    for answer, count in zip(answers, (3, 1, 5), strict=True):
        assert answer.mean.shape == (8, count) and answer.history.shape == (60, count)
        assert (np.abs(answer.mean - 100 * np.arange(count)).max(0) < 20).all()  # each variate in its own units
        single = [forecasts(wave(count, 2 if count == 5 else 0)[[name]])[0].mean[:, 0] for name in answer.names]
        np.testing.assert_allclose(answer.mean, np.stack(single, 1), rtol=1e-5)


def test_one_variate_alone(forecasts):
    answers = forecasts([wave(1), wave(1, 3)])
    assert [type(answer) for answer in answers] == [Series] * 2 and answers[0].mean.shape == (8, 1)
    assert answers[0].times[0].startswith("2024-03-01") and len(answers[0].times) == 8


def test_fewer_steps_than_trained(build):
    pipeline = build("forecasting")
    whole = pipeline(wave(2))[0]
    short = pipeline(wave(2), horizon=3)[0]
    np.testing.assert_array_equal(short.mean, whole.mean[:3])
    assert len(short.times) == 3 and all(values.shape == (3, 2) for values in short.quantiles.values())


def test_predicting_leaves_the_mode_and_the_gradients(images, make):
    images.train()
    try:
        images(make("image"))
        assert images.training and images.head.training and not images.encoder.training
        out = images(images.tokenizer.collate([images.tokenizer.read(make("image"))]))
        assert out["logits"].requires_grad
    finally:
        images.eval()


def test_shared_encoder_stays_where_it_is(encoder_spec):
    one, other = (Pipeline.build("image-embedding", encoder=encoder_spec) for _ in range(2))
    assert one.encoder is other.encoder
    one.to("cpu")
    assert one.encoder is other.encoder
    fingerprint = other.encoder_hash
    one.double()
    assert next(one.encoder.parameters()).dtype == torch.float64
    assert next(other.encoder.parameters()).dtype == torch.float32 and other.encoder_hash == fingerprint
    assert not any(parameter.requires_grad for parameter in one.encoder.parameters())


def test_encoder_is_frozen_whatever_it_was(images, encoder):
    free = copy.deepcopy(encoder).requires_grad_(True).train()
    pipeline = Pipeline(TASKS["image-classification"], images.tokenizer, free, images.head)
    assert not any(parameter.requires_grad for parameter in pipeline.encoder.parameters())
    assert not pipeline.encoder.training and not pipeline.train().encoder.training
    images.eval()


def test_width_must_fit(images):
    with pytest.raises(ValueError, match="width 24 does not fit an encoder of 48"):
        Pipeline(TASKS["image-classification"], ImageTokenizer(ImageConfig(width=24)), images.encoder, images.head)


def test_timm_encoder_brings_its_own_patches(make):
    pipeline = Pipeline.build("image-embedding", encoder="random:vit_tiny_patch16_224", head={"pooling": ("cls",)})
    assert pipeline.tokenizer.config.form == "vit" and pipeline.settled == set()
    assert pipeline(make("image"))[0].vector.shape == (192,)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    heavy = ("torch", "timm", "pandas", "open3d", "av", "transformers", "matplotlib", "sklearn")
    code = "import sys, polysense; polysense.bundles(); polysense.InputError; print({} & set(sys.modules))"
    assert run(code.replace("{}", repr(set(heavy)))) == "set()"
    assert run("import polysense\ntry: polysense.nothing\nexcept AttributeError as e: print(e)").endswith("'nothing'")


@pytest.mark.skipif(not importlib.util.find_spec("tokenizers"), reason="Hugging Face's tokenizers is not installed")
def test_hugging_face_tokenizers_win_in_the_root_of_the_repository():
    assert "site-packages" in run("import tokenizers; print(tokenizers.__file__)")
    assert "tokenizers" in run("import polysense.tokenizers.image as m; print(m.__name__)")
