"""The tab for many files: a table of answers, and a file of them by the library's writers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polysense.apps.demo.limits import MOST_FILES, MOST_MINUTES
from polysense.apps.demo.page import UPLOAD, Page, file_only, named, need
from polysense.core.errors import InputError
from polysense.data.writers import open_writer

ENDINGS = (".csv", ".jsonl", ".json", ".parquet")
SHOWN = 500  # rows on the page; the file has all


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    waiting = gr.Progress()

    def answer(files: Sequence[str], model: str, ending: str, progress: Any = waiting) -> tuple[Any, ...]:
        """Answers many files; those that cannot be read are named, and the others answered."""
        if len(need(files, "files")) > MOST_FILES:
            raise InputError(f"{len(files)} files", "they are too many at once", f"give {MOST_FILES} at most")
        pipeline, path = page.models.get(model), page.file(f"answers{ending}")
        rows: list[list[Any]] = []
        done = skipped = 0
        writing = open_writer(path, {"model": model}, escape=True)
        with writing as writer, page.models.within(60 * MOST_MINUTES):
            for file in progress.tqdm(files, desc="files"):
                for one in pipeline.stream(str(file), on_error="skip"):
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
        said = f"**{done} answers**" + (f", {skipped} files not read" if skipped else "")
        return rows[:SHOWN], [str(made) for made in _made(path)], said

    with gr.Row():
        with gr.Column(min_width=300) as left:
            files = file_only(gr.File(file_count="multiple", label=f"Files, at most {MOST_FILES}", height=UPLOAD))
            names = page.models.names()
            choices = [(f"{name} · {page.models.infos[name].task.replace('-', ' ')}", name) for name in names]
            model = gr.Dropdown(choices, value=page.models.of_task("image-classification"), label="Model")
            ending = gr.Radio(list(ENDINGS), value=ENDINGS[0], label="Kind of the answers' file")
            ask = gr.Button("Answer all", variant="primary")
        with gr.Column(min_width=300):
            told = gr.Markdown("How many were answered appears here.", label="Answers", container=True)
            download = gr.File(label="Answers to download", file_count="multiple", interactive=False,
                               elem_classes="made")  # fmt: skip
            table = gr.Dataframe(headers=["file", "answer", "confidence"], label="Answers", interactive=False,
                                 wrap=True, max_height=420)  # fmt: skip
    outputs = [table, download, told]
    photos = [page.example(name) for name in ("lion.jpg", "flower.jpg", "china.jpg")]
    with left:
        page.examples(
            [(photos, page.models.of_task("image-classification"))], [files, model], answer, outputs, [ending]
        )
    page.on(ask.click, answer, [files, model, ending], outputs, "batch")


def _made(path: Path) -> list[Path]:
    """What a writer made: the file, and its masks as one archive."""
    masks = path.with_name(path.name + ".masks")
    if not masks.is_dir():
        return [path]
    archive = Path(shutil.make_archive(str(masks), "zip", masks))
    shutil.rmtree(masks)  # Gradio deletes in time what it hands out, and nothing else
    return [path, archive]
