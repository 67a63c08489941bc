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
# Who points at a row sees that class alone: masks stand in the order of `drawings.marked`, which is the rows' number.
POINTED = """
const show = (row) => document.querySelectorAll('.found .mask').forEach((mask, number) =>
  mask.classList.toggle('faded', row !== null && row.dataset.number !== String(number)));
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
    """HTML of an answer's classes, by their shares or from the surest on; nothing where it has no places.

    Args:
        record: Of a prediction (`to_record`).
        colours: Of the classes by name.
    """
    if "shares" in record:
        rows = [(name, float(share), f"{share:.1%}") for name, share in record["shares"].items()]
    else:
        counts = Counter(str(one["label"]) for one in record.get("boxes", record.get("segments", ())))
        most = max(counts.values(), default=1)
        rows = [(name, count / most, str(count)) for name, count in counts.items()]
    lines = [
        f'<li data-number="{number}" style="--colour: {escape(colours.get(name, GREY))}; --share: {share:.4f}">'
        f"<span>{escape(name)}</span><b>{value}</b></li>"
        for number, (name, share, value) in enumerate(rows)
    ]
    return f'<ul class="legend">{"".join(lines)}</ul>' if rows else ""
