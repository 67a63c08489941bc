"""Under an answer to a sound or film: the classes over time (`polysense.timeline`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.apps.demo.page import Page, need

if TYPE_CHECKING:
    import pandas as pd

    from polysense.apps.demo.senses import Tab
    from polysense.timeline import Timeline

LINES = 5  # classes drawn
LEAST = 0.02  # probability that one must reach


def build(
    page: Page,
    tab: Tab,
    name: str,
    most: int,
    also: Sequence[Any] = (),
    more: Callable[[Timeline, str, str], Sequence[Any]] = lambda *_: (),
) -> None:
    """Adds it under the view; it is asked for after each answer.

    Args:
        page: Where.
        tab: Whose answers.
        name: Of the tab's endpoint; this one is `name`_timeline.
        most: Windows, at most.
        also: Further components that it fills.
        more: Timeline, file and model -> what they take.
    """
    import gradio as gr

    def over_time(file: str, model: str) -> Any:
        from polysense.timeline import timeline

        pipeline = page.models.get(model)
        if pipeline.task.kind == "regression":  # which has no classes, and was answered all the same
            return [None, *(gr.skip() for _ in also)] if also else None
        found = timeline(pipeline, need(file, name), most=most)
        return [lines(found), *more(found, file, model)] if also else lines(found)

    over_time.__doc__ = "Scores of the most probable classes over time: class, seconds, probability."
    with tab.under:
        plot = gr.LinePlot(x="seconds", y="probability", color="class", y_lim=[0, 1.02], height=240,
                           label="Classes over time", show_label=False)  # fmt: skip
    for number, event in enumerate(tab.asked):
        endpoint = None if number else f"{name}_timeline"
        page.on(event.success, over_time, [tab.file, tab.model], [plot, *also], endpoint, show_progress_on=[plot])


def lines(found: Timeline) -> pd.DataFrame:
    """What a LinePlot takes: "class", "seconds", "probability", from the beginning of the recording to its end."""
    import pandas as pd

    seconds = np.concatenate([[0.0], found.times, [found.duration]])
    scores = found.at(seconds)
    high = [name for name in found.best(LINES) if found.scores[:, list(found.names).index(name)].max() >= LEAST]
    shown = high or found.best(1)
    return pd.DataFrame({
        "class": np.repeat(shown, len(seconds)),
        "seconds": np.tile(seconds.round(3), len(shown)),
        "probability": scores[:, [list(found.names).index(name) for name in shown]].T.round(5).ravel(),
    })  # fmt: skip
