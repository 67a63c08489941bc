"""One checked attention call: what `api.attention` hands to an implementation.

An implementation may rely on everything `make_call` checks, and on nothing else. The helpers below are the one place
that says which keys a query sees.

Two layouts:
    padded: q (b, h, n, d), k (b, h, m, d), v (b, h, m, e), and a mask of real keys where there are fewer than m.
    packed: the sequences one after another, q, k (1, h, t, d), v (1, h, t, e), t = sum(lengths); no padding anywhere.

Shape legend: b batch, h heads, n queries, m keys, t tokens of all sequences, d head width, e value width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Call:
    """A validated call.

    Attributes:
        q: Queries (b, h, n, d); packed (1, h, t, d). q, k, v share one float type and one device.
        k: Keys (b, h, m, d); packed (1, h, t, d).
        v: Values (b, h, m, e); packed (1, h, t, e).
        lengths: Packed layout: tokens of each sequence, summing to t, zeros allowed; None in the padded layout.
        mask: Padded layout: True where a key is real, (b, m); None where all are, and always in the packed layout.
        bias: Added to the scaled scores, of four dimensions that broadcast to (b, h, n, m), of the type of q; or None.
        window: A query i sees the keys |i - j| <= window of its sequence; None for all. Then n == m.
        causal: A query i sees the keys j <= i of its sequence only. Then n == m.
        scale: Factor of the scores.
        extra: Tensors of a kind that needs more than q, k, v (a learned Toeplitz row, the weights of a norm), by the
            names that `api` registers for the kind; the kind checks their shapes in `refuses`.
    """

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b h m d"]
    v: Float[Tensor, "b h m e"]
    lengths: tuple[int, ...] | None
    mask: Bool[Tensor, "b m"] | None
    bias: Float[Tensor, "#b #h #n #m"] | None
    window: int | None
    causal: bool
    scale: float
    extra: Mapping[str, Tensor] = field(default_factory=dict)


def make_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Sequence[int] | Int[Tensor, " b"] | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    window: int | None = None,
    causal: bool = False,
    scale: float | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> Call:
    """Checks the arguments of `api.attention`.

    Raises:
        ValueError: Something does not fit; the message says what.
    """
    for name, value in (("q", q), ("k", k), ("v", v), ("mask", mask), ("bias", bias), *(extra or {}).items()):
        if not isinstance(value, Tensor) and not (value is None and name in ("mask", "bias")):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    if torch.is_autocast_enabled(q.device.type):  # a norm of queries and keys leaves float32 beside half values
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check_tensors(q, k, v)
    n, m = q.shape[2], k.shape[2]
    if lengths is not None:
        lengths = _checked_lengths(lengths, q, k, mask, bias)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (k.shape[0], m)):
        raise ValueError(f"mask must be bool ({k.shape[0]}, {m}), got {mask.dtype} {tuple(mask.shape)}")
    if bias is not None:
        bias = _checked_bias(bias, q, m)
    window = None if window is None else _checked_window(window)
    if (window is not None or causal) and n != m:
        raise ValueError(f"window and causal need as many queries as keys (self-attention), got {n} and {m}")
    for name, value in (("mask", mask), ("bias", bias), *(extra or {}).items()):
        if value is not None and value.device != q.device:
            raise ValueError(f"{name} is on {value.device}, q on {q.device}; move it there")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return Call(q, k, v, lengths, mask, bias, window, bool(causal), scale, extra or {})


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k, v must be (batch, heads, tokens, width), got {shapes}")
    if q.shape[:2] != k.shape[:2] or q.shape[-1] != k.shape[-1] or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not go together")
    if min(q.shape[1], q.shape[3], v.shape[3]) < 1:  # torch's fused attention ends the whole process where it has none
        raise ValueError(f"there must be at least one head of width 1, got q {tuple(q.shape)}, v {tuple(v.shape)}")
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v must have one float type, got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k, v must be on one device, got {q.device}, {k.device}, {v.device}")


def _checked_lengths(
    lengths: Sequence[int] | Tensor, q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[int, ...]:
    """Plain numbers: every implementation needs them on the host, and a CUDA tensor is waited for only once, here."""
    if isinstance(lengths, Tensor):
        if lengths.ndim != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(f"lengths must be whole numbers (b,), got {lengths.dtype} {tuple(lengths.shape)}")
        lengths = lengths.tolist()
    counts = tuple(int(length) for length in lengths)
    if mask is not None or bias is not None:
        raise ValueError(f"{'mask' if mask is not None else 'bias'} belongs to the padded layout; leave lengths out")
    if q.shape[0] != 1 or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"with lengths, q, k, v are packed, (1, heads, tokens, width), got {tuple(q.shape)}, {tuple(k.shape)}"
        )
    if min(counts, default=0) < 0 or sum(counts) != q.shape[2]:
        raise ValueError(f"lengths must be at least 0 and sum to {q.shape[2]} tokens, got {_short(counts)}")
    return counts


def _checked_window(window: int) -> int:
    try:
        whole = -1 if isinstance(window, bool) else int(window)
    except (TypeError, ValueError, OverflowError):  # a list, NaN, infinity
        whole = -1
    if whole < 0 or whole != window:
        raise ValueError(f"window must be a whole number of at least 0, or None for all keys, got {window!r}")
    return whole


def _checked_bias(bias: Tensor, q: Tensor, m: int) -> Tensor:
    full = (*q.shape[:3], m)
    shape = (1,) * (4 - bias.ndim) + tuple(bias.shape)
    if bias.ndim > 4 or any(have not in (1, want) for have, want in zip(shape, full, strict=True)):
        raise ValueError(f"bias must broadcast to {full}, got {tuple(bias.shape)}")
    if not bias.is_floating_point():
        raise ValueError(f"bias must be of a float type, got {bias.dtype}; hide keys with mask")
    return bias.to(q.dtype).view(shape) if bias.ndim < 4 else bias.to(q.dtype)


def _short(counts: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, counts[:8])) + (", …" if len(counts) > 8 else "")
    return f"[{shown}] (sum {sum(counts)})"


def visible(
    call: Call, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
) -> Bool[Tensor, "#b 1 #n #m"] | None:
    """Which keys the queries of a padded call see.

    Args:
        call: In the padded layout.
        rows: Queries from (inclusive) to (exclusive); all by default.
        columns: Keys likewise.

    Returns:
        True where query i sees key j; None where all are seen.
    """
    rows, columns = rows or (0, call.q.shape[2]), columns or (0, call.k.shape[2])
    seen = None if call.mask is None else call.mask[:, None, None, columns[0] : columns[1]]
    if call.window is not None or call.causal:
        i = torch.arange(*rows, device=call.q.device)[:, None]
        j = torch.arange(*columns, device=call.q.device)
        band = (j <= i) if call.causal else torch.ones_like(i - j, dtype=torch.bool)
        if call.window is not None:
            band = band & ((i - j).abs() <= call.window)
        seen = band[None, None] if seen is None else seen & band
    return seen


def real_keys(call: Call) -> Float[Tensor, "#b 1 1 1"]:
    """How many real keys each sequence of a padded call has, in at least float32; 1 where it has none."""
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    if call.mask is None:
        return call.q.new_full((1, 1, 1, 1), call.k.shape[2], dtype=dtype).clamp(min=1)
    return call.mask.sum(-1)[:, None, None, None].to(dtype).clamp(min=1)


def part_of_bias(call: Call, rows: tuple[int, int], columns: tuple[int, int]) -> Float[Tensor, "#b #h #n #m"] | None:
    """The bias of some queries and keys; dimensions of size 1 stay."""
    if call.bias is None:
        return None
    bias = call.bias if call.bias.shape[2] == 1 else call.bias[:, :, rows[0] : rows[1]]
    return bias if bias.shape[3] == 1 else bias[..., columns[0] : columns[1]]


def sequences(call: Call) -> Iterator[Call]:
    """A packed call as one padded call of batch 1 for each sequence, in order, empty ones too."""
    assert call.lengths is not None
    parts = (x.split(list(call.lengths), dim=2) for x in (call.q, call.k, call.v))
    for q, k, v in zip(*parts, strict=True):
        yield replace(call, q=q, k=k, v=v, lengths=None)
