"""What the graph of an index finds and how fast: `python benchmarks/search.py [COUNT]`.

Clustered random vectors, and queries from the same clusters; recall@10 is the share of the exact ten nearest that come
among the ten found. Prints a table. Two minutes on two cores, most of them for building the graph, and 300 MB of disk.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polysense.core.predictions import Embedding
from polysense.index import Index
from polysense.neighbours import Neighbour

WIDTH, CLUSTERS, SPREAD, QUERIES, K = 192, 1000, 1.0, 200, 10
BATCH = 4096


def draw(count: int, centers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(count, WIDTH): a centre each and noise of SPREAD times its length around it."""
    noise = rng.standard_normal((count, WIDTH), dtype=np.float32) * (SPREAD / WIDTH**0.5)
    return centers[rng.integers(len(centers), size=count)] + noise


def embeddings(count: int, centers: np.ndarray, rng: np.random.Generator) -> Iterator[Embedding]:
    for start in range(0, count, BATCH):
        for i, vector in enumerate(draw(min(BATCH, count - start), centers, rng)):
            yield Embedding(vector, f"{start + i}.jpg")


def ask(index: Index, queries: np.ndarray, exact: bool) -> tuple[list[list[Neighbour]], list[float]]:
    """Answers, and the milliseconds of each; a first query that loads things is not counted."""
    index.search(queries[0], K, exact=exact)
    answers, times = [], []
    for query in queries:
        start = time.perf_counter()
        answers.append(index.search(query, K, exact=exact))
        times.append(1000 * (time.perf_counter() - start))
    return answers, times


def recall(found: list[list[Neighbour]], true: list[list[Neighbour]]) -> float:
    pairs = zip(found, true, strict=True)
    return statistics.mean(len({a.source for a in one} & {b.source for b in two}) / K for one, two in pairs)


def main(count: int) -> None:
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((CLUSTERS, WIDTH), dtype=np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "index", WIDTH, "encoder", "none")
        start = time.perf_counter()
        index.add(embeddings(count, centers, rng), "image")
        adding = time.perf_counter() - start
        start = time.perf_counter()
        index.optimise()
        building = time.perf_counter() - start
        queries = draw(QUERIES, centers, rng)
        true, exact = ask(index, queries, exact=True)
        found, quick = ask(index, queries, exact=False)
    print(f"{count:,} vectors of {WIDTH} in {CLUSTERS:,} clusters, {QUERIES} queries, {os.cpu_count()} cores; "
          f"added in {adding:.0f} s, optimised in {building:.0f} s\n")  # fmt: skip
    print(f"| search | recall@{K} | ms a query, median | worst of {QUERIES} |\n|---|---|---|---|")
    for name, share, times in (("exact", 1.0, exact), ("by the graph", recall(found, true), quick)):
        print(f"| {name} | {share:.3f} | {statistics.median(times):.1f} | {max(times):.1f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
