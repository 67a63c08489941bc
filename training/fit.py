"""`fit`: tokenizer and head learn a task on the frozen encoder; the best state on validation data becomes a bundle.

Two phases: the head's linear part on features computed once (`probe`), then tokenizer and head together by gradient
descent with early stopping. The encoder is never touched.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from polysense.backbone.adapters import METHODS
from polysense.core.errors import InputError
from polysense.core.options import make_config
from polysense.heads.classify import ClassificationHead
from polysense.heads.forecast import ForecastHead
from polysense.heads.queries import QueryHead
from polysense.pipeline import Pipeline
from polysense.saving import check_place
from polysense.tasks import TASKS, Task
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.training.card import check_examples, make_card, worst_examples
from polysense.training.check_data import BROKEN_SHARE, check_data
from polysense.training.checkpoint import Keeper, fingerprint
from polysense.training.class_weights import balance
from polysense.training.compute import check_precision, is_main, only_deterministic, own_device, wait_for_all
from polysense.training.course import part
from polysense.training.evaluate import measure, measured
from polysense.training.examples import Examples, FileExamples, Subset
from polysense.training.feature_cache import FeatureCache, pooled_features
from polysense.training.feature_store import limit_bytes
from polysense.training.grow_trees import grow, regrow
from polysense.training.joint import Recipe, train_together
from polysense.training.plan import Plan, make_plan
from polysense.training.pretrain_log import check_board
from polysense.training.probe import GRID, STRENGTHS, Probed, can_probe, find_order, probe, solve_again
from polysense.training.probe_forecast import forecast_answers, probe_forecast
from polysense.training.progress import Progress
from polysense.training.sources import Sources, open_sources
from polysense.training.token_cache import keep_tokens

BATCH = {"tabular": 256, "time_series": 32, "video": 8}  # examples a step where none is asked for; 32 elsewhere
# Answers for pixels: large inputs, few examples, and a head with much to learn behind a front part that knows enough.
DENSE: dict[str, Any] = {"batch_size": 8, "settled_lr": 0.0, "augment": True, "average": 0.99}
EPOCHS = {"tabular": 0}  # of joint training where none are asked for: trees and a solved head gain nothing by it
USUAL_EPOCHS = 20  # elsewhere
MOST_OFTEN = 100  # images that thresholds are tried on
THRESHOLDS = (0.5, 0.3, 0.2, 0.1, 0.05)  # of segments
MAX_VALIDATION = 2000  # examples that early stopping looks at; the final figure uses all


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a fit gives back."""

    metrics: dict[str, float]  # on the whole validation part, by usual names
    seconds: float
    epochs: int  # of joint training that were run
    path: Path  # of the bundle
    trainable: int  # parameters that the joint phase, or else the probe, may change
    plan: Plan | None = None  # of a dry run, which does nothing else


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
    known: str | Sequence[str] | None = None,
    static: str | Sequence[str] | None = None,
    series: str | None = None,
    ignore: int | None = None,
    encoder: str = "embedded",
    epochs: int | None = None,
    max_minutes: float | None = None,
    batch_size: int | None = None,
    lr: float = 1e-3,
    settled_lr: float | None = None,
    warmup: float | None = None,
    ema: float | None = None,
    clip: float | None = None,
    accumulate: int | None = None,
    precision: str = "fp32",
    class_weights: str | None = None,
    deterministic: bool = False,
    seed: int = 0,
    val_share: float = 0.15,
    patience: int = 4,
    augment: bool | None = None,
    augment_with: Sequence[str] = (),
    train: str = "tokenizer+head",
    method: str = "head",
    adapter_options: Mapping[str, Any] | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool | Progress = True,
    resume: bool | None = None,
    tensorboard: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    cache: bool = True,
    check: bool = True,
    broken_share: float = BROKEN_SHARE,
    report: str | Path | None = None,
    dry_run: bool = False,
    card: bool = True,
    card_examples: int = 0,
    draw: Callable[..., Any] | None = None,
) -> FitResult:
    """Trains a task's tokenizer and head on a data set and writes the bundle.

    Args:
        task: A name in `polysense.tasks.TASKS`.
        data: See `polysense.training.sources.open_sources`.
        out: Bundle folder to write; an existing bundle is replaced when training has ended.
        target, time, horizon, context, borders, known, static, series, ignore: See `open_sources`.
        encoder: A spec of `polysense.load_encoder`.
        epochs: Of joint training at most; 0 stops after the probe. By default 0 for tables, 20 elsewhere and for
            tables whose columns are mixed.
        max_minutes: Of joint training at most.
        batch_size: Examples a step; by default one that suits the modality.
        lr: Learning rate.
        settled_lr: Factor of it for weights that are pretrained or solved for; 0 keeps them as they are. By default 0
            for segmentation of images and detection, 0.1 elsewhere.
        warmup: Share of all steps over which the learning rate rises; .05 by default.
        ema: Decay, a step, of a moving average of the weights, which is then what is measured and kept; by default .99
            for segmentation of images and detection, none (0) elsewhere.
        clip: Greatest norm of the gradient, 1 by default; 0 lets any pass.
        accumulate: Batches whose mean gradient makes one step.
        precision: Of the joint training: "fp32", "bf16", or "fp16" (GPU). Weights and the bundle stay fp32.
        class_weights: "balanced": classes count alike, however rare; macro F1 then chooses the best state.
        deterministic: Only operators that give the same bits each time, on GPUs too; slower there.
        seed: Of splits, weights, order and augmentation.
        val_share: Of the training part that becomes validation where the data have none.
        patience: Epochs without improvement after which training stops.
        augment: Vary the inputs at random while learning; by default for segmentation of images and detection.
        augment_with: What is done to the inputs beside the usual ways to vary them: names in `training.scenes.EXTRAS`
            or `training.variations.VARIATIONS` ("tilt", or "tilt=30").
        train: "tokenizer+head" or "head": what learns beside an adapter.
        method: "probe": the head alone, on features computed once, with the best of twenty strengths of regularisation;
            "head": what `train` says; or an adapter within the encoder too, a name in `backbone.adapters.METHODS`
            ("lora", "full" …).
        adapter_options: Fields of an `AdapterConfig`.
        tokenizer_options, head_options: Fields of their configurations.
        device: Where to compute.
        threads: CPU threads.
        progress: Show progress on the terminal; or what hears of it instead.
        resume: Where an interrupted fit of this bundle stands: True goes on from its last checkpoint, False begins
            anew, None raises. See `training.checkpoint`.
        tensorboard: Folder for TensorBoard's files and a `log.csv`.
        about: Further facts for the bundle's card.
        cache: Keep what the frozen encoder makes of images, sounds, clips, clouds and texts on disk, so that another
            fit on the same inputs need not compute it again; see docs/finetuning.md.
        check: Look for faults in the data first (`check_data`), which reads every file once, and leave out what cannot
            be read.
        broken_share: Of the files that may be unreadable.
        report: A json file for what the check finds.
        dry_run: Only check and plan: no training, and nothing is written but the report.

        card: Put a table of classes and pictures of what was measured into the bundle (`make_card`).
        card_examples: Most wrong answers to show there, with their inputs; whoever gets the bundle gets those too.
        draw: What draws them, as `polysense.apps.pictures.draw`.

    Returns:
        Validation metrics and the bundle's path.

    Raises:
        InputError: Data or options cannot be used, the loss is no longer a number, or the disk is full; no bundle is
            written then.
    """
    settings = {**locals(), "data": str(Path(data).expanduser().resolve()), "progress": bool(progress)}
    for name in ("out", "report", "card", "card_examples", "draw", "dry_run"):  # what is learnt is the same
        del settings[name]
    if train not in ("tokenizer+head", "head"):
        raise InputError(f"train={train}", "unknown choice", "use tokenizer+head or head")
    if method not in METHODS and method not in ("probe", "head"):
        raise InputError(f"method={method}", "unknown choice", f"use probe, head, {', '.join(sorted(METHODS))}")
    if threads:
        torch.set_num_threads(threads)
    what = TASKS[task]
    if what.kind in ("embedding", "meaning") or what.head == "naming":
        raise InputError(task, "it learns nothing from labels", "choose a task such as image-classification")
    check_precision(precision, device)
    if tensorboard is not None:
        check_board()
    if card and card_examples:
        check_examples(what, draw)
    if augment_with:
        from polysense.training.scenes import check_extras

        check_extras(what, augment_with, augment)
        augment = True
    start, keeper = clock.perf_counter(), Keeper(out, resume)
    sources = open_sources(what, data, target=target, time=time, horizon=horizon, context=context, borders=borders,
                           known=known, static=static, series=series, ignore=ignore,
                           column=(tokenizer_options or {}).get("column"))  # fmt: skip
    own_validation = "val" in sources.splits()
    sources = sources.with_validation(val_share, seed)
    check_place(Path(out).expanduser())
    device = own_device(device)
    shown = progress if isinstance(progress, Progress) else Progress(progress and is_main())
    if check:
        sources, faults = check_data(sources, data, broken_share)
        for line in faults.lines():
            shown.say(line)
        if report is not None and is_main():
            faults.write(report)
    pipeline = build_for(task, sources, encoder, tokenizer_options, head_options, seed).to(device)
    pipeline.tokenizer.register_forward_pre_hook(lambda *_: shown.working())
    if method in METHODS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the adapter's weights
            pipeline.adapt(method, **(adapter_options or {}))
    elif method == "probe":
        epochs, train = 0, "head"
    epochs = usual_epochs(pipeline) if epochs is None else epochs
    recipe = recipe_for(what, epochs=epochs, max_minutes=max_minutes, batch_size=batch_size, lr=lr,
                        settled_lr=settled_lr, patience=patience, train=train, augment=augment, average=ema,
                        augment_with=tuple(augment_with), warmup=warmup, clip=clip, accumulate=accumulate,
                        precision=precision, watch="f1" if class_weights else None, seed=seed,
                        grid=method == "probe")  # fmt: skip
    learning = sources.examples(pipeline.tokenizer, "train", recipe.augment, recipe.augment_with)
    validation = sources.examples(pipeline.tokenizer, "val")
    if not len(learning):
        raise InputError(data, "its training part is empty", "give examples to learn from")
    if not len(validation):
        raise InputError(data, "its validation part is empty", "give more data or a larger --val-share")
    if dry_run:
        plan = make_plan(pipeline, learning, validation, recipe, min(len(validation), MAX_VALIDATION))
        return FitResult({}, clock.perf_counter() - start, 0, Path(out), sum(plan.learning.values()), plan)
    if class_weights:
        balance(pipeline, learning, class_weights)
    found = {"data_sha256": fingerprint(learning, validation), "encoder_sha256": pipeline.encoder_hash}
    keeper.claim(settings | found)
    wait_for_all(device)
    remember = FeatureCache({"task": task, "data": str(data)}, cache and limit_bytes() > 0, shown.say)
    for examples in (learning, validation):
        if isinstance(examples, FileExamples):
            examples.features = remember
    board = None if tensorboard is None else str(tensorboard)
    with only_deterministic(deterministic):
        run = train_pipeline(pipeline, learning, validation, recipe, shown, keeper, board)
        calibrate(pipeline, validation, recipe.batch_size)
        metric = measured(pipeline, validation, recipe.batch_size)
        pipeline.metrics = metric.compute()
    pipeline.about = {"data_options": sources.data_options(), "measured_on": "validation part", "seed": seed,
                      "epochs": run.epochs, **run.told(), **(about or {})}  # fmt: skip
    if card:
        pipeline.card = make_card(metric, what.metric, shown.history)
    if card and card_examples and draw is not None:
        worst = worst_examples(pipeline, metric, validation, card_examples, draw)
        pipeline.card = replace(pipeline.card, pictures={**pipeline.card.pictures, **worst})
    finish(pipeline, run, learning, validation, seed, own_validation)
    path = pipeline.save_pretrained(out) if is_main() else Path(out).expanduser()
    wait_for_all(device)
    if is_main():
        keeper.remove()
    trainable = sum(parameter.numel() for parameter in pipeline.parameters() if parameter.requires_grad)
    return FitResult(pipeline.metrics, clock.perf_counter() - start, run.epochs, path, trainable)


