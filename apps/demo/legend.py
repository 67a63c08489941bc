"""Under an answer of regions or parts: its classes, each with its colour and its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from polysense.apps.demo.page import Page

if TYPE_CHECKING:
    from polysense.apps.demo.senses import Tab

GREY = "#7a7f87"  # of a class that has no colour
# Who points at a row sees that class alone; which picture is of which class only Gradio's words for the blind say.
POINTED = """
const show = (row) => document.querySelectorAll('.found .mask').forEach((mask) => mask.classList.toggle('faded',
  row !== null && mask.alt !== `segmentation mask identifying ${row.firstChild.textContent} within the uploaded file`));
element.addEventListener('pointerover', (event) => show(event.target.closest('.legend li')));
element.addEventListener('pointerleave', () => show(null));
"""


def build(page: Page, tab: Tab, colours: Callable[[str], Mapping[str, str]]) -> None:
    """Adds it under the view.

    Args:
        page: Where.
        tab: Whose answers.
        colours: Model -> colour of each class.
    """
    import gradio as gr

    def told(record: dict[str, Any], model: str) -> Any:
        found = legend(record, colours(model))
        return gr.update(value=found, visible=bool(found))

    with tab.under:
        shown = gr.HTML(js_on_load=POINTED, visible=False)
    for event in tab.asked:
        page.on(event.success, told, [tab.record, tab.model], shown, None, queue=False)


def legend(record: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    """HTML of an answer's classes, most of them first; nothing where it has no places.

    Args:
        record: Of a prediction (`to_record`).
        colours: Of the classes by name.
    """
    if "shares" in record:
        rows = [(name, float(share), f"{share:.1%}") for name, share in record["shares"].items()]
    else:
        counts = Counter(str(one["label"]) for one in record.get("boxes", record.get("segments", ())))
        most = max(counts.values(), default=1)
        rows = [(name, count / most, str(count)) for name, count in counts.most_common()]
    lines = "".join(
        f'<li style="--colour: {escape(colours.get(name, GREY))}; --share: {share:.4f}">'
        f"<span>{escape(name)}</span><b>{value}</b></li>"
        for name, share, value in rows
    )
    return f'<ul class="legend">{lines}</ul>' if rows else ""
