"""Linear attention with TransNormer's normalisation.

Qin et al. 2022, "The Devil in Linear Transformer", section 4.1 (NormAttention): the denominator of linear attention is
what makes its gradients unbounded; leave it out and normalise the answer instead,

    o_i = RMSNorm( φ(q_i) Σ_j φ(k_j)ᵀ v_j ),   φ(x) = 1 + elu(x).

The norm here is taken over a head's width and has no gain: that belongs to the module that calls (`mixers.attention`).

When to use it: sequences of several thousand tokens and more of which a summary is enough, trained with this kind;
weights trained with softmax do not carry over. It spreads attention thin: the paper uses `block_diagonal` in the early
blocks, which look near, and this kind in the later ones.

Shape legend: b batch, h heads, n queries, m keys, d head width, e value width.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polysense.kernels.attention.call import Call, visible
from polysense.kernels.attention.products import by_sequence, exact, hidden, weighted_sums

EPS = 1e-6  # of the mean square under the root; a sequence without a real key stays zero


def reference(call: Call) -> Float[Tensor, "b h n e"]:
    """All n × m weights written out: the oracle."""
    return by_sequence(call, _reference)


def factored(call: Call) -> Float[Tensor, "b h n e"]:
    """φ(k)ᵀ v first: O(n), causal by chunks."""
    return by_sequence(call, _factored)


def refuses(call: Call) -> str:
    if call.bias is not None:
        return "linear attention has no scores that a bias could be added to; leave it out"
    if call.window is not None:
        return "linear attention sees all keys at once; for windows take kind='block_diagonal' or 'softmax'"
    return ""


def _features(x: Tensor) -> Tensor:
    return 1 + F.elu(x)


def _rms_norm(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


def _reference(call: Call) -> Tensor:
    q, k, v = exact(call)
    weights = _features(q) @ _features(k).transpose(-2, -1) * call.scale
    seen = visible(call)
    if seen is not None:
        weights = weights.masked_fill(~seen, 0.0)
    return _rms_norm(weights @ v).to(call.v.dtype)


def _factored(call: Call) -> Tensor:
    q, k, v = exact(call)
    k = _features(k) * call.scale
    if call.mask is not None:
        k = k.masked_fill(hidden(call), 0.0)
    return _rms_norm(weighted_sums(_features(q), k, v, causal=call.causal)).to(call.v.dtype)