def usual_epochs(pipeline: Pipeline) -> int:
    """Of joint training where none are asked for."""
    solved = can_probe(pipeline.head) and not pipeline.tokenizer.must_learn and not pipeline.encoder.learns
    return EPOCHS.get(pipeline.modality, USUAL_EPOCHS) if solved else USUAL_EPOCHS


def recipe_for(task: Task, **options: Any) -> Recipe:
    """What suits the task, but for options that are not None."""
    usual: dict[str, Any] = {"batch_size": BATCH.get(task.modality, 32)}
    if task.modality == "image" and task.kind in ("segmentation", "panoptic", "instances", "detection"):
        usual |= DENSE
    return Recipe(**(usual | {name: value for name, value in options.items() if value is not None}))


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
        if series.config.form == "variates":
            head |= {"variates": True, "own": 0, "tokens": 1}
        else:
            head["tokens"] = series.token_count(front["context"]) + bool(front.get("static"))
    known = sources.tokenizer_sources()
    if TASKS[task].modality == "tabular" and head.get("chain"):
        front["known"] = tuple(head["names"])
    pipeline = Pipeline.build(task, encoder=encoder, tokenizer=front, head=head, sources=known, seed=seed)
    pipeline.settled |= {f"tokenizer.{name}" for name in pipeline.tokenizer.fit_tensors(known, seed)}
    return pipeline


