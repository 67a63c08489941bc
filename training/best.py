"""Which weights are kept: a moving average of them, and the best state so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.pipeline import Pipeline


def adapter_parameters(pipeline: Pipeline) -> dict[str, nn.Parameter]:
    """What an adapter may learn, by its names in the pipeline's state; nothing where there is none."""
    return {name: one for name, one in pipeline.named_parameters() if name.startswith("encoder.") and one.requires_grad}


def own_state(pipeline: Pipeline) -> dict[str, Tensor]:
    """The tensors of tokenizer, head and adapter: all that a fit may change."""
    own = adapter_parameters(pipeline)
    return {n: value for n, value in pipeline.state_dict().items() if n in own or not n.startswith("encoder.")}


class Average:
    """A moving average of weights (Polyak & Juditsky 1992), which stands in their place inside a `with`.

    Early on it forgets faster, so that it does not drag the first weights along.
    """

    def __init__(self, weights: list[nn.Parameter], decay: float) -> None:
        self.weights, self.decay, self.steps = weights if decay else [], decay, 0
        self.mean = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        for mean, weight in zip(self.mean, self.weights, strict=True):
            mean.lerp_(weight, 1 - decay)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *fault: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for i, weight in enumerate(self.weights):
            kept = weight.clone()
            weight.copy_(self.mean[i])
            self.mean[i] = kept


class Best:
    """The best state so far, by the task's metric.

    Args:
        pipeline: Whose state it is.
        metrics: Of the state now.
        metric: The one that decides, where it is not the task's own; larger is better.
    """

    def __init__(self, pipeline: Pipeline, metrics: dict[str, float], metric: str | None = None) -> None:
        self.metric = metric or pipeline.task.metric
        self.sign = 1 if metric else pipeline.task.sign
        if self.metric not in metrics:
            problem = f"its {self.metric} is undefined: nothing in it is labelled"
            raise InputError("the validation part", problem, "give validation examples with labels")
        self.pipeline, self.metrics, self.latest, self.waited = pipeline, metrics, metrics, 0
        self.first = True  # the state is still the one before the joint phase
        self.loss = math.inf  # of its epoch
        self.state = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in own_state(self.pipeline).items()}

    def offer(self, metrics: dict[str, float], loss: float = math.inf) -> None:
        """Takes in an epoch's metrics and its training loss."""
        gain = metrics[self.metric] - self.metrics[self.metric]
        self.latest = metrics
        if gain == 0:  # small validation parts tie often; how sure and how right the answers are then decides
            gain = (
                sum(self.metrics.get(key, 0.0) - metrics.get(key, 0.0) for key in ("log_loss", "pinball")) * self.sign
            )
        nothing = self.sign > 0 and metrics[self.metric] == self.metrics[self.metric] == 0
        if nothing and loss < self.loss:  # nothing is found yet, but it still learns
            gain = 1.0
        if gain * self.sign > 0:
            self.metrics, self.state, self.waited, self.first = metrics, self._copy(), 0, False
            self.loss = loss
        else:
            self.waited += 1

    def restore(self) -> None:
        self.pipeline.load_state_dict(self.state, strict=False)
