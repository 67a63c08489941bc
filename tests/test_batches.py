"""Windows of inputs: their bounds, their order, and what happens when memory is short."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import polysense
from polysense.batches import BatchSize, answer_reads, answer_window, take, windows
from polysense.core.errors import InputError
from polysense.core.predictions import Labels, Prediction, Values
from polysense.core.types import Sample
from polysense.data.items import Item
from polysense.decode import read_item


def sample(number: int, size: int = 4, count: int = 1) -> list[Sample]:
    return [Sample({"x": torch.full((size,), number)}, f"{number}") for _ in range(count)]


class Pretended:
    """Answers with an input's number; may hold only so many sequences at a time."""

    device = torch.device("cpu")
    task = SimpleNamespace(kind="classification")

    def __init__(self, memory: int = 1000, kind: type[BaseException] = RuntimeError) -> None:
        self.memory, self.kind = memory, kind
        self.batches: list[list[int]] = []

    def answer(self, sequences: Sequence[list[Sample]], batch_size: int, horizon: Any) -> list[Prediction]:
        if min(batch_size, sum(map(len, sequences))) > self.memory:
            said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            raise self.kind(said)
        self.batches.append([len(parts[0].data["x"]) for parts in sequences])
        return [Values({"y": float(parts[0].data["x"][0])}) for parts in sequences]


def numbers(answers: Sequence[Any]) -> list[float]:
    return [answer.values["y"] for answer in answers]


def test_alike_inputs_run_together_and_come_back_in_order() -> None:
    pipeline: Any = Pretended()
    inputs = [sample(i, size=(3, 9, 5)[i % 3]) for i in range(12)]
    assert numbers(answer_window(pipeline, inputs, BatchSize(4))) == list(range(12))
    assert pipeline.batches == [[3] * 4, [5] * 4, [9] * 4]


def test_many_sequences_of_one_input_stay_together() -> None:
    inputs = [sample(0, count=3), sample(1, count=9), sample(2, count=2), sample(3)]
    assert list(take([0, 2, 3, 1], inputs, 6)) == [0, 2, 3]
    assert list(take([1, 3], inputs, 6)) == [1]


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_halves_the_batch_and_goes_on(kind: type[BaseException]) -> None:
    pipeline: Any = Pretended(memory=3, kind=kind)
    size = BatchSize(16)
    assert numbers(answer_window(pipeline, [sample(i) for i in range(20)], size)) == list(range(20))
    assert size.halved == 3
    assert max(map(len, pipeline.batches)) == 2
    answer_window(pipeline, [sample(i) for i in range(4)], size)
    assert size.halved == 3  # it stays so


def test_one_input_too_many_is_told() -> None:
    pipeline: Any = Pretended(memory=0)
    with pytest.raises(InputError, match="0: one input alone is too much for the memory"):
        answer_window(pipeline, [sample(0)], BatchSize())


def test_other_faults_are_not_memory() -> None:
    class Broken(Pretended):
        def answer(self, *_: Any) -> list[Prediction]:
            raise RuntimeError("shapes differ")

    pipeline: Any = Broken()
    with pytest.raises(RuntimeError, match="shapes differ"):
        answer_window(pipeline, [sample(0)], BatchSize())


def test_windows_are_bounded() -> None:
    def reads() -> Iterator[Any]:
        for i in range(10):
            yield i, InputError("x", "bad", "leave it") if i % 4 == 3 else sample(i, size=100)

    assert [len(window) for window in windows(reads(), most=4)] == [4, 4, 2]
    assert [len(window) for window in windows(reads(), room=1600)] == [2, 3, 2, 3]


@pytest.mark.parametrize("after", range(13))
def test_beginning_after_a_window_gives_the_rest(after: int) -> None:
    """Items of one, of several and of no inputs; errors among them."""
    held = {0: 1, 1: 3, 2: 0, 3: 5, 4: 1, 5: 2}
    wrong = InputError("x", "bad", "leave it")

    def reads(first: int) -> Iterator[Any]:
        for item in range(first, 6):
            for k in range(held[item]):
                yield item, wrong if (item, k) == (3, 4) else sample(10 * item + k)

    pipeline: Any = Pretended()
    whole = list(answer_reads(pipeline, reads(0), BatchSize(), most=2))
    flat = [answer for answered in whole for answer in answered.answers]
    assert len(flat) == 12
    if after >= len(whole):
        return
    place = whole[after].item, whole[after].inputs
    rest = list(answer_reads(pipeline, reads(place[0]), BatchSize(), after=place, most=2))
    assert [a for answered in rest for a in answered.answers] == flat[2 * (after + 1) :]
    assert [(one.item, one.inputs) for one in rest] == [(one.item, one.inputs) for one in whole[after + 1 :]]


def test_answers_are_those_of_the_pipeline(tmp_path: Path) -> None:
    pipeline = polysense.load("image-classification")
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 255, (40 + 17 * i, 200 - 20 * i, 3), dtype=np.uint8)).save(path)
    reads = [
        (i, read) for i, path in enumerate(paths) for read in read_item(pipeline.tokenizer, Item(str(path), str(path)))
    ]
    (answered,) = answer_reads(pipeline, reads, BatchSize(2))
    for one, path in zip(answered.answers, paths, strict=True):
        alone = pipeline(path)[0]
        assert isinstance(one, Labels)
        assert one.source == str(path)
        assert one.names[0] == alone.names[0]
        np.testing.assert_allclose(one.scores[:5], alone.scores[:5], rtol=1e-4)
