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
    return _by_sequence(call, _softmax)


def sigmoid(call: Call) -> Float[Tensor, "b h n e"]:
    """n of the bias -log(n) counts the real keys of the sequence, also with a window or causal."""
    return _by_sequence(call, _sigmoid)


def refuses(call: Call) -> str:
    return ""


def _by_sequence(call: Call, attend: Callable[[Call], Tensor]) -> Tensor:
    if call.lengths is None:
        return attend(call)
    parts = [attend(one) for one in sequences(call)]
    return torch.cat(parts, 2) if parts else call.v


def _softmax(call: Call) -> Tensor:
    scores, seen = _scores(call), visible(call)
    if seen is None:
        weights = scores.softmax(-1)
    else:  # a row of -inf alone is NaN, forward and backward, until it is filled
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    return (weights @ call.v.to(weights.dtype)).to(call.v.dtype)


def _sigmoid(call: Call) -> Tensor:
    scores, seen = _scores(call), visible(call)
    weights = (scores - real_keys(call).log()).sigmoid()
    if seen is not None:
        weights = weights.masked_fill(~seen, 0.0)
    return (weights @ call.v.to(weights.dtype)).to(call.v.dtype)


def _scores(call: Call) -> Tensor:
    """In at least float32: the oracle of half types is rounded once, at its end."""
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    scores = call.q.to(dtype) @ call.k.to(dtype).transpose(-2, -1) * call.scale
    return scores if call.bias is None else scores + call.bias
