"""Jobs that stop and go on: the journal, the folder beside the output, and what is refused."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from polysense.apps.job import TOLD, Group, Job
from polysense.apps.job_folder import JobFolder
from polysense.batches import Answered
from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Embedding, Labels, Mask, Prediction, Segments, Series, Values
from polysense.data.items import Item
from polysense.data.journal import Journal, Place
from polysense.data.prediction_json import dumps, loads
from polysense.data.spool import Spool
from polysense.data.writers import JsonLinesWriter

RNG = np.random.default_rng(0)
ANSWERS = [
    Labels(("a", "b\n"), (0.1 + 0.2, 1e-17), ("a",), "x\u2028.jpg"),
    Boxes(RNG.random((3, 4), np.float32), ["a", "b", "a"], RNG.random(3, np.float32), (4, 5), "x"),
    Boxes(np.zeros((0, 4), np.float32), [], np.zeros(0, np.float32), (4, 5)),
    Mask(RNG.integers(0, 3, (4, 5)), ["a", "b", "c"], 0.5, "x"),
    Segments(RNG.integers(-1, 2, (4, 5)).astype(np.int32), ["a", "b"], RNG.random(2, np.float32)),
    Series(RNG.random((2, 1)), {0.1: RNG.random((2, 1)), 0.9: RNG.random((2, 1))}, ("2024-01-01", "2024-01-02"), ("v",),
           RNG.random((3, 1)), "x", ZoneInfo("Europe/Berlin")),
    Series(RNG.random((1, 1)), {}, ("1",), ("v",), None, "x", timezone(timedelta(hours=2))),
    Values({"y": 0.1, "z": float("nan")}, "x"),
    Embedding(RNG.random(5, np.float32), "x", {"modality": "image"}),
]  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda one: type(one).__name__)
def test_an_answer_comes_back_to_the_bit(answer: Prediction) -> None:
    line = dumps(answer)
    assert "\n" not in line
    again = loads(line)
    assert type(again) is type(answer)
    np.testing.assert_equal(again.to_record(), answer.to_record())
    for name in answer.__slots__:
        one, other = getattr(answer, name), getattr(again, name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        elif isinstance(one, dict):
            np.testing.assert_equal(one, other)
        elif not isinstance(one, list | tuple):
            assert one == other or one != one, name


def test_a_journal_may_be_cut_anywhere(tmp_path: Path) -> None:
    """Whatever bytes are there, it begins after the last window that was whole."""
    path = tmp_path / "answers"
    with Journal(path) as journal:
        ends = [0]
        for window in range(3):
            bad = InputError(f"{window}", "bad", "leave it")
            journal.add([Values({"y": window}), bad], Place(0, window, 2))
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        done = sum(end <= cut for end in ends) - 1
        with Journal(path) as journal:
            assert journal.place == (Place(0, done - 1, 2) if done else Place())
            assert (journal.counts.answers, journal.counts.errors) == (done, done)
            journal.add([Values({"y": -1})], Place(1, 0, 1))
            last = list(journal)[-1]
        assert isinstance(last, Values) and last.values == {"y": -1}
        assert path.read_bytes().startswith(whole[: ends[done]])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is played by /dev/full")
def test_a_full_disk_stops_the_journal(tmp_path: Path) -> None:
    (tmp_path / "answers").symlink_to("/dev/full")
    journal = object.__new__(Journal)
    journal.path, journal._file = tmp_path / "answers", open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    journal.counts = SimpleNamespace(answers=0, errors=0)
    journal.place = Place()
    with journal, pytest.raises(OSError, match="No space"):
        journal.add([Values({"y": 1.0})], Place(0, 0, 1))


def items(count: int) -> list[Item]:
    return [Item(f"{i}.jpg", f"{i}.jpg") for i in range(count)]


def job(
    count: int = 10, stop: int | None = None, bad: tuple[int, ...] = (), settings: Any = None, **options: Any
) -> Job:
    """Answers items in windows of three, each with its number; stops as if killed before a window that ends there."""

    def answers(spool: Spool, after: tuple[int, int]) -> Iterator[Answered]:
        window: list[Prediction | InputError] = []
        numbered = list(spool.numbered(after[0]))[after[1] :]
        for place, (number, item) in enumerate(numbered, 1):
            wrong = InputError(item.name, "it is bad", "leave it")
            window.append(wrong if number in bad else Values({"y": float(number)}, item.name))
            if len(window) == 3 or place == len(numbered):
                if stop is not None and number >= stop:
                    raise RuntimeError("killed")
                yield Answered(window, number, 1)
                window = []

    return Job({"image": Group(lambda: items(count), answers)}, settings or {"model": "m"}, **options)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("stops", [(0,), (4,), (9,), (4, 7), (5, 5, 8)])
def test_it_goes_on_where_it_stopped(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "o.jsonl"
    assert job(bad=(2, 7)).run(whole) == 3
    for stop in stops:
        with pytest.raises(RuntimeError):
            job(stop=stop, bad=(2, 7)).run(out, resume=True)
        assert not out.exists()
    assert job(bad=(2, 7)).run(out, resume=True) == 3
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "o.jsonl.errors.jsonl").read_bytes() == (tmp_path / "whole.jsonl.errors.jsonl").read_bytes()
    assert [row["source"] for row in rows(out)] == [f"{i}.jpg" for i in range(10) if i not in (2, 7)]
    assert [row["source"] for row in rows(tmp_path / "o.jsonl.errors.jsonl")] == ["2.jpg", "7.jpg"]
    assert not hidden(tmp_path)


def test_what_stands_there_is_not_lost_unsaid(tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    with pytest.raises(RuntimeError):
        job(stop=6).run(out)
    with pytest.raises(InputError, match="6 inputs done; add --resume to go on, or --fresh"):
        job().run(out)
    with pytest.raises(InputError, match="model was m when this run began and is n now"):
        job(settings={"model": "n"}).run(out, resume=True)
    with pytest.raises(InputError, match="the weights are not those"):
        job(settings={"model": "m", "weights_sha256": "1"}).run(out, resume=True)
    assert job(settings={"model": "n"}).run(out, resume=False) == 0
    assert len(rows(out)) == 10
    # Where nothing had been done, there is nothing to ask about.
    with pytest.raises(RuntimeError):
        job(stop=0).run(out)
    assert not hidden(tmp_path)
    assert job(settings={"model": "n"}).run(out) == 0


def test_settings_may_hold_paths(tmp_path: Path) -> None:
    settings = {"words": {"examples": tmp_path}, "views": (1.0, 1.5)}
    with pytest.raises(RuntimeError):
        job(stop=6, settings=settings).run(tmp_path / "o.jsonl")
    assert job(settings=settings).run(tmp_path / "o.jsonl", resume=True) == 0


def test_the_list_of_inputs_stays(tmp_path: Path) -> None:
    """Files that came into a folder meanwhile are not of this job."""
    out = tmp_path / "o.jsonl"
    with pytest.raises(RuntimeError):
        job(stop=6).run(out)
    assert job(count=99).run(out, resume=True) == 0
    assert len(rows(out)) == 10


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with JobFolder(tmp_path / "o.jsonl"), pytest.raises(InputError, match="another run is writing it"):
        JobFolder(tmp_path / "o.jsonl", resume=True)


def test_a_listing_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / ".o.jsonl.job"
    folder.mkdir()
    (folder / "inputs-image").write_text('["half')
    assert job().run(tmp_path / "o.jsonl", resume=True) == 0
    assert len(rows(tmp_path / "o.jsonl")) == 10


def test_a_full_disk_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, add = tmp_path / "o.jsonl", Journal.add

    def full(self: Journal, window: Any, place: Place) -> None:
        if place.item >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, window, place)

    monkeypatch.setattr(Journal, "add", full)
    with pytest.raises(InputError, match=r"the disk is full .*; make room, then run the same command with --resume"):
        job().run(out)
    monkeypatch.undo()
    assert job().run(out, resume=True) == 0
    assert len(rows(out)) == 10


def test_a_full_disk_at_the_end_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: JsonLinesWriter, prediction: Prediction, record: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "o.jsonl"
    out.write_text("older\n")
    monkeypatch.setattr(JsonLinesWriter, "add", full)
    with pytest.raises(InputError, match="the disk is full"):
        job().run(out)
    assert out.read_text() == "older\n"
    monkeypatch.undo()
    assert job(stop=0).run(out, resume=True) == 0  # nothing is left to answer
    assert len(rows(out)) == 10
    assert not hidden(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            job().run(tmp_path / "o.jsonl")
    finally:
        tmp_path.chmod(0o700)


def test_names_that_cannot_be_written_are_told_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="end the name with one of"):
        job(stop=0).run(tmp_path / "o.xlsx")
    with pytest.raises(InputError, match="its folder does not exist"):
        job(stop=0).run(tmp_path / "nowhere" / "o.jsonl")
    assert not hidden(tmp_path)


def test_the_first_error_can_end_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"4.jpg: it is bad"):
        job(bad=(4,), skip=False).run(tmp_path / "o.jsonl")
    # The file was mended: what was done before stays done.
    assert job(skip=False).run(tmp_path / "o.jsonl", resume=True) == 0
    assert len(rows(tmp_path / "o.jsonl")) == 10


def test_nothing_but_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of 4 could be read; see the lines above, or .*errors.jsonl"):
        job(4, bad=(0, 1, 2, 3)).run(tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()
    assert len(rows(tmp_path / "o.jsonl.errors.jsonl")) == 4
    assert not hidden(tmp_path)


def test_killed_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no process will ever finish stands in the job's folder, and goes with it."""
    out, add = tmp_path / "o.jsonl", JsonLinesWriter.add

    def killed(self: JsonLinesWriter, prediction: Prediction, record: Any) -> None:
        if record["source"] == "5.jpg":
            shutil.copytree(tmp_path, copy)  # as a process that is no more leaves it
        add(self, prediction, record)

    copy = tmp_path.with_name(f"{tmp_path.name}-copy")
    monkeypatch.setattr(JsonLinesWriter, "add", killed)
    job().run(out)
    monkeypatch.undo()
    assert os.listdir(copy) == [".o.jsonl.job"]
    assert job(stop=0).run(copy / "o.jsonl", resume=True) == 0
    assert os.listdir(copy) == ["o.jsonl"]
    assert (copy / "o.jsonl").read_bytes() == out.read_bytes()


