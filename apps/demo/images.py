"""The tab for images: classes, objects and regions, whatever the chosen model answers with."""

from __future__ import annotations

from typing import Any

from polysense.apps.demo import senses
from polysense.apps.demo.drawings import colours_of, marked
from polysense.apps.demo.page import Page, file_only
from polysense.bundle import read_config

PLACES = ("detection", "segmentation", "panoptic", "instances")
EXAMPLES = (("lion.jpg", "image-classification"), ("smear.png", "object-detection"),
            ("china.jpg", "image-segmentation"), ("flower.jpg", "image-segmentation"))  # fmt: skip


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    with_places = page.models.names("image", PLACES)
    model, found, classes, top_k = senses.build(
        page, "image", "image",
        lambda: file_only(gr.Image(type="filepath", label="Image", height=340)),
        lambda: gr.AnnotatedImage(label="Where", color_map=colours_of(_classes(page)), visible=False),
        lambda prediction, file, _: marked(prediction, file),
        kinds=(*senses.KINDS, *PLACES), examples=EXAMPLES,
        says="Classifies an image, or finds what is in it: classes, boxes or regions, as the model does.",
    )  # fmt: skip

    def shape(model: str) -> tuple[Any, ...]:
        places = model in with_places
        shares = model in page.models.names("image", ("segmentation",))
        title = "Shares of the picture" if shares else "Surest of each class" if places else "Classes"
        return gr.update(visible=places), gr.update(label=title), gr.update(visible=not places)

    model.change(shape, model, [found, classes, top_k], api_visibility="private", queue=False)


def _classes(page: Page) -> list[str]:
    """Names of all classes that models find places of, so that each has a colour of its own."""
    configs = [read_config(page.models.infos[name].path) for name in page.models.names("image", PLACES)]
    return [str(name) for config in configs for name in config["head"]["config"].get("classes", ())]
