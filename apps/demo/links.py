"""What a link to the page says: its tab and what was chosen there, as in ?tab=forecast&model=any-series&horizon=24.

Choices alone: no file, no text, no name of a model that a visitor fitted. Whatever does not suit is passed over, since
anybody may write a link.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

# Keeps the address as the page stands, once what the address said has been done. Browsers allow few changes a second.
SCRIPT = """<script>
window.polysenseLink = {tab: null, ready: false, timer: null};
window.polysenseShow = (tab, known, values, opened) => {
  const link = window.polysenseLink;
  if (opened) link.tab = tab;
  if (!link.ready || link.tab !== tab) return;
  clearTimeout(link.timer);
  link.timer = setTimeout(() => {
    const query = new URLSearchParams(window.location.search);
    for (const name of NAMES) query.delete(name);
    query.set("tab", tab);
    known.forEach(([name, usual, choices], i) => {
      const value = values[i], allowed = choices === null || choices.includes(value);
      if (allowed && value !== null && value !== "" && value !== usual) query.set(name, value);
    });
    window.history.replaceState(null, "", "?" + query + window.location.hash);
  }, 300);
};
</script>"""


class Links:
    """Components by tab and name."""

    def __init__(self) -> None:
        self.shared: dict[str, dict[str, Any]] = {}

    def add(self, tab: str, components: Mapping[str, Any]) -> None:
        self.shared.setdefault(tab, {}).update(components)

    def read(self, asked: Mapping[str, str]) -> tuple[str | None, dict[str, Any]]:
        """The tab that a link asks for, and the values of its components by name; None where there is no such tab."""
        tab = asked.get("tab")
        if tab not in self.shared:
            return None, {}
        found = {name: suited(one, asked[name]) for name, one in self.shared[tab].items() if name in asked}
        return tab, {name: value for name, value in found.items() if value is not None}

    def script(self) -> str:
        """For the page's head."""
        names = {"tab", *(name for components in self.shared.values() for name in components)}
        return SCRIPT.replace("NAMES", json.dumps(sorted(names)))

    def wire(self, blocks: Any, tabs: Any, parts: Mapping[str, Any]) -> None:
        """Does what the address says when the page is loaded, and keeps the address true from then on.

        Args:
            blocks: The page.
            tabs: Where its tabs stand.
            parts: The tabs by name.
        """
        import gradio as gr

        places = [(tab, name) for tab, components in self.shared.items() for name in components]

        def opened(request: Any) -> list[Any]:
            tab, values = self.read(dict(request.query_params))
            changed = [
                gr.update(value=values[name]) if of == tab and name in values else gr.skip() for of, name in places
            ]
            return [gr.skip() if tab is None else gr.Tabs(selected=tab), *changed]

        opened.__annotations__["request"] = gr.Request
        outputs = [tabs, *(self.shared[tab][name] for tab, name in places)]
        first = next(iter(parts))
        begin = f"""() => {{
          const asked = new URLSearchParams(window.location.search).get("tab");
          window.polysenseLink.tab = {json.dumps(list(parts))}.includes(asked) ? asked : {json.dumps(first)};
          setTimeout(() => {{ window.polysenseLink.ready = true; }}, 500);
        }}"""
        blocks.load(opened, None, outputs, queue=False, api_visibility="private").then(None, None, None, js=begin)
        for name, part in parts.items():
            self._follow(name, part)

    def _follow(self, tab: str, part: Any) -> None:
        """Keeps the address true when the tab is opened, and when something in it is changed."""
        components = self.shared.get(tab, {})
        known = [[name, one.value, _choices(one)] for name, one in components.items()]

        def script(opened: str) -> str:
            return f"(...values) => window.polysenseShow({json.dumps(tab)}, {json.dumps(known)}, values, {opened})"

        part.select(None, list(components.values()), None, js=script("true"))
        for one in components.values():
            one.change(None, list(components.values()), None, js=script("false"))


def suited(component: Any, text: str) -> Any:
    """What a text from an address means to a component; None where it suits it not."""
    import gradio as gr

    if isinstance(component, gr.Slider):
        try:
            number = float(text)
        except ValueError:
            return None
        if not math.isfinite(number) or not component.minimum <= number <= component.maximum:
            return None
        return component.minimum + round((number - component.minimum) / component.step) * component.step
    if isinstance(component, gr.Textbox):
        return text if len(text) <= (component.max_length or 0) and text.isprintable() else None
    return text if text in (_choices(component) or ()) else None


def _choices(component: Any) -> list[str] | None:
    """What may be chosen; None where it is no matter of choice."""
    choices = getattr(component, "choices", None)
    return None if choices is None else [str(value) for _, value in choices]
