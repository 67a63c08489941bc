"""Tokens kept in memory for joint training: where the tokenizer does not learn, it need not run again.

Training an adapter then costs the encoder and the head alone. The tokens of a sequence are made when it is first met,
by itself, and put together with others in every batch.

Shape legend: b sequences, n tokens, d width, p coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from polysense.core.types import Sample, Tokens
from polysense.pipeline import Pipeline, to_device
from polysense.tokenizers.base import Batch, Tokenizer, meta_of
from polysense.training.examples import Examples, FileExamples, Subset, drawn
from polysense.training.joint import Recipe

TOKEN_BYTES = 4 * 10**9  # of tokens that are kept, at most; what is met later is made each time


class TokenReader(Tokenizer):
    """Stands in the place of a tokenizer that does not learn, with its very tensors; reads what `tokens_of` made."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer.config)
        # The same tensors by the same names: what is saved or counted meanwhile is the same, too.
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[table] = tokenizer.__dict__[table]
        self.__dict__["tokenizer"] = tokenizer

    tokenizer: Tokenizer

    @torch.no_grad()
    def tokens_of(self, sample: Sample, device: torch.device) -> Sample:
        """A sequence as tokens "x" (n, d), "pos" (n, p) and perhaps "mask" (n,), on the CPU."""
        modes = [(module, module.training) for module in self.tokenizer.modules()]
        tokens = self.tokenizer.eval()(to_device(self.tokenizer.collate([sample]), device))
        for module, mode in modes:
            module.training = mode
        data = {"x": tokens.x[0].cpu(), "pos": tokens.pos[0].cpu()}
        if tokens.mask is not None:
            data["mask"] = tokens.mask[0].cpu()
        return Sample(data, sample.source, {**sample.meta, "token_grid": tokens.grid})

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pads grids to the largest one, row by row, and sequences at their end; "mask" is False in what is added."""
        grids = [sample.meta["token_grid"] or (len(sample.data["x"]),) for sample in samples]
        largest = tuple(max(sizes) for sizes in zip(*grids, strict=True))
        plain = all(grid == largest and "mask" not in sample.data for grid, sample in zip(grids, samples, strict=True))
        first = samples[0].data
        x = first["x"].new_zeros(len(samples), *largest, first["x"].shape[-1])
        pos = first["pos"].new_zeros(len(samples), *largest, first["pos"].shape[-1])
        mask = torch.zeros(len(samples), *largest, dtype=torch.bool)
        for b, (grid, sample) in enumerate(zip(grids, samples, strict=True)):
            place = tuple(slice(0, size) for size in grid)
            x[b][place] = sample.data["x"].unflatten(0, grid)
            pos[b][place] = sample.data["pos"].unflatten(0, grid)
            mask[b][place] = sample.data["mask"].unflatten(0, grid) if "mask" in sample.data else True
        last = len(largest)
        bare = [replace(one, meta={k: v for k, v in one.meta.items() if k != "token_grid"}) for one in samples]
        batch = {"x": x.flatten(1, last), "pos": pos.flatten(1, last), "meta": meta_of(bare)}
        batch["grid"] = None if samples[0].meta["token_grid"] is None else largest
        return batch if plain else {**batch, "mask": mask.flatten(1)}

    def forward(self, batch: Batch) -> Tokens:
        return Tokens(batch["x"], batch.get("mask"), batch["pos"], batch["grid"])


class TokenExamples:
    """Examples as tokens, which stay in memory while there is room.

    Args:
        examples: What they are made from; files, or some of them.
        reader: Makes tokens.
        device: Where.
        room: Bytes left for all that share this list of one number.
    """

    def __init__(self, examples: Examples, reader: TokenReader, device: torch.device, room: list[int]) -> None:
        self.examples, self.reader, self.device, self.room = examples, reader, device, room
        self._kept: dict[int, tuple[list[Sample], Any]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def train(self, i: int, rng: np.random.Generator) -> list[tuple[Sample, Any]]:
        """Draws as `FileExamples` does."""
        parts, target = self.whole(i)
        return [(part, target) for part in drawn(parts, rng)]

    def whole(self, i: int) -> tuple[list[Sample], Any]:
        if i in self._kept:
            return self._kept[i]
        parts, target = self.examples.whole(i)
        tokens = [self.reader.tokens_of(part, self.device) for part in parts]
        size = sum(value.nbytes for part in tokens for value in part.data.values())
        if size <= self.room[0]:
            self.room[0] -= size
            self._kept[i] = tokens, target
        return tokens, target


def keep_tokens(
    pipeline: Pipeline, learning: Examples, watched: Examples, recipe: Recipe
) -> tuple[Pipeline, Examples, Examples]:
    """The same pipeline reading tokens, which are made once, and the examples as such; all as it was where the
    tokenizer learns, inputs are varied, a head reads finer maps, or examples are no files."""
    files = all(isinstance(_whole(examples), FileExamples) for examples in (learning, watched))
    changing = recipe.augment or tokenizer_learns(pipeline, recipe)
    finer: Any = getattr(pipeline.tokenizer, "fine_channels", None)
    if recipe.epochs == 0 or not files or changing or finer:
        return pipeline, learning, watched
    reader, room = TokenReader(pipeline.tokenizer), [TOKEN_BYTES]
    kept = [TokenExamples(examples, reader, pipeline.device, room) for examples in (learning, watched)]
    return pipeline.with_tokenizer(reader), kept[0], kept[1]


def tokenizer_learns(pipeline: Pipeline, recipe: Recipe) -> bool:
    """Whether joint training changes any of its tensors."""
    names = [f"tokenizer.{name}" for name, _ in pipeline.tokenizer.named_parameters()]
    return recipe.train != "head" and any(recipe.settled_lr > 0 or name not in pipeline.settled for name in names)


def _whole(examples: Examples) -> Examples:
    while isinstance(examples, Subset):
        examples = examples.parent
    return examples
