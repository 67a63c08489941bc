"""Attention over a sequence that is spread over the ranks of `torch.distributed`: each holds a shard of the tokens.

Two ways, of equal answers:
    ring: blocks of keys and values travel around the ranks, and every rank merges what each gives to its queries by the
        online softmax (Liu et al. 2023, "Ring Attention with Blockwise Transformers"). Memory of a rank: its shard, the
        block on its way and the scores of `_CHUNK` keys. For sequences whose keys no rank can hold.
    all_gather: every rank takes all keys and values and runs torch's fused attention. One exchange instead of one for
        each rank, for keys that fit.

Any device and float type, shards of any lengths, also none. Where all shards are of one length and a whole model runs
in half precision on CUDA, PyTorch's own `torch.distributed.tensor.experimental.context_parallel` is the better choice:
it reroutes `scaled_dot_product_attention` to a ring over the flash kernel and evens out the work of causal attention.
It has no kernel for CPUs.

Shape legend: b batch, h heads, n queries and m keys of this rank, d head width, e value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

_CHUNK = 1024  # keys whose scores a rank holds at a time, ring
_GATHERED = 1 << 28  # bytes of all keys and values up to which "auto" gathers them


def context_parallel_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    *,
    group: dist.ProcessGroup | None = None,
    causal: bool = False,
    scale: float | None = None,
    method: Literal["auto", "ring", "all_gather"] = "auto",
) -> Float[Tensor, "b h n e"]:
    """Softmax attention of this rank's queries over the keys of all ranks, in the order of ranks.

    Every rank of the group has to call it, and to run its backward pass; shards may differ in n and m alone.

    Args:
        q: Queries of this rank.
        k: Keys of this rank.
        v: Values of this rank.
        group: The ranks that share the sequence; all by default.
        causal: A query sees keys up to its own place in the whole sequence only; needs n == m on every rank.
        scale: Factor of the scores; 1/sqrt(d) by default.
        method: "auto" gathers up to 256 MiB of keys and values, and takes the ring beyond.

    Returns:
        The answers to this rank's queries; zeros where no rank has a key.

    Raises:
        ValueError: There is no process group, shapes do not fit within this rank or beside those of the others, or the
            method is unknown. Every rank raises for a fault among ranks, so that none is left waiting.
    """
    if method not in ("auto", "ring", "all_gather"):
        raise ValueError(f"unknown method {method!r}; choose auto, ring or all_gather")
    if not dist.is_initialized():
        raise ValueError("no process group: call torch.distributed.init_process_group first, or use attention")
    ranks = _meet(q, k, v, group, causal)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if method == "auto":
        bytes_of_all = sum(ranks.lengths) * q.shape[0] * q.shape[1] * (k.shape[3] + v.shape[3]) * k.element_size()
        method = "all_gather" if bytes_of_all <= _GATHERED else "ring"
    if method == "ring":
        return _Ring.apply(q, k, v, ranks, causal, scale)
    return _by_gathering(q, k, v, ranks, causal, scale)


@dataclass(frozen=True, slots=True)
class _Ranks:
    """The group as one of its ranks sees it."""

    group: dist.ProcessGroup | None
    rank: int  # of this process within the group
    lengths: tuple[int, ...]  # keys of every rank

    @property
    def size(self) -> int:
        return len(self.lengths)

    def start(self) -> int:
        """Place of this rank's first key in the whole sequence."""
        return sum(self.lengths[: self.rank])

    def owner(self, step: int) -> int:
        """Whose keys this rank holds after so many steps around the ring."""
        return (self.rank - step) % self.size


def _meet(q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup | None, causal: bool) -> _Ranks:
    """Tells the ranks each other's shapes and checks them."""
    own = _fault(q, k, v, causal)
    device = q.device
    facts = [0] * 6 if own else [*q.shape[:2], q.shape[3], v.shape[3], q.element_size(), k.shape[2]]
    mine = torch.tensor([bool(own), *facts], device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    faulty, *shapes = torch.stack(everyone).T.tolist()
    if own:
        raise ValueError(own)
    if any(faulty):
        raise ValueError(f"q, k, v do not fit on rank {faulty.index(1)} of the group; its own error says how")
    for what, values in zip(("batch", "heads", "width", "width of values", "bytes of a number"), shapes, strict=False):
        if len(set(values)) > 1:
            raise ValueError(f"ranks differ in {what}: {values}; they may differ in tokens only")
    return _Ranks(group, dist.get_rank(group), tuple(shapes[-1]))


def _fault(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> str:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        return f"{shapes} must be (batch, heads, tokens, width)"
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3]:
        return f"{shapes} do not go together"
    if min(q.shape[1], q.shape[3], v.shape[3]) < 1:
        return f"{shapes} need at least one head of width 1"
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        return f"q, k, v must have one float type, got {q.dtype}, {k.dtype}, {v.dtype}"
    if causal and q.shape[2] != k.shape[2]:
        return f"causal needs as many queries as keys on a rank, got {q.shape[2]} and {k.shape[2]}"
    return ""


def _by_gathering(q: Tensor, k: Tensor, v: Tensor, ranks: _Ranks, causal: bool, scale: float) -> Tensor:
    longest = max(ranks.lengths)
    both = F.pad(torch.cat([k, v], 3), (0, 0, 0, longest - k.shape[2]))  # collectives take equal shapes
    parts = _Gather.apply(both, ranks)
    k, v = torch.cat([part[:, :, :m] for part, m in zip(parts, ranks.lengths, strict=True)], 2).split(
        [k.shape[3], v.shape[3]], 3
    )
    n = q.shape[2]
    if causal:  # what no query of this rank sees
        k, v = k[:, :, : ranks.start() + n], v[:, :, : ranks.start() + n]
    if k.shape[2] == 0 or n == 0:  # attached, because every rank has to take part in the backward pass
        return q.new_zeros(*q.shape[:3], v.shape[3]) + sum(x[..., :0].sum() for x in (q, k, v))
    seen = causal_lower_right(n, k.shape[2]) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)


