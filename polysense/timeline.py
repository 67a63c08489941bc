"""Scores over time: what a classifier says of each moment of a recording or film.

The recording is read once and cut into overlapping windows, each of which is answered as if it were a recording of its
own, in batches. A window holds less than what the bundle learnt from, so that a single one errs more often than the
answer to the whole.

Shape legend: w windows, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.core.predictions import Labels
from polysense.data.video import video_duration
from polysense.pipeline import Pipeline
from polysense.tokenizers.audio import AudioTokenizer
from polysense.tokenizers.video import VideoTokenizer

if TYPE_CHECKING:
    import pandas as pd

SHARE, SHORTEST, LONGEST = 1 / 3, 0.5, 2.0  # of the recording, and seconds, that a window usually lasts
MOST = 100  # windows
DENSER = 2  # frames that are read of a film for each that a window shows: windows begin between frames, too


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of time in which one class is the most probable.

    Attributes:
        begin: Seconds.
        end: Seconds.
        name: Of the class.
        score: Mean probability.
    """

    begin: float
    end: float
    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Scores of all classes over time.

    Attributes:
        spans: Begin and end of each window, seconds (w, 2).
        names: The classes, c, the one with the highest mean first.
        scores: Probabilities (w, c).
        duration: Of the recording, seconds.
        source: Its name.
    """

    spans: np.ndarray
    names: Sequence[str]
    scores: np.ndarray
    duration: float
    source: str = "<memory>"

    @property
    def times(self) -> Float[np.ndarray, " w"]:
        """The middle of each window, seconds: the moment that its scores stand for."""
        return self.spans.mean(1)

    def best(self, count: int) -> list[str]:
        """The classes that score highest at any time, highest first."""
        return [self.names[i] for i in np.argsort(-self.scores.max(0), kind="stable")[:count]]

    def at(self, seconds: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t c"]:
        """Scores at any moments: between the middles of two windows in proportion, before the first and after the last
        as there."""
        return np.stack([np.interp(seconds, self.times, column) for column in self.scores.T], 1)

    def runs(self) -> list[Run]:
        """The recording from beginning to end as stretches of one class each; one ends halfway between two windows."""
        ends = np.append((self.times[1:] + self.times[:-1]) / 2, self.duration)
        begin, found = 0.0, []
        for best, windows in groupby(range(len(self.scores)), lambda i: int(self.scores[i].argmax())):
            own = list(windows)
            found.append(Run(begin, float(ends[own[-1]]), self.names[best], float(self.scores[own, best].mean())))
            begin = found[-1].end
        return found

    def to_frame(self) -> pd.DataFrame:
        """A row for each window: "begin", "end", and a column for each class."""
        import pandas as pd

        scores = pd.DataFrame(self.scores, columns=list(self.names))
        return pd.concat([pd.DataFrame(self.spans, columns=["begin", "end"]), scores], axis=1)


def timeline(
    pipeline: Pipeline,
    source: Any,
    window: float | None = None,
    step: float | None = None,
    most: int = MOST,
    batch_size: int = 16,
) -> Timeline:
    """Scores over time of one recording or film.

    Args:
        pipeline: A classifier of audio or video.
        source: One input, as a call of the pipeline takes it.
        window: Seconds that each score hears or sees; None: a third of the recording, from 0.5 to 2. A recording that
            is shorter is one window.
        step: Seconds from one window to the next, at most, and no more than a window; None: half a window. The first
            window begins with the recording, the last one ends with it.
        most: Windows, at most. Where there would be more, they overlap less, then they are longer.
        batch_size: Sequences that run together.

    Raises:
        InputError: The source cannot be used, the pipeline is no classifier of audio or video, or window, step and
            number are not positive.
    """
    check_asked(pipeline, window, step, most)
    tokenizer: Any = pipeline.tokenizer
    if isinstance(tokenizer, VideoTokenizer):  # which must know how densely to read
        duration = video_duration(source)
        length = float(np.ptp(spans_of(duration, window, step, most)[0]))
        assert tokenizer.config.frames is not None
        sample = tokenizer.read(source, ceil(DENSER * tokenizer.config.frames * duration / length - 1e-6))
    else:
        sample = tokenizer.read(source)
    duration = float(sample.meta["duration"])
    spans = spans_of(duration, window, step, most)
    windows = (tokenizer.stretch(sample, *span) for span in spans.tolist())
    names, scores = _table(pipeline.answer([tokenizer.split(one) for one in windows], batch_size))
    return Timeline(spans, names, scores, duration, sample.source)


def check_asked(pipeline: Pipeline, window: float | None = None, step: float | None = None, most: int = MOST) -> None:
    """Raises an InputError where the pipeline has no scores over time or these are no lengths."""
    if not isinstance(pipeline.tokenizer, AudioTokenizer | VideoTokenizer):
        raise InputError(pipeline.task.name, f"its inputs ({pipeline.modality.replace('_', ' ')}) have no timeline",
                         "use a classifier of audio or video")  # fmt: skip
    if pipeline.task.kind not in ("classification", "multilabel"):
        raise InputError(pipeline.task.name, "only a classifier has scores over time", "use one of audio or video")
    for name, seconds in (("window", window), ("step", step)):
        if seconds is not None and not 0 < seconds < np.inf:
            raise InputError(f"{name} {seconds}", "it is no length of time", "give seconds above 0")
    if most < 1:
        raise InputError(f"most {most}", "there is at least one window", "give 1 or more")


def spans_of(
    duration: float, window: float | None = None, step: float | None = None, most: int = MOST
) -> Float[np.ndarray, "w 2"]:
    """Windows over a recording from its beginning to its end, evenly spaced; see `timeline`."""
    usual = min(max(SHARE * duration, SHORTEST), LONGEST)
    # Of more windows than there may be, each is long enough for all to reach from beginning to end.
    length = min(max(usual if window is None else window, duration / most), duration)
    step = min(length / 2 if step is None else step, length)  # a longer one would leave gaps
    count = min(1 + ceil((duration - length) / step - 1e-6), most)
    begins = np.linspace(0, duration - length, count)
    return np.stack([begins, begins + length], 1)


def _table(answers: Sequence[Any]) -> tuple[list[str], Float[np.ndarray, "w c"]]:
    """The classes, the one with the highest mean first, and each answer's scores."""
    assert all(isinstance(answer, Labels) for answer in answers), "a classifier answers with labels"
    by_name = [dict(zip(answer.names, answer.scores, strict=True)) for answer in answers]
    names = list(by_name[0])
    scores = np.array([[one[name] for name in names] for one in by_name])
    order = np.argsort(-scores.mean(0), kind="stable")
    return [names[i] for i in order], scores[:, order]
