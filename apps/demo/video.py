"""The tab for films: classes, and the frames that were read."""

from __future__ import annotations

from typing import Any

from polysense.apps.demo import senses
from polysense.apps.demo.page import Page, file_only
from polysense.core.predictions import Prediction

TARGET = 400  # pixels of a frame's shorter side


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def frames(_: Prediction, file: str, model: str) -> list[tuple[Any, str]]:
        from polysense.data.video import read_video

        config: Any = page.models.get(model).tokenizer.config
        clip = read_video(file, config.frames, target=TARGET)
        return [(frame, f"{time:.1f} s") for frame, time in zip(clip.frames, clip.times)]

    senses.build(
        page, "video", "video",
        lambda: file_only(gr.Video(label="Film", buttons=["download"])),
        lambda: gr.Gallery(label="Frames that were read", columns=4, height="max-content", buttons=["fullscreen"]),
        frames,
        examples=[(name, "video-classification") for name in ("lion.mp4", "shapes.mp4")],
        says="Names what a film shows, and gives the frames that were read.",
    )  # fmt: skip
