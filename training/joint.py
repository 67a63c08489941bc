"""The second phase of a fit: tokenizer and head together, by gradient descent with early stopping."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.pipeline import Pipeline, to_device
from polysense.training.best import Average, Best, adapter_parameters, own_state
from polysense.training.checkpoint import Keeper
from polysense.training.compute import agreed, share_gradients, share_state, start
from polysense.training.course import Course, finite
from polysense.training.evaluate import measure
from polysense.training.examples import Examples
from polysense.training.pretrain_log import TrainingLog
from polysense.training.progress import Progress

__all__ = ["Average", "Best", "Recipe", "train_together"]
KEEP_MINUTES = 5.0  # between checkpoints within an epoch; every epoch ends with one


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
    warmup: float = 0.05  # share of all steps over which the learning rate rises
    clip: float = 1.0  # greatest norm of the gradient; 0: any
    accumulate: int = 1  # batches that make up a step
    precision: str = "fp32"  # of what is computed: a key of `compute.PRECISIONS`
    watch: str | None = None  # metric, larger is better, that chooses the best state instead of the task's own
    seed: int = 0
    grid: bool = False  # the probe before it tries many strengths of regularisation

    def __post_init__(self) -> None:
        bounds = {"average": (0, 1), "warmup": (0, 1), "accumulate": (1, math.inf), "clip": (0, math.inf)}
        for name, (least, above) in bounds.items():
            if not least <= getattr(self, name) < above:
                fix = f"give at least {least}" + (f" and less than {above}" if above < math.inf else "")
                raise InputError(f"{name}={getattr(self, name)}", "it is out of range", fix)


def train_together(
    pipeline: Pipeline,
    learning: Examples,
    watched: Examples,
    recipe: Recipe,
    progress: Progress,
    keeper: Keeper | None = None,
    board: str | None = None,
) -> tuple[int, bool]:
    """Trains tokenizer and head; leaves the best state, by the metric on the examples watched, in the pipeline.

    Args:
        pipeline: What learns.
        learning, watched: Examples to learn from and to measure on.
        recipe: How.
        progress: Hears of it.
        keeper: Keeps checkpoints, and has the one from which to go on if there is one.
        board: Folder for TensorBoard's files and a `log.csv`.

    Returns:
        The epochs that were run, and whether the state before the first one stayed the best.

    Raises:
        InputError: The loss is no longer a number, or a checkpoint cannot be written.
    """
    kept = keeper.load() if keeper else None
    if kept is not None:
        pipeline.settled = set(kept[1]["settled"])
    bare = make_optimiser(pipeline, recipe)
    if not recipe.epochs:
        progress.epoch(0, 0, Best(pipeline, measure(pipeline, watched, recipe.batch_size), recipe.watch).metrics, None)
        return 0, True
    accelerator = start(recipe.precision, pipeline.device)
    optimiser = accelerator.prepare_optimizer(bare)
    share_state(accelerator, own_state(pipeline))
    average = Average(parameters_of(optimiser), recipe.average)
    process = accelerator.process_index
    batch = [recipe.batch_size, recipe.accumulate, accelerator.num_processes]
    rng = np.random.default_rng((recipe.seed, process) if process else recipe.seed)
    if process:  # what is drawn differs between processes
        torch.manual_seed(recipe.seed + 7919 * process)
    course = Course(pipeline, optimiser, average, batch, accelerator, rng)
    if kept is not None:
        course.unpack(*kept, recipe.watch)
        progress.say(f"going on after {course.epoch} epochs and {course.step} steps")
    else:
        metrics = agreed(accelerator, measure(pipeline, watched, recipe.batch_size))
        course.best = Best(pipeline, metrics, recipe.watch)
        progress.epoch(0, recipe.epochs, metrics, None)
    steps = steps_of(len(learning), recipe, math.prod(batch))
    first = course.epoch * steps + course.step
    log = TrainingLog.at(board, first) if board and accelerator.is_main_process else None
    _run(course, learning, watched, recipe, steps, progress, keeper, log)
    assert course.best is not None
    course.best.restore()
    if log is not None:
        log.close()
    return course.epoch, course.best.first


def _run(
    course: Course,
    learning: Examples,
    watched: Examples,
    recipe: Recipe,
    steps: int,
    progress: Progress,
    keeper: Keeper | None,
    log: TrainingLog | None,
) -> None:
    """Epochs of `steps` steps until there were enough, nothing got better, or time is up."""
    best, pipeline = course.best, course.pipeline
    assert best is not None
    if course.epoch == course.step == 0:
        _keep(course, keeper)
    while course.epoch < recipe.epochs and best.waited < recipe.patience:
        late = recipe.max_minutes is not None and course.seconds > recipe.max_minutes * 60
        if agreed(course.accelerator, late):
            break
        _run_epoch(course, learning, recipe, steps, progress, keeper, log)
        loss = agreed(course.accelerator, float(np.mean(course.losses)))
        course.next_epoch()
        with course.average:
            best.offer(agreed(course.accelerator, measure(pipeline, watched, recipe.batch_size)), loss)
        if log is not None:
            told = {f"validation/{name}": value for name, value in best.latest.items()}
            log.write(course.epoch * steps - 1, course.seconds, told)
        _keep(course, keeper)
        progress.epoch(course.epoch, recipe.epochs, best.latest, loss)


def _run_epoch(
    course: Course,
    learning: Examples,
    recipe: Recipe,
    steps: int,
    progress: Progress,
    keeper: Keeper | None,
    log: TrainingLog | None,
) -> None:
    """What is left of an epoch."""
    pipeline, last = course.pipeline, course.seconds
    if course.order is None:
        course.order = shuffled(learning, recipe, course.rng, steps * recipe.accumulate)
    done = course.step * recipe.accumulate
    drawn = batches(pipeline, learning, recipe, course.rng, steps * recipe.accumulate, course.order, done)
    for step in range(course.step, steps):
        set_lr(course.optimiser, (course.epoch * steps + step) / (recipe.epochs * steps), recipe.warmup)
        parts = (next(drawn) for _ in range(recipe.accumulate))
        try:
            loss = train_step(pipeline, parts, course.optimiser, course.accelerator, recipe)
        except FloatingPointError as error:
            fix = "try a smaller --lr"
            if keeper is not None:
                fix = "go on from the last checkpoint with --resume and a smaller --lr"
            raise InputError(f"epoch {course.epoch + 1}, step {step + 1}", str(error), fix) from error
        course.losses.append(loss)
        course.average.update()
        course.step = step + 1
        progress.step(course.epoch, step, steps, loss)
        if log is not None:
            rate = max(group["lr"] for group in course.optimiser.param_groups)
            log.write(course.epoch * steps + step, course.seconds, {"loss": loss, "lr": rate})
        # Several processes keep together, so not by their clocks.
        if course.seconds - last > KEEP_MINUTES * 60 and course.accelerator.num_processes == 1:
            _keep(course, keeper)
            last = course.seconds


def _keep(course: Course, keeper: Keeper | None) -> None:
    """Writes a checkpoint. Weights that are no numbers never replace good ones: the next loss will tell."""
    if keeper is not None and finite(course.pipeline):
        keeper.save(*course.pack())


def shuffled(examples: Examples, recipe: Recipe, rng: np.random.Generator, count: int) -> np.ndarray:
    """Numbers of examples in a random order, enough for `count` batches."""
    size = min(recipe.batch_size, len(examples))
    passes = math.ceil(count * size / len(examples))
    return np.concatenate([rng.permutation(len(examples)) for _ in range(passes)])


def steps_of(count: int, recipe: Recipe, batch: int) -> int:
    """Steps of `batch` examples that count as an epoch over so many."""
    return int(np.clip(math.ceil(count / batch), recipe.least_steps, recipe.most_steps))


def batches(
    pipeline: Pipeline,
    examples: Examples,
    recipe: Recipe,
    rng: np.random.Generator,
    count: int,
    order: np.ndarray | None = None,
    first: int = 0,
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Collated inputs and targets in a random order, `count` batches from the one numbered `first` on."""
    size = min(recipe.batch_size, len(examples))
    order = shuffled(examples, recipe, rng, count) if order is None else order
    for begin in range(first * size, count * size, size):
        pairs = [pair for i in order[begin : begin + size] for pair in examples.train(int(i), rng)]
        batch = pipeline.tokenizer.collate([sample for sample, _ in pairs])
        yield batch, pipeline.head.targets([target for _, target in pairs], batch["meta"])


