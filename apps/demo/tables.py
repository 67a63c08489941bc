"""The tab for tables: choose what to predict, fit a model in the page, predict new rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polysense.apps.demo.fitting import Run, Runs, Watched
from polysense.apps.demo.limits import EXAMPLES, MOST_FITTED
from polysense.apps.demo.page import ONE_FIT, UPLOAD, Page, file_only, named, need, plain, scores, visited
from polysense.core.errors import InputError
from polysense.data.table import read_table, require_columns
from polysense.data.writers import open_writer
from polysense.importance import Importances
from polysense.pipeline import Pipeline
from polysense.training.examples import Examples
from polysense.training.importance import SMALLER_IS_BETTER, examples_importance

if TYPE_CHECKING:
    import pandas as pd

FITTED = "the one fitted here"
KEPT = 3600  # seconds that a fitted model stays in memory
SHOWN = 200  # rows of answers on the page
MANY = 20  # a column of more different numbers than this is a quantity, not a class
TOGETHER = 256  # rows are short sequences
WEIGHING = 6.0  # seconds in which the columns are weighed, about
BARS = 10  # columns with a bar; the table has all
AUTO, CLASS, NUMBER = "by its values", "a class", "a number"


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    runs = Runs()

    def columns_of(table: str) -> Any:
        """The columns of a table."""
        names = [str(name) for name in read_table(table).columns] if table else []  # none: it was taken away
        return gr.Dropdown(names, value=names[-1] if names else None)

    @visited
    def fit(table: str, target: str, kind: str, request: Any) -> Iterator[Any]:
        """Fits a model that predicts a column of a table from the others, and measures what each of these is worth."""
        task = task_of(read_table(need(table, "table")), target, kind, table)
        run = Run(lambda told: learn(task, table, target, told), watched := Weighing())
        with runs.begun(request.session_hash, run):
            for seconds in run.ticks():
                yield gr.skip(), f"**{seconds:.0f} s** · {plain(page.bare(watched.now))}", *[gr.skip()] * 4
        done = page.models.watched(run.result)
        measured = ", ".join(f"{name} {value:.3f}" for name, value in done.metrics.items() if name in METRICS)
        worth, *columns = weights(watched)
        told = (f"**Fitted in {run.seconds:.0f} s.** On the rows held out: {measured}. {worth}  \n"
                "Now predict new rows below.")  # fmt: skip
        metrics = {name: round(float(value), 6) for name, value in done.metrics.items()}
        yield done, told, metrics, FITTED, *columns

    @visited
    def cancel(request: Any) -> None:
        """Ends the fit to a table that this visitor has begun."""
        runs.stop(request.session_hash)

    def predict(rows: str, model: str, fitted: Any) -> Iterator[Any]:
        """Predicts the rows of a table, with the model that this visitor fitted or one by name."""
        if model == FITTED and fitted is None:
            raise InputError("model", "none was fitted on this page", "fit one first, or choose another")
        used, table = fitted if model == FITTED else model, need(rows, "table of new rows")
        run = Run(lambda told: page.models.ask(used, table, told.working, batch_size=TOGETHER))
        for seconds in run.ticks():
            yield gr.skip(), gr.skip(), f"**{seconds:.0f} s** so far", gr.skip()
        found = run.result
        path = page.file("predictions.csv")
        with open_writer(path, escape=True) as writer:
            for prediction in found.predictions:
                writer.write(named(prediction))
        shown = [[i + 1, one.answer(), _sure(one)] for i, one in enumerate(found.predictions[:SHOWN])]
        more = len(found.predictions) - len(shown)
        count = f"{len(found.predictions)} rows in {found.seconds:.1f} s, {found.tokens} tokens" + (
            f"; the first {SHOWN} shown" if more else ""
        )
        yield shown, str(path), f"**{count}**", scores(found.predictions[0], 5)

    fitted = gr.State(None, time_to_live=KEPT)
    gr.Markdown("### 1 · Fit")
    with gr.Row():
        with gr.Column(min_width=300) as left:
            table = file_only(gr.File(label="Table to learn from: .csv, .parquet, .xlsx", height=UPLOAD))
            target = gr.Dropdown([], label="Column to predict", allow_custom_value=True)
            kind = gr.Radio([AUTO, CLASS, NUMBER], value=AUTO, label="What that column is")
            with gr.Row():
                start, stop = page.buttons("Fit", "Cancel")
        with gr.Column(min_width=300):
            told = gr.Markdown("The metric on rows that were held out appears here.", label="Fit", container=True)
            shares = gr.Label(label="What the columns are worth, in shares", num_top_classes=BARS, show_heading=False)
            with gr.Accordion("What the columns are worth, as a table", open=False):
                worth = gr.Dataframe(headers=["column", "worth", "±"], label="What the columns are worth",
                                     interactive=False, max_height=300,
                                     column_widths=["50%", "25%", "25%"])  # fmt: skip
            with gr.Accordion("All metrics", open=False):
                metrics = gr.JSON(label="Metrics", show_label=False)
    gr.Markdown("### 2 · Predict new rows")
    with gr.Row():
        with gr.Column(min_width=300) as below:
            rows = file_only(gr.File(label="Table of new rows", height=UPLOAD))
            names = page.models.names("tabular", ("classification", "multilabel", "regression"))
            model = gr.Dropdown([FITTED, *names], value=FITTED, label="Model")
            with gr.Row():
                ask, end = page.buttons("Predict", "Stop")
        with gr.Column(min_width=300):
            count = gr.Markdown("The answers appear here.", label="Answer", container=True)
            first = gr.Label(label="First row")
            answers = gr.Dataframe(headers=["row", "answer", "confidence"], label="Answers", interactive=False,
                                   max_height=300)  # fmt: skip
            download = gr.File(label="All answers as CSV", interactive=False, elem_classes="made")
    learnt, outputs = [fitted, told, metrics, model, shares, worth], [answers, download, count, first]
    page.share(kind=kind, model=model)
    page.on(table.change, columns_of, table, target, "table_columns", show_progress="hidden")
    page.on(start.click, fit, [table, target, kind], learnt, "fit_table", **ONE_FIT)
    page.on(stop.click, cancel, [], [], "cancel_table", queue=False)
    asked = page.on(ask.click, predict, [rows, model, fitted], outputs, "predict_table", **page.together)
    learn_from, new = wines(page)
    with left:
        page.examples([(learn_from, "cultivar")], [table, target], fit, learnt, [kind],
                      "Example: wines and their cultivar; one click fits", **ONE_FIT)  # fmt: skip
    with below:
        shown = [(new, FITTED)] + [(page.example("people.csv"), name) for name in names if name == "adult"]
        example = page.examples(
            shown,
            [rows, model],
            predict,
            outputs,
            [fitted],
            "Examples: one click predicts",
            [f"{Path(rows).name} by {name}" for rows, name in shown],
        )
    page.stops(end, asked, example)


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


class Weighing(Watched):
    """Hears of the rows held out, on which it measures what the columns are worth: later they teach the model too."""

    metric = ""
    found: Importances | None = None

    def measured(self, pipeline: Pipeline, validation: Examples) -> None:
        self.now = "weighing the columns"
        kind = pipeline.task.kind
        # The rows are few, and of few rows accuracy often stays what it is; of a loss each answer moves a little.
        metric = "log_loss" if kind == "classification" and "log_loss" in pipeline.metrics else None
        self.metric, self.found = examples_importance(pipeline, validation, metric, seconds=WEIGHING)


def learn(task: str, table: str, target: str, told: Watched) -> Pipeline:
    """Fits; nothing of a visitor's table is kept: no cache, no bundle on disk, no examples in its card.

    Raises:
        InputError: See `polysense.fit`; or it took too long.
    """
    import polysense

    return polysense.fit(task, Path(table), target=target, progress=told, cache=False)


def weights(watched: Weighing) -> tuple[str, dict[str, float], list[list[Any]]]:
    """What each column is worth: in what, as a share of what all are, and in numbers."""
    found = watched.found
    assert found is not None, "a fit has measured before it ends"
    name = watched.metric.replace("_", " ")
    much = f"how much {name} grows" if watched.metric in SMALLER_IS_BETTER else f"how much {name} falls"
    total = sum(max(one.mean, 0.0) for one in found.columns)
    bars = {one.column: max(one.mean, 0.0) / total for one in found.columns} if total else {}
    rows = [[one.column, round(one.mean, 4), round(one.spread, 4)] for one in found.columns]
    return (
        f"A column is worth {much} on these {found.rows} rows when it is shuffled, in the mean of {found.repeats}.",
        bars,
        rows,
    )


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
