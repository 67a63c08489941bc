"""The one way to attention: checks the call, picks a backend, runs it.

To add a kind or a backend, write a module with two functions of a `Call` (see `call`), the one that runs and
`refuses(call) -> str` ("" or why it cannot run this call), and add a row to `_TABLE`. Imports of heavy libraries stand
inside those functions. A kind that needs more than q, k and v names its tensors in `_EXTRA`; callers hand them over as
`extra={"name": tensor}`, `Call.extra` has them, and the kind's `refuses` says what is wrong with their shapes. Its
learned parameters live in an `nn.Module` of the kind's own, which calls `attention`.

Shape legend: b batch, h heads, n queries, m keys, t tokens of all sequences, d head width, e value width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysense.kernels.attention import (
    auto,
    block_diagonal,
    blocked,
    chunked,
    flash,
    flex,
    linear,
    packed,
    reference,
    sdpa,
    slab,
    triton_attention,
    urpe,
)
from polysense.kernels.attention.call import Call, make_call

Run = Callable[[Call], Tensor]
Refuses = Callable[[Call], str]

_TABLE: dict[tuple[str, str], tuple[Run, Refuses]] = {
    ("softmax", "reference"): (reference.softmax, reference.refuses),
    ("softmax", "sdpa"): (sdpa.softmax, sdpa.refuses),
    ("softmax", "packed"): (packed.softmax, packed.refuses),
    ("softmax", "blocked"): (blocked.softmax, blocked.refuses),
    ("softmax", "flash"): (flash.softmax, flash.refuses),
    ("softmax", "flex"): (flex.softmax, flex.refuses),
    ("softmax", "triton"): (triton_attention.softmax, triton_attention.refuses),
    ("sigmoid", "reference"): (reference.sigmoid, reference.refuses),
    ("sigmoid", "chunked"): (chunked.sigmoid, chunked.refuses),
    ("sigmoid", "triton"): (triton_attention.sigmoid, triton_attention.refuses),
    ("urpe", "reference"): (urpe.reference, urpe.refuses),
    ("urpe", "chunked"): (urpe.chunked, urpe.refuses),
    ("linear", "reference"): (linear.reference, linear.refuses),
    ("linear", "factored"): (linear.factored, linear.refuses),
    ("block_diagonal", "reference"): (block_diagonal.reference, block_diagonal.refuses),
    ("block_diagonal", "blocked"): (block_diagonal.blocked, block_diagonal.refuses),
    ("slab", "reference"): (slab.reference, slab.refuses),
    ("slab", "factored"): (slab.factored, slab.refuses),
}
# Tensors that a kind takes by `extra`; kinds that are not here take none.
_EXTRA: dict[str, tuple[str, ...]] = {"urpe": ("toeplitz",), "slab": ("conv",)}


def available_kinds() -> list[str]:
    """Names that `kind` takes."""
    return sorted({kind for kind, _ in _TABLE})


def available_backends(kind: str = "softmax") -> list[str]:
    """Names that `backend` takes for this kind, beside "auto".

    Raises:
        ValueError: There is no such kind.
    """
    backends = sorted(backend for known, backend in _TABLE if known == kind)
    if not backends:
        raise ValueError(f"unknown attention kind {kind!r}; choose one of: {', '.join(available_kinds())}")
    return backends


def attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    *,
    kind: str = "softmax",
    lengths: Sequence[int] | Int[Tensor, " b"] | None = None,
    mask: Bool[Tensor, "b m"] | None = None,
    bias: Float[Tensor, "#b #h #n #m"] | None = None,
    window: int | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
    extra: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "b h n e"]:
    """Attention over the real keys of each sequence; a query that sees no key gives zeros.

    Padded layout: as annotated, with `mask` where sequences are shorter than m. Packed layout: with `lengths`, q, k
    (1, h, t, d) and v (1, h, t, e) hold the sequences one after another, t = sum(lengths), and so does the answer.

    Args:
        q: Queries; q, k, v share one float type (float16, bfloat16, float32, float64) and one device.
        k: Keys.
        v: Values.
        kind: One of `available_kinds()`.
        lengths: Tokens of each sequence (packed layout, self-attention); no mask or bias then.
        mask: True where a key is real (padded layout); None where all are. Softmax and sigmoid want finite numbers at
            the other keys too (a weight of zero does not stop NaN); the other kinds read nothing there.
        bias: Finite, added to the scaled scores before the nonlinearity (padded layout).
        window: A query i sees the keys |i - j| <= window of its sequence; needs n == m.
        causal: A query i sees the keys j <= i of its sequence only; needs n == m.
        scale: Factor of the scores; 1/sqrt(d) by default.
        backend: "auto", or one of `available_backends(kind)`; a backend asked for by name never falls back.
        extra: Further tensors of kinds that need them, by name.

    Returns:
        (b, h, n, e), packed (1, h, t, e), of the type of v.

    Raises:
        ValueError: Shapes, types, devices or lengths do not fit, kind or backend is unknown, or the backend cannot run
            this call; the message says why.
    """
    backends = available_backends(kind)
    if backend not in ("auto", *backends):
        raise ValueError(f"unknown {kind} attention backend {backend!r}; choose auto or one of: {', '.join(backends)}")
    unknown = sorted(set(extra or {}) - set(_EXTRA.get(kind, ())))
    if unknown:
        raise ValueError(f"{kind} attention takes no {', '.join(unknown)}; it takes: {_EXTRA.get(kind) or 'none'}")
    call = make_call(
        q, k, v, lengths=lengths, mask=mask, bias=bias, window=window, causal=causal, scale=scale, extra=extra
    )
    if backend == "auto":
        return _first_that_runs(kind, call)(call)
    run, refuses = _TABLE[kind, backend]
    reason = refuses(call)
    if reason:
        raise ValueError(f"the {backend} backend of {kind} attention cannot run this call: {reason}")
    return run(call)


def _first_that_runs(kind: str, call: Call) -> Run:
    reasons = []
    for backend in auto.order(kind, call, available_backends(kind)):
        run, refuses = _TABLE[kind, backend]
        reason = refuses(call)
        if not reason:
            return run
        reasons.append(f"{backend}: {reason}")
    raise ValueError(f"no backend of {kind} attention can run this call ({'; '.join(reasons)})")
