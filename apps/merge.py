"""`polysense merge` and `merge-encoders`: several bundles become one, several encoders one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

import polysense
from polysense.apps.inputs import check_model, choose_device
from polysense.apps.learn import check_folder
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline


def merge(
    bundles: Sequence[str],
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    greedy: Path | None = None,
    split: str = "val",
    batch_size: int = 32,
    threads: int | None = None,
    encoder: Path | None = None,
) -> None:
    """Writes the mean of bundles, and says what went in.

    Args:
        bundles: Names or folders; one alone where its adapter is only to be merged into its encoder.
        out: The new bundle's folder.
        weights: One for each bundle; None: all alike.
        greedy: Data by which bundles are chosen in place of weights.
        split: The part of these data.
        batch_size: Inputs that are measured together.
        threads: CPU threads.
        encoder: File of a plain encoder that takes in the adapter.
    """
    from polysense.merging import check_file, into_encoder
    from polysense.merging import merge as run
    from polysense.saving import check_place

    if greedy is not None and weights is not None:
        raise InputError("--greedy", "it chooses by data, and weights were given too", "leave one of them out")
    check_place(out.expanduser())
    if encoder is not None:
        check_folder(encoder)
        check_file(encoder.expanduser())
    choose_device("cpu", threads)
    pipelines = [_load(name) for name in bundles]
    if greedy is not None:
        pipeline = _greedy(pipelines, greedy, split, batch_size)
    elif len(pipelines) == 1 and encoder is not None and weights is None:
        pipeline = pipelines[0]
    else:
        pipeline = run(pipelines, weights)
    pipeline.name = out.name
    if encoder is not None:
        pipeline = into_encoder(pipeline, encoder)
    typer.echo(f"Merged: {pipeline.about.get('merged', pipelines[0].name)}")
    typer.echo(f"Bundle: {pipeline.save_pretrained(out)}")
    if greedy is None:
        typer.echo(f"Nobody has measured it yet: polysense eval {out} DATA")


def _load(name: str) -> Pipeline:
    check_model(name)
    pipeline = polysense.load(name)
    pipeline.name = name  # two folders may have one name
    return pipeline


def _greedy(pipelines: Sequence[Pipeline], data: Path, split: str, batch_size: int) -> Pipeline:
    from polysense.training.soup import greedy_soup

    soup = greedy_soup(pipelines, data, split=split, batch_size=batch_size)
    metric = soup.pipeline.task.metric
    for i, (pipeline, score) in enumerate(zip(pipelines, soup.alone, strict=True)):
        typer.echo(f"{pipeline.name}: {metric} {score:.4f}, {'taken' if i in soup.chosen else 'left out'}")
    typer.echo(f"the soup of {len(soup.chosen)}: {metric} {soup.metrics[metric]:.4f}")
    return soup.pipeline


def merge_encoders(
    first: str, second: str, out: Path, *, weight: float, align: bool, stream: bool, soft: float
) -> None:  # fmt: skip
    """Writes the mean of two encoders, and says how far apart they were.

    Args:
        first: A file, or a spec of `load_encoder`; the mean is in its order.
        second: Likewise.
        out: The new encoder's file.
        weight: Of the second.
        align: Bring the second's neurons into the first's order before.
        stream: The channels of the residual stream too.
        soft: See `polysense.backbone.alignment.align`.
    """
    from polysense.backbone.alignment import align as run
    from polysense.backbone.alignment import distance
    from polysense.backbone.averaging import average_encoders
    from polysense.backbone.weights import load_encoder
    from polysense.merging import check_file, write_encoder

    if (stream or soft) and not align:
        raise InputError("--stream and --soft", "they say how to align, and nothing is to be aligned", "add --align")
    check_file(out.expanduser())
    one, two = (load_encoder(_spec(name)) for name in (first, second))
    if one.config != two.config:
        raise InputError(second, f"its shape is not that of {first}", "merge encoders of one shape")
    typer.echo(f"Distance of {second} to {first}: {distance(two, one):.4f} of the weights' size")
    if align:
        two = run(two, one, stream=stream, soft=soft).encoder
        typer.echo(f"Aligned: {distance(two, one):.4f}")
    write_encoder(average_encoders([one, two], [1 - weight, weight]), out.expanduser())
    typer.echo(f"Use it: polysense fit TASK DATA --encoder file:{out} --out BUNDLE")


def _spec(name: str) -> str:
    known = name.partition(":")[0] in ("embedded", "timm", "hub", "file", "random")
    return name if known else f"file:{name}"
