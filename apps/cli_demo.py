"""The command that opens the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port (default: a free one from 7860).")] = None,
    auth: Annotated[
        str | None,
        typer.Option(metavar="USER:PASSWORD", envvar="POLYSENSE_DEMO_AUTH", help="What visitors must give."),
    ] = None,
    root_path: Annotated[str, typer.Option(help="The path under which a proxy serves it: /demo.")] = "",
    share: Annotated[bool, typer.Option(help="A public link, through a server of Gradio's makers.")] = False,
    bundle: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="A further model; may be given several times.")
    ] = None,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Largest file, in megabytes.")] = 50.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls computed at a time; others wait.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Equal questions of several visitors answered as one.")] = 8,
    log: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="A line of JSON for each call, without what visitors gave.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="PLACE", help="An index of embed --space meaning: neighbours are found there.")
    ] = None,
) -> None:
    """Opens a page in which all pipelines can be tried, with an API behind it."""
    from polysense.apps.demo.app import serve
    from polysense.apps.demo.limits import Options, parse_auth

    auth_pair, folders = parse_auth(auth), tuple(bundle or ())
    serve(Options(host, port, auth_pair, root_path, share, folders, max_mb, concurrency, batch, log, index))
