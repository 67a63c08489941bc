"""`polysense look`: a picture for each file of what was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polysense.apps.inputs import check_model, choose_device, endings, expand
from polysense.apps.screen import Gallery, note, track
from polysense.core.errors import InputError


def look(
    model: str,
    inputs: Sequence[str],
    *,
    out: Path,
    method: str = "rollout",
    target: str | None = None,
    skip: bool = True,
    device: str = "auto",
    threads: int | None = None,
) -> int:
    """Draws every file.

    Args:
        model: A task's name or a bundle's folder.
        inputs: Files, folders, patterns.
        out: Folder for the pictures.
        method: See `polysense.relevance.relevance`.
        target: The class that "gradient" asks for; None: the one that is answered.
        skip: Go on after a file that cannot be read.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.

    Returns:
        The exit code: 0 all drawn, 3 some were skipped.

    Raises:
        InputError: Nothing could be drawn, or the pipeline or an option does not suit.
    """
    import polysense
    from polysense.apps.attention_pictures import check_drawn, draw_relevance
    from polysense.relevance import check_asked, relevance

    check_model(model)
    pipeline = polysense.load(model, device=choose_device(device, threads))
    check_drawn(pipeline.modality, model)
    check_asked(pipeline, method, target)
    files = expand(inputs, endings(pipeline.modality))
    gallery, skipped = Gallery(out, pipeline.modality), 0
    for file in track(files):
        try:
            found = relevance(pipeline, file, method, target)
            path = draw_relevance(found, file, gallery.path_for(found.source))
        except InputError as error:
            if not skip:
                raise
            skipped += 1
            note(f"skipped: {error}")
            continue
        print(f"{file}\t{found.target or ''}\t{path}", flush=True)
    if skipped == len(files):
        raise InputError("inputs", f"none of {skipped} could be drawn", "see the lines above")
    return 3 if skipped else 0
