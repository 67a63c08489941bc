"""The pipelines behind the page: loaded when first asked, one frozen encoder in memory for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import polysense
from polysense.apps.demo.batching import Batcher
from polysense.apps.demo.fitted import Fitted
from polysense.apps.demo.limits import MOST_SECONDS
from polysense.apps.demo.logs import YOURS, note
from polysense.backbone.anchor import load_anchor
from polysense.backbone.encoder import Encoder
from polysense.bundle import BundleInfo, read_info
from polysense.core.errors import InputError
from polysense.core.predictions import Embedding, Prediction
from polysense.core.types import Sample, Tokens
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.words import word_vectors
from polysense.zero_shot import meaning_task, zero_shot


@dataclass(frozen=True, slots=True)
class Answer:
    """What a pipeline said, and what it took.

    Attributes:
        predictions: One for each input in the source.
        seconds: From the file to the answer.
        tokens: That the encoder read.
    """

    predictions: list[Prediction]
    seconds: float
    tokens: int


class Models:
    """All bundles by name: the embedded ones and those of folders. Any thread may ask.

    Args:
        folders: Bundles of the user's own.
        batch: Questions of several visitors that are answered as one batch, at most; 1: each alone.
        at_a_time: Batches computed at a time.

    Raises:
        InputError: A folder is no bundle.
    """

    def __init__(self, folders: Sequence[str | Path] = (), batch: int = 8, at_a_time: int = 1) -> None:
        self.infos: dict[str, BundleInfo] = {info.name: info for info in polysense.bundles()}
        for folder in folders:
            info = read_info(Path(folder).expanduser().resolve())
            name, number = info.name, 2
            while name in self.infos:
                name, number = f"{info.name}-{number}", number + 1
            self.infos[name] = info
        self.fitted = Fitted()
        self._pipelines: dict[str, Pipeline] = {}
        self._lock = threading.Lock()
        self._counted = threading.local()
        self._batcher = Batcher(self._answers, batch, at_a_time)

    def names(self, modality: str | None = None, kinds: Sequence[str] | None = None) -> list[str]:
        """Bundles of a modality and of some kinds of task, by kind; those that a task's name means first."""
        order = list(dict.fromkeys(TASKS[task].kind for task in TASKS)) if kinds is None else list(kinds)
        kind = {name: TASKS[info.task].kind for name, info in self.infos.items()}
        found = [name for name, info in self.infos.items() if modality in (None, info.modality) and kind[name] in order]
        return sorted(found, key=lambda name: (order.index(kind[name]), not self.infos[name].default))

    def of_task(self, task: str) -> str:
        """The bundle that a task's name stands for."""
        return next(name for name in self.names() if self.infos[name].task == task)

    def get(self, name: str) -> Pipeline:
        """A pipeline, loaded when it is first asked for; or one that a visitor has fitted, by its secret name.

        Raises:
            InputError: There is none of this name, or the bundle is damaged or for another encoder.
        """
        found = self._pipelines.get(name) or self.fitted.get(name)
        if found is not None:
            note(name if name in self.infos else YOURS)
            return found
        if name not in self.infos:
            raise InputError(f"model {name}", "there is none of this name", f"choose from {', '.join(self.infos)}")
        with self._lock:
            if name not in self._pipelines:
                self._pipelines[name] = self.watched(polysense.load(self.infos[name].path))
            note(name)
            return self._pipelines[name]

    def watched(self, pipeline: Pipeline) -> Pipeline:
        """The same pipeline, its tokens counted from now on."""
        pipeline.tokenizer.register_forward_hook(self._count)
        return pipeline

    @contextmanager
    def within(self, seconds: float, begun: float | None = None) -> Iterator[None]:
        """Gives up what this thread computes after so many seconds; looked at whenever a batch was tokenized.

        Args:
            seconds: From its beginning.
            begun: When that was, by `time.monotonic`; None: now.

        Raises:
            InputError: It takes longer.
        """
        until = ((time.monotonic() if begun is None else begun) + seconds, seconds)
        before, self._counted.until = getattr(self._counted, "until", None), until
        try:
            yield
        finally:
            self._counted.until = before

    def _count(self, tokenizer: Any, inputs: Any, tokens: Tokens) -> None:
        until = getattr(self._counted, "until", None)
        if until is not None and time.monotonic() > until[0]:
            problem = f"it was computed for more than {until[1]:g} seconds"
            raise InputError("answer", problem, "give less at once, or use polysense predict")
        # Each thread has counts of its own: pipelines answer several visitors at a time.
        b, n = tokens.x.shape[:2]
        real = [n] * b if tokens.mask is None else tokens.mask.sum(1).tolist()
        if (counts := getattr(self._counted, "tokens", None)) is not None:
            counts += real  # of what a batch answers, to be told whose they are
            if self._counted.working is not None:
                self._counted.working()
        else:
            note(tokens=sum(real))

    def loaded(self) -> dict[str, Pipeline]:
        """Those that are in memory."""
        return dict(self._pipelines)

    def encoders(self) -> list[Encoder]:
        """The encoders in memory, each once."""
        pipelines = [*self.loaded().values(), *self.fitted.pipelines()]
        plain = [getattr(pipeline.encoder, "plain", pipeline.encoder) for pipeline in pipelines]
        return list({id(encoder): encoder for encoder in plain}.values())

    def ask(
        self, pipeline: str | Pipeline, source: Any, working: Callable[[], None] | None = None, **options: Any
    ) -> Answer:
        """Answers one source.

        Args:
            pipeline: Which, or its name.
            source: A file, or what its reader takes.
            working: Called when a batch has been read, if there are options; what it raises ends the answer.
            options: Those of a pipeline's call.

        Raises:
            InputError: There is no such pipeline, or it cannot use the source.
        """
        used = self.get(pipeline) if isinstance(pipeline, str) else pipeline
        if used is pipeline:
            note(YOURS)
        start = time.perf_counter()
        if options:  # not what others ask
            with self._batcher.turn:
                predictions, counts = self._counting(lambda: used([source], **options), working)
        else:
            pairs = self._batcher.ask(used, [used.tokenizer.split(one) for one in used.tokenizer.read_all(source)])
            predictions, counts = [prediction for prediction, _ in pairs], [count for _, count in pairs]
        note(tokens=sum(counts))
        return Answer(predictions, time.perf_counter() - start, sum(counts))

    def _counting(self, act: Callable[[], Any], working: Callable[[], None] | None = None) -> tuple[Any, list[int]]:
        """What it gives, and the tokens of each sequence that was read meanwhile.

        Raises:
            InputError: It takes too long: others wait.
        """
        counts: list[int] = []
        self._counted.tokens, self._counted.working = counts, working
        try:
            with self.within(MOST_SECONDS):
                return act(), counts
        finally:
            self._counted.tokens = self._counted.working = None

    def _answers(self, pipeline: Pipeline, inputs: list[list[Sample]]) -> list[tuple[Prediction, int]]:
        """The answer to each input of a batch, and its tokens."""
        predictions, counts = self._counting(lambda: pipeline.answer(inputs))
        ends = list(accumulate(map(len, inputs), initial=0))
        tokens = [sum(counts[start:end]) for start, end in pairwise(ends)]
        return list(zip(predictions, tokens, strict=True))

    def naming(self, modality: str, labels: Sequence[str], none: str | None = None) -> Pipeline:
        """A classifier by words; see `zero_shot`."""
        meaning = self.get(self.of_task(meaning_task(modality)))
        with self._batcher.turn:
            return zero_shot(modality, labels, none=none, meaning=meaning)

    def meaning(self, source: Any, modality: str) -> np.ndarray:
        """The unit vector (d,) of a source in the space of words.

        Raises:
            InputError: Nothing leads there from this modality, or the source cannot be used.
        """
        first = self.ask(self.of_task(meaning_task(modality)), source).predictions[0]
        assert isinstance(first, Embedding), "a meaning head answers with embeddings"
        return first.vector

    def words(self, text: str) -> np.ndarray:
        """The unit vector (d,) of words."""
        with self._batcher.turn, torch.no_grad():
            return word_vectors(load_anchor("minilm"), [[text]])[0].numpy()
