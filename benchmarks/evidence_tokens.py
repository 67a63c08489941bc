"""What the table of evidence holds fixed: each row's tokens, computed once, and the least-squares head that reads them.

Shape legend: s sequences, e examples (one or more sequences each), n tokens, d width, f pooled width, k outputs,
h steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sets import Run, read_m4
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone import checkpoints
from polysense.backbone.encoder import Encoder
from polysense.core.types import Features, Sample, Tokens
from polysense.data.time_series import SeriesFrame
from polysense.heads.forecast import ForecastHead
from polysense.heads.pool import PooledHead
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.tokenizers.base import Tokenizer
from polysense.training.examples import Examples, Subset, WindowExamples
from polysense.training.fit_pipeline import build_for
from polysense.training.sources import Sources, open_sources

BATCH = {"video": 4, "audio": 8, "point_cloud": 8, "time_series": 16}  # examples that run together; 32 elsewhere
READ = ("target", "time", "horizon", "context", "borders", "ignore")  # options of fit that say how data are read
STRENGTHS = np.logspace(0, 5, 11)  # of the ridge, for standardised features


@dataclass(slots=True)
class Part:
    """Cached tokens of one part of a data set with what is to be answered."""

    batches: list[Tokens]
    owner: Int[Tensor, " s"]  # example of each sequence
    place: Int[np.ndarray, " e"]  # where each example stands in its data set: examples are kept in a random order
    y: Float[Tensor, "s k"]  # one-hot classes, standardised numbers, or the future in the window's units
    weight: Float[Tensor, " s"]  # in the loss
    truth: Float[np.ndarray, "s h"]  # the future in its own units; empty but for forecasts
    scale: Float[np.ndarray, "s 3"]  # loc and scale of the window, deviation of the variate's train part

    def __len__(self) -> int:
        return int(self.owner.max()) + 1


@dataclass(slots=True)
class Task:
    """A run of a row: its head's way of pooling, its parts and how it is scored."""

    train: Part
    test: Part
    pool: Callable[[Features], Tensor]
    layers: tuple[int, ...]  # hidden layers that `pool` reads
    kind: str  # classification, regression, mse or smape
    cache: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # pooled train and test, by encoder


def build(run: Run, task: str, options: Mapping[str, Any], encoder: str, folder: Path) -> tuple[Pipeline, Sources]:
    """The row's default tokenizer (with the folder's weights where it has fitting ones) and head, and its data."""
    kwargs = {name: options[name] for name in READ if name in options}
    sources = open_sources(TASKS[task], run.train, **kwargs)
    pipeline = build_for(task, sources, encoder, options.get("tokenizer_options"), options.get("head_options"), 0)
    file = folder / f"{pipeline.modality}.safetensors"
    if file.exists():
        own, (state, _) = pipeline.tokenizer.state_dict(), checkpoints.read_state(file)
        fitting = {key: value.float() for key, value in state.items() if key in own and own[key].shape == value.shape}
        pipeline.tokenizer.load_state_dict(fitting, strict=False)
    return pipeline.eval(), sources


