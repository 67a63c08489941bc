"""The tab for fitting: class folders in an archive, a live curve, a model that its visitor uses at once."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polysense.apps.demo.fitting import Epoch, Run, Runs, learn
from polysense.apps.demo.limits import MOST_EPOCHS, MOST_EXAMPLES, MOST_MINUTES, UPLOADED
from polysense.apps.demo.page import ONE_FIT, UPLOAD, Page, file_only, need, plain, visited
from polysense.apps.demo.unpack import unpack
from polysense.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd

KINDS = {"images": "image", "sounds": "audio", "point clouds": "point_cloud", "series": "time_series"}
METHODS = ("probe", "head", "lora", "houlsby", "scale")
SAYS = "The head alone (probe), with its tokenizer (head), or with a small adapter in the encoder too."


def build(page: Page) -> None:
    """Fills the tab; those of the other tabs must stand already, whose pickers are to know the model."""
    import gradio as gr

    runs = Runs()

    @visited
    def fit(archive: str, kind: str, method: str, epochs: float, minutes: float, request: Any) -> Iterator[Any]:
        """Fits a classifier to class folders in a zip file; tells its curve while it learns."""
        with tempfile.TemporaryDirectory(dir=page.folder / UPLOADED) as place:
            name = re.sub(r"[^A-Za-z0-9]+", "-", Path(need(archive, "archive")).stem)[:40].strip("-") or "model"
            (data := Path(place) / "data").mkdir()
            bundle, task = Path(place) / name, f"{KINDS[kind].replace('_', '-')}-classification"
            # Unpacked in there too, so that whoever cancels need not wait for it.
            run = Run(lambda told: learn(task, unpack(archive, data), bundle, method, int(epochs), minutes, told))
            with runs.begun(request.session_hash, run):
                for seconds in run.ticks():
                    said = f"**{seconds:.0f} s** · {plain(page.bare(run.watched.now))}"
                    yield said, findings(page, run), *curves(task, run.watched.epochs), *[gr.skip()] * 4
            yield (*finished(page, run, bundle, task),)

    @visited
    def cancel(request: Any) -> None:
        """Ends the fit that this visitor has begun, before its next file or batch."""
        runs.stop(request.session_hash)

    with gr.Row():
        with gr.Column(min_width=300):
            archive = file_only(gr.File(label=f"Zip of class folders, at most {MOST_EXAMPLES} files",
                                        file_types=[".zip"], height=UPLOAD))  # fmt: skip
            kind = gr.Radio(list(KINDS), value="images", label="What the files are")
            method = gr.Radio(list(METHODS), value="probe", label="What learns", info=SAYS)
            epochs = gr.Slider(0, MOST_EPOCHS, 5, step=1, label="Epochs, at most")
            minutes = gr.Slider(0.5, MOST_MINUTES, 2, step=0.5, label="Minutes of them, at most")
            with gr.Row():
                start, stop = page.buttons("Fit", "Cancel")
        with gr.Column(min_width=300):
            told = gr.Markdown("How far it is appears here.", label="Fit", container=True)
            found = gr.Markdown("What the check of the data finds appears here.", label="Data", container=True)
            with gr.Row():
                scored = gr.LinePlot(x="epoch", y="value", label="Validation", y_title="validation", height=220)
                lost = gr.LinePlot(x="epoch", y="value", label="Training loss", y_title="loss", height=220)
            metrics = gr.JSON(label="Metrics on the validation part")
            pictures = gr.Gallery(label="Card", columns=3, height="max-content", object_fit="contain")
            download = gr.File(label="The model, as a zip of its bundle", interactive=False, elem_classes="made")
            model = gr.Textbox(label="Its name in the other tabs: whoever knows it can use it", interactive=False)
    pickers = _pickers(page)
    outputs = [told, found, scored, lost, metrics, pictures, download, model]
    # Several clicks are several fits, and each of them waits for its turn.
    done = page.on(start.click, fit, [archive, kind, method, epochs, minutes], outputs, "fit_folders", **ONE_FIT)
    page.on(stop.click, cancel, [], [], "cancel_fit", queue=False)
    page.share(kind=kind, method=method, epochs=epochs, minutes=minutes)
    mine = gr.State([])

    def offer(name: str, kind: str, before: Sequence[tuple[str, str]]) -> Any:
        own = [*before, (name, KINDS[kind])]
        return own, *(_offered(page, picker, known, own, KINDS[kind]) for picker, known in pickers)

    done.success(offer, [model, kind, mine], [mine, *(picker for picker, _ in pickers)], api_visibility="private")


def findings(page: Page, run: Run) -> str:
    """What the check of the data said, as a list."""
    return "\n".join(f"- {plain(page.bare(line))}" for line in run.watched.lines) or "Nothing yet."


def curves(task: str, epochs: Sequence[Epoch]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The metric that judges the task and the loss, by epoch."""
    import pandas as pd

    name = TASKS[task].metric
    scored = [(one.number, one.metrics[name]) for one in epochs]
    lost = [(one.number, one.loss) for one in epochs if one.loss is not None]
    # Numbers even where there are none yet: or else the axes would take what follows for names.
    first, second = (pd.DataFrame(rows, columns=["epoch", "value"], dtype=float) for rows in (scored, lost))
    return first, second


