"""Tables in pretraining: hidden columns rebuilt from the others, and classes where a table has them.

Rebuilding a table's own columns before its target is learned is "denoising on the task's own data first" (Amos et al.
2024, "Never train from scratch").

Shape legend: b rows of a batch, c columns in use, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.backbone.encoder import Encoder
from polysense.tokenizers.tabular import EXTREME, TabularTokenizer
from polysense.training.pretrain_draws import Draw
from polysense.training.pretrain_generic import WHOLE, DrawnStream, mean_of


class TableDraws:
    """Rows of one table a batch: which table and which rows depends on the key alone.

    Args:
        tables: Each one's encoded columns (`TabularTokenizer.encode`).
        labels: Each one's class numbers, -1 where there is none.
        probabilities: Of each table.
        count: Rows of a batch.
    """

    def __init__(
        self,
        tables: Sequence[Mapping[str, Tensor]],
        labels: Sequence[Int[np.ndarray, " r"]],
        probabilities: Float[np.ndarray, " s"],
        count: int,
    ) -> None:
        self.tables, self.labels, self.probabilities, self.count = tables, labels, probabilities, count

    def __getitem__(self, key: tuple[int, ...]) -> Draw:
        rng = np.random.default_rng((*key, 6))
        table = int(rng.choice(len(self.tables), p=self.probabilities))
        rows = torch.from_numpy(rng.integers(len(self.labels[table]), size=self.count))
        batch = {name: values[rows] for name, values in self.tables[table].items()}
        return Draw(batch, torch.full((self.count,), table), torch.from_numpy(self.labels[table])[rows])


class Table(nn.Module):
    """What one table needs: its tokenizer, places for hidden columns, and what rebuilds them."""

    def __init__(self, tokenizer: TabularTokenizer, classes: int, weights: Mapping[str, float]) -> None:
        super().__init__()
        width = tokenizer.width
        self.tokenizer = tokenizer
        self.place = nn.Parameter(torch.randn(len(tokenizer.used), width) * 0.02)
        if "rebuild" in weights:
            self.number = nn.Linear(width, len(tokenizer.numbers)) if tokenizer.numbers else None
            self.category = nn.ModuleList(nn.Linear(width, len(c.categories) + 2) for c in tokenizer.categories)
        self.classify = nn.Linear(width, classes) if classes and "classes" in weights else None

    def rebuild(self, last: Float[Tensor, "b c d"], hidden: Bool[Tensor, "b c"], batch: Mapping[str, Tensor]) -> Tensor:
        """Smooth L1 of hidden numbers, in standard deviations, and cross-entropy of hidden categories, by column."""
        order, count = self.tokenizer.order, len(self.tokenizer.numbers)
        places = order.argsort()  # of numbers and dates, then of categories, among the columns
        losses = [last.sum() * 0.0]
        if self.number is not None:
            x = last[:, places[:count]]
            said = torch.einsum("bcd,cd->bc", x, self.number.weight.to(x.dtype)).float() + self.number.bias
            wanted, asked = batch["numbers"], hidden[:, places[:count]] & batch["numbers"].isfinite()
            error = F.smooth_l1_loss(said, wanted.nan_to_num().clamp(-EXTREME, EXTREME), reduction="none")
            losses.append((error * asked).sum())
        for i, head in enumerate(self.category):
            place = places[count + i]
            asked = hidden[:, place]
            losses.append(
                F.cross_entropy(head(last[asked, place]).float(), batch["categories"][asked, i], reduction="sum")
            )
        return torch.stack(losses).sum() / hidden.sum().clamp_min(1)


class TablesStream(DrawnStream):
    """Rows of one of several tables a step. Every table has a tokenizer of its own; they share the encoder.

    Args:
        tables: The tables' parts.
        draws: Batches.
        weights: Losses and their weights.
        masked: Share of the columns that are hidden.
    """

    def __init__(self, tables: Sequence[Table], draws: TableDraws, weights: Mapping[str, float], masked: float) -> None:
        super().__init__("tabular", tables[0].tokenizer, draws, weights)
        del self.tokenizer
        self.tables, self.masked = nn.ModuleList(tables), masked
        columns = tables[0].tokenizer.config_dict()["columns"]
        self.saved = {"columns": list(columns)} if len(tables) == 1 else {}

    @property
    def shipped(self) -> Any:
        """The tokenizer that is written: that of the only table."""
        return self.tables[0].tokenizer if len(self.tables) == 1 else None

    def loss(self, encoder: Encoder, rng: np.random.Generator) -> dict[str, Tensor]:
        draw = self.next(rng)
        table: Any = self.tables[int(draw.source[0])]
        tokens = table.tokenizer(draw.batch)
        b, n = tokens.x.shape[:2]
        drawn = (rng.random((b, n)) < self.masked) & (rng.random((b, 1)) >= WHOLE)
        hidden = torch.from_numpy(drawn).to(self.device)
        features = encoder(tokens.replace(torch.where(hidden.unsqueeze(-1), self.hidden_token + table.place, tokens.x)))
        losses = {}
        if "rebuild" in self.weights:
            losses["rebuild"] = table.rebuild(features.last.x, hidden, draw.batch)
        known = draw.label >= 0
        if table.classify is not None and known.any():
            losses["classes"] = F.cross_entropy(
                table.classify(mean_of(features.last)[known]).float(), draw.label[known]
            )
        return self.weighed(losses) or {"classes": features.last.x.sum() * 0.0}
