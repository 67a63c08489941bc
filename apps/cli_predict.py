"""Commands that answer: predict, look, timeline, detect, slide, embed, search."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from polysense.apps.cli_options import (
    BatchSize,
    BatchSizeOrChosen,
    Column,
    Device,
    Errors,
    Inputs,
    JsonProgress,
    Lists,
    OnError,
    Out,
    Resume,
    Shard,
    Silent,
    Sources,
    Threads,
    Timeout,
    Workers,
    check_named,
    numbers,
)


class Answer(StrEnum):
    semantic = "semantic"
    instance = "instance"
    panoptic = "panoptic"


class Runner(StrEnum):
    torch = "torch"
    onnx = "onnx"
    onnx_int8 = "onnx-int8"
    ray = "ray"


class Look(StrEnum):
    rollout = "rollout"
    last = "last"
    gradient = "gradient"


class Space(StrEnum):
    encoder = "encoder"
    meaning = "meaning"


def predict(
    model: Annotated[
        str, typer.Argument(metavar="TASK_OR_BUNDLE", help="A task's name, a bundle's folder, or zero-shot.")
    ],
    inputs: Sources = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Answers: .jsonl, .json, .csv, .parquet; for boxes also .coco.json. May be a URL."
        ),
    ] = None,
    escape: Annotated[
        bool, typer.Option("--escape-formulas", help="In .csv: an apostrophe before what a spreadsheet would compute.")
    ] = False,
    resume: Resume = None,
    lists: Lists = None,
    column: Column = None,
    shard: Shard = None,
    workers: Workers = None,
    timeout: Timeout = 120.0,
    batch_size: BatchSizeOrChosen = None,
    on_error: Errors = OnError.skip,
    device: Device = "auto",
    engine: Annotated[
        Runner, typer.Option(help="What runs the encoder; onnx engines need a CPU only, ray is torch on many machines.")
    ] = Runner.torch,
    cluster: Annotated[
        str | None, typer.Option("--address", help="ray: address of a cluster (default: one is started here).")
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="ray: actors (default: one for each CPU or GPU).")] = None,
    threads: Threads = None,
    json_progress: JsonProgress = False,
    quiet: Silent = False,
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
    from polysense.apps.flow import Flow, Reading
    from polysense.apps.predict import Asked
    from polysense.apps.predict import predict as run

    words = None
    beside = {"--template": template, "--none": none, "--examples": examples, "--modality": modality}
    if labels is None and (given := [name for name, value in beside.items() if value]):
        raise typer.BadParameter("it is for zero-shot, with --labels", param_hint=given[0])
    if labels is not None:
        from polysense.apps.words import Words

        words = Words(labels, modality, template, none, examples)
    check_named(inputs, lists)
    ray = engine is Runner.ray
    asked = Asked("torch" if ray else engine.value, top_k, words, None if answer is None else answer.value,
                  numbers(views, "--views", "1,1.5"), mirror)  # fmt: skip
    reading = Reading(tuple(lists or ()), column, shard, workers, timeout)
    flow = Flow(reading, batch_size, horizon, ray, cluster, actors)
    code = run(model, inputs or [], asked, flow, out=out, escape=escape, resume=resume, skip=on_error is OnError.skip,
               device=device, threads=threads, pictures=pictures,
               progress={"as_json": json_progress, "quiet": quiet})  # fmt: skip
    raise typer.Exit(code)


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


def look(
    model: Annotated[str, typer.Argument(metavar="TASK_OR_BUNDLE", help="A task's name or a bundle's folder.")],
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")],
    method: Annotated[
        Look, typer.Option(help="Attention through all layers, in the last one, or what spoke for a class.")
    ] = Look.gradient,
    target: Annotated[str | None, typer.Option(help="gradient: the class (default: the one that is answered).")] = None,
    on_error: Errors = OnError.skip,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Draws what an answer looked at: images, sounds and point clouds under a heat map."""
    from polysense.apps.look import look as run

    code = run(model, inputs, out=out, method=method.value, target=target, skip=on_error is OnError.skip, device=device,
               threads=threads)  # fmt: skip
    raise typer.Exit(code)


def timeline(
    model: Annotated[str, typer.Argument(metavar="TASK_OR_BUNDLE", help="A task's name or a bundle's folder.")],
    file: Annotated[Path, typer.Argument(help="A recording or film.")],
    window: Annotated[
        float | None, typer.Option(help="Seconds that a score hears or sees (default: a third of it all, 0.5 to 2).")
    ] = None,
    step: Annotated[float | None, typer.Option(help="Seconds between windows (default: half a window).")] = None,
    most: Annotated[int, typer.Option(min=1, help="Windows, at most: in longer files they are longer.")] = 100,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="All scores: .csv or .parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture: .png.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Says which class is heard or seen when: classes of a recording or film over time."""
    from polysense.apps.timeline import timeline as run

    run(model, file, window=window, step=step, most=most, out=out, plot=plot, batch_size=batch_size, device=device,
        threads=threads)  # fmt: skip


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


def embed(
    inputs: Sources = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help=".npz, .npy, .parquet, .jsonl …; may be a URL.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="Folder or address of an index to make or add to, for polysense search.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="What the files are, where the ending does not say.")] = None,
    space: Annotated[Space, typer.Option(help="meaning: where files lie near the words for what they show.")] = (
        Space.encoder
    ),
    resume: Resume = None,
    lists: Lists = None,
    column: Column = None,
    shard: Shard = None,
    workers: Workers = None,
    timeout: Timeout = 120.0,
    batch_size: BatchSizeOrChosen = None,
    on_error: Errors = OnError.skip,
    device: Device = "auto",
    threads: Threads = None,
    json_progress: JsonProgress = False,
    quiet: Silent = False,
) -> None:
    """One vector per file, whatever its kind; all kinds may be mixed."""
    from polysense.apps.embed import embed as run
    from polysense.apps.flow import Flow, Reading

    check_named(inputs, lists)
    flow = Flow(Reading(tuple(lists or ()), column, shard, workers, timeout), batch_size)
    code = run(inputs or [], flow, out=out, index=index, modality=modality, space=space.value, resume=resume,
               skip=on_error is OnError.skip, device=device, threads=threads,
               progress={"as_json": json_progress, "quiet": quiet})  # fmt: skip
    raise typer.Exit(code)


def search(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="What embed --index made: a folder or an address.")],
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="A file of any kind; or words, where the index is of --space meaning."),
    ],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many to find.")] = 10,
    modality: Annotated[str | None, typer.Option(help="Find these alone: image, audio …")] = None,
    where: Annotated[
        str | None, typer.Option(help="A condition in SQL on source, modality or added: \"source LIKE '%2026%'\".")
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="QUERY is words, even if a file has that name.")] = False,
    kind: Annotated[
        str | None, typer.Option("--query-modality", help="What the file is, where its ending does not say.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector, however many there are.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="What was found: .jsonl, .csv or .parquet.")] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Finds what lies nearest to a file or to words in an index of embeddings."""
    from polysense.apps.search import search as run

    run(index, query, k=k, modality=modality, where=where, words=words, kind=kind, exact=exact, out=out, device=device,
        threads=threads)  # fmt: skip
