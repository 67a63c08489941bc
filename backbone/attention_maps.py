"""What an encoder's tokens attend to: the weights of every block, and three readings of them as one number a token.

The encoder itself runs, on a copy of its modules with the very same tensors, and its attention is written out (the
oracle of `kernels.attention`) in the place of the fast path. So class token, registers, windows, query-key norm, masks
and adapters count as they do in every answer, and nobody else who uses the encoder meanwhile is disturbed.

Which reading: `last_layer` and `rollout` say where an answer's tokens look, whatever the answer is; `class_gradient`
says what spoke for a class. None of them sees what a tokenizer mixed before the encoder.

Shape legend: b batch, n tokens, p places (class token, registers, prompts, then the tokens), m keys (what a prefix
adapter adds, then the places), h heads, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polysense.backbone.adapters.adapted import AdaptedEncoder
from polysense.backbone.adapters.config import shared_copy
from polysense.backbone.encoder import Attention, Encoder
from polysense.core.errors import InputError
from polysense.core.types import Features, Tokens
from polysense.kernels.attention import reference
from polysense.kernels.attention.call import make_call

WEIGHTS_OF = {"softmax": reference.softmax_weights, "sigmoid": reference.sigmoid_weights}
# Adapters that carry something from token to token beside attention, or replace tokens between blocks.
PAST_ATTENTION = ("conv", "guided", "deep-prompts")
MOST = 2**28  # weights held at a time: 1 GiB

See = Callable[[Tensor], None]


def attention_maps(encoder: Encoder, tokens: Tokens) -> list[Float[Tensor, "b p m"]]:
    """The attention of each block, mean over heads.

    Args:
        encoder: A plain encoder, or one with an adapter.
        tokens: Of its width.

    Returns:
        For each block the weight that each place (row) gives each key (column); the tokens are the last n of both. Rows
        of softmax attention sum to one; rows and columns of padded tokens are zero.

    Raises:
        InputError: The encoder is of another kind, or the maps would fill the memory.
    """
    maps: list[Tensor] = []

    def see(weights: Float[Tensor, "b h p m"]) -> None:
        mean = weights.mean(1)
        real = _real(tokens, mean.shape[1])
        maps.append(mean.masked_fill(~real[:, :, None], 0.0))

    with torch.no_grad():
        written_out(encoder, tokens, see)
    return maps


def rollout(encoder: Encoder, tokens: Tokens) -> Float[Tensor, "b n"]:
    """Attention rollout (Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3).

    A block passes on half of a token itself (the residual branch) and half of what it attends to; the product over all
    blocks says how much of each input token has come to an output token. Of the class token where there is one, else
    the mean over all real tokens, as a head that pools by the mean reads them.

    Returns:
        Shares that sum to one; 0 at padded tokens.

    Raises:
        InputError: As `attention_maps`; or the adapter carries something past attention.
    """
    _refuse_past_attention(encoder, "rollout")
    joint: Tensor | None = None

    def see(weights: Float[Tensor, "b h p m"]) -> None:
        nonlocal joint
        mixed = _among_places(weights.mean(1)) + torch.eye(weights.shape[2], device=weights.device)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        joint = mixed if joint is None else mixed @ joint

    with torch.no_grad():
        features = written_out(encoder, tokens, see)
    return _shares(joint, features, tokens)


def last_layer(encoder: Encoder, tokens: Tokens) -> Float[Tensor, "b n"]:
    """What the class token, or the mean of all real tokens, attends to in the last block; else as `rollout`."""
    last: Tensor | None = None

    def see(weights: Float[Tensor, "b h p m"]) -> None:
        nonlocal last
        last = _among_places(weights.mean(1))

    with torch.no_grad():
        features = written_out(encoder, tokens, see)
    return _shares(last, features, tokens)


def class_gradient(
    encoder: Encoder, tokens: Tokens, score: Callable[[Features], Float[Tensor, " b"]], layers: Sequence[int] = ()
) -> Float[Tensor, "b n"]:
    """What spoke for a score: attention weighted by its gradient (Chefer, Gur & Wolf 2021, "Generic Attention-model
    Explainability", eq. 5 and 6: only what raises the score counts, R = R + mean over heads of (gradient × weight)⁺ R).

    The paper begins at the class token. Heads here read all tokens, of several layers, the encoder's input among them;
    so each token that the score reads begins with its own part in it, (vector · gradient)⁺, and is followed from its
    layer down to the input.

    Args:
        encoder: As of `attention_maps`.
        tokens: Of its width, made outside of `torch.inference_mode`.
        score: One number a sequence, of what the encoder gives; it may not mix sequences.
        layers: Hidden layers that `score` reads.

    Returns:
        Relevance ≥ 0, in no fixed unit; 0 at padded tokens.

    Raises:
        InputError: As `rollout`.
    """
    _refuse_past_attention(encoder, "the gradient")
    weights: list[Tensor] = []
    with torch.enable_grad():
        features = written_out(encoder, tokens.replace(tokens.x.detach().requires_grad_()), weights.append, layers)
        read = {encoder._layer_number(layer): one.x for layer, one in features.hidden.items()}
        outputs = [*read.values(), features.last.x, *([] if features.cls is None else [features.cls])]
        slopes = torch.autograd.grad(
            score(features).sum(), [*weights, *outputs], allow_unused=True, materialize_grads=True
        )
    of_weights, of_outputs = slopes[: len(weights)], slopes[len(weights) :]
    parts = [(x.detach() * slope).sum(-1).clamp_min(0) for x, slope in zip(outputs, of_outputs)]
    p, first = weights[0].shape[2], dict(zip(read, parts))
    begins = _at_places(parts[len(read)], tokens, p)
    if features.cls is not None:
        begins[:, 0] += parts[-1]
    for number in range(len(weights), -1, -1):
        if number in first:
            begins = begins + _at_places(first[number], tokens, p)
        if number:
            raised = (of_weights[number - 1] * weights[number - 1].detach()).clamp_min(0).mean(1)
            begins = begins + (begins[:, None] @ _among_places(raised))[:, 0]
    return begins[:, p - tokens.x.shape[1] :].masked_fill(~tokens.dense_mask(), 0.0)


def written_out(encoder: Encoder, tokens: Tokens, see: See, layers: Sequence[int] = ()) -> Features:
    """Runs an encoder with its attention written out.

    Args:
        encoder: As of `attention_maps`.
        tokens: Of its width.
        see: Is given the weights (b, h, p, m) of each block in turn, which nobody else keeps.
        layers: As of `Encoder.forward`.

    Returns:
        What the encoder gives, but for rounding.

    Raises:
        InputError: As of `attention_maps`.
    """
    if type(encoder) not in (Encoder, AdaptedEncoder) or not encoder.config.depth:
        problem = "only plain encoders with softmax or sigmoid blocks, and adapted ones, show their attention"
        raise InputError(f"encoder {type(encoder).__name__}", problem, "use the engine torch and a plain encoder")
    b, n, _ = tokens.x.shape
    kept = encoder.config.depth if torch.is_grad_enabled() else 1
    if kept * b * encoder.config.heads * n**2 > MOST:
        raise InputError(f"{b} × {n} tokens", "their attention would fill the memory", "give fewer, or smaller inputs")
    runs: Any = shared_copy(cast(Encoder, encoder.model) if isinstance(encoder, AdaptedEncoder) else encoder).eval()
    for module in runs.modules():
        if isinstance(module, Attention):
            module.attend = partial(_attend, see)
        elif isinstance(module, Encoder):
            module.packing = False  # weights of the padded layout
    return runs(tokens, layers=layers)


def _attend(
    see: See, q: Tensor, k: Tensor, v: Tensor, *, kind: str, lengths: None = None, **options: Any
) -> Float[Tensor, "b h p d"]:
    """`kernels.attention.attention` of the padded layout, in two steps."""
    call = make_call(q, k, v, **options)
    weights = WEIGHTS_OF[kind](call)
    if torch.is_grad_enabled() and not weights.requires_grad:
        weights.requires_grad_()
    see(weights)
    return reference.weighted(weights, call.v)


def _refuse_past_attention(encoder: Encoder, what: str) -> None:
    if isinstance(encoder, AdaptedEncoder) and encoder.method in PAST_ATTENTION:
        problem = f"it changes tokens past attention, where {what} cannot follow"
        raise InputError(f"adapter {encoder.method}", problem, "look at the last layer alone")


def _among_places(weights: Float[Tensor, "b p m"]) -> Float[Tensor, "b p p"]:
    """Without the keys of a prefix adapter, which say nothing of the input."""
    return weights[..., weights.shape[-1] - weights.shape[-2] :]


def _at_places(values: Float[Tensor, "b n"], tokens: Tokens, places: int) -> Float[Tensor, "b p"]:
    """Values of tokens, with zeros for the places before them and for padding."""
    values = values.masked_fill(~tokens.dense_mask(), 0.0)
    return torch.nn.functional.pad(values, (places - values.shape[1], 0))


def _real(tokens: Tokens, places: int) -> Bool[Tensor, "b p"]:
    return torch.nn.functional.pad(tokens.dense_mask(), (places - tokens.x.shape[1], 0), value=True)


def _shares(came: Tensor | None, features: Features, tokens: Tokens) -> Float[Tensor, "b n"]:
    """The answer's row of (b, p, p), cut to the tokens and made to sum to one."""
    assert came is not None
    if features.cls is not None:
        row = came[:, 0]
    else:
        real = _at_places(came.new_ones(tokens.x.shape[:2]), tokens, came.shape[1])
        row = (real[:, None] @ came)[:, 0]
    row = row[:, came.shape[1] - tokens.x.shape[1] :].masked_fill(~tokens.dense_mask(), 0.0)
    return row / row.sum(-1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
