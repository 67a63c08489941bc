"""Reading in processes of their own: order, bounds, crashes, hangs and kills."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import polysense
from polysense import decode
from polysense.apps.examples import lion
from polysense.core.errors import InputError
from polysense.core.types import Sample
from polysense.data.items import Item
from polysense.decode import Decoders, read_item, size_of
from polysense.tokenizers.base import Tokenizer


class Reader(Tokenizer):
    """Does what the file says: answers it, or crashes, hangs, fails."""

    def __init__(self, big: int = 1) -> None:
        super().__init__(SimpleNamespace(width=1))
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.big = big

    def read_all(self, source: Path) -> Iterator[Sample]:
        text = source.read_text()
        if text == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if text == "hang":
            time.sleep(1000)
        if text == "fail":
            raise KeyError("colour")
        if text == "bad":
            raise InputError(source, "it is empty", "give another")
        for row in range(int(text)):
            yield Sample({"x": torch.full((self.big,), row)}, f"{source}#{row}", {"process": os.getpid()})
            if text == "5" and row == 2 and not (seen := source.with_suffix(".seen")).exists():
                seen.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if text == "3":
            raise InputError(source, "its end is missing", "copy it again")


def write(folder: Path, *texts: str) -> list[tuple[int, Item]]:
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)
    return [(i, Item(f"item {i}", str(folder / f"{i}.txt"))) for i in range(len(texts))]


def told(reads: list[tuple[int, list[Sample] | InputError]]) -> list[tuple[int, str]]:
    return [(number, read.problem if isinstance(read, InputError) else read[0].source) for number, read in reads]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_and_faults(tmp_path: Path, workers: int) -> None:
    items = write(tmp_path, "1", "2", "bad", "0", "3", "fail", "1")
    with Decoders(Reader(), workers) as decoders:
        reads = list(decoders.stream(items))
    assert told(reads) == [(0, "item 0#0"), (1, "item 1#0"), (1, "item 1#1"), (2, "it is empty"), (4, "item 4#0"),
                           (4, "item 4#1"), (4, "item 4#2"), (4, "its end is missing"),
                           (5, "its reader failed (KeyError: 'colour')"), (6, "item 6#0")]  # fmt: skip
    assert all(read.source.startswith("item ") for _, read in reads if isinstance(read, InputError))
    process = reads[0][1][0].meta["process"]
    assert (process == os.getpid()) == (workers == 0)
    assert [read[0].data["x"].item() for _, read in reads[4:7]] == [0, 1, 2]


def test_a_crash_and_a_hang_cost_an_input_each(tmp_path: Path) -> None:
    items = write(tmp_path, "1", "crash", "1", "hang", "1", "1")
    with Decoders(Reader(), 2, timeout=3) as decoders:
        reads = told(list(decoders.stream(items)))
    assert reads == [(0, "item 0#0"), (1, "its reader crashed (SIGSEGV)"), (2, "item 2#0"),
                     (3, "it could not be read within 3 seconds"), (4, "item 4#0"), (5, "item 5#0")]  # fmt: skip


def test_a_killed_process_costs_nothing(tmp_path: Path) -> None:
    items = write(tmp_path, *["1"] * 40)
    killed: set[int] = set()
    numbers = []
    with Decoders(Reader(big=1 << 20), 2, room=1) as decoders:
        for number, read in decoders.stream(items):
            assert not isinstance(read, InputError), read
            numbers.append(number)
            process = read[0].meta["process"]
            if number in (3, 11, 20) and process not in killed:
                killed.add(process)
                os.kill(process, signal.SIGKILL)
    assert killed
    assert numbers == list(range(40))


def test_a_kill_amid_an_item_loses_and_repeats_nothing(tmp_path: Path) -> None:
    items = write(tmp_path, "1", "5", "1")
    with Decoders(Reader(), 1) as decoders:
        reads = told(list(decoders.stream(items)))
    assert (tmp_path / "1.seen").exists()
    assert reads == [(0, "item 0#0"), *((1, f"item 1#{row}") for row in range(5)), (2, "item 2#0")]


def test_what_is_read_ahead_is_bounded(tmp_path: Path) -> None:
    """A slow consumer does not make a file with many inputs, or many files, pile up."""
    items = write(tmp_path, "200", *["1"] * 20)
    with Decoders(Reader(big=1 << 17), 2, room=4 << 20) as decoders:  # 1 MB an input
        held = []
        for i, _ in enumerate(decoders.stream(items)):
            if i % 40 == 0:
                time.sleep(0.3)
            held.append(decoders._held)
    assert len(held) == 220
    assert max(held) <= (4 << 20) + 3 * 8 * (1 << 17)


def test_leaving_early_ends_all_processes(tmp_path: Path) -> None:
    items = write(tmp_path, *["1"] * 50)
    before = threading.active_count()
    with Decoders(Reader(big=1 << 20), 2, room=1) as decoders:
        process = next(iter(decoders.stream(items)))[1][0].meta["process"]
    assert threading.active_count() == before
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_leaving_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    items = write(tmp_path, "1", *["hang"] * 2)
    with Decoders(Reader(), 2) as decoders:
        assert next(iter(decoders.stream(items)))[0] == 0
        left = time.monotonic()
    assert time.monotonic() - left < 20  # of 120


def test_crashes_leave_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of tars are unpacked there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    texts = (b"1", b"crash", b"1", b"hang", b"1")
    items = [(i, Item(f"a.tar#{i}", "nowhere", content=text)) for i, text in enumerate(texts)]
    with Decoders(Reader(), 1, timeout=1) as decoders:
        stream = decoders.stream(items)
        first = next(stream)
        assert list(tmp_path.glob("polysense-*"))
        reads = told([first, *stream])
    assert [number for number, _ in reads] == [0, 1, 2, 3, 4]
    assert "SIGSEGV" in reads[1][1] and "1 seconds" in reads[3][1]
    assert not list(tmp_path.glob("polysense-*"))


def test_a_fault_of_the_listing_is_raised(tmp_path: Path) -> None:
    def items() -> Iterator[tuple[int, Item]]:
        yield from write(tmp_path, "1")
        raise InputError("list.txt", "it breaks off", "copy it again")

    with Decoders(Reader(), 2) as decoders, pytest.raises(InputError, match="breaks off"):
        list(decoders.stream(items()))


def test_temporary_files_are_called_by_their_items(tmp_path: Path) -> None:
    item = Item("shard.tar#a/b.txt", "nowhere", content=b"2")
    assert [read[0].source for read in read_item(Reader(), item)] == ["shard.tar#a/b.txt#0", "shard.tar#a/b.txt#1"]


@pytest.mark.parametrize("task", ["image-embedding", "audio-embedding", "time-series-embedding", "text-embedding"])
def test_real_readers_need_no_weights(tmp_path: Path, task: str) -> None:
    """What a process without weights reads is what the pipeline's own tokenizer reads."""
    tokenizer = polysense.load(task).tokenizer
    source = tmp_path / {"image": "a.png", "audio": "a.wav", "time": "a.csv", "text": "a.txt"}[task.split("-")[0]]
    if source.suffix == ".png":
        lion(source)
    elif source.suffix == ".wav":
        import soundfile

        soundfile.write(source, np.sin(np.arange(16000) / 5), 16000)
    else:
        source.write_text("value\n" + "\n".join(str(i % 7) for i in range(200)))
    item = Item(str(source), str(source))
    with Decoders(tokenizer, 1) as decoders:
        ((_, there),) = decoders.stream([(0, item)])
    (here,) = read_item(tokenizer, item)
    assert not isinstance(there, InputError) and not isinstance(here, InputError)
    assert len(there) == len(here)
    for one, other in zip(there, here, strict=True):
        assert one.source == other.source == str(source)
        assert size_of(one) == size_of(other)
        assert all(torch.equal(one.data[name], other.data[name]) for name in other.data)
        assert one.meta.keys() == other.meta.keys()


def test_the_server_may_be_started_twice() -> None:
    decode.start_server("polysense.data.image")
    decode.start_server("polysense.data.image")
