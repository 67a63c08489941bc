"""Table rows -> tokens: one per column, as the FT-Transformer has it, or their sum; columns may be mixed before.

Shape legend: b batch, n rows, c columns in use (c_n numbers and dates, c_c categories, c_d dates), t bins, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.core.types import Sample, Tokens
from polysense.data.table import is_headerless, read_table, require_columns
from polysense.tokenizers.base import TOKENIZERS, Batch, Tokenizer, meta_of
from polysense.tokenizers.tabular_mixer import HEADS, MIXERS, ColumnMixer
from polysense.tokenizers.tabular_schema import (
    Column,
    as_column,
    date_cycles,
    infer_columns,
    match_columns,
    to_codes,
    to_dates,
    to_days,
    to_numbers,
)
from polysense.tokenizers.tabular_trees import TreeToken

if TYPE_CHECKING:
    import pandas as pd

MEMORY = "<memory>"
EXTREME = 8.0  # standard deviations at which numbers are cut


@dataclass(frozen=True)
class TabularConfig:
    """Settings of the table tokenizer; `TabularTokenizer.fit_config` fills in what the training table says."""

    width: int = 192  # token width, the encoder's
    columns: tuple[Column, ...] = ()  # the schema
    targets: tuple[str, ...] = ()  # columns that are answers, never inputs
    known: tuple[str, ...] = ()  # answers that a row may hold measured values of, for heads that use them
    names: tuple[str, ...] = ()  # all columns of the training table in order, for files without a header
    tokens: Literal["columns", "row"] = "columns"  # one token per column, or their sum as one (cheap)
    bins: int = 16  # quantile bins of the piecewise-linear encoding of numbers
    boost: bool = False  # a fit grows boosted trees, whose answers become one more token
    forest: tuple[int, ...] = ()  # trees, nodes a tree, margins; filled in when they have grown
    mixer: Literal["none", "heterogeneous", "hiformer"] = "none"  # what lets columns see each other, see tabular_mixer
    mixer_rank: int = 32  # of the mixer's products

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(as_column(column) for column in self.columns))  # dicts after JSON
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "known", tuple(self.known))
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "forest", tuple(self.forest))
        if self.tokens not in ("columns", "row"):
            raise ValueError(f"unknown tokens {self.tokens!r}; choose columns or row")
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, got {self.bins}")
        if self.mixer not in MIXERS:
            raise ValueError(f"unknown mixer {self.mixer!r}; choose one of: {', '.join(MIXERS)}")
        if self.mixer_rank < 1 or self.mixer_rank % HEADS:
            raise ValueError(f"mixer_rank must be a positive multiple of {HEADS}, got {self.mixer_rank}")


@TOKENIZERS.register("tabular")
class TabularTokenizer(Tokenizer):
    """Column embeddings (Gorishniy et al. 2021, FT-Transformer) with piecewise-linear numbers (Gorishniy et al. 2022).

    Every column has a bias of its own, so that equal numbers in two columns are told apart; it also is its position.
    `Tokens.pos` is the index of the column in the schema's order of used columns; rows have no mask. What boosted trees
    say, where a fit has grown them, is the last token.
    """

    Config = TabularConfig
    config: TabularConfig

    def __init__(self, config: TabularConfig) -> None:
        super().__init__(config)
        self.used = [column for column in config.columns if column.kind != "ignored"]
        if not self.used:
            raise ValueError("the table tokenizer has no columns; complete its configuration with fit_config")
        self.numbers = [column for column in self.used if column.kind in ("number", "date")]
        self.dates = [column for column in self.numbers if column.kind == "date"]
        self.categories = [column for column in self.used if column.kind in ("category", "boolean")]
        order = [self.used.index(column) for column in [*self.numbers, *self.categories]]
        self.register_buffer("order", torch.tensor(order).argsort(), persistent=False)
        self.bias = nn.Parameter(torch.randn(len(self.used), config.width) * 0.2)
        if self.numbers:
            self.number = NumberEmbedding(self.numbers, config.bins, config.width)
        if self.dates:
            self.cycles = nn.Parameter(torch.randn(len(self.dates), 6, config.width) * 6**-0.5)
            places = [self.numbers.index(column) for column in self.dates]
            self.register_buffer("date_places", torch.tensor(places), persistent=False)
        if self.categories:
            sizes = torch.tensor([len(column.categories) + 2 for column in self.categories])
            self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
            self.category = nn.Embedding(int(sizes.sum()), config.width)
            # Missing and unseen begin as nothing beside the column's bias: training may show neither.
            with torch.no_grad():
                self.category.weight[self.offsets] = 0
                self.category.weight[self.offsets + 1] = 0
        mixed = (len(self.used), config.width, config.mixer_rank)
        self.mixer = ColumnMixer(config.mixer, *mixed) if config.mixer != "none" else None
        self.trees = TreeToken(config.forest, config.width) if config.forest else None

    order: Tensor
    offsets: Tensor
    date_places: Tensor

    @classmethod
    def fit_config(cls, config: TabularConfig, sources: Sequence[Any]) -> TabularConfig:
        """Learns the schema from training tables (frames or paths with equal columns) or row dicts.

        A configuration that has columns already is kept.

        Raises:
            InputError: A target is not there, or nothing is left beside the targets.
        """
        import pandas as pd

        if config.columns:
            return config
        if sources and all(isinstance(source, Mapping) for source in sources):
            frame = read_table(list(sources))
        else:
            frame = pd.concat([read_table(source) for source in sources], ignore_index=True)
        require_columns(frame, config.targets, "<training table>")
        columns = infer_columns(frame, config.targets, config.bins)
        return replace(config, columns=columns, names=tuple(frame.columns))

    def read(self, source: Any) -> Sample:
        """One row: a dict, a Series, or a table (frame, path) of a single row.

        Raises:
            InputError: Several rows, a column is missing, or a value is of the wrong kind.
        """
        import pandas as pd

        if isinstance(source, pd.Series):
            source = source.to_dict()
        samples = list(self.read_all(source))
        if len(samples) != 1:
            name = source if isinstance(source, str | Path) else MEMORY
            raise InputError(name, f"the table has {len(samples)} rows", "use `read_all`, or give a single row")
        return samples[0]

    def read_all(self, source: Any) -> Iterator[Sample]:
        """Every row of a table, which is encoded once; samples are views. They are called "file.csv#0", "file.csv#1" …

        Measured values of answers (`TabularConfig.known`) are in a row's `meta["known"]`.

        Raises:
            InputError: The table cannot be read, a column is missing, or a value is of the wrong kind.
        """
        name = str(source) if isinstance(source, str | Path) else MEMORY
        frame = self.named(read_table(source))
        data, known = self.encode(frame, name), self.known(frame, name)
        for row, values in enumerate(zip(*data.values(), strict=True)):
            meta = {"row": row} | ({"known": known[row]} if known else {})
            yield Sample(dict(zip(data, values, strict=True)), f"{name}#{row}", meta)

    def known(self, frame: pd.DataFrame, source: object) -> list[dict[str, float]]:
        """The measured answers that each row holds; nothing where the table has no such column.

        Raises:
            InputError: A value is no number.
        """
        columns = {name: to_numbers(frame[name], name, source) for name in self.config.known if name in frame.columns}
        rows = zip(*columns.values(), strict=True)
        return [{name: float(value) for name, value in zip(columns, row, strict=True) if np.isfinite(value)}
                for row in rows]  # fmt: skip

    def encode(self, frame: pd.DataFrame, source: object = MEMORY) -> dict[str, Tensor]:
        """All rows as tensors that `forward` takes, any of whose rows may be picked.

        Args:
            frame: As `read_table` gives it; further columns and their order do not matter.
            source: What messages call it.

        Returns:
            "numbers" (n, c_n) standardised, NaN where missing; "cycles" (n, c_d, 6); "categories" (n, c_c) codes. Kinds
            that the schema lacks are left out.

        Raises:
            InputError: A column is missing, or a value is of the wrong kind.
        """
        frame = self.named(frame)
        require_columns(frame, [column.name for column in self.used], source)
        data: dict[str, Tensor] = {}
        dates = {column.name: to_dates(frame[column.name], column.name, source) for column in self.dates}
        if self.numbers:
            scaled = np.empty((len(frame), len(self.numbers)), np.float32)
            for i, column in enumerate(self.numbers):
                if column.kind == "date":
                    values = to_days(dates[column.name])
                else:
                    values = to_numbers(frame[column.name], column.name, source)
                scaled[:, i] = (values - column.mean) / column.std
            data["numbers"] = torch.from_numpy(scaled)
        if self.dates:
            cycles = np.stack([date_cycles(dates[column.name]) for column in self.dates], 1)
            data["cycles"] = torch.from_numpy(cycles.astype(np.float32))
        if self.categories:
            codes = [to_codes(frame[column.name], column, source) for column in self.categories]
            data["categories"] = torch.from_numpy(np.stack(codes, 1))
        return data

    def named(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame; if it has no header and its columns are not those that are used, with names by their place."""
        if is_headerless(frame) and not {column.name for column in self.used} <= set(frame.columns):
            return match_columns(frame, self.config.names, self.config.targets)
        return frame

    def collate(self, samples: Sequence[Sample]) -> Batch:
        names = samples[0].data
        return {name: torch.stack([s.data[name] for s in samples]) for name in names} | {"meta": meta_of(samples)}

    def forward(self, batch: Batch) -> Tokens:
        parts = []
        if self.numbers:
            x = self.number(batch["numbers"])
            if self.dates:
                cycles = torch.einsum("bcf,cfd->bcd", batch["cycles"].to(self.cycles.dtype), self.cycles)
                x = x.index_add(1, self.date_places, cycles)
            parts.append(x)
        if self.categories:
            parts.append(self.category(batch["categories"] + self.offsets))
        x = torch.cat(parts, 1)[:, self.order] + self.bias
        if self.mixer is not None:
            x = self.mixer(x, self.present(batch))
        if self.config.tokens == "row":
            x = x.sum(1, keepdim=True) * len(self.used) ** -0.5
        if self.trees is not None:
            # Training rows bring margins of trees that never saw them.
            margins = batch["margins"] if "margins" in batch else self.trees.margins(self.tree_inputs(batch))
            x = torch.cat([x, self.trees(margins)], 1)
        pos = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[None, :, None].expand(len(x), -1, -1)
        return Tokens(x, None, pos)

    def present(self, batch: Batch) -> Bool[Tensor, "b c"]:
        """Which columns have a value."""
        parts = [~batch["numbers"].isnan()] if self.numbers else []
        parts += [batch["categories"] != 0] if self.categories else []
        return torch.cat(parts, 1)[:, self.order]

    @property
    def must_learn(self) -> bool:
        return self.mixer is not None

    def tree_inputs(self, batch: Batch) -> Float[Tensor, "b f"]:
        """What trees cut: numbers (NaN where missing), parts of dates, and categories by rank."""
        parts = [batch[name].flatten(1).float() for name in ("numbers", "cycles", "categories") if name in batch]
        return torch.cat(parts, 1)

    def plant(self, trees: TreeToken) -> None:
        """Takes over grown trees."""
        self.trees = trees
        self.config = replace(self.config, forest=trees.shape)


