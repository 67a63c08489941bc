"""Under an answer: a picture of what spoke for it (`polysense.relevance`)."""

from __future__ import annotations

from typing import Any

from polysense.apps.demo.limits import MOST_SECONDS
from polysense.apps.demo.page import Page, need

SAYS = "Shows which parts of an input spoke for the class that was answered."


def build(page: Page, name: str, modality: str, file: Any, model: Any) -> None:
    """Adds it.

    Args:
        page: Where.
        name: Of the tab's endpoint; this one is `name`_looked.
        modality: Of the files.
        file, model: The tab's own inputs.
    """
    import gradio as gr

    def look(path: str, chosen: str) -> str:
        from polysense.apps.attention_pictures import draw_relevance
        from polysense.relevance import relevance

        pipeline = page.models.get(chosen)
        with page.models.within(MOST_SECONDS):
            found = relevance(pipeline, need(path, modality.replace("_", " ")), "gradient")
        return str(draw_relevance(found, path, page.file("looked.png")))

    look.__doc__ = SAYS
    with gr.Accordion("What spoke for it", open=False):
        gr.Markdown("A heat map of the gradient through the encoder's attention: coarse, and true to what the model "
                    "computes rather than to what we would look at.")  # fmt: skip
        ask = gr.Button("Show")
        picture = page.picture("What spoke for the answer")
    page.on(ask.click, look, [file, model], picture, f"{name}_looked")
