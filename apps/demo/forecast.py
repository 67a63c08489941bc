"""The tab for forecasts: a table of numbers over time, what comes next with a band, and a file of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.apps.demo.fitting import Run
from polysense.apps.demo.page import UPLOAD, Page, file_only, need
from polysense.apps.pictures import show_forecast
from polysense.core.predictions import Series
from polysense.data.table import read_table
from polysense.data.time_series import read_series_all

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

FOUND = "found by itself"
MOST_STEPS = 720
WIDTH, EDGES, STRIP = 5.4, 1.0, 1.6  # inches: of the picture, above and below, of each variate


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def columns(table: str) -> tuple[Any, Any]:
        """The columns of a file of series: what may be the time, and what may be forecast."""
        if not table:  # taken away
            return gr.Dropdown([FOUND], value=FOUND), gr.Dropdown([], value=[])
        found = read_series_all(table)[0]
        # Files without columns (.ts, arrays) have nothing to choose the time from.
        times = (
            [str(name) for name in read_table(table).columns]
            if table.endswith((".csv", ".tsv", ".parquet", ".xlsx"))
            else []
        )
        return (gr.Dropdown([FOUND, *times], value=FOUND),
                gr.Dropdown(found.names, value=found.names[:2]))  # fmt: skip

    def answer(table: str, model: str, time: str, values: Sequence[str], horizon: float) -> Iterator[Any]:
        """Forecasts columns of a table."""
        frames = read_series_all(need(table, "table"), time=None if time in (FOUND, None, "") else time,
                                 columns=list(values) or None)  # fmt: skip
        run = Run(lambda told: page.models.ask(model, frames[0], told.working, horizon=int(horizon)))
        for seconds in run.ticks():
            yield gr.skip(), f"**{seconds:.0f} s** so far", gr.skip(), gr.skip()
        found = run.result
        first = found.predictions[0]
        assert isinstance(first, Series), "a forecaster answers with series"
        others = f"  \nthe first of {len(frames)} series in the file" if len(frames) > 1 else ""
        path = page.file("forecast.csv")
        frame = first.to_frame()
        frame.to_csv(path)
        yield (drawn(first), page.facts(found, model) + others, str(path),
               rounded(frame).reset_index().astype({frame.index.name: str}))  # fmt: skip

    def example(table: str, time: str, values: Sequence[str], model: str, horizon: float) -> Iterator[Any]:
        yield from answer(table, model, time, values, horizon)

    with gr.Row():
        with gr.Column(min_width=300) as left:
            table = file_only(gr.File(label="Series: .csv, .parquet, .xlsx, .ts …", height=UPLOAD))
            model = page.models_for("time_series", ("forecasting",))
            time = gr.Dropdown([FOUND], value=FOUND, label="Column of the time", allow_custom_value=True)
            values = gr.Dropdown([], value=[], multiselect=True, label="Columns to forecast (none: all)",
                                 allow_custom_value=True)  # fmt: skip
            horizon = gr.Slider(1, MOST_STEPS, 48, step=1, label="Steps")
            with gr.Row():
                ask, end = page.buttons("Forecast", "Stop")
        with gr.Column(min_width=300):
            facts = gr.Markdown("The forecast appears here.", label="Answer", container=True)
            picture = page.picture("Forecast")
            download = gr.File(label="Forecast as CSV", interactive=False, elem_classes="made")
            with gr.Accordion("The forecast as a table", open=False):
                numbers = gr.Dataframe(label="Forecast", interactive=False, max_height=300)
    inputs, outputs = [table, model, time, values, horizon], [picture, facts, download, numbers]
    page.on(table.change, columns, table, [time, values], "forecast_columns", show_progress="hidden")
    with left:
        row = (page.example("energy.csv"), FOUND, ["load", "price"])
        shown = page.examples([row], [table, time, values], example, outputs, [model, horizon])
    asked = page.on(ask.click, answer, inputs, outputs, "forecast", **page.together)
    page.stops(end, asked, shown)
    page.share(model=model, horizon=horizon)


def rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers as they are read, not as they are computed with."""
    return frame.map(lambda value: float(f"{value:.5g}"))


def drawn(forecast: Series) -> Image:
    """History, forecast and bands in one picture, whose letters can be read on a phone too."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    height = EDGES + STRIP * min(len(forecast.names), 4)
    figure = Figure(figsize=(WIDTH, height), dpi=170, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    show_forecast(figure, forecast, beside=2)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