class NumberEmbedding(nn.Module):
    """A linear map, one for each column, of the piecewise-linear encoding and the standardised value itself.

    Bin t of a number z between the quantiles b is clip((z - b[t]) / (b[t+1] - b[t]), 0, 1): full below z, part where z
    lies, empty above (Gorishniy et al. 2022, "On embeddings for numerical features in tabular deep learning", 3.2).
    The value itself carries what lies outside the training range.
    """

    def __init__(self, columns: Sequence[Column], bins: int, width: int) -> None:
        super().__init__()
        low, size = torch.zeros(len(columns), bins), torch.full((len(columns), bins), torch.inf)  # absent bins give 0
        for i, column in enumerate(columns):
            edges = (torch.tensor(column.edges, dtype=torch.float64) - column.mean) / column.std
            for t in range(min(len(edges) - 1, bins)):
                low[i, t], size[i, t] = edges[t], max(float(edges[t + 1] - edges[t]), 1e-6)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("size", size, persistent=False)
        self.weight = nn.Parameter(torch.randn(len(columns), bins + 1, width) * (bins + 1) ** -0.5)
        self.missing = nn.Parameter(torch.zeros(len(columns), width))

    low: Tensor
    size: Tensor

    def forward(self, numbers: Float[Tensor, "b c_n"]) -> Float[Tensor, "b c_n d"]:
        absent = numbers.isnan()
        z = numbers.nan_to_num().clamp(-EXTREME, EXTREME)
        filled = ((z[..., None] - self.low) / self.size).clamp(0, 1)  # (b, c_n, t)
        code = torch.cat([filled, z[..., None]], -1).to(self.weight.dtype)
        return torch.where(absent[..., None], self.missing, torch.einsum("bct,ctd->bcd", code, self.weight))
