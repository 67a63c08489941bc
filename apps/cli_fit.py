"""Commands that learn and measure: fit, check, eval, merge, merge-encoders, pretrain, cache."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from polysense.apps.cli_options import (
    BatchSize,
    BrokenShare,
    Data,
    Device,
    Engine,
    EngineName,
    ReportFile,
    Target,
    Threads,
    numbers,
    pairs,
)


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ClassWeights(StrEnum):
    balanced = "balanced"


class Train(StrEnum):
    both = "tokenizer+head"
    head = "head"


def fit(
    task: Annotated[str, typer.Argument(help="What to learn, for example image-classification.")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new bundle.")],
    target: Target = None,
    time: Annotated[str | None, typer.Option(help="Column that holds the time (series).")] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps to forecast.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Steps to look back.")] = None,
    encoder: Annotated[str, typer.Option(help="embedded, timm:NAME, hub:REPO, file:PATH or random:NAME.")] = "embedded",
    train: Annotated[Train, typer.Option(help="What learns; the encoder never does.")] = Train.both,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Most passes over the data; 0: only a linear probe.")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Stop after so many minutes.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Highest learning rate.")] = None,
    settled_lr: Annotated[
        float | None, typer.Option(min=0, help="Factor of --lr for pretrained weights; 0 keeps them.")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Share of the steps over which it rises.")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(min=0, max=0.99999, help="Keep a moving average of the weights: its decay a step.")
    ] = None,
    clip: Annotated[
        float | None, typer.Option(min=0, help="Greatest norm of the gradient (default 1; 0: any).")
    ] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Batches that make one step.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of the joint training; fp16 needs a GPU.")] = None,
    class_weights: Annotated[
        ClassWeights | None, typer.Option(help="balanced: rare classes count as much as frequent ones.")
    ] = None,
    augment: Annotated[bool | None, typer.Option(help="Vary the inputs at random while learning.")] = None,
    augment_with: Annotated[
        str | None, typer.Option(help="Vary them more, in ways such as rotate,specaugment=0.2; docs/finetuning.md.")
    ] = None,
    borders: Annotated[
        str | None, typer.Option(help="Train, val, test of a series: shares (.7,.1,.2) or numbers of rows.")
    ] = None,
    known: Annotated[
        str | None,
        typer.Option(help="Columns of a series whose future is known, a,b; calendar: hour, weekday, season."),
    ] = None,
    static: Annotated[str | None, typer.Option(help="Columns that are constant in a series, a,b.")] = None,
    series: Annotated[str | None, typer.Option(help="Column that names the series of a long table.")] = None,
    ignore: Annotated[int | None, typer.Option(help="Number in masks that stands for no class.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    val_share: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="Part of train kept for validation where none is.")
    ] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without progress before it stops.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="Predict each number of --target A,B,C from those before it too.")
    ] = False,
    tokenizer: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Tokenizer option.")] = None,
    head: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Head option.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "--adapter", help="probe, head (default), an adapter (lora, houlsby, full …), or auto."
        ),
    ] = None,
    adapter_option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Adapter option.")] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume/--fresh", help="Go on with an interrupted fit, or begin it anew.")
    ] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's files and a log.csv.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits each time, on GPUs too; slower there.")
    ] = False,
    cache: Annotated[
        bool | None,
        typer.Option("--cache/--no-cache", help="Keep features on disk for the next fit on these files (default: do)."),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Look for faults in the data first; what cannot be read is left out then.")
    ] = True,
    broken_share: BrokenShare = None,
    report: ReportFile = None,
    card: Annotated[bool, typer.Option(help="Put tables and pictures of what was measured into the bundle.")] = True,
    card_examples: Annotated[
        int, typer.Option(min=0, max=12, help="Most wrong answers to show there: inputs that leave with the bundle.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, in what time; writes nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, and no findings on the screen.")] = False,
) -> None:
    """Trains a tokenizer and a head, and an adapter if asked to, on your data and writes a bundle."""
    from polysense.apps.learn import fit as run

    head_options = {**({"chain": True} if chain else {}), **(pairs(head) or {})} or None
    given = dict(target=target, time=time, horizon=horizon, context=context, epochs=epochs, max_minutes=max_minutes,
                 batch_size=batch_size, lr=lr, settled_lr=settled_lr, augment=augment, borders=split_borders(borders),
                 augment_with=augment_with and [name.strip() for name in augment_with.split(",")],
                 known=known, static=static, series=series, ignore=ignore, seed=seed, val_share=val_share,
                 patience=patience, threads=threads, warmup=warmup, ema=ema, clip=clip, accumulate=accumulate,
                 precision=precision and precision.value, class_weights=class_weights and class_weights.value,
                 resume=resume, tensorboard=tensorboard, deterministic=deterministic or None,
                 method=method, adapter_options=pairs(adapter_option), tokenizer_options=pairs(tokenizer),
                 head_options=head_options, cache=cache, broken_share=broken_share, report=report)  # fmt: skip
    # What was not given is left to `fit`, whose defaults depend on the task.
    options = {name: value for name, value in given.items() if value is not None}
    unusual = {"check": (check, True), "card": (card, True), "card_examples": (card_examples, 0),
               "dry_run": (dry_run, False)}  # fmt: skip
    options |= {name: value for name, (value, usual) in unusual.items() if value != usual}
    run(task, data, out, encoder=encoder, train=train.value, device=device, progress=not quiet, **options)


def check_data(
    task: Annotated[str, typer.Argument(help="What would be learnt, for example image-classification.")],
    data: Data,
    target: Target = None,
    time: Annotated[str | None, typer.Option(help="Column that holds the time (series).")] = None,
    series: Annotated[str | None, typer.Option(help="Column that names the series of a long table.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the texts in a table of texts.")] = None,
    ignore: Annotated[int | None, typer.Option(help="Number in masks that stands for no class.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the validation part, as fit cuts it.")] = 0,
    val_share: Annotated[float, typer.Option(min=0, max=0.9, help="Part of train kept for validation.")] = 0.15,
    broken_share: BrokenShare = None,
    report: ReportFile = None,
) -> None:
    """Looks for faults in training data: leaks, broken files, slips in labels. Exit code 3: there are warnings."""
    from polysense.apps.learn import check as run

    given = dict(target=target, time=time, series=series, column=column, ignore=ignore)
    options = {name: value for name, value in given.items() if value is not None}
    raise typer.Exit(run(task, data, seed=seed, val_share=val_share, broken_share=broken_share, report=report,
                         **options))  # fmt: skip


def evaluate(
    bundle: Annotated[str, typer.Argument(help="A task's name or a bundle's folder.")],
    data: Data,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the metrics to this file too.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test (default: test).")] = None,
    target: Target = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    engine: EngineName = Engine.torch,
    threads: Threads = None,
) -> None:
    """Measures a bundle on labelled data."""
    from polysense.apps.learn import evaluate as run

    given = dict(split=split, target=target, threads=threads)
    options = {name: value for name, value in given.items() if value is not None}
    run(bundle, data, json_file=json_file, batch_size=batch_size, device=device, engine=engine.value, **options)


def importance(
    model: Annotated[str, typer.Argument(help="A task's name or a bundle's folder.")],
    table: Annotated[Path, typer.Argument(help="A labelled table, of rows that the bundle has not learnt from.")],
    target: Target = None,
    split: Annotated[str, typer.Option(help="Part to measure, where the table has parts.")] = "test",
    metric: Annotated[str | None, typer.Option(help="Default: accuracy, f1 or r2.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each column is shuffled.")] = 5,
    most: Annotated[int, typer.Option(min=1, help="Rows to measure on; of more, some at random.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffling.")] = 0,
    batch_size: BatchSize = 256,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Says what each column of a table is worth to a bundle: what its metric loses where the column is shuffled."""
    from polysense.apps.importance import columns as run

    run(model, table, target=target, split=split, metric=metric, repeats=repeats, most=most, seed=seed,
        batch_size=batch_size, device=device, threads=threads)  # fmt: skip


