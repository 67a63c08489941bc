"""Pooled features of a frozen tokenizer and encoder: computed once in a fit, and kept for the next one.

A key is a hash of everything that the features depend on: the inputs' bytes, the weights and configuration of
tokenizer, encoder and adapter, what the head pools, the code that computes, and the libraries that decode. Whatever
changes gives another key, so that nothing kept is ever stale.

Shape legend: r rows (sequences), f pooled width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysense.backbone.adapters import AdaptedEncoder
from polysense.backbone.encoder import Encoder
from polysense.core.predictions import Prediction
from polysense.core.types import Sample
from polysense.data.dataset import Item
from polysense.data.text import Text
from polysense.heads.base import Out
from polysense.heads.pool import Pool, PooledHead
from polysense.pipeline import Pipeline
from polysense.saving import fingerprint
from polysense.training import feature_store
from polysense.training.examples import Examples, FileExamples, Subset

# Where a pass costs far more than hashing. Rows of tables are tokens in no time, and forecasts read all tokens.
SENSES = ("image", "audio", "video", "point_cloud", "text")
LAYOUT = 1  # of an entry; raised when it holds other things
COMPUTING = ("core", "kernels", "data", "tokenizers", "backbone", "heads")  # floors whose code makes features
RUNNING = ("polysense.pipeline", "polysense.training.examples", "polysense.training.feature_cache")  # and these files
DECODING = ("torch", "numpy", "scipy", "pillow", "soundfile", "av", "open3d", "laspy", "tokenizers")


@dataclass(frozen=True, slots=True)
class Pooled:
    """Pooled features of some examples, in order."""

    x: Float[Tensor, "r f"]
    counts: list[int]  # rows of each example


class FeatureCache:
    """What a fit has pooled, by key.

    Args:
        about: For the list of what is kept: "task" and "data".
        lasting: Keep it on disk too, for later fits.
        say: Told where the disk cannot be used; the fit goes on without it.
    """

    def __init__(self, about: dict[str, str], lasting: bool = True, say: Callable[[str], None] = print) -> None:
        self.about, self.lasting, self.say = about, lasting, say
        self.memory: dict[str, Pooled] = {}
        self.passes = 0  # over parts of the data that had to be computed

    def find(self, key: str) -> Pooled | None:
        """What is kept under a key."""
        if key not in self.memory and self.lasting and (path := feature_store.find(key)) is not None:
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                state = load_file(path)  # a memory map
                # Copied: sums differ in their last bit by where numbers lie in memory, and fits should not.
                self.memory[key] = Pooled(state["x"].clone(), state["counts"].tolist())
            except (OSError, KeyError, SafetensorError) as error:
                self.say(f"a file of cached features is damaged and is made again ({error})")
                path.unlink(missing_ok=True)
        return self.memory.get(key)

    def keep(self, key: str, pooled: Pooled, lasting: bool) -> None:
        self.memory[key] = pooled
        self.passes += 1
        size = pooled.x.numel() * pooled.x.element_size()
        if not (lasting and self.lasting and feature_store.room_for(size)):
            return
        about = {**self.about, "rows": str(len(pooled.x)), "width": str(pooled.x.shape[1])}
        try:
            feature_store.put(key, {"x": pooled.x.numpy(), "counts": np.array(pooled.counts)}, about)
        except OSError as error:
            self.say(f"features are not cached: {error}; set POLYSENSE_CACHE to a folder with room, or use --no-cache")
            self.lasting = False


@torch.inference_mode()
def pooled_features(
    pipeline: Pipeline, examples: Examples, batch_size: int, lasting: bool = True
) -> tuple[Float[Tensor, "r f"], Out]:
    """Pooled features of every sequence of the examples, and their collated targets.

    Args:
        pipeline: Its head pools.
        examples: With a `FeatureCache` they pass through the encoder once, and then no more until a weight changes.
        batch_size: Sequences that run together.
        lasting: The features may be of use to another fit, as those of weights that this one has trained are not.
    """
    known = recall(pipeline, examples)
    if known is not None:
        items = _items(examples)
        labels = [item.target for item, count in zip(items, known.counts, strict=True) for _ in range(count)]
        return known.x, pipeline.head.targets(labels, [{}] * len(labels))
    pooled, targets, counts = _pass(pipeline, examples, batch_size)
    if isinstance(examples, FileExamples) and examples.features is not None:
        key = key_of(pipeline, examples)
        # Hashed again: a file may have changed between the hash and the reading.
        if key is not None and examples.contents() == examples.contents(again=True):
            examples.features.keep(key, Pooled(pooled, counts), lasting)
    return pooled, targets


def _pass(pipeline: Pipeline, examples: Examples, batch_size: int) -> tuple[Tensor, Out, list[int]]:
    """Runs everything through tokenizer and encoder: features, targets, and the rows of each example."""
    head = pipeline.head
    assert isinstance(head, PooledHead)
    pipeline.eval()
    pooled, targets, counts = [], [], []
    waiting: list[tuple[Sample, Any]] = []
    for i in range(len(examples)):
        samples, target = examples.whole(i)
        counts.append(len(samples))
        waiting += [(sample, target) for sample in samples]
        if len(waiting) >= batch_size or i == len(examples) - 1:
            for start in range(0, len(waiting), batch_size):
                part = waiting[start : start + batch_size]
                batch = pipeline.tokenizer.collate([sample for sample, _ in part])
                features = pipeline.features(batch)
                pooled.append(head.pool(features).float().cpu())
                targets.append(head.targets([target for _, target in part], batch["meta"]))
            waiting = []
    return torch.cat(pooled), {name: torch.cat([one[name] for one in targets]) for name in targets[0]}, counts


def recall(pipeline: Pipeline, examples: Examples) -> Pooled | None:
    """The examples' features, where they were pooled before by the very same pipeline."""
    whole, chosen = _unwrapped(examples)
    if not isinstance(whole, FileExamples) or whole.features is None:
        return None
    key = key_of(pipeline, whole)
    known = None if key is None else whole.features.find(key)
    if known is None or chosen == list(range(len(known.counts))):
        return known
    first = np.cumsum([0, *known.counts])
    rows = [row for i in chosen for row in range(first[i], first[i + 1])]
    return Pooled(known.x[rows], [known.counts[i] for i in chosen])


