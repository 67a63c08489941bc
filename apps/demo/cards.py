"""The tab for models: what there is, what is in memory, what was measured, and under which licence."""

from __future__ import annotations

import re
from typing import Any

from polysense.apps.demo.page import Page
from polysense.apps.learn import main_metric
from polysense.bundle import read_config
from polysense.core.errors import InputError

HEADERS = ["model", "task", "measured", "in memory", "encoder", "licence", "measured on"]
WIDTHS: list[str | int] = ["135px", "180px", "135px", "80px", "128px", "210px", "225px"]


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def models() -> tuple[Any, ...]:
        """Lists the models: task, measured metric, licence, hash of the encoder, and whether it is in memory."""
        loaded, rows = page.models.loaded(), []
        for name, info in page.models.infos.items():
            encoder = read_config(info.path)["encoder"]["sha256"][:12]
            rows.append([name, info.task, main_metric(info.task, info.metrics), "yes" if name in loaded else "no",
                         encoder, info.licence, info.measured_on])  # fmt: skip
        shared = page.models.encoders()
        held = f"{len(loaded)} of {len(rows)} models in memory; frozen encoders: {len(shared)}"
        hashes = ", ".join(f"`{encoder.fingerprint()[:12]}`" for encoder in shared)
        return rows, f"**{held}** {hashes}"

    def card(model: str) -> str:
        """The card of a model: what it was trained on, and all that was measured."""
        if model not in page.models.infos:
            raise InputError(f"model {model}", "there is none of this name", "choose one of the list")
        path = page.models.infos[model].path / "README.md"
        # Its pictures lie beside it, where no browser can ask for them.
        text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", path.read_text(encoding="utf-8")) if path.exists() else ""
        return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL) or "It has no card."

    said = gr.Markdown("Which models are in memory appears here.", label="Memory", container=True)
    table = gr.Dataframe(headers=HEADERS, label="Models", interactive=False, wrap=True, max_height=600,
                         column_widths=WIDTHS)  # fmt: skip
    again = gr.Button("Look again")
    chosen = gr.Dropdown(list(page.models.infos), value=next(iter(page.models.infos)), label="Card of")
    shown = gr.Markdown("The card appears here.", label="Card", container=True)
    page.share(model=chosen)
    page.on(again.click, models, [], [table, said], "models")
    page.on(chosen.change, card, chosen, shown, "card")
    context = gr.context.Context.root_block
    assert context is not None, "a tab is built within blocks"
    page.on(context.load, models, [], [table, said], None)
    page.on(context.load, card, chosen, shown, None)
