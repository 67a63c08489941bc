"""What the tabs of single files share: a file on the left; what was said of it and a picture of it on the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polysense.apps.demo import looked
from polysense.apps.demo.page import Page, named, need, scores
from polysense.core.predictions import Prediction

KINDS = ("classification", "multilabel", "regression")

Show = Callable[[Prediction, str, str], Any]


@dataclass(frozen=True, slots=True)
class Tab:
    """A tab that was filled.

    Attributes:
        file: The input.
        model: The picker of models.
        top_k: Number of classes.
        view: Shows the file with what was found in it.
        under: A place under the view.
        classes: The classes.
        record: The answer as JSON.
        asked: Events after which there is an answer: the button's, which the API knows, and that of the examples.
    """

    file: Any
    model: Any
    top_k: Any
    view: Any
    under: Any
    classes: Any
    record: Any
    asked: Sequence[Any]


def build(
    page: Page,
    name: str,
    modality: str,
    given: Callable[[], Any],
    view: Callable[[], Any],
    show: Show,
    *,
    above: tuple[Callable[[], Any], Show] | None = None,
    kinds: Sequence[str] = KINDS,
    examples: Sequence[tuple[str, str]] = (),
    says: str = "",
) -> Tab:
    """Fills a tab.

    Args:
        page: Where.
        name: Of the endpoint.
        modality: Of the files.
        given: Makes the input.
        view: Makes the component that shows the file with what was found in it.
        show: Prediction, file and model -> what that component takes.
        above: The same of a second view, over the first one; it comes last in the endpoint's answer.
        kinds: Of tasks whose models are offered.
        examples: Files and the task that each is an example of.
        says: What the endpoint does, for the API's page.
    """
    import gradio as gr

    def answer(file: str, model: str, top_k: float) -> tuple[Any, ...]:
        found = page.models.ask(model, need(file, modality.replace("_", " ")))
        first = found.predictions[0]
        said = show(first, file, model), scores(first, top_k), page.facts(found, model), named(first).to_record()
        return said if above is None else (*said, above[1](first, file, model))

    answer.__doc__ = says
    with gr.Row():
        with gr.Column(min_width=300) as left:
            file = given()
            model = page.models_for(modality, kinds)
            top_k = gr.Slider(1, 20, 5, step=1, label="Classes shown, at most")
            ask = gr.Button("Answer", variant="primary")
        with gr.Column(min_width=300):
            facts = gr.Markdown("The answer appears here.", label="Answer", container=True)
            over = [] if above is None else [above[0]()]
            picture = view()
            under = gr.Column()
            classes = gr.Label(label="Classes")
            if modality in ("image", "audio", "point_cloud"):
                looked.build(page, name, modality, file, model)
            with gr.Accordion("The answer as JSON", open=False):
                record = gr.JSON(label="Record", show_label=False)
    page.share(model=model, top_k=top_k)
    inputs, outputs = [file, model, top_k], [picture, classes, facts, record, *over]
    asked = page.on(ask.click, answer, inputs, outputs, name, **page.together)
    with left:
        rows = [(page.example(example), page.models.of_task(task)) for example, task in examples]
        clicked = page.examples(rows, [file, model], answer, outputs, [top_k])
    return Tab(file, model, top_k, picture, under, classes, record, (asked, clicked))
