"""SLAB's simplified linear attention.

Guo et al. 2024, "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch
Normalization", section 3.3: ReLU as the feature map, and a depthwise convolution of the values that gives back the rank
and the neighbourhood which the sum over all keys loses,

    o_i = Σ_j relu(q_i)·relu(k_j) v_j / Σ_j relu(q_i)·relu(k_j) + DWC(v)_i.

`extra={"conv": w}` hands over the convolution of a line, (h · e, 1, taps); without it the first term is all. On images
and clips use `depthwise` with the grid and add it (`mixers.attention.Slab` does).

When to use it: encoders of high-resolution images and long clips with many tokens, trained with this kind: the
convolution needs an order of the tokens (a grid, or time). Sets (table columns, points) gain nothing over `linear`.

Shape legend: b batch, h heads, n queries, m keys, d head width, e value width.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from polysense.kernels.attention.call import Call, visible
from polysense.kernels.attention.products import by_sequence, exact, hidden, weighted_sums

EPS = 1e-6  # added to the sum of weights: a query whose features are all zero gets zeros


def reference(call: Call) -> Float[Tensor, "b h n e"]:
    """All n × m weights written out, and the convolution as a sum over its taps: the oracle."""
    return by_sequence(call, _reference)


def factored(call: Call) -> Float[Tensor, "b h n e"]:
    """relu(k)ᵀ v first: O(n), causal by chunks."""
    return by_sequence(call, _factored)


def refuses(call: Call) -> str:
    if call.bias is not None:
        return "slab attention has no scores that a bias could be added to; leave it out"
    if call.window is not None:
        return "slab attention sees all keys at once; for windows take kind='block_diagonal' or 'softmax'"
    conv = call.extra.get("conv")
    if conv is None:
        return ""
    channels = call.v.shape[1] * call.v.shape[3]
    if conv.ndim != 3 or conv.shape[:2] != (channels, 1) or conv.shape[2] % 2 == 0:
        return f"conv must be ({channels}, 1, an odd number of taps), got {tuple(conv.shape)}"
    if call.causal:
        return "the convolution of the values looks both ways; leave causal or conv out"
    if call.q.shape[2] != call.k.shape[2]:
        return f"the convolution needs as many queries as keys, got {call.q.shape[2]} and {call.k.shape[2]}"
    return ""


def _reference(call: Call) -> Tensor:
    q, k, v = exact(call)
    weights = q.relu() @ k.relu().transpose(-2, -1) * call.scale
    seen = visible(call)
    if seen is not None:
        weights = weights.masked_fill(~seen, 0.0)
    out = weights @ v / (weights.sum(-1, keepdim=True) + EPS)
    if "conv" in call.extra:
        _, h, n, e = v.shape
        taps = call.extra["conv"].to(v.dtype).view(h, 1, e, -1)
        half = taps.shape[-1] // 2
        wide = F.pad(v, (0, 0, half, half))
        out = out + sum(wide[:, :, i : i + n] * taps[..., i] for i in range(taps.shape[-1]))
    return out.to(call.v.dtype)


def _factored(call: Call) -> Tensor:
    q, k, v = exact(call)
    k = k.relu() * call.scale
    if call.mask is not None:
        k = k.masked_fill(hidden(call), 0.0)
    # A further value of one for every key sums the weights in the same product.
    sums = weighted_sums(q.relu(), k, F.pad(v, (0, 1), value=1.0), causal=call.causal)
    out = sums[..., :-1] / (sums[..., -1:] + EPS)
    if "conv" in call.extra:
        out = out + depthwise(v, call.extra["conv"].to(v.dtype))
    return out.to(call.v.dtype)


def depthwise(
    v: Float[Tensor, "b h n e"],
    weight: Float[Tensor, "c 1 ..."],
    *,
    grid: tuple[int, ...] | None = None,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b h n e"]:
    """Convolves every channel of the values with its own kernel on the tokens' grid, zeros beyond the edge.

    Args:
        v: Values.
        weight: Kernels (h · e, 1, taps along each of 1 to 3 axes), odd numbers of taps.
        grid: Layout of the n tokens; None for a line. A grid of fewer axes than the kernel lies in the kernel's middle
            (a line is one row of an image); of more axes, the first ones are convolved piece by piece.
        mask: True where a token is real; others count as zero.
    """
    b, h, n, e = v.shape
    if n == 0:
        return v
    axes = weight.ndim - 2
    grid = (n,) if grid is None else grid
    # Kernels of axes that this grid has not: their middle taps alone ever meet a token.
    while len(grid) < axes:
        weight, axes = weight.select(2, weight.shape[2] // 2), axes - 1
    if mask is not None:
        v = v.masked_fill(~mask[:, None, :, None], 0.0)
    dense = v.reshape(b, h, -1, *grid[len(grid) - axes :], e)  # (b, h, pieces, *axes, e)
    image = dense.movedim(2, 1).movedim(-1, 3).flatten(2, 3).flatten(0, 1)  # (b · pieces, h · e, *axes)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    padding = [size // 2 for size in weight.shape[2:]]
    out = convolve(image, weight, padding=padding, groups=h * e)
    return out.unflatten(1, (h, e)).unflatten(0, (b, -1)).movedim(3, -1).movedim(1, 2).reshape(b, h, n, e)
