"""The tab for many files: a table of answers, and a file of them by the library's writers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from polysense.apps.demo.limits import MOST_FILES, MOST_MINUTES
from polysense.apps.demo.page import UPLOAD, Page, file_only, named, need
from polysense.core.errors import InputError
from polysense.data.writers import open_writer
from polysense.pipeline import Pipeline

ENDINGS = (".csv", ".jsonl", ".json", ".parquet")
OFTEN = 0.5  # seconds between words on how far it is
SHOWN = 500  # rows on the page; the file has all


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def answer(files: Sequence[str], model: str, ending: str) -> Iterator[Any]:
        """Answers many files; those that cannot be read are named, and the others answered."""
        if len(need(files, "files")) > MOST_FILES:
            raise InputError(f"{len(files)} files", "they are too many at once", f"give {MOST_FILES} at most")
        pipeline, path = page.models.get(model), page.file(f"answers{ending}")
        try:
            for rows, told in answers(page, pipeline, model, files, path):
                yield rows[:SHOWN], gr.skip(), told
        except BaseException:  # its visitor may have gone, too
            shutil.rmtree(path.parent)  # Gradio deletes in time what it hands out, and nothing else
            raise
        yield rows[:SHOWN], [str(made) for made in _made(path)], told

    with gr.Row():
        with gr.Column(min_width=300) as left:
            files = file_only(gr.File(file_count="multiple", label=f"Files, at most {MOST_FILES}", height=UPLOAD))
            names = page.models.names()
            choices = [(f"{name} · {page.models.infos[name].task.replace('-', ' ')}", name) for name in names]
            model = gr.Dropdown(choices, value=page.models.of_task("image-classification"), label="Model")
            ending = gr.Radio(list(ENDINGS), value=ENDINGS[0], label="Kind of the answers' file")
            with gr.Row():
                ask, end = page.buttons("Answer all", "Stop")
        with gr.Column(min_width=300):
            told = gr.Markdown("How many were answered appears here.", label="Answers", container=True)
            download = gr.File(label="Answers to download", file_count="multiple", interactive=False,
                               elem_classes="made")  # fmt: skip
            table = gr.Dataframe(headers=["file", "answer", "confidence"], label="Answers", interactive=False,
                                 wrap=True, max_height=420)  # fmt: skip
    outputs = [table, download, told]
    photos = [page.example(name) for name in ("lion.jpg", "flower.jpg", "china.jpg")]
    with left:
        shown = page.examples(
            [(photos, page.models.of_task("image-classification"))], [files, model], answer, outputs, [ending]
        )
    asked = page.on(ask.click, answer, [files, model, ending], outputs, "batch")
    page.stops(end, asked, shown)
    page.share(model=model, format=ending)


def answers(
    page: Page, pipeline: Pipeline, model: str, files: Sequence[str], path: Path
) -> Iterator[tuple[list[list[Any]], str]]:
    """Writes the answers; yields the rows and words for the page, now and then and when all is done.

    Raises:
        InputError: None of the files could be read.
    """
    rows: list[list[Any]] = []
    done = skipped = 0
    start = told = time.monotonic()
    with open_writer(path, {"model": model}, escape=True) as writer:
        for number, file in enumerate(files, 1):
            found = pipeline.stream(str(file), on_error="skip")
            while True:
                with page.models.within(60 * MOST_MINUTES, start):  # each step, as each may run in another thread
                    one = next(found, None)
                if one is None:
                    break
                if time.monotonic() - told > OFTEN:
                    yield rows, f"**file {number} of {len(files)}** · {done} answers so far"
                    told = time.monotonic()
                if isinstance(one, InputError):
                    skipped += 1
                    rows.append([Path(file).name, f"not read: {page.sentence(one)}", ""])
                    continue
                done += 1
                sure = "" if one.confidence is None else f"{one.confidence:.3f}"
                rows.append([Path(one.source).name, one.answer(), sure])
                writer.write(named(one))
        if not done:
            raise InputError(f"{len(files)} files", f"none could be read ({rows[0][1]})", "choose another model")
    yield (
        rows,
        f"**{done} answers** in {time.monotonic() - start:.1f} s" + (f", {skipped} files not read" if skipped else ""),
    )


def _made(path: Path) -> list[Path]:
    """What a writer made: the file, and its masks as one archive."""
    masks = path.with_name(path.name + ".masks")
    if not masks.is_dir():
        return [path]
    archive = Path(shutil.make_archive(str(masks), "zip", masks))
    shutil.rmtree(masks)
    return [path, archive]
