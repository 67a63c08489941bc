"""Text: words -> word pieces -> tokens.

The tokenizer begins with a network that knows words, as those of pictures and sounds begin with ones that know theirs:
all-MiniLM-L6-v2, read from the installed package (`sentence.py`) and shared by all pipelines of a process. What is
learned here, and kept in bundles, is the step to the encoder's width, and the last layers where `tuned` asks for it.

Shape legend: b texts or windows of them, n word pieces, d width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.core.types import Sample, Tokens
from polysense.data.text import Text, read_texts
from polysense.tokenizers.base import TOKENIZERS, Batch, Tokenizer, meta_of
from polysense.tokenizers.sentence import (
    DEPTH,
    FIRST,
    LAST,
    LONGEST,
    WIDTH,
    load_sentence_encoder,
    pad_pieces,
    word_pieces,
)


@dataclass(frozen=True)
class TextConfig:
    """Configuration of `TextTokenizer`."""

    width: int = 192  # token width
    window: int = 128  # word pieces of a sequence, its two marks among them; longer texts are cut into windows
    column: str | None = None  # that holds the text, in tables and jsonl; None: the one that looks like it
    layers: tuple[int, ...] = (DEPTH,)  # of the sentence encoder whose outputs stand side by side in a token
    tuned: int = 0  # last layers of the sentence encoder that learn with the tokenizer

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON gives lists
        if not 4 <= self.window <= LONGEST:
            raise ValueError(f"window is 4 to {LONGEST} word pieces, not {self.window}")
        if not self.layers or not all(0 <= layer <= DEPTH for layer in self.layers):
            raise ValueError(f"layers are numbers from 0 to {DEPTH}, not {self.layers}")
        if not 0 <= self.tuned <= DEPTH:
            raise ValueError(f"tuned is 0 to {DEPTH} layers, not {self.tuned}")


@TOKENIZERS.register("text")
class TextTokenizer(Tokenizer):
    """Texts of any length; see `TextConfig`, and `read_texts` for what may be given."""

    Config: ClassVar[type] = TextConfig

    def __init__(self, config: TextConfig = TextConfig()) -> None:
        super().__init__(config)
        self.project = nn.Linear(len(config.layers) * WIDTH, config.width)
        self.late = nn.ModuleList()
        if config.tuned:
            self.late.extend(copy.deepcopy(load_sentence_encoder("cpu").layers[-config.tuned :]))
            self.late.requires_grad_(True)

    def fit_tensors(self, sources: Sequence[Any], seed: int) -> list[str]:
        """Tuned layers begin with the published weights: they are named, so that they learn slowly."""
        return [f"late.{name}" for name in self.late.state_dict()]

    def read(self, source: Any) -> Sample:
        """One text as "ids" (n,) without marks.

        Raises:
            InputError: See `read_texts`; or the source holds several texts; or the extra `text` is not installed.
        """
        texts = read_texts(source, self.config.column)
        first = next(texts)
        if next(texts, None) is not None:
            raise InputError(first.source, "it holds several texts where one is wanted", "give one of them")
        return self._sample(first)

    def read_all(self, source: Any) -> Iterator[Sample]:
        """Every text of a source: one a row of a table, one a line of jsonl."""
        return map(self._sample, read_texts(source, self.config.column))

    def _sample(self, text: Text) -> Sample:
        ids = word_pieces().encode(text.text, add_special_tokens=False).ids
        if not ids:
            raise InputError(text.source, "it holds no word", "give a text with letters, digits or signs")
        return Sample({"ids": torch.tensor(ids)}, text.source, {"pieces": len(ids), "window": (0, len(ids))})

    def split(self, sample: Sample) -> list[Sample]:
        """Windows of pieces, nearly equally long, so that no short rest counts as much as a full window."""
        ids, room = sample.data["ids"], self.config.window - 2
        count = -(-len(ids) // room)
        if count == 1:
            return [sample]
        windows, start = [], 0
        for part in torch.tensor_split(ids, count):
            meta = {**sample.meta, "window": (start, start + len(part))}
            windows.append(Sample({"ids": part.clone()}, sample.source, meta))
            start += len(part)
        return windows

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Makes "ids" (b, n), with a first and a last mark, and "mask" (b, n)."""
        marks = torch.tensor([FIRST]), torch.tensor([LAST])
        ids, mask = pad_pieces([torch.cat([marks[0], sample.data["ids"], marks[1]]) for sample in samples])
        return {"ids": ids, "mask": mask, "meta": meta_of(samples)}

    def forward(self, batch: Batch) -> Tokens:
        """Tokens in the order of the text; `pos` is the piece's number. Their place is known from the stem."""
        ids, mask = batch["ids"], batch["mask"]
        x = self.project(self.states(ids, mask).to(self.project.weight.dtype))
        pos = torch.arange(ids.shape[1], dtype=torch.float32, device=ids.device)
        return Tokens(x, None if bool(mask.all()) else mask, pos[None, :, None].expand(len(ids), -1, -1))

    def states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
        """The chosen layers' outputs side by side; gradients reach the tuned layers alone."""
        stem = load_sentence_encoder(str(ids.device))
        layers = [*stem.layers[: DEPTH - len(self.late)], *self.late]
        padding = None if bool(mask.all()) else ~mask
        states = [stem.start(ids)]
        for layer in layers:
            states.append(layer(states[-1], src_key_padding_mask=padding))
        return torch.cat([states[layer] for layer in self.config.layers], -1)