class _Gather(torch.autograd.Function):
    """The tensors of all ranks; backward, every rank gets the sum of the gradients of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: _Ranks) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in ranks.lengths]
        dist.all_gather(parts, x, group=ranks.group)
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_parts: Tensor) -> tuple[Tensor, None]:
        own = torch.empty_like(of_parts[0])
        dist.reduce_scatter(own, [part.contiguous() for part in of_parts], group=ctx.ranks.group)
        return own, None


class _Ring(torch.autograd.Function):
    """Forward, keys and values go around; backward they go again, with their gradients, until these are home."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, ranks: _Ranks, causal: bool, scale: float
    ) -> Float[Tensor, "b h n e"]:
        wide = torch.promote_types(q.dtype, torch.float32)
        queries = q.to(wide)
        out = queries.new_zeros(*q.shape[:3], v.shape[3])
        lse = queries.new_full((*q.shape[:3], 1), float("-inf"))
        for owner, keys, values in _travelling(k, v, ranks):
            for scores, part in _scores(queries, keys, owner, ranks, causal, scale):
                merged = torch.logaddexp(lse, scores.logsumexp(-1, keepdim=True))
                out = out * (lse - merged).exp() + (scores - merged).exp() @ values[:, :, part].to(wide)
                lse = merged
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.ranks, ctx.causal, ctx.scale = ranks, causal, scale
        return out.to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        ranks: _Ranks = ctx.ranks
        queries, do = q.to(out.dtype), do.to(out.dtype)
        delta = (do * out).sum(-1, keepdim=True)
        dq = torch.zeros_like(queries)
        of_block = queries.new_zeros(*k.shape[:3], k.shape[3] + v.shape[3])
        for owner, keys, values in _travelling(k, v, ranks):
            dk, dv = of_block.split([k.shape[3], v.shape[3]], 3)
            for scores, part in _scores(queries, keys, owner, ranks, ctx.causal, ctx.scale):
                weights = (scores - lse).exp()
                ds = weights * (do @ values[:, :, part].to(out.dtype).transpose(-2, -1) - delta) * ctx.scale
                dq += ds @ keys[:, :, part].to(out.dtype)
                dk[:, :, part] += ds.transpose(-2, -1) @ queries
                dv[:, :, part] += weights.transpose(-2, -1) @ do
            of_block = _pass_on(of_block, (owner - 1) % ranks.size, ranks)()
        dk, dv = of_block.split([k.shape[3], v.shape[3]], 3)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _travelling(k: Tensor, v: Tensor, ranks: _Ranks) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(owner, keys, values) of every rank, its own first; the next block is on its way while one is worked on."""
    block = torch.cat([k, v], 3)
    for step in range(ranks.size):
        last = step == ranks.size - 1
        arrive = None if last else _pass_on(block, ranks.owner(step + 1), ranks)
        yield ranks.owner(step), *block.split([k.shape[3], v.shape[3]], 3)
        if arrive is not None:
            block = arrive()


def _pass_on(block: Tensor, coming: int, ranks: _Ranks) -> Any:
    """Sends a block to the next rank; returns what waits for the one of rank `coming` from the previous rank."""
    b, h, _, width = block.shape
    arriving = block.new_empty(b, h, ranks.lengths[coming], width)
    if ranks.size == 1:
        return lambda: block
    block = block.contiguous()
    operations = []
    for what, tensor, step in ((dist.isend, block, 1), (dist.irecv, arriving, -1)):
        if tensor.numel():  # an empty shard is not worth a message, and both sides know of it
            peer = (ranks.rank + step) % ranks.size
            operations.append(dist.P2POp(what, tensor, group=ranks.group, group_peer=peer))
    works = dist.batch_isend_irecv(operations) if operations else []

    def arrive(sent: Tensor = block) -> Tensor:  # holds on to what is being sent
        for work in works:
            work.wait()
        return arriving

    return arrive


def _scores(
    queries: Tensor, keys: Tensor, owner: int, ranks: _Ranks, causal: bool, scale: float
) -> Iterator[tuple[Float[Tensor, "b h n c"], slice]]:
    """Scores of a rank's keys, chunk by chunk, -inf where hidden; nothing where all are."""
    if queries.shape[2] == 0 or (causal and owner > ranks.rank):
        return
    n, m = queries.shape[2], keys.shape[2]
    for start in range(0, m, _CHUNK):
        part = slice(start, min(start + _CHUNK, m))
        scores = queries @ keys[:, :, part].to(queries.dtype).transpose(-2, -1) * scale
        if causal and owner == ranks.rank:  # the first chunk has a key for every query: lse is never -inf after it
            hidden = torch.ones(n, m, dtype=torch.bool, device=keys.device).triu(1)[:, part]
            scores = scores.masked_fill(hidden, float("-inf"))
        yield scores, part
