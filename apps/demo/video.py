"""The tab for films: classes, and the frames that were read."""

from __future__ import annotations

from typing import Any

from polysense.apps.demo.page import Page, file_only, need, scores

KINDS = ("classification", "multilabel", "regression")
EXAMPLES = ("lion.mp4", "shapes.mp4")
TARGET = 400  # pixels of a frame's shorter side


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def answer(video: str, model: str, top_k: float) -> tuple[Any, ...]:
        """Names what a film shows, and gives the frames that were read."""
        from polysense.data.video import read_video

        found = page.models.ask(model, need(video, "film"))
        first = found.predictions[0]
        config: Any = page.models.get(model).tokenizer.config
        clip = read_video(video, config.frames, target=TARGET)
        frames = [(frame, f"{time:.1f} s") for frame, time in zip(clip.frames, clip.times)]
        return frames, scores(first, top_k), page.facts(found, model), page.record(first)

    with gr.Row():
        with gr.Column(min_width=300):
            video = file_only(gr.Video(label="Film", height=300))
            model = page.models_for("video", KINDS)
            top_k = gr.Slider(1, 20, 5, step=1, label="Classes shown, at most")
            ask = gr.Button("Answer", variant="primary")
        with gr.Column(min_width=300):
            facts = gr.Markdown("The answer appears here.", label="Answer", container=True)
            classes = gr.Label(label="Classes")
            frames = gr.Gallery(label="Frames that were read", columns=4, height="auto", object_fit="contain")
            with gr.Accordion("The answer as JSON", open=False):
                record = gr.JSON(label="Record", show_label=False)
    inputs, outputs = [video, model, top_k], [frames, classes, facts, record]
    rows = [(page.example(name), page.models.of_task("video-classification")) for name in EXAMPLES]
    page.examples(rows, [video, model], answer, outputs, [top_k])
    page.on(ask.click, answer, inputs, outputs, "video")
