"""Classification: pooled features -> class probabilities, multi-class or multi-label.

Shape legend: b sequences, f pooled width, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polysense.core.predictions import Labels, Prediction
from polysense.heads.base import HEADS, Out
from polysense.heads.pool import Pool, PooledHead, make_mlp


@dataclass(frozen=True, slots=True)
class ClassificationConfig:
    """Plain values of a classification head."""

    classes: tuple[str, ...]  # in the order of the outputs
    multi_label: bool = False  # each class by itself (sigmoid) instead of one of all (softmax)
    pooling: tuple[str, ...] = ("mean", "max")  # see heads.pool
    layers: tuple[int, ...] = ()  # hidden layers to read beside the last
    hidden: int = 0  # width of one hidden layer; 0: a linear head
    dropout: float = 0.0  # of the pooled features, in training
    label_smoothing: float = 0.0  # share of the target spread over all classes
    class_weights: tuple[float, ...] = ()  # what each class counts in learning; none: all alike
    threshold: float = 0.5  # probability from which a multi-label class holds

    def __post_init__(self) -> None:
        for name in ("classes", "pooling", "layers", "class_weights"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(set(self.classes)) < len(self.classes) or len(self.classes) < (1 if self.multi_label else 2):
            raise ValueError(f"a classifier needs different class names, at least two; got {list(self.classes)[:10]}")
        if self.class_weights and (self.multi_label or len(self.class_weights) != len(self.classes)):
            raise ValueError("class weights are one number for each of the classes that exclude each other")


@HEADS.register("classification")
class ClassificationHead(PooledHead):
    """A linear (or one-hidden-layer) classifier on pooled tokens, with a temperature that calibrates confidence.

    `temperature` is fitted after training on validation data (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"); 1 until then.
    """

    Config = ClassificationConfig

    def __init__(self, config: ClassificationConfig, width: int) -> None:
        super().__init__(config, width)
        self.pool = Pool(width, config.pooling, config.layers)
        self.classify = make_mlp(self.pool.width, config.hidden, len(config.classes), config.dropout)
        self.register_buffer("temperature", torch.ones(()))
        self._index = {name: i for i, name in enumerate(config.classes)}

    temperature: Tensor

    def from_pooled(self, pooled: Float[Tensor, "b f"]) -> Out:
        return {"logits": self.classify(pooled)}

    def targets(self, labels: Sequence[Any], meta: Sequence[Mapping[str, Any]]) -> Out:
        """Labels: class names, or lists of names for multi-label. An unknown name raises ValueError."""
        if self.config.multi_label:
            target = torch.zeros(len(labels), len(self._index))
            for row, names in zip(target, labels, strict=True):
                for name in [names] if isinstance(names, str) else names:
                    row[self._number(name)] = 1
            return {"labels": target}
        return {"labels": torch.tensor([self._number(name) for name in labels])}

    def _number(self, name: Any) -> int:
        if str(name) not in self._index:
            raise ValueError(f"the class {name!r} is not one of this head's: {', '.join(self.config.classes[:20])}")
        return self._index[str(name)]

    def loss(self, out: Out, target: Out) -> dict[str, Tensor]:
        if self.config.multi_label:
            return {"loss": F.binary_cross_entropy_with_logits(out["logits"], target["labels"])}
        weights = out["logits"].new_tensor(self.config.class_weights) if self.config.class_weights else None
        smoothing = self.config.label_smoothing
        return {"loss": F.cross_entropy(out["logits"], target["labels"], weights, label_smoothing=smoothing)}

    def probabilities(self, out: Out) -> Float[Tensor, "b c"]:
        logits = out["logits"].float() / self.temperature
        return logits.sigmoid() if self.config.multi_label else logits.softmax(-1)

    def decode(self, out: Out, meta: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        scores, order = self.probabilities(out).sort(dim=-1, descending=True)
        answers: list[Prediction] = []
        for row, places, about in zip(scores.tolist(), order.tolist(), meta, strict=True):
            names = [self.config.classes[i] for i in places]
            count = sum(score >= self.config.threshold for score in row) if self.config.multi_label else 1
            answers.append(Labels(names, row, names[:count], about["source"]))
        return answers

    @torch.no_grad()
    def calibrate(self, logits: Float[Tensor, "b c"], target: Tensor) -> None:
        """Sets the temperature to the one (0.2 to 5, on a grid) of least loss on validation data."""
        grid = torch.logspace(-0.7, 0.7, 57)
        losses = []
        for temperature in grid:
            scaled = {"logits": logits / temperature}
            if self.config.multi_label:
                losses.append(self.loss(scaled, {"labels": target})["loss"])
            else:  # without smoothing: confidence is to match accuracy
                losses.append(F.cross_entropy(scaled["logits"], target))
        self.temperature.fill_(grid[torch.stack(losses).argmin()])
