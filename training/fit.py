"""`fit`: tokenizer and head learn a task on the frozen encoder; the best state on validation data becomes a bundle.

Two phases: the head's linear part on features computed once (`probe`), then tokenizer and head together by gradient
descent with early stopping. The encoder is never touched.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.core.options import make_config
from polysense.heads.classify import ClassificationHead
from polysense.heads.forecast import ForecastHead
from polysense.pipeline import Pipeline, to_device
from polysense.saving import check_place
from polysense.tasks import TASKS
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.training.evaluate import measure
from polysense.training.examples import Examples, Subset
from polysense.training.grow_trees import grow, regrow
from polysense.training.probe import can_probe, pooled_features, probe
from polysense.training.probe_forecast import probe_forecast
from polysense.training.progress import Progress
from polysense.training.sources import Sources, open_sources

BATCH = {"tabular": 256, "time_series": 32, "video": 8}  # examples a step where none is asked for; 32 elsewhere
EPOCHS = {"tabular": 0}  # of joint training where none are asked for: trees and a solved head gain nothing by it
USUAL_EPOCHS = 20  # elsewhere
MAX_VALIDATION = 2000  # examples that early stopping looks at; the final figure uses all


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a fit gives back."""

    metrics: dict[str, float]  # on the whole validation part, by usual names
    seconds: float
    epochs: int  # of joint training that were run
    path: Path  # of the bundle


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
    seed: int = 0