def merge(
    bundles: Annotated[list[str], typer.Argument(help="Bundles of one task, with one encoder and one configuration.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new bundle.")],
    weight: Annotated[float | None, typer.Option(min=0, max=1, help="Of the second of two (default: 0.5).")] = None,
    weights: Annotated[str | None, typer.Option(help="One for each, such as 0.3,0.3,0.4 (default: all alike).")] = None,
    greedy: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Take only those that make the mean no worse on these data.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Part of --greedy's data: val, test, or all of data without parts.")
    ] = "val",
    into_encoder: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Merge the adapter into an encoder in a file of its own.")
    ] = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
) -> None:
    """Averages the weights of bundles: one bundle that costs what one costs."""
    from polysense.apps.merge import merge as run

    if weight is not None and (weights is not None or len(bundles) != 2):
        raise typer.BadParameter("it is for two bundles; give --weights, one number for each", param_hint="--weight")
    shares = numbers(weights, "--weights", "0.3,0.3,0.4") if weight is None else (1 - weight, weight)
    run(bundles, out, weights=shares, greedy=greedy, split=split, batch_size=batch_size, threads=threads,
        encoder=into_encoder)  # fmt: skip


def merge_encoders(
    first: Annotated[str, typer.Argument(help="A .safetensors file, embedded, timm:NAME or hub:REPO.")],
    second: Annotated[str, typer.Argument(help="Another one of the same shape.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the new encoder, .safetensors.")],
    weight: Annotated[float, typer.Option(min=0, max=1, help="Of the second.")] = 0.5,
    align: Annotated[
        bool, typer.Option("--align", help="Bring the second's neurons into the order of the first's before.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Align the channels of tokens too: for encoders with other tokenizers.")
    ] = False,
    soft: Annotated[float, typer.Option(min=0, help="Mix neurons that are alike, by so much entropy.")] = 0.0,
) -> None:
    """Averages two encoders of one shape."""
    from polysense.apps.merge import merge_encoders as run

    run(first, second, out, weight=weight, align=align, stream=stream, soft=soft)


def pretrain(
    config: Annotated[Path, typer.Argument(help="A TOML file; docs/pretrain_your_own.md explains it.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; one that was stopped goes on.")
    ] = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Only print a learning rate and a batch size to try.")
    ] = False,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Trains an encoder of your own on any data."""
    from polysense.apps.pretrain import pretrain as run

    run(config, out, suggest=suggest, device=device, threads=threads, quiet=quiet)


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all entries.")] = False,
    limit: Annotated[
        float | None, typer.Option(metavar="GB", help="Remove what was used least recently until so much is left.")
    ] = None,
) -> None:
    """Lists the features that fits have kept, or removes them; see POLYSENSE_CACHE and POLYSENSE_CACHE_GB."""
    from polysense.apps.cache import cache as run

    run(clear=clear, limit=limit)


def split_borders(text: str | None) -> tuple[float, ...] | None:
    """ "0.7,0.1,0.2" -> (0.7, 0.1, 0.2)."""
    if text is None:
        return None
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter("three numbers are wanted, such as 0.7,0.1,0.2", param_hint="--borders") from None
    return train, val, test
