"""Attention kernels on a CUDA device, side by side: `python benchmarks/bench_gpu_attention.py`.

Forward alone and forward with backward, bfloat16: sigmoid against flash softmax, packed sequences against padded ones.
TFLOP/s count the products of real tokens only, and stand beside the rate of a bare matrix product measured in the same
race. Ratios are formed within rounds (`polysense.apps.bench_race`). A few minutes, the first calls tune.

Shape legend: b sequences, h heads, n tokens, d head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polysense.apps.bench_race import Race, Row, machine_facts, run_race
from polysense.kernels.attention import attention

PRODUCT = "matrix product"
SECONDS = 3.0  # of rounds a race


@dataclass(frozen=True, slots=True)
class Case:
    """A race, and the operations of one run of an attention in it; those of the matrix product are `products`."""

    race: Race
    operations: float
    products: float


def operations(h: int, lengths: Sequence[int], d: int, backward: bool) -> float:
    """Of softmax(q kᵀ) v: two products forward, five backward, as papers count them."""
    return (7 if backward else 2) * 2 * h * d * sum(n * n for n in lengths)


def ragged(b: int, n: int) -> list[int]:
    """Lengths in even steps up to n: their mean is a little over half of it."""
    return [max(1, round(n * (i + 1) / b)) for i in range(b)]


def cases(device: str, dtype: torch.dtype, side: int = 8192, shrink: int = 1) -> Iterator[Case]:
    """All races; `shrink` divides sizes, to try this file out."""
    x, y = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for backward in (False, True):
        for b, h, n, d in ((8, 16, 4096, 64), (64, 12, 256, 64), (8, 8, 4096, 128)):
            b, n = max(1, b // shrink), n // shrink
            runs = dense(b, h, n, d, device, dtype, backward)
            race = Race("sigmoid", f"{b} × {h} × {n} × {d}{', backward' * backward}",
                        {**runs, PRODUCT: lambda: x @ y}, {"sigmoid triton": 1.17}, same=False)  # fmt: skip
            yield Case(race, operations(h, [n] * b, d, backward), 2.0 * side**3)
        lengths = ragged(max(2, 64 // shrink), 1024 // shrink)
        race = Race("packed", f"12 heads of 64, lengths {lengths[0]} to {lengths[-1]}{', backward' * backward}",
                    {**variable(12, lengths, 64, device, dtype, backward), PRODUCT: lambda: x @ y},
                    {"packed triton": 1.8}, same=False)  # fmt: skip
        yield Case(race, operations(12, lengths, 64, backward), 2.0 * side**3)


def dense(b: int, h: int, n: int, d: int, device: str, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    """Sequences of one length."""
    q, k, v = leaves((b, h, n, d), device, dtype)
    ways = {"softmax sdpa": ("softmax", "sdpa"), "softmax triton": ("softmax", "triton"),
            "sigmoid triton": ("sigmoid", "triton")}  # fmt: skip
    return {name: training((q, k, v), backward, kind=kind, backend=backend) for name, (kind, backend) in ways.items()}


def variable(h: int, lengths: list[int], d: int, device: str, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    """Sequences of many lengths: padded to the longest with a mask, and one after another."""
    longest = max(lengths)
    mask = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    padded = leaves((len(lengths), h, longest, d), device, dtype)
    packed = leaves((1, h, sum(lengths), d), device, dtype)
    return {
        "padded sdpa": training(padded, backward, mask=mask, backend="sdpa"),
        "padded triton": training(padded, backward, mask=mask, backend="triton"),
        "packed triton": training(packed, backward, lengths=tuple(lengths), backend="triton"),
    }


def leaves(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):  # a race runs in inference mode, where nothing can be differentiated
        return tuple(torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3))


def training(inputs: tuple[Tensor, ...], backward: bool, **options: Any) -> Callable[[], Any]:
    """A run of attention, with its gradients or without."""

    def run() -> Any:
        with torch.inference_mode(False), torch.set_grad_enabled(backward):
            out = attention(*inputs, **options)
            return torch.autograd.grad(out, inputs, out.detach()) if backward else out

    return run


def lines(case: Case, rows: Sequence[Row]) -> Iterator[str]:
    """A race as text: time, ratio to the first contestant with quartiles, rate and its share of the bare product's."""
    by_name: Mapping[str, Row] = {row.contestant: row for row in rows}
    bare = case.products / by_name[PRODUCT].ms / 1e9
    yield f"{case.race.case}: {case.race.setting}"
    for row in rows:
        rate = bare if row.contestant == PRODUCT else case.operations / row.ms / 1e9
        ratio = "" if row.contestant == PRODUCT else f"{row.speedup:6.2f} [{row.speedup_q1:.2f}, {row.speedup_q3:.2f}]"
        aim = f" aimed at {row.wanted:g}" if row.wanted == row.wanted else ""
        yield f"  {row.contestant:16}{row.ms:10.3f} ms {rate:8.1f} TFLOP/s {rate / bare:5.0%}  {ratio}{aim}"


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit(
            "bench_gpu_attention.py measures kernels for CUDA devices, and there is none here: nothing is measured."
        )
    print(machine_facts())
    for case in cases("cuda", torch.bfloat16):
        print(*lines(case, run_race(case.race, SECONDS)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
