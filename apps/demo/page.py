"""What all tabs of the page share: events, errors, facts, examples and files to download."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from polysense.apps.cli import explain
from polysense.apps.demo.limits import EXAMPLES, UPLOADED, Options, fresh
from polysense.apps.demo.links import Links
from polysense.apps.demo.logs import Log
from polysense.apps.demo.models import Answer, Models
from polysense.apps.demo.remembered import Remembered
from polysense.apps.examples import MAKERS
from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Labels, Mask, Prediction, Segments, Values

AUTO = "by its ending"
UPLOAD = 170  # pixels that a place for files takes on the page
# Fits take a whole machine: of all kinds of them one at a time, whatever else runs.
ONE_FIT: dict[str, Any] = {"concurrency_id": "fit", "concurrency_limit": 1}


class Page:
    """Models, folders and options, and how a tab wires what it does.

    Args:
        models: What answers.
        folder: A folder of the demo's own, in which everything is deleted at the end.
        options: How it is served.
        log: Hears of each call.
    """

    def __init__(self, models: Models, folder: Path, options: Options, log: Log | None = None) -> None:
        self.log = log or Log()
        self.links, self.remembered = Links(), Remembered(folder)
        self.tab = ""  # that is being built
        self.models, self.folder, self.options = models, folder, options
        for name in (UPLOADED, EXAMPLES):
            (folder / name).mkdir()

    def on(self, trigger: Callable[..., Any], act: Callable[..., Any], inputs: Any, outputs: Any, api_name: str | None,
           **options: Any) -> Any:  # fmt: skip
        """Binds an action to an event, with a name in the API (None: none) and a place in the one queue."""
        named = {"api_name": api_name} if api_name else {"api_visibility": "private"}
        place = {"concurrency_id": "models", "concurrency_limit": self.options.concurrency}
        watched = self.log.watched(self.told(act), api_name)
        return trigger(watched, inputs, outputs, **{**place, **named, **options})

    @property
    def together(self) -> dict[str, Any]:
        """The place in the queue of what computes by `Models` alone: as many are read at a time as make a batch, and
        `Models` sees to it that no more is computed than may be."""
        return {"concurrency_id": "asked", "concurrency_limit": self.options.gathered}

    def told(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same action; what its user can mend is shown in the library's own sentence, other faults in the log."""
        if inspect.isgeneratorfunction(act):

            @functools.wraps(act)
            def follow(*arguments: Any) -> Iterator[Any]:
                with self.faults():
                    yield from act(*arguments)

            return follow

        @functools.wraps(act)
        def run(*arguments: Any) -> Any:
            with self.faults():
                return act(*arguments)

        return run

    @contextmanager
    def faults(self) -> Iterator[None]:
        """What a visitor can mend is shown in the library's own sentence."""
        import gradio as gr

        try:
            yield
        except (InputError, MemoryError) as error:
            raise gr.Error(markup_free(self.sentence(error)), print_exception=False) from error

    def sentence(self, error: Exception) -> str:
        """What went wrong, without the folders of this machine."""
        return self.bare(explain(error) or str(error))

    def bare(self, text: str) -> str:
        """Text whose files go by their names alone."""
        return re.sub(rf"{re.escape(str(self.folder))}/(?:[^/\s:;]+/)*", "", text)

    def examples(self, rows: Sequence[Sequence[Any]], inputs: Sequence[Any], act: Callable[..., Any],
                 outputs: Sequence[Any], also: Sequence[Any] = (), label: str = "Examples: one click answers",
                 titles: Sequence[str] | None = None, **options: Any) -> Any:  # fmt: skip
        """A row of examples; a click fills the inputs and answers, the second time from memory.

        Args:
            rows: A value for each input.
            inputs: Components that are filled.
            act: What is asked then, of `inputs` and `also`.
            outputs: Where the answer goes.
            also: Further inputs, which stay as they are.
            label: Over the row.
            titles: What each example is called; None: as its first input.
            options: Of the event, as for `on`.

        Returns:
            The event that answers.
        """
        import gradio as gr

        shown = gr.Examples([list(row) for row in rows], list(inputs), label=label, api_visibility="private",
                            visible_columns=[0], example_labels=None if titles is None else list(titles))  # fmt: skip
        known = self.remembered.answering(act, rows, len(also), lambda name: self.models.fitted.get(name) is not None)
        return self.on(shown.load_input_event.then, known, [*inputs, *also], list(outputs), None, **options)

    def buttons(self, begin: str, end: str) -> tuple[Any, Any]:
        """What begins something, and a smaller button that ends it: side by side on a phone too."""
        import gradio as gr

        return gr.Button(begin, variant="primary", min_width=140, scale=3), gr.Button(end, min_width=80, scale=1)

    def stops(self, button: Any, *events: Any) -> None:
        """A button that ends what was begun: what waits leaves the queue, what computes ends before its next batch."""
        button.click(None, cancels=list(events), api_visibility="private")

    def share(self, **components: Any) -> None:
        """What a link to the tab that is being built says, by name: choices, never files, texts or secrets."""
        self.links.add(self.tab, components)

    def example(self, name: str) -> str:
        """Path of an example file, made when it is first asked for."""
        path = self.folder / EXAMPLES / name
        if not path.exists():
            MAKERS[name](path)
        return str(path)

    def models_for(self, modality: str, kinds: Sequence[str] | None = None, label: str = "Model") -> Any:
        """A picker of models."""
        import gradio as gr

        names = self.models.names(modality, kinds)
        choices = [(f"{name} · {self.models.infos[name].task.replace('-', ' ')}", name) for name in names]
        return gr.Dropdown(choices, value=names[0] if names else None, label=label, min_width=200)

    def picture(self, label: str) -> Any:
        """Where a drawing appears; its label, which would hide its headings, is only heard."""
        import gradio as gr

        # Not the usual .webp: that blurs thin lines and faint bands.
        return gr.Image(label=label, format="png", interactive=False, buttons=["download", "fullscreen"],
                        elem_classes=["drawing"])  # fmt: skip

    def file(self, name: str) -> Path:
        """A new path to write for a download, where Gradio deletes it as it deletes uploads."""
        return fresh(self.folder, name)

    def facts(self, answer: Answer, name: str) -> str:
        """One line under an answer: what it says, what it took, who said it."""
        first = answer.predictions[0]
        sure = "" if first.confidence is None else f" · confidence {first.confidence:.0%}"
        return (f"**{plain(first.answer())}**{sure}  \n{1000 * answer.seconds:.0f} ms, {answer.tokens} tokens, "
                f"model `{name}`")  # fmt: skip