def fingerprint(tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenize(run: Run, pipeline: Pipeline, sources: Sources, most: tuple[int, int], metric: str) -> Task:
    """Caches tokens of at most `most` train and test examples, spread evenly over each part."""
    train = _examples(sources, pipeline.tokenizer, "train")
    test, std = train, {}
    if metric == "smape":
        test = _futures(run.test, pipeline)
    else:
        given = {key: value for key, value in sources.data_options().items() if value is not None}
        measured = open_sources(pipeline.task, run.test, **given)
        test = _examples(measured, pipeline.tokenizer, "test")
        std = dict(measured.head_options().get("variate_scale", ()))
    head = pipeline.head
    assert isinstance(head, PooledHead | ForecastHead)
    pool = head.flatten if isinstance(head, ForecastHead) else head.pool
    kind = metric if pipeline.task.kind == "forecasting" else pipeline.task.kind
    return Task(cached(pipeline, Subset.even(train, most[0]), {}), cached(pipeline, Subset.even(test, most[1]), std),
                pool, tuple(head.layers), kind)  # fmt: skip


def _examples(sources: Sources, tokenizer: Tokenizer, part: str) -> Examples:
    return sources.examples(tokenizer, part if part in sources.splits() else "")


def _futures(folder: Path, pipeline: Pipeline) -> WindowExamples:
    """Each M4 series once: its history and its future."""
    frames, ends = [], []
    for name, history, future in read_m4(folder):
        frames.append(SeriesFrame(np.concatenate([history, future])[:, None], None, ["value"], source=name))
        ends.append([len(history)])
    tokenizer: Any = pipeline.tokenizer
    return WindowExamples(frames, ends, tokenizer, pipeline.head.config.horizon)


@torch.inference_mode()
def cached(pipeline: Pipeline, examples: Examples, std: Mapping[str, float]) -> Part:
    """Reads, tokenizes and keeps examples, in a random order: batches are what a tuned encoder learns from."""
    order = np.random.default_rng(0).permutation(len(examples))
    size, config = BATCH.get(pipeline.modality, 32), pipeline.head.config
    classes, horizon = len(getattr(config, "classes", ())), getattr(config, "horizon", 0)
    forecasts = isinstance(pipeline.head, ForecastHead)
    batches, owner, ys, weights, truth, scales = [], [], [], [], [], []
    for start in range(0, len(order), size):
        sequences: list[tuple[Sample, Any]] = []
        for number, i in enumerate(order[start : start + size], start):
            samples, target = examples.whole(int(i))
            sequences += [(s, target[:, c] if forecasts else target) for c, s in enumerate(samples)]
            owner += [number] * len(samples)
        batch = pipeline.tokenizer.collate([sample for sample, _ in sequences])
        batches.append(pipeline.tokenizer(batch))
        target = pipeline.head.targets([answer for _, answer in sequences], batch["meta"])
        ys.append(_numbers(target, classes, horizon))
        weights.append(target.get("weight", torch.ones(len(sequences))))
        if forecasts:
            truth.append(np.stack([answer for _, answer in sequences]))
            scales += [(about["loc"][0], about["scale"][0], std.get(about["names"][0], 1.0)) for about in batch["meta"]]
    return Part(batches, torch.tensor(owner), order, torch.cat(ys), torch.cat(weights),
                np.concatenate(truth) if truth else np.empty(0), np.array(scales))  # fmt: skip


def _numbers(target: Mapping[str, Tensor], classes: int, horizon: int) -> Float[Tensor, "s k"]:
    if "labels" in target:
        return F.one_hot(target["labels"], classes).float()
    return target["values"] if "values" in target else target["steps"][:, :horizon]


@torch.inference_mode()
def pooled(encoder: Encoder, task: Task, part: Part, device: str) -> Float[Tensor, "s f"]:
    return torch.cat([task.pool(encoder(to(tokens, device), layers=task.layers)).cpu() for tokens in part.batches])


def to(tokens: Tokens, device: str) -> Tokens:
    mask = None if tokens.mask is None else tokens.mask.to(device)
    return Tokens(tokens.x.to(device), mask, tokens.pos.to(device), tokens.grid)


def merged(values: Float[Tensor, "s k"], owner: Int[Tensor, " s"]) -> Float[Tensor, "e k"]:
    """The mean over each example's sequences; examples without any are left out."""
    _, place = owner.unique(return_inverse=True)
    total = values.new_zeros(int(place.max()) + 1, values.shape[1]).index_add_(0, place, values)
    return total / torch.bincount(place)[:, None]


def solve(task: Task, x: Float[Tensor, "s f"], rows: Int[Tensor, " r"]) -> nn.Linear:
    """The linear head of least squares on some train sequences; its ridge is as strong as cross-validation finds best.

    Pooled features are standardised; an example of several sequences counts once, by their mean; the strength is that
    of the least leave-one-out error. Forecasts read plain tokens, whose amplitudes count, and neighbouring windows tell
    of each other: their folds are five stretches of the data set.
    """
    from sklearn.linear_model import RidgeCV

    part = task.train
    x, y, weight, owner = x[rows], part.y[rows], part.weight[rows], part.owner[rows]
    forecasts = task.kind in ("mse", "smape")
    if not forecasts:
        x, y, weight = merged(x, owner), merged(y, owner), merged(weight[:, None], owner)[:, 0]
    else:
        known = y.isfinite().all(1)
        x, y, weight, owner = x[known], y[known], weight[known], owner[known]
    mean, std = x.mean(0), x.std(0).clamp_min(1e-4)
    z = (x - mean) / (std.square().mean().sqrt() if forecasts else std)
    basis = principal(z) if forecasts else torch.eye(z.shape[1])
    folds = stretches(part.place[owner.numpy()]) if forecasts else None
    ridge = RidgeCV(STRENGTHS, cv=folds, scoring="neg_mean_squared_error" if forecasts else None)
    ridge.fit((z @ basis).double().numpy(), y.double().numpy(), sample_weight=weight.double().numpy())
    slope = torch.from_numpy(np.atleast_2d(ridge.coef_)).float() @ basis.T
    slope = slope / (std.square().mean().sqrt() if forecasts else std)
    linear = nn.Linear(x.shape[1], y.shape[1])
    with torch.no_grad():
        linear.weight.copy_(slope)
        linear.bias.copy_(torch.from_numpy(np.atleast_1d(ridge.intercept_)).float() - slope @ mean)
    return linear


def principal(z: Float[Tensor, "r f"]) -> Float[Tensor, "f p"]:
    """Directions that hold all that the rows hold: a ridge on them is the same, and small where rows are few."""
    if len(z) >= z.shape[1]:
        return torch.eye(z.shape[1])
    values, vectors = torch.linalg.eigh((z @ z.T).double())
    kept = values > 1e-6 * values[-1]
    return (z.T.double() @ vectors[:, kept] / values[kept].sqrt()).float()


def stretches(place: Int[np.ndarray, " r"], count: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds (train rows, held-out rows): contiguous stretches of places."""
    fold = (place - place.min()) * count // (place.max() - place.min() + 1)
    return [((fold != k).nonzero()[0], (fold == k).nonzero()[0]) for k in range(count) if (fold == k).any()]


def score(task: Task, out: Float[Tensor, "s k"], part: Part) -> float:
    """Accuracy, R², MSE of standardised values, or sMAPE in per cent."""
    if task.kind in ("classification", "regression"):
        answers, y = merged(out, part.owner), merged(part.y, part.owner)
        if task.kind == "classification":
            return float((answers.argmax(1) == y.argmax(1)).float().mean())
        from sklearn.metrics import r2_score

        return float(r2_score(y.numpy(), answers.numpy()))
    loc, scale, std = part.scale.T[..., None]
    answer = out.double().numpy()[:, : part.truth.shape[1]] * scale + loc
    error = answer - part.truth
    if task.kind == "mse":
        return float(np.nanmean((error / std) ** 2))
    size = np.abs(answer) + np.abs(part.truth)
    return float(np.nanmean(200 * np.abs(error) / np.where(size > 0, size, 1)))
