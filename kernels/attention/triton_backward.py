"""The backward kernels: scores are computed again, tile by tile, from q, k and the kept log-sum-exp (Dao 2023,
"FlashAttention-2", algorithm 2; for sigmoid, Ramapuram et al. 2024, section 4).

With weights P, gradient dO of the answer and dP = dO Vᵀ: softmax has dS = P (dP - delta), delta = sum(dO · O) of each
query, sigmoid dS = P (1 - P) dP; then dQ = scale dS K, dK = scale dSᵀ Q, dV = Pᵀ dO. Two kernels, one over blocks of
queries and one over blocks of keys: no program adds to what another writes, so their order does not matter.

Shape legend: see `triton_tiles`.
"""

# mypy: disable-error-code="no-untyped-def, misc"
# ruff: noqa: N803 – capitals are constants of compilation

import triton
import triton.language as tl

from polysense.kernels.attention.triton_tiles import (
    keys_of,
    load_tile,
    queries_of,
    sees,
    span_of,
    store_tile,
    tuned,
)


@triton.jit
def _weights(scores, lse, shift, SIGMOID: tl.constexpr):
    """Attention weights from scores in base 2."""
    return 1.0 / (1.0 + tl.exp2(shift - scores)) if SIGMOID else tl.exp2(scores - lse)


@triton.jit
def _of_scores(weights, of_weights, delta, SIGMOID: tl.constexpr):
    """Gradient of the scores from that of the weights."""
    return weights * (1.0 - weights) * of_weights if SIGMOID else weights * (of_weights - delta)


@triton.jit
def _dq_over_keys(dq, q, do, lse, delta, k, v, mask, first, lo, hi, end, k_stride, v_stride, window, scale2, shift,
                  D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
                  SIGMOID: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                  EDGE: tl.constexpr):  # fmt: skip
    """Adds dS K of the keys lo … hi to dq of a block of queries."""
    for j in range(lo, hi, BLOCK_N):
        keys = load_tile(k, j, k_stride, end, BLOCK_N, D, BLOCK_D, EDGE)
        values = load_tile(v, j, v_stride, end, BLOCK_N, E, BLOCK_E, EDGE)
        scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale2
        of_weights = tl.dot(do, tl.trans(values), input_precision=PRECISION)
        ds = _of_scores(_weights(scores, lse[:, None], shift, SIGMOID), of_weights, delta[:, None], SIGMOID)
        if EDGE:
            rows, columns = first + tl.arange(0, BLOCK_M), j + tl.arange(0, BLOCK_N)
            seen = sees(rows[:, None], columns[None, :], end, mask, window, CAUSAL, WINDOWED, MASKED)
            ds = tl.where(seen, ds, 0.0)
        dq = tl.dot(ds.to(keys.dtype), keys, dq, input_precision=PRECISION)
    return dq


@tuned((128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 8, 2),
       (64, 32, 4, 2), (32, 32, 4, 2))  # fmt: skip
@triton.jit
def dq_kernel(q, k, v, out, lse, delta, do, dq, starts, mask, extents, counts,
              q_strides, k_strides, v_strides, out_strides, do_strides, dq_strides,
              heads, rows, n, m, window, scale, scale2, size,
              D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
              SIGMOID: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr,
              PACKED: tl.constexpr, PRECISION: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """dq, and for softmax `delta`, which `dkv_kernel` needs. Arguments as of `forward_kernel`."""
    blocks = tl.cdiv(n, BLOCK_M)
    first = tl.program_id(0) % blocks * BLOCK_M
    b, h = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    start, n, end, real = span_of(b, starts, extents, counts, n, m, PACKED, MASKED)
    if first >= n:
        return
    batch = tl.cast(0 if PACKED else b, tl.int64)
    q += batch * q_strides[0] + h * q_strides[1] + start * q_strides[2]
    k += batch * k_strides[0] + h * k_strides[1] + start * k_strides[2]
    v += batch * v_strides[0] + h * v_strides[1] + start * v_strides[2]
    do += batch * do_strides[0] + h * do_strides[1] + start * do_strides[2]
    dq += batch * dq_strides[0] + h * dq_strides[1] + start * dq_strides[2]
    if MASKED:
        mask += tl.cast(b, tl.int64) * m

    queries = load_tile(q, first, q_strides[2], n, BLOCK_M, D, BLOCK_D, True)
    of_out = load_tile(do, first, do_strides[2], n, BLOCK_M, E, BLOCK_E, True)
    kept = tl.zeros((BLOCK_M,), tl.float32)
    inner = tl.zeros((BLOCK_M,), tl.float32)
    if not SIGMOID:
        lane = first + tl.arange(0, BLOCK_M)
        at = (batch * heads + h) * rows + start
        out += batch * out_strides[0] + h * out_strides[1] + start * out_strides[2]
        answers = load_tile(out, first, out_strides[2], n, BLOCK_M, E, BLOCK_E, True)
        inner = tl.sum(answers.to(tl.float32) * of_out.to(tl.float32), 1)
        tl.store(delta + at + lane, inner, mask=lane < n)
        kept = tl.load(lse + at + lane, mask=lane < n, other=0.0)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    shift = tl.log2(tl.cast(real, tl.float32))
    bounds = keys_of(first, n, end, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED, MASKED)
    for part in tl.static_range(3):
        acc = _dq_over_keys(acc, queries, of_out, kept, inner, k, v, mask, first, bounds[part], bounds[part + 1], end,
                            k_strides[2], v_strides[2], window, scale2, shift, D, E, BLOCK_D, BLOCK_E,
                            SIGMOID, CAUSAL, WINDOWED, MASKED, PRECISION, BLOCK_M, BLOCK_N, part != 1)  # fmt: skip
    store_tile(dq, first, dq_strides[2], n, acc * scale, BLOCK_M, D, BLOCK_D)


@triton.jit
def _dkv_over_queries(dk, dv, keys, values, q, do, lse, delta, first, lo, hi, n, end, q_stride, do_stride, window,
                      scale2, shift, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
                      SIGMOID: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
                      BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EDGE: tl.constexpr):  # fmt: skip
    """Adds what the queries lo … hi give to dk and dv of a block of keys; tiles are keys × queries."""
    for i in range(lo, hi, BLOCK_M):
        queries = load_tile(q, i, q_stride, n, BLOCK_M, D, BLOCK_D, EDGE)
        of_out = load_tile(do, i, do_stride, n, BLOCK_M, E, BLOCK_E, EDGE)
        lane = i + tl.arange(0, BLOCK_M)
        kept = tl.zeros((BLOCK_M,), tl.float32)
        inner = tl.zeros((BLOCK_M,), tl.float32)
        if not SIGMOID:
            kept = tl.load(lse + lane, mask=lane < n, other=0.0)
            inner = tl.load(delta + lane, mask=lane < n, other=0.0)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * scale2
        weights = _weights(scores, kept[None, :], shift, SIGMOID)
        if EDGE:  # queries past n are zeros here and add nothing
            columns = first + tl.arange(0, BLOCK_N)
            seen = sees(lane[None, :], columns[:, None], end, None, window, CAUSAL, WINDOWED, False)
            weights = tl.where(seen, weights, 0.0)
        dv = tl.dot(weights.to(of_out.dtype), of_out, dv, input_precision=PRECISION)
        of_weights = tl.dot(values, tl.trans(of_out), input_precision=PRECISION)
        ds = _of_scores(weights, of_weights, inner[None, :], SIGMOID)
        dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision=PRECISION)
    return dk, dv