def fit(
    task: str,
    data: str | Path,
    out: str | Path,
    *,
    target: str | None = None,
    time: str | None = None,
    horizon: int = 96,
    context: int = 96,
    borders: tuple[float, ...] = (0.7, 0.1, 0.2),
    ignore: int | None = None,
    encoder: str = "embedded",
    epochs: int | None = None,
    max_minutes: float | None = None,
    batch_size: int | None = None,
    lr: float = 1e-3,
    settled_lr: float = 0.1,
    seed: int = 0,
    val_share: float = 0.15,
    patience: int = 4,
    augment: bool = False,
    train: str = "tokenizer+head",
    tokenizer_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a task's tokenizer and head on a data set and writes the bundle.

    Args:
        task: A name in `polysense.tasks.TASKS`.
        data: See `polysense.training.sources.open_sources`.
        out: Bundle folder to write; an existing bundle is replaced when training has ended.
        target, time, horizon, context, borders, ignore: See `open_sources`.
        encoder: A spec of `polysense.load_encoder`.
        epochs: Of joint training at most; 0 stops after the probe. By default 0 for tables, 20 elsewhere.
        max_minutes: Of joint training at most.
        batch_size: Examples a step; by default one that suits the modality.
        lr: Learning rate.
        settled_lr: Factor of it for weights that are pretrained or solved for; 0 keeps them as they are.
        seed: Of splits, weights, order and augmentation.
        val_share: Of the training part that becomes validation where the data have none.
        patience: Epochs without improvement after which training stops.
        augment: Vary the inputs at random while learning.
        train: "tokenizer+head" or "head".
        tokenizer_options, head_options: Fields of their configurations.
        device: Where to compute.
        threads: CPU threads.
        progress: Show progress on the terminal.
        about: Further facts for the bundle's card.

    Returns:
        Validation metrics and the bundle's path.

    Raises:
        InputError: Data or options cannot be used; nothing is written then.
    """
    if train not in ("tokenizer+head", "head"):
        raise InputError(f"train={train}", "unknown choice", "use tokenizer+head or head")
    if threads:
        torch.set_num_threads(threads)
    what = TASKS[task]
    if what.kind == "embedding":
        raise InputError(task, "an embedding has nothing to train", "choose a task such as image-classification")
    start = clock.perf_counter()
    sources = open_sources(what, data, target=target, time=time, horizon=horizon, context=context, borders=borders,
                           ignore=ignore)  # fmt: skip
    sources = sources.with_validation(val_share, seed)
    check_place(Path(out).expanduser())
    pipeline = build_for(task, sources, encoder, tokenizer_options, head_options, seed).to(device)
    if epochs is None:
        epochs = EPOCHS.get(what.modality, USUAL_EPOCHS) if can_probe(pipeline.head) else USUAL_EPOCHS
    recipe = Recipe(epochs, max_minutes, batch_size or BATCH.get(what.modality, 32), lr, settled_lr, patience=patience,
                    train=train, augment=augment, seed=seed)  # fmt: skip
    learning = sources.examples(pipeline.tokenizer, "train", augment)
    validation = sources.examples(pipeline.tokenizer, "val")
    if not len(learning):
        raise InputError(data, "its training part is empty", "give examples to learn from")
    if not len(validation):
        raise InputError(data, "its validation part is empty", "give more data or a larger --val-share")
    run = train_pipeline(pipeline, learning, validation, recipe, Progress(progress))
    calibrate(pipeline, validation, recipe.batch_size)
    pipeline.metrics = measure(pipeline, validation, recipe.batch_size)
    pipeline.about = {"data_options": sources.data_options(), "measured_on": "validation part", "seed": seed,
                      "epochs": run, **(about or {})}  # fmt: skip
    regrow(pipeline, learning, validation, seed)
    path = pipeline.save_pretrained(out)
    return FitResult(pipeline.metrics, clock.perf_counter() - start, run, path)


def build_for(
    task: str,
    sources: Sources,
    encoder: str,
    tokenizer_options: Mapping[str, Any] | None,
    head_options: Mapping[str, Any] | None,
    seed: int,
) -> Pipeline:
    """An untrained pipeline that suits the data."""
    front = {**sources.tokenizer_options(), **(tokenizer_options or {})}
    head = {**sources.head_options(), **(head_options or {})}
    if TASKS[task].kind == "forecasting":
        series = TimeSeriesTokenizer(make_config(SeriesConfig, front, "time_series tokenizer"))
        head["tokens"] = series.token_count(front["context"])
    known = sources.tokenizer_sources()
    pipeline = Pipeline.build(task, encoder=encoder, tokenizer=front, head=head, sources=known, seed=seed)
    pipeline.settled |= {f"tokenizer.{name}" for name in pipeline.tokenizer.fit_tensors(known, seed)}
    return pipeline


def train_pipeline(
    pipeline: Pipeline, learning: Examples, validation: Examples, recipe: Recipe, progress: Progress
) -> int:
    """Both phases; leaves the best state in the pipeline and returns the epochs of the joint one."""
    with torch.random.fork_rng([pipeline.device] if pipeline.device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)  # of dropout
        return _train_pipeline(pipeline, learning, validation, recipe, progress)


def _train_pipeline(
    pipeline: Pipeline, learning: Examples, validation: Examples, recipe: Recipe, progress: Progress
) -> int:
    watched = Subset.even(validation, MAX_VALIDATION)
    if grow(pipeline, learning, recipe.seed):
        progress.say(f"grew boosted trees on {len(learning)} rows")
    if can_probe(pipeline.head):
        progress.say(f"probing {len(learning)} examples")
        probe(pipeline, learning, validation, recipe.batch_size)
    elif isinstance(pipeline.head, ForecastHead):
        progress.say(f"solving a ridge regression on {len(learning)} windows")
        probe_forecast(pipeline, learning, validation, recipe.batch_size)
    best = Best(pipeline, measure(pipeline, watched, recipe.batch_size))
    progress.epoch(0, recipe.epochs, best.metrics, None)
    optimiser = make_optimiser(pipeline, recipe)
    rng = np.random.default_rng(recipe.seed)
    steps = int(np.clip(math.ceil(len(learning) / recipe.batch_size), recipe.least_steps, recipe.most_steps))
    started, epoch = clock.perf_counter(), 0
    while epoch < recipe.epochs and best.waited < recipe.patience:
        out_of_time = recipe.max_minutes is not None and clock.perf_counter() - started > recipe.max_minutes * 60
        if out_of_time:
            break
        losses = []
        for step, batch in enumerate(batches(pipeline, learning, recipe, rng, steps)):
            set_lr(optimiser, (epoch * steps + step) / (recipe.epochs * steps))
            losses.append(train_step(pipeline, batch, optimiser))
            progress.step(epoch, step, steps, losses[-1])
        epoch += 1
        best.offer(measure(pipeline, watched, recipe.batch_size))
        progress.epoch(epoch, recipe.epochs, best.latest, float(np.mean(losses)))
    best.restore()
    return epoch


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
    for name, parameter in named:
        factor = recipe.settled_lr if name in pipeline.settled else 1.0
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "lr": recipe.lr * factor, "peak": recipe.lr * factor,
          "weight_decay": recipe.weight_decay * decays} for (factor, decays), params in groups.items()]
    )  # fmt: skip


def set_lr(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Linear warm-up over the first 5% of all steps, then a cosine down to 1% of the peak."""
    factor = share / 0.05 if share < 0.05 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * max(factor, 0.01)


class Best:
    """The best state so far, by the task's metric."""

    def __init__(self, pipeline: Pipeline, metrics: dict[str, float]) -> None:
        if (metric := pipeline.task.metric) not in metrics:
            problem = f"its {metric} is undefined: nothing in it is labelled"
            raise InputError("the validation part", problem, "give validation examples with labels")
        self.pipeline, self.metrics, self.latest, self.waited = pipeline, metrics, metrics, 0
        self.state = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        state = self.pipeline.state_dict()
        return {name: value.clone() for name, value in state.items() if not name.startswith("encoder.")}

    def offer(self, metrics: dict[str, float]) -> None:
        task = self.pipeline.task
        gain = metrics[task.metric] - self.metrics[task.metric]
        self.latest = metrics
        if gain == 0:  # small validation parts tie often; how sure and how right the answers are then decides
            gain = (
                sum(self.metrics.get(key, 0.0) - metrics.get(key, 0.0) for key in ("log_loss", "pinball")) * task.sign
            )
        if gain * task.sign > 0:
            self.metrics, self.state, self.waited = metrics, self._copy(), 0
        else:
            self.waited += 1

    def restore(self) -> None:
        self.pipeline.load_state_dict(self.state, strict=False)


def calibrate(pipeline: Pipeline, validation: Examples, batch_size: int) -> None:
    """Sets the temperature of a classification head on validation data."""
    head = pipeline.head
    if isinstance(head, ClassificationHead):
        pooled, target = pooled_features(pipeline, validation, batch_size)
        with torch.inference_mode():
            logits = head.from_pooled(pooled.to(pipeline.device))["logits"].cpu()
        head.calibrate(logits, target["labels"])
