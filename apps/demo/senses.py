"""What the tabs of single files share: a file on the left; what was said of it and a picture of it on the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polysense.apps.demo import looked
from polysense.apps.demo.page import Page, named, need, scores
from polysense.core.predictions import Prediction

KINDS = ("classification", "multilabel", "regression")


def build(
    page: Page,
    name: str,
    modality: str,
    given: Callable[[], Any],
    view: Callable[[], Any],
    show: Callable[[Prediction, str, str], Any],
    *,
    kinds: Sequence[str] = KINDS,
    examples: Sequence[tuple[str, str]] = (),
    says: str = "",
) -> tuple[Any, ...]:
    """Fills a tab.

    Args:
        page: Where.
        name: Of the endpoint.
        modality: Of the files.
        given: Makes the input.
        view: Makes the component that shows the file with what was found in it.
        show: Prediction, file and model -> what that component takes.
        kinds: Of tasks whose models are offered.
        examples: Files and the task that each is an example of.
        says: What the endpoint does, for the API's page.

    Returns:
        The picker of models, the view, the classes and the number of classes.
    """
    import gradio as gr

    def answer(file: str, model: str, top_k: float) -> tuple[Any, ...]:
        found = page.models.ask(model, need(file, modality.replace("_", " ")))
        first = found.predictions[0]
        return show(first, file, model), scores(first, top_k), page.facts(found, model), named(first).to_record()

    answer.__doc__ = says
    with gr.Row():
        with gr.Column(min_width=300) as left:
            file = given()
            model = page.models_for(modality, kinds)
            top_k = gr.Slider(1, 20, 5, step=1, label="Classes shown, at most")
            ask = gr.Button("Answer", variant="primary")
        with gr.Column(min_width=300):
            facts = gr.Markdown("The answer appears here.", label="Answer", container=True)
            picture = view()
            classes = gr.Label(label="Classes")
            if modality in ("image", "audio", "point_cloud"):
                looked.build(page, name, modality, file, model)
            with gr.Accordion("The answer as JSON", open=False):
                record = gr.JSON(label="Record", show_label=False)
    page.share(model=model, top_k=top_k)
    inputs, outputs = [file, model, top_k], [picture, classes, facts, record]
    with left:
        rows = [(page.example(example), page.models.of_task(task)) for example, task in examples]
        page.examples(rows, [file, model], answer, outputs, [top_k])
    # As many at a time as make a batch: `Models.ask` sees to it that no more is computed than may be.
    together = {"concurrency_id": "asked", "concurrency_limit": page.options.gathered}
    page.on(ask.click, answer, inputs, outputs, name, **together)
    return model, picture, classes, top_k
