"""Softmax and sigmoid attention written out: the oracle of all implementations, with every option.

Softmax: Vaswani et al. 2017, "Attention Is All You Need", eq. 1. The default: weights of a query sum to one.
Sigmoid: Ramapuram et al. 2024, "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", eq. 2 and section 4:
every weight is a sigmoid of its own, with the bias -log(n) for n real keys, so that at the start of training a query's
weights sum to about one at every length. No normalisation over a row, hence no row-wise reduction on a GPU; use it for
encoders that are trained with it (weights trained with softmax do not carry over).

Shape legend: b batch, h heads, n queries, m keys, d head width, e value width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from polysense.kernels.attention.call import Call, real_keys, sequences, visible


def softmax(call: Call) -> Float[Tensor, "b h n e"]:
    """A query that sees no key gives zeros."""
    return _by_sequence(call, softmax_weights)


def sigmoid(call: Call) -> Float[Tensor, "b h n e"]:
    """n of the bias -log(n) counts the real keys of the sequence, also with a window or causal."""
    return _by_sequence(call, sigmoid_weights)


def refuses(call: Call) -> str:
    return ""


def _by_sequence(call: Call, weights_of: Callable[[Call], Tensor]) -> Tensor:
    if call.lengths is None:
        return weighted(weights_of(call), call.v)
    parts = [weighted(weights_of(one), one.v) for one in sequences(call)]
    return torch.cat(parts, 2) if parts else call.v


def softmax_weights(call: Call) -> Float[Tensor, "b h n m"]:
    """What each query of a padded call takes of each key; zeros where it sees none."""
    scores, seen = _scores(call), visible(call)
    if seen is None:
        return scores.softmax(-1)
    # a row of -inf alone is NaN, forward and backward, until it is filled
    return scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)


def sigmoid_weights(call: Call) -> Float[Tensor, "b h n m"]:
    """The same of sigmoid attention: rows sum to about one."""
    scores, seen = _scores(call), visible(call)
    weights = (scores - real_keys(call).log()).sigmoid()
    return weights if seen is None else weights.masked_fill(~seen, 0.0)


def weighted(weights: Float[Tensor, "b h n m"], v: Float[Tensor, "b h m e"]) -> Float[Tensor, "b h n e"]:
    """The values' weighted sums, of the values' type."""
    return (weights @ v.to(weights.dtype)).to(v.dtype)


def _scores(call: Call) -> Tensor:
    """In at least float32: the oracle of half types is rounded once, at its end."""
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    scores = call.q.to(dtype) @ call.k.to(dtype).transpose(-2, -1) * call.scale
    return scores if call.bias is None else scores + call.bias
