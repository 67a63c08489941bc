"""The command line. Only typer and the standard library load here: `polysense --help` must come at once.

Each command imports what it needs when it runs. Exit codes: 0 all well, 1 nothing done (an error line says why),
2 wrong usage, 3 some inputs were skipped or (`check`) there are warnings.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from polysense.apps.cli_demo import demo
from polysense.apps.cli_fit import cache, check_data, evaluate, fit, importance, merge, merge_encoders, pretrain
from polysense.apps.cli_options import BatchSize, Data, Target, Threads
from polysense.apps.cli_predict import detect, embed, look, predict, search, slide, timeline
from polysense.apps.cli_series import anomalies, backtest, impute

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


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"polysense {version('polysense')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show warnings, and the traceback of an error.")] = False,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="Accept larger inputs: pixels=5e8 (docs/data.md names all).")
    ] = None,
) -> None:
    # `main` takes `--debug` out of the arguments and puts `--limit` before the command: both may stand anywhere.
    if limit:
        from polysense.data.limits import parse_limits, set_limits

        set_limits(parse_limits(limit))


COMMANDS: dict[str, Callable[..., None]] = {  # in the help's order
    "predict": predict, "look": look, "timeline": timeline, "detect": detect, "slide": slide, "embed": embed,
    "search": search, "fit": fit, "check": check_data, "eval": evaluate, "importance": importance,
    "backtest": backtest, "anomalies": anomalies, "impute": impute, "merge": merge, "merge-encoders": merge_encoders,
    "pretrain": pretrain, "demo": demo,
}  # fmt: skip
for name, command in COMMANDS.items():
    app.command(name)(command)

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


app.command()(cache)


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


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; an error a user can cause ends in one line on stderr and exit code 1."""
    from polysense.apps.screen import note
    from polysense.core.errors import InputWarning
    from polysense.data.limits import limited

    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = limits_first([argument for argument in arguments if argument != "--debug"])
    with limited(), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")  # libraries' notes to developers are no news to users; ours are
            warnings.simplefilter("always", InputWarning)
            warnings.showwarning = lambda message, *_: note(f"note: {message}")
        try:
            app(args=arguments, prog_name="polysense")
        except Exception as error:
            line = None if debug else explain(error)
            if line is None:
                raise
            typer.echo(f"error: {line}", err=True)
            raise SystemExit(1) from None


def limits_first(arguments: list[str]) -> list[str]:
    """["predict", "cells", "--limit", "rows=9"] -> ["--limit", "rows=9", "predict", "cells"]; "--limit 2" stays."""
    front: list[str] = []
    rest: list[str] = []
    ahead = iter(arguments)
    for argument in ahead:
        value = next(ahead, "") if argument == "--limit" else ""
        whole = [argument, value] if value else [argument]
        (front if "=" in value or (argument.startswith("--limit=") and "=" in argument[8:]) else rest).extend(whole)
    return front + rest


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
