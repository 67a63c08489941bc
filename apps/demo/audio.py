"""The tab for sounds: upload or record; the wave, its mel spectrogram, classes."""

from __future__ import annotations

from typing import Any

from polysense.apps.demo.drawings import panel
from polysense.apps.demo.page import Page, file_only, need, scores

KINDS = ("classification", "multilabel", "regression")
EXAMPLES = ("clock.wav", "rain.wav")


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def answer(audio: str, model: str, top_k: float) -> tuple[Any, ...]:
        """Names what is heard in a recording."""
        found = page.models.ask(model, need(audio, "recording"))
        first = found.predictions[0]
        return panel(audio, "audio"), scores(first, top_k), page.facts(found, model), page.record(first)

    with gr.Row():
        with gr.Column(min_width=300):
            audio = file_only(gr.Audio(type="filepath", label="Recording", editable=False))
            model = page.models_for("audio", KINDS)
            top_k = gr.Slider(1, 20, 5, step=1, label="Classes shown, at most")
            ask = gr.Button("Answer", variant="primary")
        with gr.Column(min_width=300):
            facts = gr.Markdown("The answer appears here.", label="Answer", container=True)
            classes = gr.Label(label="Classes")
            picture = gr.Image(label="Wave and mel spectrogram", interactive=False)
            with gr.Accordion("The answer as JSON", open=False):
                record = gr.JSON(label="Record", show_label=False)
    inputs, outputs = [audio, model, top_k], [picture, classes, facts, record]
    rows = [(page.example(name), page.models.of_task("audio-classification")) for name in EXAMPLES]
    page.examples(rows, [audio, model], answer, outputs, [top_k])
    page.on(ask.click, answer, inputs, outputs, "audio")
