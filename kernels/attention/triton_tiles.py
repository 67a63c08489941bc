"""What the Triton kernels share: where a sequence lies, which tiles matter, how a tile is read, what is tuned.

Scores are never stored: a kernel walks over tiles of BLOCK_M queries × BLOCK_N keys. Tiles that no query of the block
sees are not visited; the rest lie in three parts, [edge, whole, edge]: where every query sees every key of a tile,
nothing is compared.

Imported only where a kernel runs: everything else of the package does without Triton.

Shape legend: n queries, m keys, D width of queries and keys, E width of values (BLOCK_D, BLOCK_E: the next power of 2).
"""

# Kernels are read from their source by Triton: no jaxtyping, no postponed annotations.
# mypy: disable-error-code="no-untyped-def, misc"
# ruff: noqa: N803 – capitals are constants of compilation

import triton
import triton.language as tl

# Beside the types of the tensors (Triton adds them). `size` is the number of queries rounded up to a power of 2.
_TUNED_BY = ["size", "D", "E", "SIGMOID", "CAUSAL", "WINDOWED", "MASKED", "PACKED", "PRECISION"]


def tuned(*shapes):
    """Decorator: the fastest of these (BLOCK_M, BLOCK_N, warps, stages), measured at a kernel's first call of a kind.

    Triton skips shapes that do not fit the device. Under its interpreter nothing is measured and tiles are as small as
    they can be, so that short sequences have several.
    """
    if triton.knobs.runtime.interpret:
        shapes = ((16, 16, 4, 1),)
    configs = [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=w, num_stages=s) for m, n, w, s in shapes]
    return triton.autotune(configs, key=_TUNED_BY, prune_configs_by={"early_config_prune": _of_the_type})


def _of_the_type(configs, named_args, **_):
    """float32 takes twice the room and three products for one: the small shapes are for it, the others for halves."""
    full = named_args["q"].element_size() == 4
    fitting = [c for c in configs if (c.kwargs["BLOCK_M"] * c.kwargs["BLOCK_N"] <= 2048) == full]
    return fitting or configs


@triton.jit
def span_of(b, starts, extents, counts, n, m, PACKED: tl.constexpr, MASKED: tl.constexpr):
    """First row, queries, keys up to the last real one, and real keys of sequence b."""
    start = tl.cast(0, tl.int64)
    end, real = m, m
    if PACKED:
        start = tl.load(starts + b)
        n = tl.cast(tl.load(starts + b + 1) - start, tl.int32)
        end, real = n, n
    if MASKED:
        end, real = tl.load(extents + b), tl.load(counts + b)
    return start, n, end, real


@triton.jit
def load_tile(base, first, stride, limit, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
              CHECK: tl.constexpr):  # fmt: skip
    """Rows first … first + ROWS of a matrix, (ROWS, BLOCK_D); zeros past the width, and past `limit` with CHECK."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    # The block's offset in 64 bits, for long sequences of wide rows; those within it in 32, for registers are few.
    at = base + first * tl.cast(stride, tl.int64) + rows[:, None] * stride + columns[None, :]
    if CHECK and D != BLOCK_D:
        return tl.load(at, mask=(first + rows < limit)[:, None] & (columns < D)[None, :], other=0.0)
    elif CHECK:
        return tl.load(at, mask=(first + rows < limit)[:, None], other=0.0)
    elif D != BLOCK_D:
        return tl.load(at, mask=(columns < D)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def store_tile(base, first, stride, limit, values, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    at = base + first * tl.cast(stride, tl.int64) + rows[:, None] * stride + columns[None, :]
    inside = (first + rows < limit)[:, None] & (columns < D)[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def sees(i, j, end, mask, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr):
    """Whether query i sees key j; i and j broadcast, as does the answer: (rows, 1) and (1, columns), or the reverse."""
    seen = j < end
    if MASKED:
        seen = seen & (tl.load(mask + j, mask=j < end, other=0) != 0)
    if CAUSAL:
        seen = seen & (j <= i)
    if WINDOWED:
        seen = seen & (i - j <= window) & (j - i <= window)
    return seen


@triton.jit
def keys_of(first, n, end, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
            WINDOWED: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Keys for the queries first … first + BLOCK_M: edge from lo, whole from whole_lo to whole_hi, edge to hi."""
    last = first + BLOCK_M - 1
    lo, hi = first * 0, end
    whole_lo, whole_hi = lo, hi
    if WINDOWED:
        lo, hi = tl.maximum(first - window, 0), tl.minimum(hi, tl.minimum(last, n - 1) + window + 1)
        whole_lo, whole_hi = tl.maximum(last - window, 0), tl.minimum(whole_hi, first + window + 1)
    if CAUSAL:
        hi, whole_hi = tl.minimum(hi, last + 1), tl.minimum(whole_hi, first + 1)
    return _in_tiles(lo, whole_lo, whole_hi, hi, BLOCK_N, MASKED)


@triton.jit
def queries_of(first, n, end, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
               WINDOWED: tl.constexpr):  # fmt: skip
    """The same for the keys first … first + BLOCK_N: the queries that see some or all of them."""
    last = first + BLOCK_N - 1
    lo, hi = first * 0, n
    whole_lo, whole_hi = lo, hi
    if WINDOWED:
        lo, hi = tl.maximum(first - window, 0), tl.minimum(hi, tl.minimum(last, end - 1) + window + 1)
        whole_lo, whole_hi = tl.maximum(last - window, 0), tl.minimum(whole_hi, first + window + 1)
    if CAUSAL:
        lo, whole_lo = tl.maximum(lo, first), tl.maximum(whole_lo, last)
    return _in_tiles(lo, whole_lo, whole_hi, hi, BLOCK_M, False)


@triton.jit
def _in_tiles(lo, whole_lo, whole_hi, hi, SIZE: tl.constexpr, ALL_EDGE: tl.constexpr):
    """The four bounds on tiles of SIZE, in order, so that three loops between them visit every tile once."""
    lo = lo // SIZE * SIZE
    if ALL_EDGE:
        whole_lo, whole_hi = hi, hi
    whole_lo = tl.minimum((whole_lo + SIZE - 1) // SIZE * SIZE, hi)
    whole_hi = tl.maximum(tl.minimum(whole_hi, hi) // SIZE * SIZE, whole_lo)
    return lo, whole_lo, whole_hi, hi