def _unwrapped(examples: Examples) -> tuple[Examples, list[int]]:
    """What a subset is taken from, and which of it."""
    chosen = list(range(len(examples)))
    while isinstance(examples, Subset):
        chosen, examples = [examples.indices[i] for i in chosen], examples.parent
    return examples, chosen


def _items(examples: Examples) -> list[Item]:
    whole, chosen = _unwrapped(examples)
    assert isinstance(whole, FileExamples)
    return [whole.items[i] for i in chosen]


@torch.inference_mode()
def recalled_answers(pipeline: Pipeline, examples: Examples) -> list[tuple[Prediction, Any]] | None:
    """Predictions and targets of examples whose features are known; None where they are not."""
    if (known := recall(pipeline, examples)) is None:
        return None
    items, training = _items(examples), pipeline.training
    pipeline.eval()
    try:
        assert isinstance(pipeline.head, PooledHead)
        out = pipeline.head.from_pooled(known.x.to(pipeline.device))
        owner = torch.arange(len(items)).repeat_interleave(torch.tensor(known.counts))
        meta = [{"source": str(items[i].source)} for i in owner.tolist()]
        merged = pipeline.head.merge(out, owner.to(pipeline.device), meta)
        predictions = pipeline.head.decode(merged, pipeline.head.merge_meta(meta, owner))
    finally:
        pipeline.train(training)
    return [(prediction, item.target) for prediction, item in zip(predictions, items, strict=True)]