@dataclass(frozen=True, slots=True)
class Run:
    """What `train_pipeline` did."""

    epochs: int  # of the joint phase
    probed: Probed | None = None  # the probe, where no epoch of the joint phase was better
    tried: Mapping[float, float] = field(default_factory=dict)  # loss by strength, of a probe over a grid

    def told(self) -> dict[str, Any]:
        """For the bundle's card: every strength that a probe over a grid tried."""
        return {"probe_losses": {f"{one:g}": round(loss, 4) for one, loss in self.tried.items()}} if self.tried else {}


def finish(
    pipeline: Pipeline, run: Run, learning: Examples, validation: Examples, seed: int, own_validation: bool
) -> None:
    """Lets the validation rows teach too, once they have chosen and measured: grows trees anew, solves a probe anew.

    Args:
        own_validation: The data have a validation part of their own, which people may want to measure on later; then
            a probe stays as it is.
    """
    if not regrow(pipeline, learning, validation, seed) and run.probed is not None and not own_validation:
        solve_again(pipeline, run.probed)


def train_pipeline(
    pipeline: Pipeline,
    learning: Examples,
    validation: Examples,
    recipe: Recipe,
    progress: Progress,
    keeper: Keeper | None = None,
    board: str | None = None,
) -> Run:
    """Both phases, or what a checkpoint leaves of them; leaves the best state in the pipeline."""
    with torch.random.fork_rng([pipeline.device] if pipeline.device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)  # of dropout
        if grow(pipeline, learning, recipe.seed):
            progress.say(f"grew boosted trees on {len(learning)} rows")
        if keeper is not None and keeper.under_way():
            probed = load_probed(keeper)
        else:
            probed = solve(pipeline, learning, validation, recipe, progress)
            if keeper is not None and probed is not None and recipe.epochs:
                save_probed(keeper, probed)
        watched = Subset.even(validation, MAX_VALIDATION)
        ready = keep_tokens(pipeline, learning, watched, recipe)
        epochs, first = train_together(*ready, recipe, progress, keeper, board)
        return Run(epochs, probed if first else None, probed.tried if recipe.grid and probed is not None else {})


