"""`polysense slide`: a picture of any size, answered by tiles, regions and as a whole, and drawn as a class map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polysense
from polysense.apps.inputs import check_model, choose_device
from polysense.apps.screen import note, track
from polysense.core.predictions import Labels
from polysense.data.writers import open_writer
from polysense.slides import read_slide

SHOWN = 5  # classes on the screen


def slide(
    bundle: str,
    source: Path,
    *,
    out: Path | None = None,
    answers: Path | None = None,
    scale: float = 1.0,
    regions: int = 8,
    cells: bool = False,
    keep_blank: bool = False,
    batch_size: int = 16,
    device: str = "auto",
    threads: int | None = None,
    quiet: bool = False,
) -> None:
    """Answers one picture.

    Args:
        bundle: A task's name or a bundle's folder.
        source: The picture.
        out: A TIFF for the class map.
        answers: A file for the answers of tiles, regions and the slide, in that order.
        scale, regions, cells, keep_blank: See `polysense.slides.read_slide`.
        batch_size: Tiles computed at a time.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.
        quiet: No progress.
    """
    check_model(bundle)
    pipeline = polysense.load(bundle, device=choose_device(device, threads))

    def rows(numbers: list[int]) -> Iterator[int]:
        return iter(numbers) if quiet else track(numbers)

    found = read_slide(pipeline, source, out, scale=scale, regions=regions, cells=cells, keep_blank=keep_blank,
                       batch_size=batch_size, track=rows)  # fmt: skip
    if answers is not None:
        with open_writer(answers) as writer:
            for answer in (*found.tiles, *found.regions, found.slide):
                writer.write(answer)
    whole = found.slide
    words = whole.answer()
    if isinstance(whole, Labels):
        words = ", ".join(f"{name} {score:.3f}" for name, score in list(zip(whole.names, whole.scores))[:SHOWN])
    print(f"{source}\t{words}")
    blank = f", {found.blank} blank ones left out" if found.blank else ""
    note(f"{len(found.tiles)} tiles{blank}, {len(found.regions)} regions")
