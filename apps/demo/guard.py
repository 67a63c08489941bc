"""What nobody may ask of the demo: files that were not uploaded to it, other hosts, endpoints that it does not need.

Gradio checks much of this itself; here it is said once for every input and every endpoint. Known gaps that this closes:
a picture's path without `meta` is not checked by it, a folder's path stops its deleting of old files for good.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polysense.apps.demo.page import markup_free
from polysense.apps.demo.uploads import Uploads
from polysense.core.errors import InputError

API = "/gradio_api/"
# Endpoints of Gradio that no tab uses and that write, fetch or run what a stranger gives.
UNUSED = ("deep_link", "process_recording", "component_server", "proxy=", "vibe-", "undo-vibe-", "run-history", "dev/")
PRIVATE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
           (b"cache-control", b"private")]  # fmt: skip


def check_files(given: Any, folder: Path) -> None:
    """Refuses whatever names a file that is not an upload: in `folder`, one folder deep, and no link.

    Args:
        given: Values of a call's inputs, as they came.
        folder: Where uploads lie.

    Raises:
        InputError: One is elsewhere, on another host, no file, or deleted.
    """
    for path in _paths(given):
        fix = "upload it, and give the path that the upload answers with"
        try:
            place = Path(path).resolve()  # follows links
        except ValueError as error:  # a zero byte
            raise InputError("file", "its path is none", fix) from error
        if not os.path.isabs(path) or place.parent.parent != folder:
            raise InputError("file", "it was not uploaded here", fix)
        if not place.is_file():
            raise InputError(place.name, "there is no such upload, or not any more", "upload it again")


def guarded(blocks: Any, folder: Path) -> None:
    """Checks the inputs of all that these blocks are asked, before Gradio looks at them; see `check_files`."""
    import gradio as gr

    usual = blocks.preprocess_data

    async def checked(block_fn: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        try:
            check_files(inputs, folder)
            return await usual(block_fn, inputs, *rest, **named)
        except InputError as error:
            raise gr.Error(markup_free(str(error)), print_exception=False) from error
        except gr.Error as error:  # a choice that is none, a number out of its range
            error.message, error.print_exception = markup_free(error.message), False
            raise
        except ValueError as error:  # of pydantic and Gradio; printed, it would show what was given
            sentence = "input: it is not of the kind that is asked for; see the page's Use via API."
            raise gr.Error(sentence, print_exception=False) from error

    blocks.preprocess_data = checked


def _paths(given: Any) -> Iterator[str]:
    """All that Gradio could take for the path of a file."""
    if isinstance(given, dict):
        if isinstance(given.get("path"), str):
            yield given["path"]
        given = list(given.values())
    if isinstance(given, list | tuple):
        for one in given:
            yield from _paths(one)


class Guard:
    """Stands before the page (ASGI): refuses requests, and adds headers to what is answered.

    Args:
        app: What answers.
        uploads: Where uploads lie, and how much they may hold.
    """

    def __init__(self, app: Any, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        endpoint = scope["path"].partition(API)[2]
        headers = dict(scope["headers"])

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                mine = PRIVATE if endpoint else PRIVATE[:2]
                held = {name for name, _ in message.get("headers", [])}
                message["headers"] = [*message.get("headers", []), *(pair for pair in mine if pair[0] not in held)]
            await send(message)

        if refusal := _refusal(endpoint, headers, scope["method"]):
            return await _say(*refusal, scope, receive, answer)
        if not (scope["method"] == "POST" and endpoint.rstrip("/") == "upload"):
            return await self.app(scope, receive, answer)
        coming = headers.get(b"content-length", b"")
        if not coming.isdigit():
            return await _say(411, "say how long it is", scope, receive, answer)
        try:
            async with self.uploads.room(int(coming)):
                await self.app(scope, receive, answer)
        except InputError as error:
            await _say(413, str(error), scope, receive, answer)


def _refusal(endpoint: str, headers: dict[bytes, bytes], method: str) -> tuple[int, str] | None:
    """Status and sentence, for what is not answered at all."""
    if endpoint.startswith(UNUSED) or (endpoint.startswith("file") and "://" in endpoint):
        return 403, "this is not offered here"
    # Browsers say so of their own accord, and no script of a page can make them say otherwise.
    if endpoint and headers.get(b"sec-fetch-site") == b"cross-site":
        return 403, "pages of other sites may not ask here"
    return None


async def _say(status: int, sentence: str, scope: Any, receive: Any, send: Any) -> None:
    from starlette.responses import PlainTextResponse

    await PlainTextResponse(sentence, status)(scope, receive, send)