def file_only(component: Any) -> Any:
    """The same input, which hands over the path of the file as it came; of several files, a list of paths.

    Gradio would open pictures first, and say of a damaged one that there was an error; the library's readers say which.
    And for each other file it would leave an empty one behind, which nothing deletes.
    """

    def paths(payload: Any) -> Any:
        if payload is None:
            return None
        return [one.path for one in payload.root] if hasattr(payload, "root") else payload.path

    component.preprocess = paths
    return component


def visited(act: Callable[..., Any]) -> Callable[..., Any]:
    """The same action, to whose argument `request` Gradio gives who asks."""
    import gradio as gr

    act.__annotations__["request"] = gr.Request  # by name it could not be found where nothing imports it above
    return act


def need(value: Any, what: str) -> Any:
    """What a visitor has given.

    Raises:
        InputError: Nothing.
    """
    if not value:
        raise InputError(what, "nothing was given", "choose a file, or click an example")
    return value


def scores(prediction: Prediction, top_k: float | None = None) -> dict[str, float]:
    """What a Label component takes: probabilities of classes, `top_k` at most; shares of the pixels or points; the
    surest score of each class that was found; numbers by name."""
    if isinstance(prediction, Labels):  # most probable first
        pairs = list(zip(prediction.names, prediction.scores))[: None if top_k is None else int(top_k)]
        return {str(name): float(score) for name, score in pairs}
    if isinstance(prediction, Mask):
        return prediction.shares()
    if isinstance(prediction, Values):
        return dict(prediction.values)
    found: dict[str, float] = {}
    if isinstance(prediction, Boxes | Segments):
        for label, score in zip(prediction.labels, prediction.scores):
            found[str(label)] = max(found.get(str(label), 0.0), float(score))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def named(prediction: Prediction) -> Prediction:
    """The same answer, its source by name alone: folders of this machine are no visitor's business."""
    return replace(prediction, source=Path(prediction.source).name)


def plain(text: str) -> str:
    """Text for Markdown, without a meaning there: names come from files."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", " ".join(text.split()))


def markup_free(sentence: str) -> str:
    """A sentence for an error, which a page shows as HTML: names come from files."""
    return sentence.replace("<", "&lt;")
