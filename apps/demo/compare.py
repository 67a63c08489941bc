"""The tab for meaning: how near two things lie, whatever their kinds, and naming by the visitor's own words."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polysense.apps.demo.gallery import WORD, Gallery, Own, added
from polysense.apps.demo.page import AUTO, UPLOAD, Page, file_only, named, need, plain, scores
from polysense.apps.inputs import guess
from polysense.apps.words import nameable
from polysense.core.errors import InputError
from polysense.core.predictions import Embedding
from polysense.data.text import Text
from polysense.zero_shot import meaning_task

LONGEST = 2000  # characters of words
MOST_LABELS = 200
MOST_NEAR = 10  # of each kind
KEPT = 3600  # seconds that what a visitor gave is looked in, for them alone


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    gallery = Gallery(page, page.options.index)

    def compare(first: str, first_words: str, first_kind: str, second: str, second_words: str,
                second_kind: str, own: Sequence[Own] = ()) -> tuple[Any, ...]:  # fmt: skip
        """The cosine of two inputs in the space of meaning; each is a file of any kind, or words."""
        start = time.perf_counter()
        one, read = _placed(page, first, first_words, first_kind)
        other, more = _placed(page, second, second_words, second_kind)
        cosine = float(np.clip(one[2] @ other[2], -1, 1))
        said = f"**Cosine {cosine:.3f}** (1: the same, 0: nothing in common)  \n{_took(start, read + more)}"
        return cosine, said, added(added(own, *one), *other)

    def neighbours(file: str, words: str, kind: str, top_k: float, own: Sequence[Own] = ()) -> tuple[Any, ...]:
        """What lies nearest to a file of any kind, or to words: of each kind the nearest, with their cosines."""
        start = time.perf_counter()
        (what, name, vector), read = _placed(page, file, words, kind)
        others = [one for one in own if one[:2] != (what, name)]
        rows = gallery.nearest(vector, int(top_k), others)
        first = {kind: name for kind, name, _, _ in reversed(rows)}
        said = ", ".join(f"{kind} **{plain(name)}**" for kind, name in reversed(first.items()))
        return [list(row) for row in rows], f"Nearest: {said}  \n{_took(start, read)}", added(own, what, name, vector)

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
        cosine = gr.Number(label="Cosine", precision=4, interactive=False, min_width=120, scale=1)
        said = gr.Markdown("Kinds differ in how near they lie to words at all: compare like with like.",
                           label="Comparison", container=True)  # fmt: skip
    rain, clock, lion = (page.example(file) for file in ("rain.wav", "clock.wav", "lion.jpg"))
    rows = [(rain, "", None, "rain on a roof"), (rain, "", clock, ""), (lion, "", None, "a lion"),
            (lion, "", None, "a bicycle"), (None, "showers before noon", None, "weather")]  # fmt: skip
    filled = [sides[0], sides[1], sides[3], sides[4]]
    page.examples(
        rows,
        filled,
        lambda a, b, c, d: compare(a, b, AUTO, c, d, AUTO)[:2],
        [cosine, said],
        titles=[_versus(one[:2], one[2:]) for one in rows],
    )
    own = gr.State([], time_to_live=KEPT)
    page.on(measure.click, compare, [*sides, own], [cosine, said, own], "compare", **page.together)

    gr.Markdown("### What lies nearest?\nAmong examples of all kinds, everyday words, and what you have compared or "
                "looked for on this page; each kind by itself.")  # fmt: skip
    with gr.Row():
        with gr.Column(min_width=300) as left:
            near = [file_only(gr.File(label="Nearest to: a file of any kind …", height=UPLOAD)),
                    gr.Textbox(label="Nearest to: … or words", placeholder="rain on a roof", max_length=LONGEST),
                    gr.Dropdown(kinds, value=AUTO, label="Nearest to: what the file is")]  # fmt: skip
            top_k = gr.Slider(1, MOST_NEAR, 3, step=1, label="Of each kind, at most")
            look = gr.Button("Find", variant="primary")
        with gr.Column(min_width=300):
            told = gr.Markdown("The nearest of each kind appear here.", label="Nearest", container=True)
            found = gr.Dataframe(headers=["kind", "what", "cosine", "from"], label="Neighbours", interactive=False,
                                 max_height=420)  # fmt: skip
    with left:
        asked = [(rain, ""), (lion, ""), (page.example("chair.ply"), ""), (None, "a storm at sea")]
        page.examples(asked, near[:2], lambda a, b, k: neighbours(a, b, AUTO, k)[:2], [found, told], [top_k],
                      titles=[_called(*one) for one in asked])  # fmt: skip
    page.on(look.click, neighbours, [*near, top_k, own], [found, told, own], "neighbours", **page.together)

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
    page.examples(shown, [file, words, labels], lambda a, b, c: name(a, b, AUTO, c, ""), outputs,
                  titles=[f"{_called(*one[:2])}: {one[2]}" for one in shown])  # fmt: skip
    page.share(top_k=top_k, labels=labels, none=none)
    page.on(ask.click, name, [file, words, kind, labels, none], outputs, "name", **page.together)


def _called(file: str | None, words: str) -> str:
    return Path(file).name if file else f"“{words}”"


def _versus(one: Sequence[Any], other: Sequence[Any]) -> str:
    return f"{_called(*one)} and {_called(*other)}"


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


def _placed(page: Page, file: str | None, words: str | None, kind: str) -> tuple[Own, int]:
    """What was given: its kind, what it is called, and where it lies in the space of meaning; and the tokens read."""
    source, modality = _input(file, words, kind)
    if isinstance(source, Text):
        return (WORD, textwrap.shorten(source.text, 60, placeholder=" …"), page.models.words(source.text)), 0
    found = page.models.ask(page.models.of_task(meaning_task(modality)), source)
    first = found.predictions[0]
    assert isinstance(first, Embedding), "a meaning head answers with embeddings"
    return (modality, Path(source).name, first.vector), found.tokens


def _took(start: float, tokens: int) -> str:
    """What an answer took; words alone are no tokens of the encoder."""
    return f"{1000 * (time.perf_counter() - start):.0f} ms" + (f", {tokens} tokens" if tokens else "")
