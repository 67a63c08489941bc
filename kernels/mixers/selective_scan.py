"""The selective scan of Mamba (Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces").

Every channel c carries s state values through the sequence:

    h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t],    y[t] = C[t] · h[t]

`reference` says just that, one step after another. `selective_scan` cuts the sequence into segments and each segment
into √(its length) rows: all rows step at once from a zero state, the rows' last states are carried from row to row, and
all rows step at once again from what was carried to them. A segment of 256 tokens takes 48 short steps instead of 256,
and everything stays O(n). All decays are exponentials of negative numbers and nothing is ever divided by one, so that
long sequences do not overflow.

Shape legend: b batch, n tokens, c channels, s states of a channel, k rows of a segment, t tokens of a row.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SEGMENT = 256  # tokens: short enough that a segment's states stay in a CPU's cache


def reference(
    u: Float[Tensor, "b n c"],
    delta: Float[Tensor, "b n c"],
    a: Float[Tensor, "c s"],
    b: Float[Tensor, "b n s"],
    c: Float[Tensor, "b n s"],
) -> Float[Tensor, "b n c"]:
    """See `selective_scan`; one step after another: the oracle."""
    state = u.new_zeros(u.shape[0], *a.shape)
    out = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * a)
        state = decay * state + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        out.append((state * c[:, t, None]).sum(-1))
    return torch.stack(out, 1) if out else u


def selective_scan(
    u: Float[Tensor, "b n c"],
    delta: Float[Tensor, "b n c"],
    a: Float[Tensor, "c s"],
    b: Float[Tensor, "b n s"],
    c: Float[Tensor, "b n s"],
    *,
    segment: int = SEGMENT,
) -> Float[Tensor, "b n c"]:
    """Scans from the first token to the last.

    Args:
        u: What enters the state.
        delta: Step sizes, not negative; a token with step 0 leaves the state as it is.
        a: Decay rates, not positive.
        b: How a token enters each state.
        c: How each state is read.
        segment: Tokens whose states exist at one time; while gradients are wanted a segment is computed again in the
            backward pass, so that memory is that of one segment and one state for each.

    Returns:
        y; reads the state after the token's own step.

    Raises:
        ValueError: Shapes do not fit.
    """
    if u.shape != delta.shape or b.shape != c.shape or b.shape[:2] != u.shape[:2]:
        shapes = ", ".join(str(tuple(part.shape)) for part in (u, delta, b, c))
        raise ValueError(f"u and delta must be of one shape (b, n, c), b and c of one shape (b, n, s), got {shapes}")
    if a.shape != (u.shape[-1], b.shape[-1]):
        raise ValueError(f"a must be (channels {u.shape[-1]}, states {b.shape[-1]}), got {tuple(a.shape)}")
    if segment < 1:
        raise ValueError(f"a segment has at least one token, got {segment}")
    state = u.new_zeros(u.shape[0], *a.shape)
    learning = torch.is_grad_enabled() and any(part.requires_grad for part in (u, delta, a, b, c))
    out = []
    for start in range(0, u.shape[1], segment):
        u_, delta_, b_, c_ = (part[:, start : start + segment] for part in (u, delta, b, c))
        if learning:
            y, state = checkpoint(_segment, u_, delta_, b_, c_, a, state, use_reentrant=False)
        else:
            y, state = _segment(u_, delta_, b_, c_, a, state)
        out.append(y)
    return torch.cat(out, 1) if out else u


def _segment(u: Tensor, delta: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One segment from a given state (b, c, s): its y and the state after it."""
    n = u.shape[1]
    t = math.isqrt(n - 1) + 1
    k = -(-n // t)
    # Padding steps have delta 0: they decay nothing and let nothing in. Steps stand first: (t, b, k, ·).
    u, delta, b, c = (F.pad(x, (0, 0, 0, k * t - n)).unflatten(1, (k, t)).permute(2, 0, 1, 3) for x in (u, delta, b, c))
    decay = torch.exp(delta[..., None] * a)
    entering = (delta * u)[..., None] * b[..., None, :]
    row = entering[0]
    for i in range(1, t):  # all rows at once, each as if nothing came before it, for their last states
        row = torch.addcmul(entering[i], decay[i], row)
    whole_row = torch.exp(delta.sum(0)[..., None] * a)
    before = []
    for j in range(k):  # what comes before each row
        before.append(state)
        state = torch.addcmul(row[:, j], whole_row[:, j], state)
    row, out = torch.stack(before, 1), []
    for i in range(t):  # all rows once more, now from what comes before them
        row = torch.addcmul(entering[i], decay[i], row)
        out.append((row @ c[i, ..., None])[..., 0])
    return torch.stack(out, 2).flatten(1, 2)[:, :n], state
