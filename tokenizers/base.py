"""The contract of a tokenizer: source -> Sample -> batch -> Tokens.

A tokenizer is the only modality-specific part before the encoder. Its configuration is a dataclass of plain values,
so that a bundle can write it as JSON and build the same tokenizer again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from polysense.core.registry import Registry
from polysense.core.types import Sample, Tokens

Batch = dict[str, Any]  # tensors by name, plus "meta": list of dicts, one per sample
TOKENIZERS: Registry[type[Tokenizer]] = Registry("tokenizer")


class Tokenizer(nn.Module):
    """Base class. Subclasses set `Config` (a frozen dataclass with a `width` field) and the three steps below.

    `read` and `collate` run in loader workers and touch no parameter; `forward` runs on the device and is learned.
    """

    Config: ClassVar[type]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def width(self) -> int:
        return int(self.config.width)

    @property
    def must_learn(self) -> bool:
        """Whether a part of it begins as nothing, so that only joint training makes it of use."""
        return False

    def config_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values; `Config(**config_dict())` gives it back."""
        return asdict(self.config)

    @classmethod
    def fit_config(cls, config: Any, sources: Sequence[Any]) -> Any:
        """Completes a configuration from training sources (a table's columns, a series' channels); most need none."""
        return config

    def fit_tensors(self, sources: Sequence[Any], seed: int) -> list[str]:
        """Sets tensors that are statistics of training sources, and returns their names; most have none."""
        return []

    def read(self, source: Any) -> Sample:
        """Decodes one input: a path, bytes or the in-memory form its users hold.

        Raises:
            InputError: The input cannot be used; the message names it, the problem and the fix.
        """
        raise NotImplementedError

    def read_all(self, source: Any) -> Iterator[Sample]:
        """Decodes a source that may hold several inputs (rows of a table, series of a `.ts` file), one at a time."""
        yield self.read(source)

    def split(self, sample: Sample) -> list[Sample]:
        """Cuts one input into the sequences that the encoder reads one by one (windows, variates).

        The head merges their answers into one. Most inputs are one sequence.
        """
        return [sample]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pads and stacks samples into a batch."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tokens:
        """Learned: turns a batch into tokens, positions included."""
        raise NotImplementedError


def meta_of(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The samples' meta with their source, as `collate` stores it under "meta"."""
    return [{**sample.meta, "source": sample.source} for sample in samples]


def pad_stack(tensors: Sequence[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor]:
    """Stacks tensors of one rank but different sizes, padding at the end of each axis.

    Returns:
        The stack (b, *largest) and the sizes (b, rank) as int64.
    """
    sizes = torch.tensor([tuple(t.shape) for t in tensors])
    largest = cast(list[int], sizes.amax(0).tolist())
    out = tensors[0].new_full((len(tensors), *largest), value)
    for row, tensor in zip(out, tensors, strict=True):
        row[tuple(slice(0, s) for s in tensor.shape)] = tensor
    return out, sizes


def group_by_size(sizes: Tensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yields (size, indices) for each distinct row of `sizes` (b, rank).

    Convolutions leak what stands beside an image into its edge; running each size by itself keeps every answer
    independent of its neighbours in the batch, which masking after the fact cannot.
    """
    unique, inverse = torch.unique(sizes, dim=0, return_inverse=True)
    for i, size in enumerate(unique.tolist()):
        yield tuple(size), (inverse == i).nonzero().flatten()