def finished(page: Page, run: Run, bundle: Path, task: str) -> Iterator[Any]:
    """All that the page shows of a model, which is kept for its visitor."""
    import polysense

    pipeline = page.models.watched(polysense.load(bundle))
    metrics = {name: round(float(value), 6) for name, value in run.result.metrics.items()}
    main = TASKS[task].metric
    yield (f"**Fitted in {run.result.seconds:.0f} s**, {run.result.epochs} epochs. On the validation part: {main} "
           f"{metrics[main]:.3f}.  \nThe other tabs offer it now.")  # fmt: skip
    yield findings(page, run)
    yield from curves(task, run.watched.epochs)
    yield metrics
    yield [(_picture(picture.png), picture.caption) for picture in pipeline.card.pictures.values()]
    packed = page.file(bundle.name)
    yield shutil.make_archive(str(packed), "zip", bundle.parent, bundle.name)
    yield page.models.fitted.keep(bundle.name, pipeline)


def _picture(png: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png))


def _pickers(page: Page) -> list[tuple[Any, list[tuple[str, str]]]]:
    """The pickers of models in the tabs before, and what they offer; they take names of fitted models as well."""
    import gradio as gr

    context = gr.context.Context.root_block
    assert context is not None, "a tab is built within blocks"
    suited = {name for kind in KINDS.values() for name in page.models.names(kind, ("classification",))}
    found = []
    for block in context.blocks.values():
        if isinstance(block, gr.Dropdown) and block.label == "Model" and suited & {name for _, name in block.choices}:
            _take(page, block)
            found.append((block, [(str(title), str(name)) for title, name in block.choices]))
    return found


def _take(page: Page, picker: Any) -> None:
    """Lets a picker take names of fitted models that it has not offered: programs come with nothing but a name."""
    usual = picker.preprocess
    picker.preprocess = lambda name: name if page.models.fitted.get(str(name)) is not None else usual(name)


def _offered(
    page: Page, picker: Any, known: Sequence[tuple[str, str]], own: Sequence[tuple[str, str]], kind: str
) -> Any:
    """A picker with the visitor's own models before those that it knows; the newest is chosen where it suits."""
    import gradio as gr

    kinds = {modality for modality in KINDS.values() for _, name in known if name in page.models.names(modality)}
    mine = [(f"{name.rpartition('-')[0]} · yours", name) for name, modality in own if modality in kinds]
    chosen: dict[str, Any] = {"value": own[-1][0]} if kind in kinds else {}
    return gr.update(choices=[*reversed(mine), *known], **chosen)
