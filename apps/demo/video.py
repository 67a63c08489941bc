"""The tab for films: classes, classes over time, and the frames that were read, with what each of them says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.apps.demo import senses, timelines
from polysense.apps.demo.page import Page, file_only
from polysense.core.predictions import Labels, Prediction

if TYPE_CHECKING:
    from polysense.data.video import Clip
    from polysense.timeline import Timeline

TARGET = 400  # pixels of a frame's shorter side
WINDOWS = 40  # of a timeline, at most
STRONG = 0.5  # share of the highest score from which a frame is one of those that decided


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def clip(file: str, model: str) -> Clip:
        from polysense.data.video import read_video

        config: Any = page.models.get(model).tokenizer.config
        return read_video(file, config.frames, target=TARGET)

    def frames(_: Prediction, file: str, model: str) -> list[tuple[Any, str]]:
        seen = clip(file, model)
        return [(frame, f"{time:.1f} s") for frame, time in zip(seen.frames, seen.times)]

    def decided(found: Timeline, file: str, model: str) -> tuple[list[tuple[Any, str]]]:
        answer = page.models.ask(model, file).predictions[0]
        assert isinstance(answer, Labels), "what has a timeline answers with labels"
        seen = clip(file, model)
        return (list(zip(seen.frames, captions(found, str(answer.names[0]), seen.times))),)

    tab = senses.build(
        page, "video", "video",
        lambda: file_only(gr.Video(label="Film", buttons=["download"])),
        lambda: gr.Gallery(label="Frames that were read", show_label=False, columns=4, height="max-content",
                           buttons=["fullscreen"]),
        frames,
        examples=[(name, "video-classification") for name in ("lion.mp4", "shapes.mp4")],
        says="Names what a film shows, and gives the frames that were read.",
    )  # fmt: skip
    with tab.under:
        gr.Markdown("Frames that were read, and how probable the answer is in the moments around each; ★ those that "
                    "decided.")  # fmt: skip
    timelines.build(page, tab, "video", WINDOWS, [tab.view], decided)


def captions(found: Timeline, name: str, seconds: Sequence[float] | np.ndarray) -> list[str]:
    """What to write under frames: when they appear and what the moments around them score for the class that was
    answered; a star where that is at least half of the highest.

    These scores are truer than the gradient (`polysense.relevance`): of films made of two photographs, they put all
    frames of the one that was answered before all others, the gradient nearly all.

    Args:
        found: Scores over time.
        name: The class.
        seconds: When each frame appears (t,).
    """
    scores = found.at(np.asarray(seconds, np.float64))[:, list(found.names).index(name)]
    strong = scores >= STRONG * scores.max()
    # What matters comes first: on a phone there is room for no more.
    return [f"{'★ ' if mark else ''}{score:.0%} · {time:.1f} s" for time, score, mark in zip(seconds, scores, strong)]
