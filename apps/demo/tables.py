"""The tab for tables: choose what to predict, fit a model in the page, predict new rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polysense.apps.demo.fitting import Run
from polysense.apps.demo.limits import EXAMPLES, MOST_FITTED
from polysense.apps.demo.page import UPLOAD, Page, file_only, named, need, scores
from polysense.core.errors import InputError
from polysense.data.table import read_table, require_columns
from polysense.data.writers import open_writer

if TYPE_CHECKING:
    import pandas as pd

FITTED = "the one fitted here"
KEPT = 3600  # seconds that a fitted model stays in memory
SHOWN = 200  # rows of answers on the page
MANY = 20  # a column of more different numbers than this is a quantity, not a class
AUTO, CLASS, NUMBER = "by its values", "a class", "a number"


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    waiting = gr.Progress()

    def columns(table: str) -> Any:
        """The columns of a table."""
        names = [str(name) for name in read_table(table).columns] if table else []  # none: it was taken away
        return gr.Dropdown(names, value=names[-1] if names else None)

    def fit(table: str, target: str, kind: str, progress: Any = waiting) -> tuple[Any, ...]:
        """Fits a model that predicts a column of a table from the others."""
        task = task_of(read_table(need(table, "table")), target, kind, table)
        done, seconds = fit_table(page, task, table, target, progress)
        measured = ", ".join(f"{name} {value:.3f}" for name, value in done.metrics.items() if name in METRICS)
        told = f"**Fitted in {seconds:.0f} s.** On the rows held out: {measured}.  \nNow predict new rows below."
        return done, told, {name: round(float(value), 6) for name, value in done.metrics.items()}, FITTED

    def predict(rows: str, model: str, fitted: Any) -> tuple[Any, ...]:
        """Predicts the rows of a table, with the model that this visitor fitted or one by name."""
        if model == FITTED and fitted is None:
            raise InputError("model", "none was fitted on this page", "fit one first, or choose another")
        used = fitted if model == FITTED else model
        found = page.models.ask(used, need(rows, "table of new rows"))
        path = page.file("predictions.csv")
        with open_writer(path, escape=True) as writer:
            for prediction in found.predictions:
                writer.write(named(prediction))
        shown = [[i + 1, one.answer(), _sure(one)] for i, one in enumerate(found.predictions[:SHOWN])]
        more = len(found.predictions) - len(shown)
        count = f"{len(found.predictions)} rows in {found.seconds:.1f} s" + (
            f"; the first {SHOWN} shown" if more else ""
        )
        return shown, str(path), f"**{count}**", scores(found.predictions[0], 5)

    fitted = gr.State(None, time_to_live=KEPT)
    gr.Markdown("### 1 · Fit")
    with gr.Row():
        with gr.Column(min_width=300) as left:
            table = file_only(gr.File(label="Table to learn from: .csv, .parquet, .xlsx", height=UPLOAD))
            target = gr.Dropdown([], label="Column to predict", allow_custom_value=True)
            kind = gr.Radio([AUTO, CLASS, NUMBER], value=AUTO, label="What that column is")
            start = gr.Button("Fit", variant="primary")
        with gr.Column(min_width=300):
            told = gr.Markdown("The metric on rows that were held out appears here.", label="Fit", container=True)
            with gr.Accordion("All metrics", open=False):
                metrics = gr.JSON(label="Metrics", show_label=False)
    gr.Markdown("### 2 · Predict new rows")
    with gr.Row():
        with gr.Column(min_width=300) as below:
            rows = file_only(gr.File(label="Table of new rows", height=UPLOAD))
            names = page.models.names("tabular", ("classification", "multilabel", "regression"))
            model = gr.Dropdown([FITTED, *names], value=FITTED, label="Model")
            ask = gr.Button("Predict", variant="primary")
        with gr.Column(min_width=300):
            count = gr.Markdown("The answers appear here.", label="Answer", container=True)
            first = gr.Label(label="First row")
            answers = gr.Dataframe(headers=["row", "answer", "confidence"], label="Answers", interactive=False,
                                   max_height=300)  # fmt: skip
            download = gr.File(label="All answers as CSV", interactive=False, elem_classes="made")
    outputs = [answers, download, count, first]
    page.on(table.change, columns, table, target, "table_columns")
    page.on(start.click, fit, [table, target, kind], [fitted, told, metrics, model], "fit_table")
    page.on(ask.click, predict, [rows, model, fitted], outputs, "predict_table", **page.together)
    learn, new = wines(page)
    with left:
        page.examples([(learn, "cultivar")], [table, target], fit, [fitted, told, metrics, model], [kind],
                      "Example: wines and their cultivar; one click fits")  # fmt: skip
    with below:
        shown = [(new, FITTED)] + [(page.example("people.csv"), name) for name in names if name == "adult"]
        page.examples(shown, [rows, model], predict, outputs, [fitted], "Examples: one click predicts", None)


METRICS = ("accuracy", "auroc", "f1", "r2", "mae", "rmse", "mse")


def task_of(table: pd.DataFrame, target: str, kind: str, source: str) -> str:
    """The task that a column asks for.

    Raises:
        InputError: There is no such column, it is no number where one is wanted, or the table is too long.
    """
    import pandas as pd

    require_columns(table, [target], source)
    if len(table) > MOST_FITTED:
        problem = f"it has {len(table)} rows, more than the {MOST_FITTED} that are fitted in the page"
        raise InputError(source, problem, "use polysense fit, or give fewer rows")
    numeric = pd.api.types.is_numeric_dtype(table[target]) and not pd.api.types.is_bool_dtype(table[target])
    if kind == NUMBER and not numeric:
        raise InputError(source, f"the column {target!r} holds no numbers", "predict it as a class")
    number = kind == NUMBER or (kind == AUTO and numeric and table[target].nunique() > MANY)
    return "tabular-regression" if number else "tabular-classification"


def fit_table(page: Page, task: str, table: str, target: str, progress: Any) -> tuple[Any, float]:
    """Fits, telling the page how long it has been; gives the pipeline and the seconds.

    Raises:
        InputError: See `polysense.fit`; or it took too long.
    """
    import polysense

    # Nothing of a visitor's table is kept: no cache, no bundle on disk, no examples in its card.
    start = time.perf_counter()
    run = Run(lambda told: polysense.fit(task, Path(table), target=target, progress=told, cache=False))
    for seconds in run.ticks():
        progress(None, desc=f"fitting, {seconds:.0f} s")
    return page.models.watched(run.result), time.perf_counter() - start


def wines(page: Page) -> tuple[str, str]:
    """Two example tables: wines to learn from, and others without their cultivar (UCI Wine, from scikit-learn)."""
    from sklearn.datasets import load_wine

    data: Any = load_wine(as_frame=True)
    table = data.data.assign(cultivar=data.target.map({0: "first", 1: "second", 2: "third"})).sample(
        frac=1, random_state=0
    )
    learn, new = page.folder / EXAMPLES / "wines.csv", page.folder / EXAMPLES / "new-wines.csv"
    table.iloc[20:].to_csv(learn, index=False)
    table.iloc[:20].drop(columns="cultivar").to_csv(new, index=False)
    return str(learn), str(new)


def _sure(prediction: Any) -> str:
    return "" if prediction.confidence is None else f"{prediction.confidence:.3f}"