def test_errors_of_a_run_before_go(tmp_path: Path) -> None:
    job(bad=(1,)).run(tmp_path / "o.jsonl")
    assert (tmp_path / "o.jsonl.errors.jsonl").exists()
    job().run(tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl.errors.jsonl").exists()


def test_it_says_where_the_answers_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(bad=(1,)).run(tmp_path / "o.jsonl")
    assert capsys.readouterr().err.splitlines()[-1].startswith("9 answers, 1 skipped, ")
    job().run(tmp_path / "o.jsonl")
    assert capsys.readouterr().err.endswith(f": {tmp_path / 'o.jsonl'}\n")


def test_rows_say_what_answered(tmp_path: Path) -> None:
    job(about={"model": "m", "encoder": "0123"}).run(tmp_path / "o.jsonl")
    assert all(row["model"] == "m" and row["encoder"] == "0123" for row in rows(tmp_path / "o.jsonl"))


def test_a_thousand_errors_are_not_a_thousand_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(101, bad=tuple(range(100))).run(tmp_path / "o.jsonl")
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("skipped:") for line in lines) == TOLD
    assert sum("errors.jsonl will list all" in line for line in lines) == 1
    job(101, bad=tuple(range(100)), progress={"quiet": True}).run(tmp_path / "o.jsonl")
    assert "skipped:" not in capsys.readouterr().err


