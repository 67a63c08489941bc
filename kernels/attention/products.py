"""φ(q) (φ(k)ᵀ v) in the order that costs O(n): the shared inside of the kinds of linear attention.

Shape legend: b batch, h heads, n queries, m keys, d width of features, e value width, c chunks of s tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polysense.kernels.attention.call import Call, sequences

CHUNK = 128  # tokens: states of width d · e for each chunk weigh as much as its scores where heads are 64 to 128 wide


def by_sequence(call: Call, attend: Callable[[Call], Tensor]) -> Float[Tensor, "b h n e"]:
    """Runs a function of padded calls on either layout."""
    if call.lengths is None:
        return attend(call)
    parts = [attend(one) for one in sequences(call)]
    return torch.cat(parts, 2) if parts else call.v


def weighted_sums(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h m e"], *, causal: bool
) -> Float[Tensor, "b h n e"]:
    """Σ_j (q_i · k_j) v_j over all keys, or over j <= i; never more than a chunk's scores in memory.

    Args:
        q: Features of queries.
        k: Features of keys; zero where there is no real key.
        v: Values; finite everywhere.
        causal: Needs n == m. Within a chunk the scores are written out, chunks before it are one d × e state.
    """
    if not causal:
        return q @ (k.transpose(-2, -1) @ v)
    n = q.shape[2]
    if n == 0:
        return v
    q, k, v = (F.pad(x, (0, 0, 0, -n % CHUNK)).unflatten(2, (-1, CHUNK)) for x in (q, k, v))
    states = k.transpose(-2, -1) @ v
    before = states.cumsum(2) - states
    within = (q @ k.transpose(-2, -1)).tril() @ v
    return (q @ before + within).flatten(2, 3)[:, :, :n]


def exact(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in at least float32 (sums over a long sequence leave half precision), v zero where no key is real."""
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    v = call.v.to(dtype)
    return call.q.to(dtype), call.k.to(dtype), v if call.mask is None else v.masked_fill(hidden(call), 0.0)


def hidden(call: Call) -> Tensor:
    """(b, 1, m, 1), True where a key of a padded call is not real; only for calls with a mask."""
    assert call.mask is not None
    return ~call.mask[:, None, :, None]
