"""Exact search among a million vectors: `python benchmarks/neighbours.py [COUNT]`.

Prints one line: seconds a query, alone and with 31 others, and what storing float16 would save and cost. A minute, and
2.4 GB of memory.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from polysense.neighbours import BLOCK, Neighbours

WIDTH, QUERIES, RUNS, K = 384, 32, 7, 10


def seconds(runs: int, work: Callable[[int], object]) -> tuple[float, float]:
    """Median and least of several runs, after one that is not counted."""
    times = []
    for run in range(runs + 1):
        start = time.perf_counter()
        work(run)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), min(times[1:])


def main(count: int) -> None:
    rng = np.random.default_rng(0)
    collection, halves = Neighbours(WIDTH), []
    for start in range(0, count, BLOCK):
        vectors = rng.standard_normal((min(BLOCK, count - start), WIDTH), dtype=np.float32)
        collection.add_vectors(vectors, [str(start + i) for i in range(len(vectors))])
        halves.append(torch.from_numpy(vectors).half())
    queries = rng.standard_normal((QUERIES, WIDTH), dtype=np.float32)
    # The products alone, by what converts fastest here: NumPy takes four times as long.
    half, _ = seconds(3, lambda run: [torch.from_numpy(queries[:1]) @ block.float().T for block in halves])
    alone, least = seconds(RUNS, lambda run: collection.search(queries[run], K))
    together, _ = seconds(1, lambda run: collection.search(queries, K))
    size = count * WIDTH * 4 / 1e9
    print(
        f"{count:,} vectors of {WIDTH}, k = {K}, {torch.get_num_threads()} threads on {os.cpu_count()} cores: "
        f"{alone:.2f} s a query (median of {RUNS}, least {least:.2f}), {together:.2f} s for {QUERIES} at once; "
        f"float32 {size:.2f} GB (float16 {size / 2:.2f} GB, whose products alone take {half:.2f} s a query)"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