@tuned((64, 128, 8, 2), (64, 128, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2),
       (32, 64, 4, 2), (32, 32, 4, 2))  # fmt: skip
@triton.jit
def dkv_kernel(q, k, v, lse, delta, do, dk, dv, starts, mask, extents, counts,
               q_strides, k_strides, v_strides, do_strides, dk_strides, dv_strides,
               heads, rows, n, m, window, scale, scale2, size,
               D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
               SIGMOID: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr,
               PACKED: tl.constexpr, PRECISION: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """dk and dv up to the last real key; what lies behind it is left as it is. Arguments as of `forward_kernel`."""
    blocks = tl.cdiv(m, BLOCK_N)
    first = tl.program_id(0) % blocks * BLOCK_N
    b, h = tl.program_id(0) // blocks // heads, tl.program_id(0) // blocks % heads
    start, n, end, real = span_of(b, starts, extents, counts, n, m, PACKED, MASKED)
    if first >= end:
        return
    batch = tl.cast(0 if PACKED else b, tl.int64)
    q += batch * q_strides[0] + h * q_strides[1] + start * q_strides[2]
    k += batch * k_strides[0] + h * k_strides[1] + start * k_strides[2]
    v += batch * v_strides[0] + h * v_strides[1] + start * v_strides[2]
    do += batch * do_strides[0] + h * do_strides[1] + start * do_strides[2]
    dk += batch * dk_strides[0] + h * dk_strides[1] + start * dk_strides[2]
    dv += batch * dv_strides[0] + h * dv_strides[1] + start * dv_strides[2]
    if not SIGMOID:
        lse += (batch * heads + h) * rows + start
        delta += (batch * heads + h) * rows + start

    keys = load_tile(k, first, k_strides[2], end, BLOCK_N, D, BLOCK_D, True)
    values = load_tile(v, first, v_strides[2], end, BLOCK_N, E, BLOCK_E, True)
    of_keys = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    of_values = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    shift = tl.log2(tl.cast(real, tl.float32))
    bounds = queries_of(first, n, end, window, BLOCK_M, BLOCK_N, CAUSAL, WINDOWED)
    for part in tl.static_range(3):
        of_keys, of_values = _dkv_over_queries(
            of_keys, of_values, keys, values, q, do, lse, delta, first, bounds[part], bounds[part + 1], n, end,
            q_strides[2], do_strides[2], window, scale2, shift, D, E, BLOCK_D, BLOCK_E,
            SIGMOID, CAUSAL, WINDOWED, PRECISION, BLOCK_M, BLOCK_N, part != 1)  # fmt: skip
    if MASKED:  # hidden keys stand in rows of their own: to zero them once, here, is enough
        columns = first + tl.arange(0, BLOCK_N)
        mask += tl.cast(b, tl.int64) * m
        shown = tl.load(mask + columns, mask=columns < end, other=0) != 0
        of_keys = tl.where(shown[:, None], of_keys, 0.0)
        of_values = tl.where(shown[:, None], of_values, 0.0)
    store_tile(dk, first, dk_strides[2], end, of_keys * scale, BLOCK_N, D, BLOCK_D)
    store_tile(dv, first, dv_strides[2], end, of_values, BLOCK_N, E, BLOCK_E)
