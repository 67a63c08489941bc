"""Equal questions of several visitors, answered as one batch.

Who asks first waits a moment for others; while one batch is computed, those that come meanwhile gather for the next. A
batched answer equals a single one (docs/architecture.md), so nobody can tell who else has asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

SECONDS = 0.004  # that a question waits for company: far less than an answer takes


@dataclass(eq=False)
class _Question:
    of: Hashable
    parts: Sequence[Any]
    answers: Sequence[Any] | None = None
    fault: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Gathers questions. Any thread may ask.

    Args:
        compute: (whom, parts of all questions) -> an answer for each part.
        most: Questions in a batch.
        at_a_time: Batches computed at a time.
        seconds: That a question waits for company.
    """

    def __init__(self, compute: Callable[[Any, list[Any]], Sequence[Any]], most: int = 8, at_a_time: int = 1,
                 seconds: float = SECONDS) -> None:  # fmt: skip
        self.compute, self.most, self.seconds = compute, most, seconds
        self._waiting: list[_Question] = []
        self._lock = threading.Lock()
        self.turn = threading.Semaphore(at_a_time)  # held by whoever computes

    def ask(self, of: Hashable, parts: Sequence[Any]) -> Sequence[Any]:
        """Answers the parts of a question, whom it is put to with those of others.

        Raises:
            Exception: What computing them raises.
        """
        question = _Question(of, parts)
        with self._lock:
            self._waiting.append(question)
        if self.most > 1:
            time.sleep(self.seconds)
        with self.turn:
            batch = self._take(question)  # none where another has taken it along
            if batch:
                self._answer(batch)
        question.done.wait()  # with several batches at a time, it may still be under way in another
        if question.fault is not None:
            raise question.fault
        assert question.answers is not None, "what is done has answers or a fault"
        return question.answers

    def _take(self, question: _Question) -> list[_Question]:
        """The question and those that wait for the same one, oldest first; none where it is taken already."""
        with self._lock:
            if question not in self._waiting:
                return []
            others = [one for one in self._waiting if one.of is question.of and one is not question]
            batch = [question, *others[: self.most - 1]]
            self._waiting = [one for one in self._waiting if one not in batch]
            return batch

    def _answer(self, batch: Sequence[_Question]) -> None:
        """Answers them together; where that fails, each alone, so that a fault is told to none but whose it is."""
        try:
            answers = self.compute(batch[0].of, [part for one in batch for part in one.parts])
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._answer([one])
                return
            batch[0].fault, answers = error, ()
        start = 0
        for one in batch:
            one.answers = answers[start : start + len(one.parts)]
            start += len(one.parts)
            one.done.set()
