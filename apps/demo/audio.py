"""The tab for sounds: upload or record; the wave, its mel spectrogram, classes, and classes over time."""

from __future__ import annotations

from polysense.apps.demo import senses, timelines
from polysense.apps.demo.drawings import panel
from polysense.apps.demo.page import Page, file_only

WINDOWS = 100  # of a timeline, at most


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    tab = senses.build(
        page, "audio", "audio",
        lambda: file_only(gr.Audio(type="filepath", label="Recording", editable=False, buttons=["download"],
                                   sources=["upload", "microphone"])),
        lambda: page.picture("Wave and mel spectrogram"),
        lambda _, file, __: panel(file, "audio"),
        examples=[(name, "audio-classification") for name in ("clock.wav", "rain.wav")],
        says="Names what is heard in a recording.",
    )  # fmt: skip
    timelines.build(page, tab, "audio", WINDOWS)
