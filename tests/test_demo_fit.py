"""Fitting in the demo: class folders in an archive become a model that its visitor uses at once, and nobody else."""

from __future__ import annotations

import stat
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

import polysense
from polysense.apps.demo.app import served
from polysense.apps.demo.fit import KINDS, METHODS, curves
from polysense.apps.demo.fitted import Fitted
from polysense.apps.demo.fitting import THREAD, Cancelled, Run, Watched, learn
from polysense.apps.demo.limits import MOST_EXAMPLES, Options
from polysense.apps.demo.unpack import unpack
from polysense.core.errors import InputError
from polysense.data.limits import limited

gradio_client = pytest.importorskip("gradio_client")
FIT = ("images", "probe", 0, 1)  # kind, method, epochs, minutes


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noisy pictures that differ in colour, 8 each, packed within one more folder."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("colours")
    with zipfile.ZipFile(folder / "colours.zip", "w") as archive:
        for i, name in enumerate(("blue", "red")):
            for k in range(8):
                pixels = rng.integers(0, 120, (40, 48, 3))
                pixels[..., 2 - 2 * i] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "one.png")
                archive.write(folder / "one.png", f"pictures/{name}/{k}.png")
        archive.writestr("__MACOSX/pictures/red/._0.png", b"of some system")
    return folder / "colours.zip"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(Options(max_mb=2)) as (_, address):
        yield address


def visitor(address: str, folder: Path) -> Any:
    return gradio_client.Client(address, verbose=False, download_files=folder)


def given(path: Path) -> Any:
    return gradio_client.handle_file(str(path))


def read(archive: Path, member: str, to: Path) -> Path:
    with zipfile.ZipFile(archive) as packed:
        to.write_bytes(packed.read(member))
    return to


def test_a_visitor_fits_and_uses_a_model(address: str, colours: Path, tmp_path: Path) -> None:
    encoder = polysense.load_encoder("embedded")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    client = visitor(address, tmp_path / "first")
    told, found, _, _, metrics, pictures, bundle, model = client.predict(given(colours), *FIT, api_name="/fit_folders")
    assert "Fitted in" in told and "checked: " in found and "/" not in found.replace("](", "")
    assert metrics["accuracy"] == 1.0 and model.startswith("colours-")
    assert any("Confusion" in one["caption"] for one in pictures)

    photo = read(colours, "pictures/red/3.png", tmp_path / "photo.png")
    _, classes, _, record = client.predict(given(photo), model, 2, api_name="/image")
    assert record["answer"] == classes["label"] == "red"
    rows, _, _ = client.predict([given(photo)], model, ".csv", api_name="/batch")
    assert rows["data"][0][1] == "red"

    with zipfile.ZipFile(bundle) as packed:  # the bundle is the model, wherever it is unpacked
        packed.extractall(tmp_path)
    own = polysense.load(tmp_path / "colours")(photo)[0]
    assert own.answer() == "red" and own.scores[0] == pytest.approx(record["confidence"], abs=1e-5)
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())
    assert "encoders: 1" in client.predict(api_name="/models")[1]

    other = visitor(address, tmp_path / "second")
    with pytest.raises(gradio_client.exceptions.AppError):
        other.predict(given(photo), "colours", 2, api_name="/image")


def test_bad_archives_get_one_sentence(address: str, tmp_path: Path) -> None:
    client = visitor(address, tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"no archive at all")
    for values, sentence in (((given(tmp_path / "bad.zip"), *FIT), "bad.zip: this is not a zip file"),
                             ((None, *FIT), "archive: nothing was given")):  # fmt: skip
        with pytest.raises(gradio_client.exceptions.AppError, match=sentence) as caught:
            client.predict(*values, api_name="/fit_folders")
        assert "polysense-demo" not in str(caught.value)


def packed(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo("red/link.png")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    return path


def locked(path: Path) -> Path:
    content = bytearray(packed(path, **{"red/a.png": b"x"}).read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: packed(path, **{"../a.png": b"x"}), "leads out"),
        (lambda path: packed(path, **{"red/../../a.png": b"x"}), "leads out"),
        (lambda path: packed(path, **{"red/..": b"x"}), "leads out"),
        (lambda path: packed(path, **{"/etc/a.png": b"x"}), "leads out"),
        (lambda path: packed(path, **{"red\\..\\a.png": b"x"}), "leads out"),
        (lambda path: packed(path, **{"C:/a.png": b"x"}), "leads out"),
        (lambda path: packed(path, **{"a/b/c/d/e/f/g/h/i.png": b"x"}), "too deep"),
        (lambda path: packed(path, **{"a": b"x", "a/b.png": b"x"}), "side by side"),
        (lambda path: packed(path, **{"red/" + "x" * 300 + ".png": b"x"}), "side by side"),
        (lambda path: packed(path, **{"red/a.png": bytes(2_000_000)}), "2 million bytes once unpacked"),
        (lambda path: packed(path, **{f"red/{i}.png": b"" for i in range(MOST_EXAMPLES + 1)}), "more than the 2000"),
        (lambda path: packed(path), "holds no file"),
        (link, "is a link"),
        (locked, "password"),
    ],
)
def test_archives_are_unpacked_safely(make: Callable[[Path], Path], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "within").mkdir()
    with limited(unpacked=1_000_000), pytest.raises(InputError, match=sentence):
        unpack(make(tmp_path / "bad.zip"), tmp_path / "within")
    assert {path.name for path in tmp_path.iterdir()} == {"bad.zip", "within"}


