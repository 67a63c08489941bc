"""Five examples a class, with and without the classes' names: the part of `words.py` that learns.

Both learn the same penalised logistic regression on the same pooled features; with words it begins at their logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import polysense
from polysense.pipeline import Pipeline
from polysense.zero_shot import correct

if TYPE_CHECKING:
    from words import Bench

EXAMPLES, SEEDS = 5, 5


@torch.no_grad()
def features(pipeline: Pipeline, files: list[Path]) -> Float[Tensor, "r f"]:
    """Pooled features; the windows of a long recording are averaged."""
    head: Any = pipeline.head
    rows = []
    for file in files:
        source: Any = np.load(file) if file.suffix == ".npy" else file
        batch = pipeline.tokenizer.collate(pipeline.tokenizer.split(pipeline.tokenizer.read(source)))
        rows.append(head.pool(pipeline.features(batch)).mean(0))
    return torch.stack(rows)


def few_shot(bench: Bench, name: str, examples: int = EXAMPLES) -> dict[str, Any]:
    """Accuracy on the test part with `examples` a class from the train part, mean of `SEEDS` draws."""
    from words import HEAPS

    pipeline = polysense.load(f"{HEAPS[name].modality.replace('_', '-')}-meaning")
    head: Any = pipeline.head
    names, vectors = bench.classes(name)

    def part(split: str) -> tuple[Float[Tensor, "r f"], Int[Tensor, " r"]]:
        files, labels = bench.items(name, split)
        file = bench.out / f"{name}_{split}_pooled.npy"
        if not file.exists():
            np.save(file, features(pipeline, files).numpy())
        return torch.from_numpy(np.load(file)), torch.tensor([names.index(label) for label in labels])

    (x, y), (x_test, y_test) = part("train"), part("test")
    temperature = float(pipeline.about["temperature"])

    def said(rows: Float[Tensor, "r f"]) -> Float[Tensor, "r c"]:
        with torch.no_grad():
            return head.from_pooled(rows)["vector"] @ vectors.T / temperature

    scores: dict[str, list[float]] = {"examples": [], "examples and words": []}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        chosen = torch.from_numpy(np.concatenate([rng.permutation(np.flatnonzero(y.numpy() == c))[:examples]
                                                  for c in range(len(names))]))  # fmt: skip
        for key, scale in (("examples", 0.0), ("examples and words", 1.0)):
            found = correct(x[chosen], scale * said(x[chosen]), y[chosen])
            answers = found.scale * scale * said(x_test) + x_test @ found.weight.T + found.bias
            scores[key].append(float((answers.argmax(1) == y_test).float().mean()))
    words = float((said(x_test).argmax(1) == y_test).float().mean())
    spread = {key: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
              for key, values in scores.items()}  # fmt: skip
    return {"row": f"{name}, {examples} examples a class", "words": words, **spread}
