"""The anchor of the space of meaning: a frozen model that reads words; every sense is led to where it puts them.

Shape legend: n texts, d width of the space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from polysense.backbone.weights import embedded_folder
from polysense.core.errors import InputError
from polysense.tokenizers.sentence import (
    FIRST,
    LAST,
    WIDTH,
    is_installed,
    load_sentence_encoder,
    model_folder,
    pad_pieces,
    sentence_vectors,
    word_pieces,
)

ANCHORS = "minilm, or transformers:NAME (a folder, or a Hub repository, of a CLIP or CLAP model)"
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
        model, splitter = load_sentence_encoder("cpu"), word_pieces()
        pieces = [
            encoded.ids[:LONGEST_TEXT] for encoded in splitter.encode_batch(list(texts), add_special_tokens=False)
        ]
        out = torch.empty(len(texts), self.dim)
        order = torch.tensor([len(row) for row in pieces]).argsort()  # alike lengths together: little padding
        for chosen in order.split(BATCH):
            ids, mask = pad_pieces([torch.tensor([FIRST, *pieces[i], LAST]) for i in chosen.tolist()])
            out[chosen] = sentence_vectors(model(ids, mask), mask)
        return out


class Remembered:
    """What all-MiniLM-L6-v2 said of the class names of the bundles that ship, for whoever has not installed it."""

    spec, dim = "minilm", WIDTH

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            self.rows = {text: i for i, text in enumerate(json.loads(file.metadata()["texts"]))}
            self.vectors = file.get_tensor("vectors").float()

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Any other text is an InputError that names the extra."""
        for text in texts:
            if text not in self.rows:
                model_folder()  # says what to install
        return torch.nn.functional.normalize(self.vectors[[self.rows[text] for text in texts]], dim=-1)


class TextTower:
    """The words' side of a CLIP or CLAP model, read by the library transformers.

    Args:
        spec: `transformers:` and a folder or a Hub repository.

    Raises:
        InputError: It cannot be had, or is no model of texts beside another sense.
    """

    def __init__(self, spec: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.spec, name = spec, spec.partition(":")[2]
        try:
            self.model, self.splitter = AutoModel.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            fix = "give a folder with its config.json, weights and tokenizer files, or connect to the internet once"
            raise InputError(spec, "the model cannot be had", fix) from error
        if not hasattr(self.model, "get_text_features") or not hasattr(self.model.config, "projection_dim"):
            raise InputError(spec, f"{type(self.model).__name__} leads texts nowhere", "use a CLIP or CLAP model")
        self.dim = int(self.model.config.projection_dim)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        rows = []
        for start in range(0, len(texts), BATCH):
            batch = self.splitter(
                list(texts[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            found = self.model.get_text_features(**batch)
            rows.append(found if isinstance(found, Tensor) else found.pooler_output)
        return torch.nn.functional.normalize(torch.cat(rows).float(), dim=-1)


@lru_cache(maxsize=2)
def load_anchor(spec: str = "minilm") -> Anchor:
    """The anchor of that name, ready to read.

    Raises:
        InputError: There is none, or the package that it needs is not installed.
    """
    if spec == "minilm":
        try:
            load_sentence_encoder("cpu")
        except InputError:
            if not is_installed() and (kept := embedded_folder() / "words.safetensors").is_file():
                return Remembered(kept)
            raise
        return MiniLM()
    if spec.startswith("transformers:") and spec.partition(":")[2]:
        return TextTower(spec)
    raise InputError(f"anchor {spec}", "there is no such anchor", f"choose one of: {ANCHORS}")
