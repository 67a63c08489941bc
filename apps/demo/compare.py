"""The tab for meaning: how near two things lie, whatever their kinds, and naming by the visitor's own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polysense.apps.demo.page import AUTO, UPLOAD, Page, file_only, named, need, scores
from polysense.apps.inputs import guess
from polysense.apps.words import nameable
from polysense.core.errors import InputError
from polysense.data.text import Text

LONGEST = 2000  # characters of words
MOST_LABELS = 200


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def compare(first: str, first_words: str, first_kind: str, second: str, second_words: str,
                second_kind: str) -> tuple[Any, ...]:  # fmt: skip
        """The cosine of two inputs in the space of meaning; each is a file of any kind, or words."""
        one, other = (_vector(page, *side) for side in ((first, first_words, first_kind),
                                                        (second, second_words, second_kind)))  # fmt: skip
        cosine = float(np.clip(one @ other, -1, 1))
        return cosine, f"**Cosine {cosine:.3f}** (1: the same, 0: nothing in common)"

    def name(file: str, words: str, kind: str, labels: str, none: str) -> tuple[Any, ...]:
        """Names a file, or a text, by labels that nobody trained."""
        source, modality = _input(file, words, kind)
        # Parted here: the library would also take the name of a file of labels, and read it from this machine.
        given = [label.strip() for label in labels.split(",") if label.strip()]
        if not given or len(given) > MOST_LABELS:
            fix = f"give 1 to {MOST_LABELS}, parted by commas: dog, cat | kitten, bird"
            raise InputError("labels", f"there are {len(given)}", fix)
        pipeline = page.models.naming(modality, given, none.strip() or None)
        found = page.models.ask(pipeline, source)
        return (
            scores(found.predictions[0]),
            page.facts(found, f"{modality}-naming"),
            named(found.predictions[0]).to_record(),
        )

    kinds = [AUTO, *nameable()]
    gr.Markdown("### How near do two things lie?\nImages, films, sounds, scans, texts and words share one space.")
    with gr.Row():
        sides: list[Any] = []
        for title in ("First", "Second"):
            with gr.Column(min_width=300):
                sides += [file_only(gr.File(label=f"{title}: a file of any kind …", height=UPLOAD)),
                          gr.Textbox(label=f"{title}: … or words", placeholder="rain on a roof", max_length=LONGEST),
                          gr.Dropdown(kinds, value=AUTO, label=f"{title}: what the file is")]  # fmt: skip
    measure = gr.Button("Compare", variant="primary")
    with gr.Row():
        cosine = gr.Number(label="Cosine", interactive=False, min_width=120, scale=1)
        said = gr.Markdown("Kinds differ in how near they lie to words at all: compare like with like.",
                           label="Comparison", container=True)  # fmt: skip
    rain, clock, lion = (page.example(file) for file in ("rain.wav", "clock.wav", "lion.jpg"))
    rows = [(rain, "", None, "rain on a roof"), (rain, "", clock, ""), (lion, "", None, "a lion"),
            (lion, "", None, "a bicycle"), (None, "showers before noon", None, "weather")]  # fmt: skip
    filled = [sides[0], sides[1], sides[3], sides[4]]
    page.examples(rows, filled, lambda a, b, c, d: compare(a, b, AUTO, c, d, AUTO), [cosine, said], columns=None)
    page.on(measure.click, compare, sides, [cosine, said], "compare", **page.together)

    gr.Markdown("### Name it by your own words")
    with gr.Row():
        with gr.Column(min_width=300):
            file = file_only(gr.File(label="A file of any kind …", height=UPLOAD))
            words = gr.Textbox(label="… or a text", lines=2, max_length=LONGEST)
            kind = gr.Dropdown(kinds, value=AUTO, label="What the file is")
            labels = gr.Textbox(label="Labels, parted by commas; a bar parts names of the same",
                                placeholder="dog, cat | kitten, bird", max_length=10 * LONGEST)  # fmt: skip
            none = gr.Textbox(label="Answer where no label fits (empty: always one of them)", max_length=100)
            ask = gr.Button("Name it", variant="primary")
        with gr.Column(min_width=300):
            facts = gr.Markdown("The answer appears here.", label="Answer", container=True)
            classes = gr.Label(label="Labels")
            with gr.Accordion("The answer as JSON", open=False):
                record = gr.JSON(label="Record", show_label=False)
    outputs = [classes, facts, record]
    shown = [(rain, "", "rain, dog barking, piano, speech"), (lion, "", "lion, fish, bicycle, cup of coffee"),
             (None, "Frost in the valleys, and a cold wind.", "weather, sports, cooking, politics")]  # fmt: skip
    page.examples(shown, [file, words, labels], lambda a, b, c: name(a, b, AUTO, c, ""), outputs, columns=None)
    page.on(ask.click, name, [file, words, kind, labels, none], outputs, "name", **page.together)


def _input(file: str | None, words: str | None, kind: str) -> tuple[Any, str]:
    """What was given, and its modality: a file, or else words.

    Raises:
        InputError: Nothing, both, or a file whose kind is in doubt.
    """
    if file and words and words.strip():
        raise InputError("input", "a file and words were given", "keep one of them")
    if file:
        return file, guess(Path(file), nameable(), "what the file is:") if kind == AUTO else kind
    # Not a bare string: the library would take that for the name of a file of this machine, where there is one.
    return Text(need(words and words.strip(), "input"), "words"), "text"


def _vector(page: Page, file: str | None, words: str | None, kind: str) -> np.ndarray:
    source, modality = _input(file, words, kind)
    return page.models.words(source.text) if isinstance(source, Text) else page.models.meaning(source, modality)