def solve(
    pipeline: Pipeline, learning: Examples, validation: Examples, recipe: Recipe, progress: Progress
) -> Probed | None:
    """The first phase: what can be solved for without gradient descent."""
    if getattr(pipeline.head.config, "chain", False) == "found":
        found = find_order(pipeline, learning, recipe.batch_size)
        progress.say(f"chained the targets {' → '.join(found)}")
    if can_probe(pipeline.head):
        progress.say(f"probing {len(learning)} examples")
        strengths = GRID if recipe.grid else STRENGTHS
        probed = probe(pipeline, learning, validation, recipe.batch_size, strengths)
        if recipe.grid and probed is not None:
            progress.say("\n".join(probed.table()))
        return probed
    if isinstance(pipeline.head, ForecastHead):
        progress.say(f"solving a ridge regression on {len(learning)} windows")
        probe_forecast(pipeline, learning, validation, recipe.batch_size)
    return None


def save_probed(keeper: Keeper, probed: Probed) -> None:
    """Keeps what a probe learnt from: solving anew at the end wants it."""
    parts = {"train": probed.train, "val": probed.val}
    tensors = {f"{name}.x": x for name, (x, _) in parts.items()}
    tensors |= {f"{name}.y.{key}": value for name, (_, y) in parts.items() for key, value in y.items()}
    keeper.save(tensors, {"strength": probed.strength, "tried": list(probed.tried.items())}, "probe")


def load_probed(keeper: Keeper) -> Probed | None:
    """What `save_probed` kept; None where there was no probe."""
    if (kept := keeper.load("probe")) is None:
        return None
    tensors, facts = kept
    train, val = ((tensors[f"{name}.x"], part(tensors, f"{name}.y.")) for name in ("train", "val"))
    return Probed(train, val, facts["strength"], {float(s): float(loss) for s, loss in facts["tried"]})


def choose_threshold(pipeline: Pipeline, head: QueryHead, validation: Examples, batch_size: int) -> None:
    """Sets the least score of a segment by panoptic quality: how sure queries get depends on the data."""
    answer, task, best = head.answer, pipeline.task, -1.0
    head.answer, pipeline.task = "panoptic", TASKS["panoptic-segmentation"]
    for threshold in THRESHOLDS:
        head.threshold = threshold
        found = measure(pipeline, validation, batch_size)["pq"]
        if found > best:
            best, head.config = found, replace(head.config, threshold=threshold)
    head.answer, pipeline.task, head.threshold = answer, task, head.config.threshold


def calibrate(pipeline: Pipeline, validation: Examples, batch_size: int) -> None:
    """Makes confidence true, by validation data: a classifier's temperature, the width of a forecast's bands, the score
    from which a segment is answered."""
    head = pipeline.head
    if isinstance(head, ForecastHead):
        head.calibrate(*forecast_answers(pipeline, Subset.even(validation, MAX_VALIDATION), batch_size))
    if isinstance(head, QueryHead):
        choose_threshold(pipeline, head, Subset.even(validation, MOST_OFTEN), batch_size)
    if isinstance(head, ClassificationHead):
        pooled, target = pooled_features(pipeline, validation, batch_size, lasting=False)
        with torch.inference_mode():
            logits = head.from_pooled(pooled.to(pipeline.device))["logits"].cpu()
        head.calibrate(logits, target["labels"])
