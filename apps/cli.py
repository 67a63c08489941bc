"""The command line. Only typer and the standard library load here: `polysense --help` must come at once.

Each command imports what it needs when it runs. Exit codes: 0 all well, 1 nothing done (an error line says why),
2 wrong usage, 3 some inputs were skipped or (`check`) there are warnings.
"""

from __future__ import annotations

import json
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    rich_markup_mode=None,  # rich would take twice as long to import as the whole help takes to print
    name="polysense",
    help="One frozen encoder, every sense: images, video, audio, point clouds, time series, tables and texts.",
    epilog="Start with: polysense try",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class OnError(StrEnum):
    skip = "skip"
    fail = "fail"


class Engine(StrEnum):
    torch = "torch"
    onnx = "onnx"
    onnx_int8 = "onnx-int8"


class Answer(StrEnum):
    semantic = "semantic"
    instance = "instance"
    panoptic = "panoptic"


class Space(StrEnum):
    encoder = "encoder"
    meaning = "meaning"


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ClassWeights(StrEnum):
    balanced = "balanced"


class Train(StrEnum):
    both = "tokenizer+head"
    head = "head"


Inputs = Annotated[list[str], typer.Argument(help="Files, folders (searched to the bottom) or quoted patterns.")]
Data = Annotated[Path, typer.Argument(help="A folder of labelled files or a table; docs/data.md shows the layouts.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one.")]
EngineName = Annotated[Engine, typer.Option("--engine", help="What runs the encoder; onnx engines need a CPU only.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all cores).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Inputs computed at a time.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Answers' file: .jsonl, .json, .csv, .parquet; for boxes also .coco.json."),
]
Errors = Annotated[OnError, typer.Option("--on-error", help="What to do with an input that cannot be read.")]
BrokenShare = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of the files that may be unreadable (default: 0.05).")
]
ReportFile = Annotated[Path | None, typer.Option("--report", help="Findings about the data: a .json file.")]
Target = Annotated[str | None, typer.Option(help="Column of the answer (tables) or of the forecast (series).")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"polysense {version('polysense')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show warnings, and the traceback of an error.")] = False,
) -> None:
    # `--debug` is taken out of the arguments by `main`, so that it may stand anywhere; it is declared for the help.
    pass


