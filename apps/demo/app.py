"""The page as a whole: tabs, server, health."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from polysense.apps.demo.guard import Guard, guarded
from polysense.apps.demo.limits import EXAMPLES, QUEUE, SESSIONS, UPLOADED, UPLOADS, Options, for_visitors
from polysense.apps.demo.logs import opened
from polysense.apps.demo.memory import trimmed
from polysense.apps.demo.models import Models
from polysense.apps.demo.page import Page
from polysense.apps.demo.style import COLOURS, CSS, FONTS, NAMES
from polysense.apps.demo.uploads import Uploads
from polysense.core.errors import InputError

TABS = {"Images": "images", "Audio": "audio", "Video": "video", "Point clouds": "clouds", "Forecast": "forecast",
        "Tables": "tables", "Meaning": "compare", "Batch": "batch", "Fit": "fit", "Models": "cards"}  # fmt: skip
TITLE = """# polysense
One frozen encoder, every sense. What you give is read here, answered here and deleted within the hour."""


def compose(page: Page) -> Any:
    """The Gradio blocks."""
    import gradio as gr

    with gr.Blocks(title="polysense", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(TITLE)
        parts: dict[str, Any] = {}
        with gr.Tabs() as tabs:
            for name, module in TABS.items():
                page.tab = module
                with gr.Tab(name, id=module) as parts[module]:
                    import_module(f"polysense.apps.demo.{module}").build(page)
        for module in parts:
            page.links.add(module, {})  # a link may name a tab where nothing is chosen
        page.links.wire(blocks, tabs, parts)
    guarded(blocks, page.folder / UPLOADED)
    # Not open: calls that pass by the queue would be computed all at once.
    return blocks.queue(max_size=QUEUE, api_open=False, default_concurrency_limit=page.options.concurrency)


@contextmanager
def served(options: Options) -> Iterator[tuple[Any, str]]:
    """Serves the demo while the context lasts; yields the blocks and the address.

    Everything that visitors upload or make lies in one folder, which is deleted at the end.

    Raises:
        InputError: A folder is no bundle, the port is taken, or the log cannot be written.
    """
    with opened(options.log) as log, _private(), _folder() as folder:
        from polysense.data.limits import limited

        models = Models(options.bundles, options.batch, options.concurrency)
        with limited(**for_visitors(options.max_mb)):
            page = Page(models, folder, options, log)
            blocks = compose(page)
            uploads = Uploads(folder / UPLOADED, *options.room)
            try:
                address = _launch(blocks, page, uploads)
                with uploads.swept(*UPLOADS, blocks.temp_file_sets), trimmed():
                    yield blocks, address
            finally:
                blocks.close(verbose=False)


def serve(options: Options) -> None:
    """Serves until it is interrupted or told to end.

    Raises:
        InputError: See `served`.
    """
    from polysense.apps.screen import note

    if options.is_open:
        note("note: whoever reaches this machine can use the demo; --auth user:password asks for a password")
    # A service manager's way to end it must leave nothing of the visitors' files behind either.
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with served(options) as (_, address):
            note(f"polysense demo: {address} (ends with Ctrl+C)")
            while not ended.wait(1.0):  # short waits: a signal is looked at between them
                pass
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _launch(blocks: Any, page: Page, uploads: Uploads) -> str:
    """Starts the server; its address."""
    from fastapi.routing import APIRoute
    from gradio.themes import Default
    from starlette.middleware import Middleware

    options, models, folder = page.options, page.models, page.folder
    try:
        _, local, shared = blocks.launch(
            server_name=options.host, server_port=options.port, auth=options.auth, root_path=options.root_path or None,
            share=options.share, max_file_size=f"{options.max_mb:g}mb", prevent_thread_lock=True, quiet=True,
            allowed_paths=[str(folder / EXAMPLES)], show_error=False, run_history=False, ssr_mode=False,
            enable_monitoring=False, state_session_capacity=SESSIONS, mcp_server=False,
            footer_links=["api", "settings"], css=CSS, head=page.links.script(), js=NAMES,
            theme=Default(font=FONTS).set(**COLOURS),
            app_kwargs={"routes": [APIRoute("/health", _health(models))],
                        "middleware": [Middleware(Guard, uploads=uploads)]},
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"port {options.port}", f"nothing can listen there ({_first_line(error)})",
                         "choose another --port or --host") from error  # fmt: skip
    return shared or local


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _health(models: Models) -> Callable[[], dict[str, Any]]:
    """What /health says, to whoever asks: no password is needed to know that it runs."""

    def health() -> dict[str, Any]:
        return {"status": "ok", "models": len(models.infos), "loaded": len(models.loaded())}

    return health


@contextmanager
def _private() -> Iterator[None]:
    """Gradio sends nothing to its makers; it looks at this when it is imported and when it starts."""
    with _environment(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1"):
        yield


@contextmanager
def _folder() -> Iterator[Path]:
    """The demo's own folder, in which Gradio keeps uploads."""
    with tempfile.TemporaryDirectory(prefix="polysense-demo-") as place:
        folder = Path(place).resolve()
        with _environment(GRADIO_TEMP_DIR=str(folder / UPLOADED)):
            yield folder


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