def key_of(pipeline: Pipeline, examples: FileExamples) -> str | None:
    """A hash of everything that pooled features depend on; None where something cannot be hashed."""
    told = pipeline_hash(pipeline)
    if told is None:
        return None
    digest = hashlib.sha256(told.encode())
    for content in examples.contents():
        if content is None:
            return None
        digest.update(content)
    return digest.hexdigest()


def pipeline_hash(pipeline: Pipeline) -> str | None:
    """Of all that stands between an input's bytes and its pooled features.

    None for senses whose features are not worth keeping, and where the encoder is a variant whose weights do not tell
    what it computes.
    """
    encoder, head = pipeline.encoder, pipeline.head
    plain = encoder.plain if isinstance(encoder, AdaptedEncoder) else encoder
    adapter = encoder.adapter if isinstance(encoder, AdaptedEncoder) else None
    known = type(plain) is Encoder and (plain is encoder or adapter is not None)
    if pipeline.modality not in SENSES or not known or not isinstance(getattr(head, "pool", None), Pool):
        return None
    pool: Any = head.pool
    told = {
        "layout": LAYOUT, "code": code_hash(), "libraries": libraries(),
        "device": [pipeline.device.type, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
        "tokenizer": [type(pipeline.tokenizer).__name__, pipeline.tokenizer.config_dict(),
                      fingerprint(pipeline.tokenizer.state_dict()), _stem_hash(pipeline.modality)],
        "encoder": [plain.config_dict(), plain.fingerprint(), str(next(plain.parameters()).dtype)],
        "adapter": None if adapter is None else asdict(adapter),
        "reads": [pool.pooling, pool.layers, pool.scaled],
    }  # fmt: skip
    if isinstance(encoder, AdaptedEncoder):
        told["adapter weights"] = fingerprint(encoder.adapter_state())
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Of the source files that make features, so that nobody has to raise a number when they change."""
    folders = [Path(path) for floor in COMPUTING for path in import_module(f"polysense.{floor}").__path__]
    files = {path.relative_to(folder.parent): path for folder in folders for path in folder.rglob("*.py")}
    files |= {Path(name): Path(str(import_module(name).__file__)) for name in RUNNING}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(name.as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def libraries() -> dict[str, str]:
    """Versions of what decodes and computes."""
    found = {}
    for name in DECODING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


@lru_cache(maxsize=1)
def _stem_hash(modality: str) -> str:
    """Of the sentence encoder, which no state dict of a tokenizer holds."""
    if modality != "text":
        return ""
    from polysense.tokenizers.sentence import model_folder

    digest = hashlib.sha256()
    for name in ("tokenizer.json", "model.safetensors"):
        with (model_folder() / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def content_hash(source: Any) -> bytes | None:
    """Of what an input holds: a file's bytes, not its name; None for what is no file, text, bytes or array."""
    if isinstance(source, str | Path):
        if not os.path.isfile(source):
            return None
        with Path(source).open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        content.update(Path(source).suffix.lower().encode())  # which says how it is read
        return content.digest()
    digest = hashlib.sha256()
    return digest.digest() if _absorb(source, digest.update) else None


def _absorb(value: Any, update: Callable[[bytes], None]) -> bool:
    """Hashes an object in memory; False where it cannot be, as with names of files inside of another object."""
    kind = type(value).__name__
    if isinstance(value, Text):
        value = value.text.encode("utf-8", "surrogatepass")
    if isinstance(value, Tensor):
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray) and value.dtype != object:
        update(f"{kind} {value.dtype.str} {value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
        return True
    if value is None or isinstance(value, bytes | int | float):
        body = value if isinstance(value, bytes) else repr(value).encode()
        update(f"{kind} {len(body)} ".encode() + body)
        return True
    if isinstance(value, list | tuple):  # (wave, rate), frames
        update(f"{kind} {len(value)} ".encode())
        return all(_absorb(one, update) for one in value)
    return False