def train_step(
    pipeline: Pipeline,
    parts: Iterator[tuple[dict[str, Any], dict[str, Tensor]]],
    optimiser: Any,
    accelerator: Any,
    recipe: Recipe,
) -> float:
    """One step of the optimiser, from the mean gradient of some batches; returns their mean loss.

    Raises:
        FloatingPointError: The loss or its gradient is no finite number; the weights are as before.
    """
    pipeline.train()
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for inputs, target in parts:
        with accelerator.autocast():
            loss = pipeline.head.loss(pipeline.forward(inputs), to_device(target, pipeline.device))["loss"]
        if not loss.isfinite():
            raise FloatingPointError(f"the loss became {float(loss.detach())}")
        accelerator.backward(loss / recipe.accumulate)
        total += float(loss.detach()) / recipe.accumulate
    parameters = parameters_of(optimiser)
    share_gradients(accelerator, parameters)
    accelerator.unscale_gradients(optimiser)
    norm = nn.utils.clip_grad_norm_(parameters, recipe.clip or math.inf)
    if accelerator.scaler is None and not norm.isfinite():  # a scaler leaves such steps out
        raise FloatingPointError(f"the gradient became {float(norm)}")
    optimiser.step()
    return total


def parameters_of(optimiser: Any) -> list[nn.Parameter]:
    return [p for group in optimiser.param_groups for p in group["params"]]


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


def set_lr(optimiser: Any, share: float, warmup: float = 0.05) -> None:
    """Linear warm-up over the first share of all steps, then a cosine down to 1% of the peak."""
    if share < warmup:
        factor = share / warmup
    else:
        factor = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * max(factor, 0.01)