def test_a_damaged_member_is_found(tmp_path: Path) -> None:
    path = packed(tmp_path / "bad.zip", **{"red/a.png": bytes(range(256)) * 40})
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)
    (tmp_path / "within").mkdir()
    with pytest.raises(InputError, match="not a zip file that can be read"):
        unpack(path, tmp_path / "within")


def test_roots_of_archives(tmp_path: Path) -> None:
    for members, root in (({"red/a.png": b"x", "blue/a.png": b"x"}, ""), ({"all/red/a.png": b"x"}, "all"),
                          ({"train/red/a.png": b"x"}, ""), ({"red/a.png": b"x"}, "")):  # fmt: skip
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        assert unpack(packed(tmp_path / "good.zip", **members), folder) == folder / root


def sound(path: Path, one: bool, rng: Any) -> None:
    tone = np.sin(np.arange(8000) * (0.1 if one else 0.5)) + rng.normal(0, 0.05, 8000)
    soundfile.write(path.with_suffix(".wav"), 0.3 * tone, 16_000)


def cloud(path: Path, one: bool, rng: Any) -> None:
    points = rng.normal(size=(256, 3)) * ((1, 1, 0.01) if one else (1, 1, 1))
    np.savetxt(path.with_suffix(".xyz"), points)


def series(path: Path, one: bool, rng: Any) -> None:
    values = np.sin(np.arange(120) * (0.1 if one else 0.5)) + rng.normal(0, 0.05, 120)
    pd.DataFrame({"value": values}).to_csv(path.with_suffix(".csv"), index=False)


@pytest.mark.parametrize(("kind", "write"), [("sounds", sound), ("point clouds", cloud), ("series", series)])
def test_every_kind_is_learnt(kind: str, write: Callable[..., None], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            write(tmp_path / "data" / name / f"{i}", name == "first", rng)
    task = f"{KINDS[kind].replace('_', '-')}-classification"
    run = Run(lambda told: learn(task, tmp_path / "data", tmp_path / "out", "probe", 0, 1, told))
    assert len(list(run.ticks(0.05))) > 0 and run.result.metrics["accuracy"] == 1.0
    assert [one.number for one in run.watched.epochs] == [0]
    file = next((tmp_path / "data" / "second").iterdir())
    assert polysense.load(tmp_path / "out")(file)[0].answer() == "second"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_leaves_the_encoder(method: str, image_folders: Path, tmp_path: Path) -> None:
    encoder = polysense.load_encoder("embedded")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    run = Run(lambda told: learn("image-classification", image_folders, tmp_path / "out", method, 1, 1, told))
    assert list(run.ticks(0.05)) and run.result.metrics["accuracy"] > 0.6
    first, second = curves("image-classification", run.watched.epochs)
    assert len(first) == run.result.epochs + 1 and len(second) == run.result.epochs
    assert run.result.epochs == (0 if method == "probe" else 1)
    assert all(value.equal(before[name]) for name, value in encoder.state_dict().items())


@pytest.fixture
def slow(image_folders: Path, tmp_path: Path) -> Callable[[Watched], Any]:
    return lambda told: learn("image-classification", image_folders, tmp_path / "out", "head", 20, 5, told)


def test_a_fit_tells_of_its_epochs_and_is_cancelled(slow: Callable[[Watched], Any], tmp_path: Path) -> None:
    run = Run(slow)
    with pytest.raises(Cancelled):
        for _ in run.ticks(0.05):
            if run.watched.epochs:
                assert "step" in run.watched.now or run.watched.epochs[0].metrics["accuracy"] >= 0
                run.watched.stop()
    assert run.watched.lines[0].startswith("checked: ") and not (tmp_path / "out").exists()


def test_a_fit_ends_with_its_listener_and_with_its_time(slow: Callable[[Watched], Any]) -> None:
    run = Run(slow)
    ticks = run.ticks(0.05)
    next(ticks)
    assert any(thread.name == THREAD for thread in threading.enumerate())
    ticks.close()  # the visitor has gone
    assert not any(thread.name == THREAD for thread in threading.enumerate())
    with pytest.raises(InputError, match="took more than 0 minutes"):
        list(Run(slow, Watched(seconds=0)).ticks())


def test_one_fit_at_a_time_and_each_visitor_cancels_their_own(address: str, colours: Path, tmp_path: Path) -> None:
    first, second = visitor(address, tmp_path / "1"), visitor(address, tmp_path / "2")
    job = first.submit(given(colours), "images", "lora", 20, 5, api_name="/fit_folders")
    while not job.outputs() and not job.done():
        time.sleep(0.05)
    waiting = second.submit(given(colours), *FIT, api_name="/fit_folders")
    second.predict(api_name="/cancel_fit")  # it has none yet
    time.sleep(1)
    assert not job.done() and not waiting.outputs()
    first.predict(api_name="/cancel_fit")
    with pytest.raises(gradio_client.exceptions.AppError, match="it was cancelled"):
        job.result(20)
    assert waiting.result(30)[-1].startswith("colours-")


def test_few_models_are_kept_and_none_for_ever(build: Callable[..., Any]) -> None:
    pipeline, fitted = build("image-classification"), Fitted(most=2)
    names = [fitted.keep("mine", pipeline) for _ in range(2)]
    assert fitted.get(names[0]) is pipeline
    third = fitted.keep("mine", pipeline)
    assert [fitted.get(name) is pipeline for name in (*names, third)] == [True, False, True]
    assert fitted.get("mine") is None and len(fitted.pipelines()) == 2
    fitted.seconds = -1
    assert fitted.get(third) is None and not fitted.pipelines()
