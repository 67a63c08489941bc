"""The tab for point clouds: classes, or a colour for every point; to turn in 3D, and from three sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polysense.apps.demo import legend, senses
from polysense.apps.demo.drawings import colours_of, panel
from polysense.apps.demo.page import UPLOAD, Page, file_only
from polysense.apps.demo.solids import write_solid
from polysense.core.predictions import Mask, Prediction


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    def solid() -> Any:
        return gr.Model3D(label="To turn, with the mouse or a finger", height=340, clear_color=(0, 0, 0, 0),
                          camera_position=(60, 70, 1.8), interactive=False, elem_classes=["made"])  # fmt: skip

    tab = senses.build(
        page, "point_cloud", "point_cloud",
        lambda: file_only(gr.File(label="Point cloud or mesh: .ply, .pcd, .las, .obj, .stl, .xyz …", height=UPLOAD)),
        lambda: page.picture("Seen from three sides"),
        lambda found, file, _: panel(file, "point_cloud", parts(found)),
        above=(solid, lambda found, file, _: str(write_solid(page.file("points.glb"), file, parts(found)))),
        kinds=(*senses.KINDS, "segmentation"),
        examples=[(name, "point-cloud-classification") for name in ("chair.ply", "table.ply")],
        says="Names a scanned object, or the parts of a scan: seen from three sides, and a solid to turn (.glb).",
    )  # fmt: skip

    def colours(model: str) -> Mapping[str, str]:
        return colours_of([str(name) for name in getattr(page.models.get(model).head.config, "classes", ())])

    legend.build(page, tab, colours)
    with_parts = page.models.names("point_cloud", ("segmentation",))

    def shape(model: str) -> tuple[Any, ...]:
        classes = model not in with_parts  # whose shares the legend says
        return gr.update(visible=classes), gr.update(visible=classes)

    tab.model.change(shape, tab.model, [tab.classes, tab.top_k], api_visibility="private", queue=False)


def parts(found: Prediction) -> np.ndarray | None:
    """Class of every point (n,), where that is what was answered."""
    return found.index if isinstance(found, Mask) else None
