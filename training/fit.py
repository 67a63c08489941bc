"""`fit`: tokenizer and head learn a task on the frozen encoder; the best state on validation data becomes a bundle.

Two phases: the head's linear part on features computed once (`probe`), then tokenizer and head together by gradient
descent with early stopping. The encoder is never touched. What is done is here, how in the files beside: `fit_options`,
`fit_data`, `fit_pipeline`, `fit_recipe`, `fit_phases`, `calibrate`, `fit_bundle`.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polysense.backbone.adapters import METHODS
from polysense.saving import check_place
from polysense.training.calibrate import calibrate
from polysense.training.check_data import BROKEN_SHARE
from polysense.training.checkpoint import Keeper, fingerprint
from polysense.training.class_weights import balance
from polysense.training.compute import is_main, only_deterministic, own_device, wait_for_all
from polysense.training.evaluate import measured
from polysense.training.fit_bundle import fill_card, write_bundle
from polysense.training.fit_data import keep_features, learning_and_validation, without_faults
from polysense.training.fit_options import check_options
from polysense.training.fit_phases import finish, train_pipeline
from polysense.training.fit_pipeline import adapt_seeded, build_for
from polysense.training.fit_recipe import MAX_VALIDATION, recipe_for, usual_epochs
from polysense.training.plan import Plan, make_plan
from polysense.training.progress import Progress
from polysense.training.sources import open_sources


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
    what = check_options(task, train, method, precision=precision, device=device, board=tensorboard is not None,
                         examples=card and bool(card_examples), draw=draw, augment=augment,
                         augment_with=augment_with)  # fmt: skip
    if threads:
        torch.set_num_threads(threads)
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
        sources = without_faults(sources, data, broken_share, report, shown)

    pipeline = build_for(task, sources, encoder, tokenizer_options, head_options, seed).to(device)
    pipeline.tokenizer.register_forward_pre_hook(lambda *_: shown.working())
    if method in METHODS:
        adapt_seeded(pipeline, method, adapter_options, seed)
    elif method == "probe":
        epochs, train = 0, "head"
    recipe = recipe_for(what, epochs=usual_epochs(pipeline) if epochs is None else epochs, max_minutes=max_minutes,
                        batch_size=batch_size, lr=lr, settled_lr=settled_lr, patience=patience, train=train,
                        augment=True if augment_with else augment, augment_with=tuple(augment_with), average=ema,
                        warmup=warmup, clip=clip, accumulate=accumulate, precision=precision,
                        watch="f1" if class_weights else None, seed=seed, grid=method == "probe")  # fmt: skip
    learning, validation = learning_and_validation(sources, pipeline.tokenizer, recipe, data)
    if dry_run:
        plan = make_plan(pipeline, learning, validation, recipe, min(len(validation), MAX_VALIDATION))
        return FitResult({}, clock.perf_counter() - start, 0, Path(out), sum(plan.learning.values()), plan)
    if class_weights:
        balance(pipeline, learning, class_weights)
    found = {"data_sha256": fingerprint(learning, validation), "encoder_sha256": pipeline.encoder_hash}
    keeper.claim(settings | found)
    wait_for_all(device)

    keep_features((learning, validation), task, data, cache, shown)
    board = None if tensorboard is None else str(tensorboard)
    with only_deterministic(deterministic):
        run = train_pipeline(pipeline, learning, validation, recipe, shown, keeper, board)
        calibrate(pipeline, validation, recipe.batch_size)
        metric = measured(pipeline, validation, recipe.batch_size)
        pipeline.metrics = metric.compute()
        shown.measured(pipeline, validation)
    pipeline.about = {"data_options": sources.data_options(), "measured_on": "validation part", "seed": seed,
                      "val_share": val_share, "data_sha256": fingerprint(learning), "epochs": run.epochs,
                      **run.told(), **(about or {})}  # fmt: skip
    if card:
        fill_card(pipeline, metric, shown.history, validation, card_examples, draw)
    finish(pipeline, run, learning, validation, seed, own_validation, shown.working)
    path = write_bundle(pipeline, out, keeper, device)
    trainable = sum(parameter.numel() for parameter in pipeline.parameters() if parameter.requires_grad)
    return FitResult(pipeline.metrics, clock.perf_counter() - start, run.epochs, path, trainable)
