"""The second phase of a fit: tokenizer and head together, by gradient descent with early stopping."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.pipeline import Pipeline, to_device
from polysense.training.evaluate import measure
from polysense.training.examples import Examples
from polysense.training.progress import Progress


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the joint phase learns."""

    epochs: int = 20
    max_minutes: float | None = None  # of the joint phase
    batch_size: int = 32  # examples
    lr: float = 1e-3  # of the head, and of tokenizers that start from random weights
    settled_lr: float = 0.1  # factor for tensors that start from pretrained or solved weights; 0 keeps them
    weight_decay: float = 0.05
    patience: int = 4  # epochs without a better validation score
    most_steps: int = 200  # batches that count as an epoch, at most
    least_steps: int = 10  # and at least: tiny data sets are passed over several times
    train: str = "tokenizer+head"  # or "head"
    augment: bool = False
    augment_with: tuple[str, ...] = ()  # beside the usual: names in `training.scenes.EXTRAS`
    average: float = 0.0  # decay, a step, of a moving average of the weights, which is what is measured and kept
    seed: int = 0


def train_together(
    pipeline: Pipeline, learning: Examples, watched: Examples, recipe: Recipe, progress: Progress
) -> tuple[int, bool]:
    """Trains tokenizer and head; leaves the best state, by the metric on the examples watched, in the pipeline.

    Returns:
        The epochs that were run, and whether the state before the first one stayed the best.
    """
    best = Best(pipeline, measure(pipeline, watched, recipe.batch_size))
    progress.epoch(0, recipe.epochs, best.metrics, None)
    optimiser = make_optimiser(pipeline, recipe)
    average = Average([p for group in optimiser.param_groups for p in group["params"]], recipe.average)
    rng = np.random.default_rng(recipe.seed)
    steps = steps_of(len(learning), recipe)
    started, epoch = clock.perf_counter(), 0
    while epoch < recipe.epochs and best.waited < recipe.patience:
        out_of_time = recipe.max_minutes is not None and clock.perf_counter() - started > recipe.max_minutes * 60
        if out_of_time:
            break
        losses = []
        for step, batch in enumerate(batches(pipeline, learning, recipe, rng, steps)):
            set_lr(optimiser, (epoch * steps + step) / (recipe.epochs * steps))
            losses.append(train_step(pipeline, batch, optimiser))
            average.update()
            progress.step(epoch, step, steps, losses[-1])
        epoch += 1
        with average:
            best.offer(measure(pipeline, watched, recipe.batch_size), float(np.mean(losses)))
        progress.epoch(epoch, recipe.epochs, best.latest, float(np.mean(losses)))
    best.restore()
    return epoch, best.first


def steps_of(count: int, recipe: Recipe) -> int:
    """Steps that count as an epoch over so many examples."""
    return int(np.clip(math.ceil(count / recipe.batch_size), recipe.least_steps, recipe.most_steps))


def batches(
    pipeline: Pipeline, examples: Examples, recipe: Recipe, rng: np.random.Generator, steps: int
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Collated inputs and targets in a random order, `steps` of them."""
    size = min(recipe.batch_size, len(examples))
    passes = math.ceil(steps * size / len(examples))
    order = np.concatenate([rng.permutation(len(examples)) for _ in range(passes)])
    for start in range(0, steps * size, size):
        pairs = [pair for i in order[start : start + size] for pair in examples.train(int(i), rng)]
        batch = pipeline.tokenizer.collate([sample for sample, _ in pairs])
        yield batch, pipeline.head.targets([target for _, target in pairs], batch["meta"])


def train_step(pipeline: Pipeline, batch: tuple[dict[str, Any], dict[str, Tensor]], optimiser: Any) -> float:
    pipeline.train()
    inputs, target = batch
    loss = pipeline.head.loss(pipeline.forward(inputs), to_device(target, pipeline.device))["loss"]
    if not loss.isfinite():
        raise RuntimeError(f"the loss became {float(loss.detach())}; nothing was written; try a smaller --lr")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()
    return float(loss.detach())


def make_optimiser(pipeline: Pipeline, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; no decay on vectors (norms, biases), slower steps for tensors that begin with embedded weights."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    front = pipeline.tokenizer.named_parameters() if recipe.train == "tokenizer+head" else []
    named = [(f"tokenizer.{n}", p) for n, p in front] + [(f"head.{n}", p) for n, p in pipeline.head.named_parameters()]
    named += list(adapter_parameters(pipeline).items())
    pipeline.tokenizer.requires_grad_(False)
    for name, parameter in named:
        factor = recipe.settled_lr if name in pipeline.settled else 1.0
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "lr": recipe.lr * factor, "peak": recipe.lr * factor,
          "weight_decay": recipe.weight_decay * decays} for (factor, decays), params in groups.items()]
    )  # fmt: skip


def adapter_parameters(pipeline: Pipeline) -> dict[str, nn.Parameter]:
    """What an adapter may learn, by its names in the pipeline's state; nothing where there is none."""
    return {name: one for name, one in pipeline.named_parameters() if name.startswith("encoder.") and one.requires_grad}


def set_lr(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Linear warm-up over the first 5% of all steps, then a cosine down to 1% of the peak."""
    factor = share / 0.05 if share < 0.05 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * max(factor, 0.01)


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
    """The best state so far, by the task's metric."""

    def __init__(self, pipeline: Pipeline, metrics: dict[str, float]) -> None:
        if (metric := pipeline.task.metric) not in metrics:
            problem = f"its {metric} is undefined: nothing in it is labelled"
            raise InputError("the validation part", problem, "give validation examples with labels")
        self.pipeline, self.metrics, self.latest, self.waited = pipeline, metrics, metrics, 0
        self.first = True  # the state is still the one before the joint phase
        self.loss = math.inf  # of its epoch
        self.state = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        state, own = self.pipeline.state_dict(), adapter_parameters(self.pipeline)
        return {n: value.clone() for n, value in state.items() if n in own or not n.startswith("encoder.")}

    def offer(self, metrics: dict[str, float], loss: float = math.inf) -> None:
        """Takes in an epoch's metrics and its training loss."""
        task = self.pipeline.task
        gain = metrics[task.metric] - self.metrics[task.metric]
        self.latest = metrics
        if gain == 0:  # small validation parts tie often; how sure and how right the answers are then decides
            gain = (
                sum(self.metrics.get(key, 0.0) - metrics.get(key, 0.0) for key in ("log_loss", "pinball")) * task.sign
            )
        nothing = task.larger_is_better and metrics[task.metric] == self.metrics[task.metric] == 0
        if nothing and loss < self.loss:  # nothing is found yet, but it still learns
            gain = 1.0
        if gain * task.sign > 0:
            self.metrics, self.state, self.waited, self.first = metrics, self._copy(), 0, False
            self.loss = loss
        else:
            self.waited += 1

    def restore(self) -> None:
        self.pipeline.load_state_dict(self.state, strict=False)
