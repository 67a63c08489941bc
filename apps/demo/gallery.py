"""What lies nearest to an input in the space of meaning: examples of all kinds, words, and what the visitor has given.

Cosines of different kinds cannot be compared (docs/words.md), so each kind is ranked within itself.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from polysense.apps.demo.page import Page
from polysense.apps.words import nameable
from polysense.backbone.anchor import load_anchor
from polysense.bundle import read_config
from polysense.index import Index
from polysense.neighbours import Neighbour, Neighbours
from polysense.words import word_vectors

EXAMPLES = {
    "image": ("lion.jpg", "flower.jpg", "china.jpg", "smear.png"),
    "video": ("lion.mp4", "shapes.mp4"),
    "audio": ("rain.wav", "clock.wav"),
    "point_cloud": ("chair.ply", "table.ply"),
    "text": ("forecast.txt",),
}
WORD = "word"
MOST_OWN = 40  # things of a visitor that are remembered, for their page alone
OURS, YOURS, INDEXED = "example", "yours", "index"

Own = tuple[str, str, np.ndarray]  # kind, name and unit vector (d,) of what a visitor gave
Row = tuple[str, str, float, str]  # kind, what it is, cosine, where it comes from


class Gallery:
    """Vectors of the examples and words, made when they are first asked for. Any thread may ask.

    Args:
        page: Whose examples and models.
        index: Folder or address of an index of embeddings to look in as well.

    Raises:
        InputError: There is no such index, or it is not of the space of meaning.
    """

    def __init__(self, page: Page, index: str | None = None) -> None:
        self.page = page
        self._lock = threading.Lock()
        self._known: Neighbours | None = None
        self.index = None if index is None else Index.open(index)
        if self.index is not None:
            config = read_config(page.models.infos[page.models.of_task("image-meaning")].path)
            self.index.check("meaning", config["encoder"]["sha256"])
            rows = {kind: self.index.table.count_rows(f"modality = '{kind}'") for kind in nameable()}
            self.indexed = [kind for kind, count in rows.items() if count]

    def nearest(self, vector: np.ndarray, k: int, own: Sequence[Own] = ()) -> list[Row]:
        """The nearest of each kind, nearest first.

        Args:
            vector: (d,) in the space of meaning.
            k: Of each kind, at most.
            own: What the visitor has given.
        """
        known, mine = self._examples(), Neighbours(len(vector))
        if own:
            kinds, names, vectors = zip(*own, strict=True)
            mine.add_vectors(np.stack(vectors), names, list(kinds))
        rows = []
        for kind in (WORD, *nameable()):
            found = [(one, OURS) for one in known.search(vector, k, kind)[0]]
            if any(kind == one for one, _, _ in own):
                found += [(one, YOURS) for one in mine.search(vector, k, kind)[0]]
            if self.index is not None and kind in self.indexed:
                found += [(_bare(one), INDEXED) for one in self.index.search(vector, k, modality=kind)]
            found.sort(key=lambda pair: -pair[0].score)
            rows += [(kind.replace("_", " "), one.source, round(one.score, 3), whose) for one, whose in found[:k]]
        return rows

    def _examples(self) -> Neighbours:
        with self._lock:
            if self._known is None:
                names = vocabulary(self.page)
                with torch.no_grad():
                    vectors = word_vectors(load_anchor("minilm"), [[name] for name in names]).numpy()
                known = Neighbours(vectors.shape[1])
                known.add_vectors(vectors, names, WORD)
                for kind, files in EXAMPLES.items():
                    ways = [self.page.models.meaning(self.page.example(file), kind) for file in files]
                    known.add_vectors(np.stack(ways), files, kind)
                self._known = known
            return self._known


def vocabulary(page: Page) -> list[str]:
    """Everyday words: the classes of the models that came with the package, as far as they are words."""
    found: dict[str, str] = {}
    for info in page.models.infos.values():
        for name in read_config(info.path)["head"]["config"].get("classes", ()):
            words = " ".join(str(name).replace("_", " ").split())
            if re.fullmatch(r"[A-Za-z][A-Za-z' -]{2,40}", words):
                found.setdefault(words.casefold(), words)
    return list(found.values())


def added(own: Sequence[Own], kind: str, name: str, vector: np.ndarray) -> list[Own]:
    """What a visitor has given and one thing more; the oldest makes room, and what is there already is named once."""
    rest = [one for one in own if one[:2] != (kind, name)]
    return [*rest, (kind, name, vector)][-MOST_OWN:]


def _bare(found: Neighbour) -> Neighbour:
    """Folders of this machine are no visitor's business."""
    return Neighbour(Path(found.source).name, found.score, found.modality)
