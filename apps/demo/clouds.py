"""The tab for point clouds: classes, or a colour for every point."""

from __future__ import annotations

from polysense.apps.demo import senses
from polysense.apps.demo.drawings import panel
from polysense.apps.demo.page import UPLOAD, Page, file_only
from polysense.core.predictions import Mask


def build(page: Page) -> None:
    """Fills the tab."""
    import gradio as gr

    senses.build(
        page, "point_cloud", "point_cloud",
        lambda: file_only(gr.File(label="Point cloud or mesh: .ply, .pcd, .las, .obj, .stl, .xyz …", height=UPLOAD)),
        lambda: page.picture("Seen from three sides"),
        lambda found, file, _: panel(file, "point_cloud", found.index if isinstance(found, Mask) else None),
        kinds=(*senses.KINDS, "segmentation"),
        examples=[(name, "point-cloud-classification") for name in ("chair.ply", "table.ply")],
        says="Names a scanned object, or the parts of a scan.",
    )  # fmt: skip
