"""The demo for many: equal questions run as one batch, calls are logged without what was given, files to deploy it."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import polysense
from polysense.apps.demo.app import served
from polysense.apps.demo.batching import Batcher
from polysense.apps.demo.fitting import Cancelled
from polysense.apps.demo.limits import Options
from polysense.apps.demo.logs import Log, note, opened
from polysense.apps.demo.models import Models
from polysense.core.errors import InputError

gradio_client = pytest.importorskip("gradio_client")
ROOT = Path(__file__).parent.parent


def together(count: int, act: Callable[[int], Any]) -> list[Any]:
    """act(0), act(1), … at the same moment."""
    barrier = threading.Barrier(count)

    def run(i: int) -> Any:
        barrier.wait()
        return act(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class Doubler:
    """Doubles numbers, slowly enough that questions gather; minus one is a fault."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, of: str, parts: list[int]) -> list[int]:
        self.batches.append(parts)
        threading.Event().wait(0.05)
        if -1 in parts:
            raise ValueError(of)
        return [2 * part for part in parts]


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_questions_gather_and_each_gets_its_own_answers(at_a_time: int) -> None:
    compute = Doubler()
    batcher = Batcher(compute, most=4, at_a_time=at_a_time, seconds=0.02)
    answers = together(12, lambda i: batcher.ask("ab"[i % 2], [i] * (i % 3)))
    assert answers == [[2 * i] * (i % 3) for i in range(12)]
    assert len(compute.batches) < 12 and sum(map(len, compute.batches)) == 12
    assert all(len({part % 2 for part in parts}) < 2 for parts in compute.batches)  # never two models in one


def test_a_fault_is_told_to_none_but_whose_it_is() -> None:
    batcher = Batcher(Doubler(), most=8, seconds=0.02)

    def ask(i: int) -> Any:
        try:
            return batcher.ask("a", [-1 if i == 2 else i])
        except ValueError as error:
            return str(error)

    assert together(5, ask) == [[0], [2], "a", [6], [8]]


def test_one_at_most_is_no_batch() -> None:
    compute = Doubler()
    batcher = Batcher(compute, most=1)
    together(4, lambda i: batcher.ask("a", [i]))
    assert sorted(compute.batches) == [[0], [1], [2], [3]]


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40 + 9 * i, 90 - 7 * i) for i in range(count)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in sizes]


def test_batched_answers_equal_single_ones() -> None:
    models, given = Models(batch=8), pictures(6)
    pipeline = models.get("tiny200")
    sizes: list[int] = []
    pipeline.tokenizer.register_forward_hook(lambda *_: sizes.append(len(_[2].x)))
    alone = [models.ask("tiny200", picture) for picture in given]
    sizes.clear()
    answers = together(6, lambda i: models.ask("tiny200", given[i]))
    assert max(sizes) > 1 and sum(sizes) == 6
    for one, two in zip(alone, answers, strict=True):
        assert one.predictions[0].answer() == two.predictions[0].answer() and one.tokens == two.tokens > 0
        np.testing.assert_allclose(one.predictions[0].scores, two.predictions[0].scores, atol=1e-5)
    own = polysense.load("tiny200")(given[0])[0]
    assert own.answer() == answers[0].predictions[0].answer()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    log = tmp_path_factory.mktemp("log") / "calls.jsonl"
    with served(Options(max_mb=2, log=str(log))) as (_, address):
        yield address, log


def test_calls_are_logged_without_what_was_given(demo: tuple[str, Path], tmp_path: Path) -> None:
    address, log = demo
    client = gradio_client.Client(address, verbose=False, download_files=tmp_path)
    pictures(1)[0].save(tmp_path / "secret-face.png")
    (tmp_path / "secret-bad.png").write_bytes(b"nothing of the kind")
    good, bad = (gradio_client.handle_file(str(tmp_path / f"secret-{name}.png")) for name in ("face", "bad"))
    record = client.predict(good, "tiny200", 5, api_name="/image")[3]
    with pytest.raises(gradio_client.exceptions.AppError):
        client.predict(bad, "tiny200", 5, api_name="/image")
    with pytest.raises(gradio_client.exceptions.AppError):
        client.predict(None, "a-secret-text", "by its ending", None, "", "by its ending", api_name="/compare")
    client.predict([good, bad], "tiny200", ".csv", api_name="/batch")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    called = [line for line in lines if line["endpoint"] is not None and line["endpoint"] != "/models"]
    assert [(line["endpoint"], line["outcome"], line["error"]) for line in called] == [
        ("/image", "ok", None), ("/image", "refused", "InputError"), ("/compare", "refused", "InputError"),
        ("/batch", "ok", None)]  # fmt: skip
    for line in called:
        assert set(line) == {"time", "endpoint", "seconds", "tokens", "models", "outcome", "error"}
        assert line["seconds"] > 0 and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line["time"])
    assert called[0]["models"] == called[3]["models"] == ["tiny200"]
    assert called[0]["tokens"] == called[3]["tokens"] > 0 and called[1]["tokens"] == 0
    assert "secret" not in log.read_text() and record["answer"] not in log.read_text()


