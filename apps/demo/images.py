"""The tab for images: classes, objects and regions, whatever the chosen model answers with."""

from __future__ import annotations

from typing import Any

from polysense.apps.demo import legend, senses
from polysense.apps.demo.drawings import OPACITY, colours_of, marked
from polysense.apps.demo.page import Page, file_only
from polysense.bundle import read_config

PLACES = ("detection", "segmentation", "panoptic", "instances")
EXAMPLES = (("lion.jpg", "image-classification"), ("smear.png", "object-detection"),
            ("china.jpg", "image-segmentation"), ("flower.jpg", "image-segmentation"))  # fmt: skip
# Colours lie over the picture as pictures of their own; how strong they are is for the browser alone.
FADE = "(percent) => { document.documentElement.style.setProperty('--found', percent / 100); }"


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    colours = colours_of(_classes(page))
    tab = senses.build(
        page, "image", "image",
        lambda: file_only(gr.Image(type="filepath", label="Image", height=340)),
        lambda: gr.AnnotatedImage(label="Where", color_map=colours, show_legend=False, visible=False,
                                    elem_classes=["found"]),  # `legend` says more than its own
        lambda prediction, file, _: marked(prediction, file),
        kinds=(*senses.KINDS, *PLACES), examples=EXAMPLES,
        says="Classifies an image, or finds what is in it: classes, boxes or regions, as the model does.",
    )  # fmt: skip
    with tab.under:
        strength = gr.Slider(0, 100, OPACITY, step=1, label="Strength of the colours, %", visible=False)
    strength.change(None, strength, None, js=FADE)
    legend.build(page, tab, lambda _: colours)
    with_places = page.models.names("image", PLACES)
    with_boxes = page.models.names("image", ("detection",))

    def shape(model: str) -> tuple[Any, ...]:
        places = model in with_places
        # Edges of boxes hide little: they are drawn in full.
        percent = 100 if model in with_boxes else OPACITY
        return (gr.update(visible=places), gr.update(visible=places, value=percent), gr.update(visible=not places),
                gr.update(visible=not places))  # fmt: skip

    shown = [tab.view, strength, tab.classes, tab.top_k]
    tab.model.change(shape, tab.model, shown, api_visibility="private", queue=False)


def _classes(page: Page) -> list[str]:
    """Names of all classes that models find places of, so that each has a colour of its own."""
    configs = [read_config(page.models.infos[name].path) for name in page.models.names("image", PLACES)]
    return [str(name) for config in configs for name in config["head"]["config"].get("classes", ())]
