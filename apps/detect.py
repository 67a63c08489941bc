"""`polysense detect`: objects of classes that are shown in an example or told in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from polysense.apps.inputs import check_model, choose_device, endings, expand
from polysense.apps.screen import Gallery, Screen, consume, track
from polysense.core.errors import InputError
from polysense.core.predictions import Prediction

if TYPE_CHECKING:
    from polysense.open_vocabulary import OpenDetector

LIKE = re.compile(r"(?P<image>.+):(?P<box>[^:,=]+(?:,[^:,=]+)*)=(?P<name>.*)")
Shown = dict[str, list[tuple[Path, tuple[float, ...]]]]  # class -> (image, box)


def detect(
    inputs: Sequence[str],
    *,
    like: Sequence[str] = (),
    words: str | None = None,
    proposals: str | None = None,
    trained: bool = True,
    threshold: float | None = None,
    out: Path | None = None,
    pictures: Path | None = None,
    skip: bool = True,
    device: str = "auto",
    threads: int | None = None,
) -> int:
    """Finds objects in every image.

    Args:
        inputs: Files, folders, patterns.
        like: Examples, "image.jpg:x1,y1,x2,y2=name".
        words: Names of classes, as for `zero_shot`.
        proposals: Bundle of a detector that says where objects are; None: windows.
        trained: Find that detector's own classes too.
        threshold: Least score of an answer; None: the usual one.
        out: File for the answers; None prints them.
        pictures: Folder for a picture of every answer.
        skip: Go on after an image that cannot be read.
        device: "auto", "cpu", "cuda" …
        threads: CPU threads.

    Returns:
        The exit code: 0 all answered, 1 none, 3 some were skipped.
    """
    from polysense.data.writers import open_writer

    shown = examples(like)
    if not shown and not words:
        raise InputError("detect", "it is neither shown nor told what to find",
                         "write --like example.jpg:x1,y1,x2,y2=name, or --words \"dog, cat\"")  # fmt: skip
    if proposals is not None:
        check_model(proposals)
    files = expand(inputs, endings("image"))
    detector = _open(shown, words, proposals, trained, choose_device(device, threads))
    detector.threshold = detector.threshold if threshold is None else threshold
    with ExitStack() as stack:
        sinks: list[Callable[[Prediction], None]] = []
        if out is not None:
            sinks.append(stack.enter_context(open_writer(out)).write)
        if pictures is not None:
            sinks.append(Gallery(pictures, "image").add)
        if out is None:
            sinks.append(stack.enter_context(Screen()).add)
        return consume(detector.stream(track(files), on_error="skip" if skip else "raise"), sinks, out)


def examples(like: Sequence[str]) -> Shown:
    """["a.jpg:10,20,50,80=platelet"] -> {"platelet": [(Path("a.jpg"), (10.0, 20.0, 50.0, 80.0))]}.

    Raises:
        InputError: One is written otherwise.
    """
    shown: Shown = {}
    for text in like:
        found = LIKE.fullmatch(text)
        try:
            box = tuple(float(part) for part in found["box"].split(",")) if found else ()
        except ValueError:
            box = ()
        if found is None or len(box) != 4:
            fix = "write image.jpg:x1,y1,x2,y2=name, the box in pixels"
            raise InputError(f"--like {text}", "it is no example", fix)
        shown.setdefault(found["name"].strip(), []).append((Path(found["image"]), box))
    return shown


def _open(shown: Shown, words: str | None, proposals: str | None, trained: bool, device: str) -> OpenDetector:
    from polysense.open_vocabulary import open_detector

    detector = open_detector(proposals, trained=trained, device=device)
    if shown:
        detector = detector.with_examples(shown)
    return detector.with_words(words) if words else detector
