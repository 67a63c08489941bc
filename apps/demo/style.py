"""What the page looks like, and what those hear who do not see it."""

from __future__ import annotations

from polysense.apps.demo.drawings import OPACITY

FONTS = ("system-ui", "sans-serif")  # of the visitor's own machine: none is fetched
# Gradio's default colours, but dark enough to be read on white, or light enough in the dark: a contrast of 4.5 or more.
COLOURS = {"color_accent": "*primary_700", "button_primary_background_fill": "*primary_700",
           "button_primary_background_fill_dark": "*primary_700",
           "button_primary_background_fill_hover": "*primary_800",
           "button_primary_background_fill_hover_dark": "*primary_800",
           "body_text_color_subdued": "*neutral_500", "input_placeholder_color": "*neutral_500",
           "link_text_color_dark": "*secondary_400"}  # fmt: skip
# No wider than is easy to read; files that are not made yet take little room; long names of classes are broken; a
# narrow screen holds a whole gallery. Colours over an image are as strong as the slider says, but for the class that is
# pointed at; legends are rows of a coloured square, a name, a share, and a bar of it; drawings are sheets of paper,
# which do not glare in the dark.
CSS = f"""
.gradio-container {{width: 100% !important; max-width: 1180px !important; margin: 0 auto !important}}
.dark {{--color-accent: var(--primary-500)}}
.made .empty {{min-height: 90px !important}}
.output-class {{overflow-wrap: anywhere}}
@media (max-width: 640px) {{
  .grid-container {{grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)) !important}}
}}
.found .mask:not(.active):not(.inactive) {{opacity: var(--found, {OPACITY / 100})}}
.found .mask.faded {{opacity: 0 !important}}
.legend {{list-style: none; margin: 0; padding: 0; display: grid; gap: 2px}}
.legend li {{display: flex; justify-content: space-between; gap: 12px; margin: 0; padding: 3px 8px; border-radius: 4px;
  border-left: 14px solid var(--colour); background: linear-gradient(to right,
  color-mix(in srgb, var(--colour) 22%, transparent) calc(100% * var(--share)), transparent 0)}}
.drawing [data-testid=block-label] {{opacity: 0; pointer-events: none}}
.dark .drawing .image-frame {{padding: 12px}}
.dark .drawing img {{border-radius: 8px; filter: brightness(0.88)}}
"""
# For those who hear the page: Gradio gives no names to pictures, and calls all places for files alike.
NAMES = """() => {
  const titled = one => one.closest(".block")?.querySelector("[data-testid=block-label]")?.innerText.trim();
  const name = () => {
    for (const one of document.querySelectorAll("button.gallery-item:not([aria-label])")) {
      const shown = one.querySelector("img, video");
      if (shown?.src) one.ariaLabel = decodeURIComponent(shown.src.split("/").pop());
    }
    for (const one of document.querySelectorAll("button[aria-dropeffect]:not([data-named])")) {
      if (titled(one)) one.ariaLabel = `${titled(one)}: ${one.ariaLabel}`;
      one.dataset.named = "";
    }
    for (const one of document.querySelectorAll("button:has(> .image-frame):not([aria-label])"))
      one.ariaLabel = titled(one) || "Picture";
  };
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  name();
}"""
