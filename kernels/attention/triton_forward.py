"""The forward kernel: one program for each (sequence, head, block of queries), softmax or sigmoid.

Softmax: the online softmax of Dao 2023, "FlashAttention-2", algorithm 1: running maximum, sum and unnormalised answer
of every query; the log-sum-exp (base 2) is kept for the backward pass.
Sigmoid: Ramapuram et al. 2024, "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", section 4
(FlashSigmoid): no maximum, no sum, nothing to keep.

Powers are of 2, because that is what the hardware has: scale2 = scale · log2(e) turns exp into exp2.

Shape legend: see `triton_tiles`.
"""

# mypy: disable-error-code="no-untyped-def, misc"
# ruff: noqa: N803 – capitals are constants of compilation

import triton
import triton.language as tl

from polysense.kernels.attention.triton_tiles import keys_of, load_tile, sees, span_of, store_tile, tuned


@triton.jit
def _over_keys(acc, total, top, q, k, v, mask, first, lo, hi, end, k_stride, v_stride, window, scale2, shift,
               D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
               SIGMOID: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr,
               PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EDGE: tl.constexpr):  # fmt: skip
    """Adds the keys lo … hi to the answer of a block of queries."""
    for j in range(lo, hi, BLOCK_N):
        keys = load_tile(k, j, k_stride, end, BLOCK_N, D, BLOCK_D, EDGE)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale2
        if EDGE:
            rows, columns = first + tl.arange(0, BLOCK_M), j + tl.arange(0, BLOCK_N)
            seen = sees(rows[:, None], columns[None, :], end, mask, window, CAUSAL, WINDOWED, MASKED)
            scores = tl.where(seen, scores, float("-inf"))
        if SIGMOID:
            # Not by tanh.approx: its absolute error of 2^-11 is as large as the weights, about 1/n each, themselves.
            weights = 1.0 / (1.0 + tl.exp2(shift - scores))
        else:
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(top - higher)
            total = total * shrink + tl.sum(weights, 1)
            acc = acc * shrink[:, None]
            top = higher
        values = load_tile(v, j, v_stride, end, BLOCK_N, E, BLOCK_E, EDGE)
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
    return acc, total, top


@tuned((128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 4, 3), (64, 128, 4, 3), (64, 64, 4, 3), (64, 64, 4, 4),
       (64, 32, 4, 2), (32, 32, 4, 2), (32, 64, 4, 2))  # fmt: skip
@triton.jit
def forward_kernel(q, k, v, out, lse, starts, mask, extents, counts, q_strides, k_strides, v_strides, out_strides,
                   heads, rows, n, m, window, scale2, size,
                   D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
                   SIGMOID: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr,
                   PACKED: tl.constexpr, PRECISION: tl.constexpr,
                   BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """out = attention(q, k, v), lse = log2 of the sum of 2^scores.

    Strides are of (batch, head, token); the width is contiguous. `rows` is the second last size of q, `n` the longest
    sequence of queries, `m` of keys. Packed: `starts` (b + 1) are the first rows of the sequences. Masked: `mask`
    (b, m), `extents` and `counts` (b) the last real key + 1 and the number of real keys.
    """
    blocks = tl.cdiv(n, BLOCK_M)
    first = tl.program_id(0) % blocks * BLOCK_M
    b, h = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    start, n, end, real = span_of(b, starts, extents, counts, n, m, PACKED, MASKED)
    if first >= n:  # packed: this sequence is shorter than the longest
        return
    batch = tl.cast(0 if PACKED else b, tl.int64)
    q += batch * q_strides[0] + h * q_strides[1] + start * q_strides[2]
    k += batch * k_strides[0] + h * k_strides[1] + start * k_strides[2]
    v += batch * v_strides[0] + h * v_strides[1] + start * v_strides[2]
    out += batch * out_strides[0] + h * out_strides[1] + start * out_strides[2]
    if MASKED:
        mask += tl.cast(b, tl.int64) * m

    queries = load_tile(q, first, q_strides[2], n, BLOCK_M, D, BLOCK_D, True)
    acc = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    # Low, but finite: a row that has seen no key yet must not come to inf - inf.
    top = tl.zeros((BLOCK_M,), tl.float32) - 1e30
    shift = tl.log2(tl.cast(real, tl.float32))  # the bias -log(n) of sigmoid attention
    bounds = keys_of(first, n, end, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED, MASKED)
    for part in tl.static_range(3):
        acc, total, top = _over_keys(acc, total, top, queries, k, v, mask, first, bounds[part], bounds[part + 1], end,
                                     k_strides[2], v_strides[2], window, scale2, shift, D, E, BLOCK_D, BLOCK_E,
                                     SIGMOID, CAUSAL, WINDOWED, MASKED, PRECISION, BLOCK_M, BLOCK_N,
                                     part != 1)  # fmt: skip
    if not SIGMOID:
        some = tl.where(total > 0, total, 1.0)  # a query that sees no key: its answer is 0
        acc = acc / some[:, None]
        lane = first + tl.arange(0, BLOCK_M)
        at = (batch * heads + h) * rows + start
        tl.store(lse + at + lane, tl.where(total > 0, top + tl.log2(some), 0.0), mask=lane < n)
    store_tile(out, first, out_strides[2], n, acc, BLOCK_M, E, BLOCK_E)