def test_an_output_behind_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec import filesystem

    monkeypatch.setenv("POLYSENSE_CACHE", str(tmp_path / "cache"))
    memory, url = filesystem("memory"), f"memory://bucket{tmp_path}/o.jsonl"
    assert job(bad=(1,)).run(f"file://{tmp_path}/here.jsonl") == 3
    with pytest.raises(RuntimeError):
        job(stop=6, bad=(1,)).run(url)
    assert not memory.exists(url)
    with pytest.raises(InputError, match="an interrupted run of it stands beside it"):
        job(bad=(1,)).run(url)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no access")

    monkeypatch.setattr(type(memory), "put", refuse)
    with pytest.raises(InputError, match=r"it cannot be written \(no access\); .* the answers are in"):
        job(bad=(1,)).run(url, resume=True)
    monkeypatch.undo()
    monkeypatch.setenv("POLYSENSE_CACHE", str(tmp_path / "cache"))
    assert job(stop=0, bad=(1,)).run(url, resume=True) == 3
    assert memory.cat(url) == (tmp_path / "here.jsonl").read_bytes()
    assert memory.cat(f"{url}.errors.jsonl") == (tmp_path / "here.jsonl.errors.jsonl").read_bytes()
    assert not list((tmp_path / "cache" / "jobs").iterdir())


def test_progress_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(bad=(1,), progress={"as_json": True}).run(tmp_path / "o.jsonl")
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert told[-1] | {"rate": 0, "eta": 0} == {"done": 10, "total": 10, "answers": 9, "errors": 1, "rate": 0, "eta": 0}
    assert told[-1]["eta"] == 0
