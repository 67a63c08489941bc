"""Makes the text tokenizer that ships, and the bundle text-meaning: `python benchmarks/make_text.py`.

The step from the sentence encoder's 384 channels to the encoder's width is the principal axes of what its states are in
the mean of a text, which is what heads read; those of single states lose more of it (docs/results.md). The head is a
ridge regression to where the anchor puts the same texts. Texts are what every installation carries: documentation
inside Python's standard library and inside openly licensed packages, and names of things. Nothing is labelled.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from make_bundles import embedded_folder_in_checkout
from make_meaning import imagenet_names
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from polysense.backbone.anchor import load_anchor
from polysense.core.types import Tokens
from polysense.heads.pool import masked_statistic
from polysense.pipeline import Pipeline
from polysense.saving import save
from polysense.tokenizers.text import TextTokenizer
from polysense.training.pretrain_streams import principal_axes
from polysense.words import TEMPLATES

PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "torch", "matplotlib", "PIL", "skimage")  # BSD- and MIT-like
TEXTS = 12_000
HELD_OUT = 2000
FIT = [20.0, -4.0]  # a name fits as likely as not from a cosine of .2, where the anchor's related texts begin


def docstrings(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        if "test" in str(path) or "site-packages" in str(path.relative_to(folder)):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # files for other versions of Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text


def corpus(count: int = TEXTS, seed: int = 0) -> list[str]:
    """Sentences, paragraphs and names, in random order."""
    rng = np.random.default_rng(seed)
    folders = [Path(sysconfig.get_paths()["stdlib"])]
    for name in PACKAGES:
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, f"{name} is installed with the development extras"
        folders.append(Path(spec.origin).parent)
    paragraphs = []
    for folder in folders:
        for text in docstrings(folder):
            for paragraph in re.split(r"\n\s*\n", text):
                words = re.sub(r"\s+", " ", re.sub(r"[`*_:]+", " ", paragraph)).strip()
                if len(words) > 30 and sum(c.isalpha() or c == " " for c in words) > 0.85 * len(words):
                    paragraphs.append(words)
    paragraphs = sorted(set(paragraphs))
    sentences = [part for text in paragraphs for part in re.split(r"(?<=[.!?]) ", text) if len(part) > 20]
    names = [template.replace("{}", name) for group in imagenet_names() for name in group
             for template in (*TEMPLATES["image"], TEMPLATES["audio"][1])]  # fmt: skip
    drawn = [rng.choice(np.array(texts, dtype=object), size, replace=False)
             for texts, size in ((sentences, count // 2), (paragraphs, count // 4), (names, count // 4))]  # fmt: skip
    return [str(text) for text in rng.permutation(np.concatenate(drawn))]


@torch.no_grad()
def fit_projection(tokenizer: TextTokenizer, texts: list[str]) -> None:
    """Sets the projection to the principal axes of texts' mean states, and its scale to that of single states."""
    means, single = [], []
    for start in range(0, len(texts), 32):
        batch = tokenizer.collate([tokenizer.split(tokenizer.read(text))[0] for text in texts[start : start + 32]])
        states, mask = tokenizer.states(batch["ids"], batch["mask"]), batch["mask"]
        means.append(masked_statistic(Tokens(states, mask, states[..., :1]), "mean"))
        single.append(states[mask][::7])
    principal_axes(tokenizer.project, torch.cat(means))
    scale = tokenizer.project(torch.cat(single)).std()
    tokenizer.project.weight.div_(scale)
    tokenizer.project.bias.div_(scale)


@torch.no_grad()
def pooled(pipeline: Pipeline, texts: list[str]) -> Float[Tensor, "r f"]:
    head: Any = pipeline.head
    order = np.argsort([len(text) for text in texts])
    out: list[Any] = [None] * len(texts)
    for start in range(0, len(texts), 32):
        chosen = order[start : start + 32]
        samples = [pipeline.tokenizer.split(pipeline.tokenizer.read(texts[i]))[0] for i in chosen]
        for i, row in zip(chosen, head.pool(pipeline.features(pipeline.tokenizer.collate(samples))), strict=True):
            out[i] = row
    return torch.stack(out)


def main() -> None:
    texts = corpus()
    print(len(texts), "texts such as", texts[:3], flush=True)
    pipeline = Pipeline.build("text-meaning", head={"pooling": ("mean",), "layers": (0,)}).eval()
    tokenizer: Any = pipeline.tokenizer
    fit_projection(tokenizer, texts[HELD_OUT:])
    file = embedded_folder_in_checkout() / "tokenizers" / "text.safetensors"
    state = {name: value.half().contiguous() for name, value in tokenizer.state_dict().items()}
    save_file(state, file, {"config": "{}"})
    tokenizer.load_state_dict({name: value.float() for name, value in state.items()})  # as it will be read
    x, y = pooled(pipeline, texts).double(), load_anchor()(texts).double()
    mean = x[HELD_OUT:].mean(0)
    past, target = x[HELD_OUT:] - mean, y[HELD_OUT:]
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in (1.0, 10.0, 100.0, 1000.0):
        gram = past.T @ past + penalty * torch.eye(past.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, past.T @ (target - target.mean(0))).T
        bias = target.mean(0) - weight @ mean
        near = float(F.cosine_similarity(x[:HELD_OUT] @ weight.T + bias, y[:HELD_OUT]).mean())
        print(penalty, "cosine to the anchor on held-out texts", round(near, 4), flush=True)
        if best is None or near > best[0]:
            best = near, weight, bias
    assert best is not None
    linear = pipeline.head.project[-1]  # type: ignore[index]
    linear.weight.data.copy_(best[1])
    linear.bias.data.copy_(best[2])
    pipeline.metrics = {"cosine": best[0]}
    pipeline.about = {"anchor": "minilm", "templates": list(TEMPLATES["text"]), "temperature": 0.05, "fit": FIT,
                      "default": True,
                      "licence": "Apache-2.0", "measured_on": f"{HELD_OUT} held-out texts, to the anchor's own vectors",
                      "trained_on": f"{len(texts) - HELD_OUT} texts of installed packages' documentation"}  # fmt: skip
    save(pipeline, embedded_folder_in_checkout() / "bundles" / "text-meaning", torch.float16)


if __name__ == "__main__":
    main()
