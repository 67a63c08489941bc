"""The tab for point clouds: classes, or a colour for every point."""

from __future__ import annotations

from typing import Any

from polysense.apps.demo.drawings import panel
from polysense.apps.demo.page import Page, need, scores
from polysense.core.predictions import Mask

KINDS = ("classification", "multilabel", "regression", "segmentation")
EXAMPLES = ("chair.ply", "table.ply")


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def answer(cloud: str, model: str, top_k: float) -> tuple[Any, ...]:
        """Names a scanned object, or the parts of a scan."""
        found = page.models.ask(model, need(cloud, "point cloud"))
        first = found.predictions[0]
        picture = panel(cloud, "point_cloud", first.index if isinstance(first, Mask) else None)
        return picture, scores(first, top_k), page.facts(found, model), page.record(first)

    with gr.Row():
        with gr.Column(min_width=300):
            cloud = gr.File(label="Point cloud or mesh: .ply, .pcd, .las, .obj, .stl, .xyz …", height=140)
            model = page.models_for("point_cloud", KINDS)
            top_k = gr.Slider(1, 20, 5, step=1, label="Classes shown, at most")
            ask = gr.Button("Answer", variant="primary")
        with gr.Column(min_width=300):
            facts = gr.Markdown("The answer appears here.", label="Answer", container=True)
            classes = gr.Label(label="Classes")
            picture = gr.Image(label="Seen from three sides", interactive=False)
            with gr.Accordion("The answer as JSON", open=False):
                record = gr.JSON(label="Record", show_label=False)
    inputs, outputs = [cloud, model, top_k], [picture, classes, facts, record]
    rows = [(page.example(name), page.models.of_task("point-cloud-classification")) for name in EXAMPLES]
    page.examples(rows, [cloud, model], answer, outputs, [top_k])
    page.on(ask.click, answer, inputs, outputs, "point_cloud")
