"""The anchor of the space of meaning: a frozen model that reads words; every sense is led to where it puts them.

Shape legend: n texts, d width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from polysense.core.errors import InputError
from polysense.tokenizers.sentence import (
    FIRST,
    LAST,
    WIDTH,
    load_sentence_encoder,
    pad_pieces,
    sentence_vectors,
    word_pieces,
)

ANCHORS = "minilm"
LONGEST_TEXT = 254  # word pieces that are read of a text; what MiniLM was published for
BATCH = 64


class Anchor(Protocol):
    """Reads words."""

    spec: str  # what `load_anchor` takes
    dim: int  # width of the space

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors, whose products are cosines."""


class MiniLM:
    """all-MiniLM-L6-v2, read from the installed package; see `tokenizers/sentence.py`."""

    spec, dim = "minilm", WIDTH

    @torch.no_grad()  # no inference tensors: trainings start from these vectors
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Texts beyond `LONGEST_TEXT` pieces are read up to there."""
        model, splitter = load_sentence_encoder(), word_pieces()
        pieces = [
            encoded.ids[:LONGEST_TEXT] for encoded in splitter.encode_batch(list(texts), add_special_tokens=False)
        ]
        out = torch.empty(len(texts), self.dim)
        order = torch.tensor([len(row) for row in pieces]).argsort()  # alike lengths together: little padding
        for chosen in order.split(BATCH):
            ids, mask = pad_pieces([torch.tensor([FIRST, *pieces[i], LAST]) for i in chosen.tolist()])
            out[chosen] = sentence_vectors(model(ids, mask), mask)
        return out


@lru_cache(maxsize=2)
def load_anchor(spec: str = "minilm") -> Anchor:
    """The anchor of that name, ready to read.

    Raises:
        InputError: There is none, or the package that it needs is not installed.
    """
    if spec == "minilm":
        load_sentence_encoder()  # tells at once if the extra is missing
        return MiniLM()
    raise InputError(f"anchor {spec}", "there is no such anchor", f"choose one of: {ANCHORS}")