def test_what_a_log_says_of_how_calls_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def act(fault: BaseException | None) -> str:
        note("tiny200", 7)
        if fault is not None:
            raise RuntimeError("shown") from fault
        return "done"

    def steps() -> Iterator[int]:
        for i in range(3):
            note(tokens=1)
            yield i

    with opened("-") as log:
        assert log.watched(act, "image")(None) == "done"
        for fault in (InputError("name.png", "bad", "mend it"), MemoryError(), Cancelled(), OSError("name.png")):
            with pytest.raises(RuntimeError):
                log.watched(act, "image")(fault)
        assert list(log.watched(steps, None)()) == [0, 1, 2]
        left = log.watched(steps, "fit_folders")()
        next(left)
        left.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outcome"] for line in lines] == ["ok", "refused", "refused", "cancelled", "failed", "ok", "cancelled"]
    assert [line["error"] for line in lines[1:5]] == ["InputError", "MemoryError", "Cancelled", "OSError"]
    assert [line["tokens"] for line in lines] == [7] * 5 + [3, 1] and lines[5]["endpoint"] is None
    assert "name.png" not in json.dumps(lines)
    assert Log().watched(act, None)(None) == "done"
    with pytest.raises(InputError, match="cannot be written"), opened(str(tmp_path / "no" / "log")):
        pass


def test_a_proxy_says_under_which_address_it_serves(demo: tuple[str, Path]) -> None:
    address, _ = demo
    said = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "demo.example.org"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}config", headers=said), timeout=10) as answer:
        assert json.load(answer)["root"] == "https://demo.example.org"


def test_clients_at_the_same_moment_share_a_batch(demo: tuple[str, Path], tmp_path: Path) -> None:
    address, _ = demo
    files = []
    for i, picture in enumerate(pictures(4)):
        picture.save(tmp_path / f"{i}.png")
        files.append(gradio_client.handle_file(str(tmp_path / f"{i}.png")))
    clients = [gradio_client.Client(address, verbose=False, download_files=tmp_path) for _ in files]
    alone = [clients[0].predict(file, "tiny200", 5, api_name="/image")[3] for file in files]
    answers = together(4, lambda i: clients[i].predict(files[i], "tiny200", 5, api_name="/image")[3])
    for one, two in zip(alone, answers, strict=True):
        assert one["answer"] == two["answer"] and one["confidence"] == pytest.approx(two["confidence"], abs=1e-5)


def test_files_to_deploy_agree_with_each_other_and_with_the_command() -> None:
    import typer.main

    from polysense.apps.cli import app

    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    recipe = (ROOT / "deploy" / "Dockerfile").read_text()
    proxy = (ROOT / "deploy" / "Caddyfile").read_text()
    demo, caddy = compose["services"]["demo"], compose["services"]["proxy"]
    assert demo["read_only"] and demo["cap_drop"] == ["ALL"] and "ports" not in demo and "USER polysense" in recipe
    assert "HEALTHCHECK" in recipe and caddy["depends_on"]["demo"]["condition"] == "service_healthy"
    words = [word for word in demo["command"] if word.startswith("--")]
    command = typer.main.get_command(app).get_command(None, "demo")  # type: ignore[attr-defined,arg-type]
    assert words and set(words) <= {option for one in command.params for option in one.opts}
    port = demo["command"][demo["command"].index("--port") + 1]
    assert f"demo:{port}" in proxy and f":{port}/health" in recipe
    megabytes = int(demo["command"][demo["command"].index("--max-mb") + 1])
    assert int(re.search(r"max_size (\d+)MB", proxy)[1]) > megabytes  # type: ignore[index]
    assert (ROOT / "deploy" / "Dockerfile.dockerignore").exists()