@app.command()
def predict(
    model: Annotated[
        str, typer.Argument(metavar="TASK_OR_BUNDLE", help="A task's name, a bundle's folder, or zero-shot.")
    ],
    inputs: Inputs,
    out: Out = None,
    batch_size: BatchSize = 16,
    on_error: Errors = OnError.skip,
    device: Device = "auto",
    engine: EngineName = Engine.torch,
    threads: Threads = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Keep only the k most probable classes.")] = None,
    answer: Annotated[
        Answer | None, typer.Option(help="What a bundle for segments answers: classes, objects or both.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for a picture of every answer.")] = None,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="forecasting: steps to answer, any number (default: as trained).")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help='zero-shot: classes, "dog, cat | kitten, bird", or a .txt with one a line.')
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help='zero-shot: a sentence for the names, "a drawing of a {}".')
    ] = None,
    none: Annotated[str | None, typer.Option(help='zero-shot: the answer where no class fits, "other".')] = None,
    examples: Annotated[
        Path | None, typer.Option(help="zero-shot: a folder of examples, in one folder for each class.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="zero-shot: what the files are, where the ending does not say.")
    ] = None,
    views: Annotated[str | None, typer.Option(help="Sizes to read images at and average: 1,1.5.")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Read images mirrored too, and average.")] = False,
) -> None:
    """Answers for files: a table on the screen, or a file with --out. `zero-shot` answers with --labels of yours."""
    from polysense.apps.predict import predict as run

    words = None
    beside = {"--template": template, "--none": none, "--examples": examples, "--modality": modality}
    if labels is None and (given := [name for name, value in beside.items() if value]):
        raise typer.BadParameter("it is for zero-shot, with --labels", param_hint=given[0])
    if labels is not None:
        from polysense.apps.words import Words

        words = Words(labels, modality, template, none, examples)
    code = run(model, inputs, out=out, batch_size=batch_size, skip=on_error is OnError.skip, device=device,
               engine=engine.value, threads=threads, top_k=top_k, pictures=pictures, words=words,
               answer=None if answer is None else answer.value,
               views=_numbers(views, "--views", "1,1.5"), mirror=mirror,
               horizon=horizon)  # fmt: skip
    raise typer.Exit(code)


@app.command()
def detect(
    inputs: Inputs,
    like: Annotated[
        list[str] | None,
        typer.Option(metavar="IMAGE:X1,Y1,X2,Y2=NAME", help="An example: what to find, and its box in pixels."),
    ] = None,
    words: Annotated[str | None, typer.Option(help='Classes by name, "dog, cat | kitten", or a .txt file.')] = None,
    proposals: Annotated[
        str | None, typer.Option(metavar="BUNDLE", help="A detector that says where objects are (default: windows).")
    ] = None,
    trained: Annotated[bool, typer.Option(help="Find that detector's own classes too.")] = True,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Least score of an answer.")] = None,
    out: Out = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for a picture of every answer.")] = None,
    on_error: Errors = OnError.skip,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Finds objects in images: more of what --like shows in an example, or what --words name."""
    from polysense.apps.detect import detect as run

    code = run(inputs, like=like or (), words=words, proposals=proposals, trained=trained, threshold=threshold, out=out,
               pictures=pictures, skip=on_error is OnError.skip, device=device, threads=threads)  # fmt: skip
    raise typer.Exit(code)


@app.command()
def slide(
    bundle: Annotated[str, typer.Argument(help="A task's name or a bundle's folder.")],
    picture: Annotated[Path, typer.Argument(metavar="SLIDE", help="A picture of any size; large ones as TIFF.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Class map of a segmentation: .tif.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Answers of tiles, regions and the slide: .jsonl, .json, .csv or .parquet.")
    ] = None,
    scale: Annotated[float, typer.Option(help="Share of its size that the picture is read at.")] = 1.0,
    regions: Annotated[int, typer.Option(min=1, help="Regions along the longer side.")] = 8,
    cells: Annotated[bool, typer.Option("--cells", help="One pixel of the map for each cell of the answer.")] = False,
    keep_blank: Annotated[bool, typer.Option("--keep-blank", help="Compute tiles that show nothing, too.")] = False,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Answers a picture of any size by tiles, regions and as a whole, in little memory."""
    from polysense.apps.slide import slide as run

    run(bundle, picture, out=out, answers=answers, scale=scale, regions=regions, cells=cells, keep_blank=keep_blank,
        batch_size=batch_size, device=device, threads=threads, quiet=quiet)  # fmt: skip


@app.command()
def embed(
    inputs: Inputs,
    out: Annotated[Path | None, typer.Option("--out", "-o", help=".npz, .npy, .parquet, .jsonl …")] = None,
    modality: Annotated[str | None, typer.Option(help="What the files are, where the ending does not say.")] = None,
    space: Annotated[Space, typer.Option(help="meaning: where files lie near the words for what they show.")] = (
        Space.encoder
    ),
    batch_size: BatchSize = 16,
    on_error: Errors = OnError.skip,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """One vector per file, whatever its kind; all kinds may be mixed."""
    from polysense.apps.embed import embed as run

    code = run(inputs, out=out, modality=modality, space=space.value, batch_size=batch_size,
               skip=on_error is OnError.skip, device=device, threads=threads)  # fmt: skip
    raise typer.Exit(code)


@app.command()
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

    head_options = {**({"chain": True} if chain else {}), **(_pairs(head) or {})} or None
    given = dict(target=target, time=time, horizon=horizon, context=context, epochs=epochs, max_minutes=max_minutes,
                 batch_size=batch_size, lr=lr, settled_lr=settled_lr, augment=augment, borders=_borders(borders),
                 augment_with=augment_with and [name.strip() for name in augment_with.split(",")],
                 known=known, static=static, series=series, ignore=ignore, seed=seed, val_share=val_share,
                 patience=patience, threads=threads, warmup=warmup, ema=ema, clip=clip, accumulate=accumulate,
                 precision=precision and precision.value, class_weights=class_weights and class_weights.value,
                 resume=resume, tensorboard=tensorboard, deterministic=deterministic or None,
                 method=method, adapter_options=_pairs(adapter_option), tokenizer_options=_pairs(tokenizer),
                 head_options=head_options, cache=cache, broken_share=broken_share, report=report)  # fmt: skip
    # What was not given is left to `fit`, whose defaults depend on the task.
    options = {name: value for name, value in given.items() if value is not None}
    unusual = {"check": (check, True), "card": (card, True), "card_examples": (card_examples, 0),
               "dry_run": (dry_run, False)}  # fmt: skip
    options |= {name: value for name, (value, usual) in unusual.items() if value != usual}
    run(task, data, out, encoder=encoder, train=train.value, device=device, progress=not quiet, **options)


@app.command("check")
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


def _numbers(text: str | None, option: str, example: str) -> tuple[float, ...] | None:
    """ "1,1.5" -> (1.0, 1.5)."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"numbers are wanted, such as {example}", param_hint=option) from None


def _borders(text: str | None) -> tuple[float, ...] | None:
    """ "0.7,0.1,0.2" -> (0.7, 0.1, 0.2)."""
    if text is None:
        return None
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter("three numbers are wanted, such as 0.7,0.1,0.2", param_hint="--borders") from None
    return train, val, test


@app.command("eval")
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


@app.command()
def backtest(
    bundle: Annotated[str, typer.Argument(help="any-series, or the folder of a bundle for forecasting.")],
    file: Annotated[Path, typer.Argument(help="A file of series.")],
    time: Annotated[str | None, typer.Option(help="Column that holds the time (default: found).")] = None,
    target: Annotated[str | None, typer.Option(help="Variates to forecast, a,b (default: all).")] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help="Steps to forecast (default: as trained).")] = None,
    origins: Annotated[int, typer.Option(min=1, help="Moments to forecast from, at most.")] = 10,
    step: Annotated[int | None, typer.Option(min=1, help="Rows between them (default: the horizon).")] = None,
    season: Annotated[int | None, typer.Option(min=1, help="Steps of a season (default: found).")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="All forecast values: .csv or .parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture: .png.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the metrics to this file too.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measures how good forecasts of a file of series would have been."""
    from polysense.apps.backtest import backtest as run

    run(bundle, file, time=time, target=target, horizon=horizon, origins=origins, step=step, season=season, out=out,
        plot=plot, json_file=json_file, batch_size=batch_size, device=device, threads=threads,
        progress=not quiet)  # fmt: skip


Forecaster = Annotated[str, typer.Argument(help="any-series, or the folder of a bundle for forecasting.")]
SeriesFile = Annotated[Path, typer.Argument(help="A file of series.")]
Time = Annotated[str | None, typer.Option(help="Column that holds the time (default: found).")]
Columns = Annotated[str | None, typer.Option(help="Variates to look at, a,b (default: all).")]


@app.command()
def anomalies(
    bundle: Forecaster,
    file: SeriesFile,
    time: Time = None,
    columns: Columns = None,
    step: Annotated[int | None, typer.Option(min=1, help="Rows forecast at a time (default: 24).")] = None,
    threshold: Annotated[float, typer.Option(min=0, help="Score from which a value counts; 1: the band's edge.")] = 3.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="All scores: .csv or .parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture: .png.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found to this file too.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Finds values that lie far outside what the past of their series forecasts."""
    from polysense.apps.anomalies import anomalies as run

    run(bundle, file, time=time, columns=columns, step=step, threshold=threshold, out=out, plot=plot,
        json_file=json_file, batch_size=batch_size, device=device, threads=threads, progress=not quiet)  # fmt: skip


@app.command()
def impute(
    bundle: Forecaster,
    file: SeriesFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The series without gaps: .csv or .parquet.")],
    time: Time = None,
    columns: Columns = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Fills the gaps of a file of series, from both sides."""
    from polysense.apps.impute import impute as run

    run(bundle, file, out, time=time, columns=columns, batch_size=batch_size, device=device, threads=threads)


@app.command()
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


engines = typer.Typer(help="Faster engines for a bundle's encoder.", no_args_is_help=True)
app.add_typer(engines, name="engine")


@engines.command()
def check(
    bundle: Annotated[str, typer.Argument(help="A task's name or a bundle's folder.")],
    data: Data,
    split: Annotated[
        str, typer.Option(help="Part to measure; all: everything. Data without val get the one that fit keeps.")
    ] = "val",
    target: Target = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
) -> None:
    """Measures what 8-bit weights cost a bundle and, if at most half a point, allows --engine onnx-int8."""
    from polysense.apps.engine import check as run

    raise typer.Exit(run(bundle, data, split=split, target=target, batch_size=batch_size, threads=threads))


ONLY_HELP = (
    "Run this case only; may be given several times: padded, windows, lengths, fps, knn, engines, "
    "variants, dense, gpu-padded, gpu-sigmoid, gpu-rate."
)


@app.command()
def bench(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and pictures.")] = Path("bench"),
    only: Annotated[list[str] | None, typer.Option(help=ONLY_HELP)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, seconds: only to see that it runs.")] = False,
    threads: Threads = None,
) -> None:
    """Measures kernels and engines on this machine, side by side with other libraries."""
    from polysense.apps.bench import bench as run

    run(out, only or (), quick=quick, threads=threads)


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all entries.")] = False,
    limit: Annotated[
        float | None, typer.Option(metavar="GB", help="Remove what was used least recently until so much is left.")
    ] = None,
) -> None:
    """Lists the features that fits have kept, or removes them; see POLYSENSE_CACHE and POLYSENSE_CACHE_GB."""
    from polysense.apps.cache import cache as run

    run(clear=clear, limit=limit)


@app.command()
def models() -> None:
    """Lists the bundles that are installed, with what was measured."""
    from polysense.apps.learn import list_models

    list_models()


@app.command("try")
def try_it(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the examples and pictures.")] = Path("try"),
) -> None:
    """Makes example files of seven kinds and answers them all."""
    from polysense.apps.try_it import try_it as run

    raise typer.Exit(run(out))


def _pairs(options: list[str] | None) -> dict[str, Any] | None:
    """["patch=8", "pool=mean"] -> {"patch": 8, "pool": "mean"}; values are JSON where they parse as such."""
    pairs = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{option!r} is not KEY=VALUE")
        try:
            pairs[name] = json.loads(value)
        except json.JSONDecodeError:
            pairs[name] = value
    return pairs or None


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; an error a user can cause ends in one line on stderr and exit code 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")  # libraries' notes to developers are no news to users
        try:
            app(args=arguments, prog_name="polysense")
        except Exception as error:
            line = None if debug else explain(error)
            if line is None:
                raise
            typer.echo(f"error: {line}", err=True)
            raise SystemExit(1) from None


def explain(error: Exception) -> str | None:
    """One line for an error that a user can understand; None for a fault of ours, whose traceback is wanted."""
    from polysense.core.errors import InputError

    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text.replace("?.", "?")
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return "out of memory; choose a smaller --batch-size."
    if isinstance(error, ValueError | OSError):
        return f"{text} (--debug shows where)"
    return None


if __name__ == "__main__":
    main()
