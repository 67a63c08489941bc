"""The tab for images: classes, objects and regions, whatever the chosen model answers with."""

from __future__ import annotations

from typing import Any

from polysense.apps.demo.drawings import colours_of, marked
from polysense.apps.demo.page import Page, file_only, need, scores
from polysense.bundle import read_config

KINDS = ("classification", "multilabel", "regression", "detection", "segmentation", "panoptic", "instances")
PLACES = ("detection", "segmentation", "panoptic", "instances")
EXAMPLES = {"lion.jpg": "image-classification", "smear.png": "object-detection", "china.jpg": "image-segmentation",
            "flower.jpg": "image-segmentation"}  # fmt: skip


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def answer(image: str, model: str, top_k: float) -> tuple[Any, ...]:
        """Classifies an image, or finds what is in it: classes, boxes or regions, as the model does."""
        found = page.models.ask(model, need(image, "image"))
        first = found.predictions[0]
        return (marked(first, image), scores(first, None if model in with_places else top_k),
                page.facts(found, model), page.record(first))  # fmt: skip

    with_places = page.models.names("image", PLACES)
    with gr.Row():
        with gr.Column(min_width=300):
            image = file_only(gr.Image(type="filepath", label="Image", height=340))
            model = page.models_for("image", KINDS)
            top_k = gr.Slider(1, 20, 5, step=1, label="Classes shown, at most")
            ask = gr.Button("Answer", variant="primary")
        with gr.Column(min_width=300):
            facts = gr.Markdown("The answer appears here.", label="Answer", container=True)
            found = gr.AnnotatedImage(label="Where", color_map=colours_of(_classes(page)), visible=False)
            classes = gr.Label(label="Classes")
            with gr.Accordion("The answer as JSON", open=False):
                record = gr.JSON(label="Record", show_label=False)
    inputs, outputs = [image, model, top_k], [found, classes, facts, record]
    page.examples([(page.example(name), page.models.of_task(task)) for name, task in EXAMPLES.items()],
                  [image, model], answer, outputs, [top_k])  # fmt: skip
    page.on(ask.click, answer, inputs, outputs, "image")

    def shape(model: str) -> tuple[Any, ...]:
        places = model in with_places
        title = "Surest score of a class, or its share of the picture" if places else "Classes"
        return gr.update(visible=places), gr.update(label=title), gr.update(visible=not places)

    model.change(shape, model, [found, classes, top_k], api_visibility="private", queue=False)


def _classes(page: Page) -> list[str]:
    """Names of all classes that models find places of, so that each has a colour of its own."""
    configs = [read_config(page.models.infos[name].path) for name in page.models.names("image", PLACES)]
    return [str(name) for config in configs for name in config["head"]["config"].get("classes", ())]
