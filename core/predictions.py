"""Answers: one small class per kind. Writers, metrics and pictures consume nothing else.

Shape legend: k boxes, h height or horizon, w width, n points, c variates, d width. All arrays are NumPy, on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datetime import tzinfo

    import pandas as pd


@dataclass(frozen=True, slots=True)
class Labels:
    """Class names with calibrated probabilities, most probable first.

    `chosen` are the names that hold: the first one for multi-class, those over the threshold for multi-label.
    """

    names: Sequence[str]
    scores: Sequence[float]
    chosen: Sequence[str]
    source: str = "<memory>"

    @property
    def confidence(self) -> float:
        return float(self.scores[0])

    def answer(self) -> str:
        return ", ".join(self.chosen) or "none"

    def to_record(self) -> dict[str, Any]:
        scores = {name: round(float(score), 6) for name, score in zip(self.names, self.scores, strict=True)}
        return {"source": self.source, "answer": self.answer(), "confidence": self.confidence, "scores": scores}


@dataclass(frozen=True, slots=True)
class Boxes:
    """Objects found in an image, most confident first; `xyxy` in pixels of the original, upright image."""

    xyxy: np.ndarray  # (k, 4) float32
    labels: Sequence[str]  # k names
    scores: np.ndarray  # (k,) float32
    size: tuple[int, int]  # (height, width) of the image
    source: str = "<memory>"

    @property
    def confidence(self) -> float:
        return float(self.scores[0]) if len(self.scores) else 0.0

    def answer(self) -> str:
        counts = {name: list(self.labels).count(name) for name in dict.fromkeys(self.labels)}
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"

    def to_record(self) -> dict[str, Any]:
        rows = zip(self.xyxy.tolist(), self.labels, self.scores.tolist(), strict=True)
        boxes = [{"box": [round(v, 2) for v in box], "label": name, "score": round(s, 6)} for box, name, s in rows]
        return {"source": self.source, "answer": self.answer(), "confidence": self.confidence, "boxes": boxes}


@dataclass(frozen=True, slots=True)
class Mask:
    """A class for each pixel of the original image, or for each point of the original cloud."""

    index: np.ndarray  # (h, w) or (n,) integer class index
    names: Sequence[str]
    confidence: float  # mean probability of the chosen class
    source: str = "<memory>"

    def shares(self) -> dict[str, float]:
        """Share of pixels or points per class, largest first; absent classes are left out."""
        counts = np.bincount(self.index.ravel(), minlength=len(self.names)) / max(self.index.size, 1)
        return {self.names[i]: float(counts[i]) for i in np.argsort(-counts) if counts[i] > 0}

    def answer(self) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in list(self.shares().items())[:3])

    def to_record(self) -> dict[str, Any]:
        shares = {name: round(share, 6) for name, share in self.shares().items()}
        size = list(self.index.shape)
        return {"source": self.source, "answer": self.answer(), "confidence": self.confidence,
                "shares": shares, "size": size}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segments:
    """Objects and regions of an image, most confident first, each with its own pixels of the original."""

    index: np.ndarray  # (h, w) int32: number of the segment at each pixel, -1 where there is none
    labels: Sequence[str]  # k names
    scores: np.ndarray  # (k,) float32
    source: str = "<memory>"

    @property
    def confidence(self) -> float:
        return float(self.scores[0]) if len(self.scores) else 0.0

    def areas(self) -> np.ndarray:
        """Pixels of each segment (k,)."""
        return np.bincount(self.index[self.index >= 0], minlength=len(self.labels))

    def boxes(self) -> np.ndarray:
        """The smallest xyxy box around each segment (k, 4) float32; zeros where it has no pixel."""
        found = np.zeros((len(self.labels), 4), np.float32)
        for axis in (0, 1):
            across = [np.unique(line[line >= 0]) for line in (self.index if axis == 0 else self.index.T)]
            at = np.repeat(np.arange(len(across)), [len(line) for line in across])
            number = np.concatenate(across) if across else np.zeros(0, int)
            low, high = np.full(len(found), np.iinfo(np.int64).max), np.zeros(len(found), np.int64)
            np.minimum.at(low, number, at)
            np.maximum.at(high, number, at + 1)
            found[:, 1 - axis], found[:, 3 - axis] = np.where(high > 0, low, 0), high
        return found

    def answer(self) -> str:
        counts = {name: list(self.labels).count(name) for name in dict.fromkeys(self.labels)}
        return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"

    def to_record(self) -> dict[str, Any]:
        rows = zip(self.labels, self.scores.tolist(), self.areas().tolist(), self.boxes().tolist(), strict=True)
        segments = [{"number": i + 1, "label": label, "score": round(score, 6), "pixels": pixels, "box": box}
                    for i, (label, score, pixels, box) in enumerate(rows)]  # fmt: skip
        return {"source": self.source, "answer": self.answer(), "confidence": self.confidence,
                "segments": segments, "size": list(self.index.shape)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Series:
    """A forecast in the user's own units."""

    mean: np.ndarray  # (h, c) point forecast
    quantiles: dict[float, np.ndarray]  # level -> (h, c)
    times: Sequence[str]  # h labels: ISO times, or step numbers where the input has no times
    names: Sequence[str]  # c variates
    history: np.ndarray | None = None  # (t, c) what was read, for pictures
    source: str = "<memory>"
    zone: tzinfo | None = None  # of the input's times

    @property
    def confidence(self) -> float | None:
        return None  # the quantile band says it

    def to_frame(self) -> pd.DataFrame:
        """A table with a row for each step: a column for each variate, and one for each of its quantiles ("load_q10").

        The index are times, in the zone of the input's where it had one, or the numbers of the steps.
        """
        import pandas as pd

        columns = {name: self.mean[:, i] for i, name in enumerate(self.names)}
        columns |= {f"{name}_q{100 * level:g}": band[:, i] for i, name in enumerate(self.names)
                    for level, band in self.quantiles.items()}  # fmt: skip
        if "-" not in str(self.times[0])[1:]:  # no date but the number of a step
            return pd.DataFrame(columns, pd.Index([int(time) for time in self.times], name="step"))
        if self.zone is None or len(str(self.times[0])) == len("2024-01-31"):
            index = pd.DatetimeIndex(list(self.times))
            if self.zone is not None:  # days; where a clock change skips midnight, one begins later
                twice = np.ones(len(index), bool)
                index = index.tz_localize(self.zone, ambiguous=twice, nonexistent="shift_forward")
        else:
            index = pd.DatetimeIndex(pd.to_datetime(list(self.times), utc=True)).tz_convert(self.zone)
        return pd.DataFrame(columns, index.rename("time"))

    def answer(self) -> str:
        name = self.names[0] if len(self.names) == 1 else f"{len(self.names)} variates, {self.names[0]}"
        return f"{name}: next {self.mean[0, 0]:.4g}, in {len(self.mean)} steps {self.mean[-1, 0]:.4g}"

    def to_record(self) -> dict[str, Any]:
        forecast = {name: np.round(self.mean[:, i], 6).tolist() for i, name in enumerate(self.names)}
        quantiles = {str(level): {name: np.round(values[:, i], 6).tolist() for i, name in enumerate(self.names)}
                     for level, values in self.quantiles.items()}  # fmt: skip
        return {"source": self.source, "answer": self.answer(), "confidence": None,
                "times": list(self.times), "forecast": forecast, "quantiles": quantiles}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Values:
    """Regressed numbers by name, in the units of the training targets."""

    values: dict[str, float]
    source: str = "<memory>"

    @property
    def confidence(self) -> float | None:
        return None

    def answer(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())

    def to_record(self) -> dict[str, Any]:
        return {"source": self.source, "answer": self.answer(), "confidence": None, "values": self.values}


@dataclass(frozen=True, slots=True)
class Embedding:
    """One vector for one input."""

    vector: np.ndarray  # (d,) float32
    source: str = "<memory>"
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def confidence(self) -> float | None:
        return None

    def answer(self) -> str:
        return f"{len(self.vector)} numbers, length {float(np.linalg.norm(self.vector)):.3f}"

    def to_record(self) -> dict[str, Any]:
        return {"source": self.source, "answer": self.answer(), "confidence": None, "embedding": self.vector.tolist()}


Prediction = Labels | Boxes | Mask | Segments | Series | Values | Embedding
