"""What an answer looked at, on the input's own coordinates: pixels, seconds and bands, points.

What such a picture says: how the encoder's tokens pass on what they hold (`rollout`, `last`), or which of them spoke
for a class (`gradient`). What it does not say:

- A token is no patch. Tokenizers begin with networks of their own (of images and sounds), whose cells see far beyond
  their borders; a bright cell means "what was computed around here".
- Most shipped heads read the encoder's input tokens beside its last ones, and maxima beside means (heads/pool.py).
  `rollout` and `last` speak of a mean of the last tokens alone; `gradient` follows all that the head reads.
- Where a model looked is not why it answered so. Weights of attention may change without the answer changing (Jain &
  Wallace 2019, "Attention is not Explanation").

Shape legend: n tokens, h height, w width (pixels), t time steps, f bands, p coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polysense.backbone.attention_maps import class_gradient, last_layer, rollout
from polysense.core.errors import InputError
from polysense.core.predictions import Labels
from polysense.core.types import Features, Sample, Tokens
from polysense.heads.classify import ClassificationHead
from polysense.heads.meaning import NamingHead
from polysense.kernels.points import interpolate_weights
from polysense.pipeline import Pipeline, to_device
from polysense.tokenizers.audio_features import SECONDS

METHODS = ("rollout", "last", "gradient")


@dataclass(frozen=True, slots=True)
class Relevance:
    """How much each place of an input counted.

    Attributes:
        values: Shares ≥ 0 that sum to one, or all 0 where nothing spoke for the target: of an image (h, w), at the
            original's size; a sound (t, f), bands from low to high; a cloud (points,); else of the tokens (n,), one
            sequence after another.
        modality: Of the input.
        method: One of `METHODS`.
        source: The input's name.
        target: The class that `gradient` asked for.
        seconds: Of a sound: where each time step ends and the next one begins, (t + 1,).
        hertz: Of a sound: where each band ends and the next one begins, (f + 1,).
        places: Of a cloud: its points (points, 3), in their own units; of other tokens: their positions (n, p).
        elsewhere: Share of what stands for no place (tokens for the size and shape of a whole cloud), which `values`
            leaves out.
    """

    values: np.ndarray
    modality: str
    method: str
    source: str
    target: str | None = None
    seconds: np.ndarray | None = None
    hertz: np.ndarray | None = None
    places: np.ndarray | None = None
    elsewhere: float = 0.0


@torch.inference_mode(False)  # a caller may infer; the gradient is wanted here
def relevance(pipeline: Pipeline, source: Any, method: str = "rollout", target: str | None = None) -> Relevance:
    """What of one input counted; see above for what that means, and `backbone.attention_maps` for the methods.

    Args:
        pipeline: Whose tokenizer and encoder; `gradient` needs a classifier.
        source: One input.
        method: "rollout", through all blocks; "last", in the last block; "gradient", for one class.
        target: The class that `gradient` is to ask for; None: the one that is answered.

    Raises:
        InputError: The source cannot be used or holds several inputs; the method or the class does not exist, or the
            pipeline is of a kind that cannot tell.
    """
    check_asked(pipeline, method, target)
    samples = list(pipeline.tokenizer.read_all(source))
    if len(samples) != 1:
        raise InputError(source, f"it holds {len(samples)} inputs", "give one of them")
    parts = pipeline.tokenizer.split(samples[0])
    if pipeline.modality == "image" and len(parts) > 1:
        raise InputError(samples[0].source, "this pipeline reads it in several windows or views",
                         "use a tokenizer without tiles, views and mirror")  # fmt: skip
    if pipeline.modality == "point_cloud" and "own" in parts[0].meta:
        raise InputError(samples[0].source, "this pipeline reads it in blocks", "give a smaller cloud")
    training = pipeline.training
    pipeline.eval()
    try:
        if method == "gradient" and target is None:
            target = _answered(pipeline, parts)
        found = [_of_tokens(pipeline, part, method, target) for part in parts]
    finally:
        pipeline.train(training)
    placed = PLACED.get(pipeline.modality, _as_tokens)(pipeline, samples[0], parts, found)
    return Relevance(modality=pipeline.modality, method=method, source=samples[0].source, target=target, **placed)


def check_asked(pipeline: Pipeline, method: str, target: str | None) -> None:
    """Raises an InputError where the method or the class does not exist, or does not suit the pipeline."""
    if method not in METHODS:
        raise InputError(f"method {method}", "there is no such method", f"choose one of: {', '.join(METHODS)}")
    if method == "gradient":
        _score_of(pipeline, target)
    elif target is not None:
        raise InputError(f"target {target}", f"{method} is the same for all classes", "use the method gradient")


def _answered(pipeline: Pipeline, parts: Sequence[Sample]) -> str:
    """The most probable class, even where the answer is that none fits."""
    answer, classes = pipeline.predict_sequences([parts])[0], pipeline.head.config.classes
    assert isinstance(answer, Labels)
    return next(str(name) for name in answer.names if name in classes)


def _of_tokens(pipeline: Pipeline, part: Sample, method: str, target: str | None) -> tuple[Tokens, np.ndarray]:
    """One sequence by itself: its tokens and their relevance (n,)."""
    with torch.no_grad():
        tokens = pipeline.tokenizer(to_device(pipeline.tokenizer.collate([part]), pipeline.device))
    if method == "gradient":
        layers = pipeline.head.layers
        values = class_gradient(pipeline.encoder, tokens, _score_of(pipeline, target), layers)
    else:
        values = (rollout if method == "rollout" else last_layer)(pipeline.encoder, tokens)
    return tokens, values[0].double().cpu().numpy()


def _score_of(pipeline: Pipeline, target: str | None) -> Callable[[Features], Float[Tensor, " b"]]:
    """The logit of a class (None: of the first one).

    Raises:
        InputError: The head is no classifier, or has no such class.
    """
    head = pipeline.head
    if not isinstance(head, ClassificationHead | NamingHead):
        raise InputError(pipeline.task.name, "only a classifier has classes to ask for", "use the method rollout")
    classes = head.config.classes
    if target is not None and target not in classes:
        shown = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
        raise InputError(f"target {target}", "this pipeline has no such class", f"choose one of: {shown}")
    number = 0 if target is None else classes.index(target)

    def score(features: Features) -> Tensor:
        out = head(features)
        return (head.logits(out) if isinstance(head, NamingHead) else out["logits"])[:, number]

    return score


Found = Sequence[tuple[Tokens, np.ndarray]]


def _shares(values: np.ndarray) -> np.ndarray:
    total = values.sum()
    return values / total if total > 0 else values


def _on_image(pipeline: Pipeline, sample: Sample, parts: Sequence[Sample], found: Found) -> dict[str, Any]:
    """Bilinear from the token grid to the window that the tokens cover; 0 around it (what a crop left out)."""
    (height, width), (left, top, right, bottom) = sample.meta["size"], sample.meta["window"]
    cells = torch.from_numpy(found[0][1]).view(1, 1, *sample.meta["grid"])
    top, left = int(top), int(left)
    size = (min(height, round(bottom)) - top, min(width, round(right)) - left)
    values = np.zeros((height, width))
    seen = torch.nn.functional.interpolate(cells, size=size, mode="bilinear", align_corners=False)[0, 0]
    values[top : top + size[0], left : left + size[1]] = seen.numpy()
    return {"values": _shares(values)}


def _on_sound(pipeline: Pipeline, sample: Sample, parts: Sequence[Sample], found: Found) -> dict[str, Any]:
    """A row for each time step of all windows; where a last window reaches back, it counts alone.

    Tokens that lie between two bands, for they cover both, are shared among them.
    """
    tokenizer: Any = pipeline.tokenizer
    layout, bands = tokenizer.layout, tokenizer.bands().numpy()
    low = np.floor(bands).astype(int)
    spread = np.zeros((len(bands), low.max() + 2))  # token of a time step -> bands
    spread[np.arange(len(bands)), low] = 1 - (bands - low)
    spread[np.arange(len(bands)), low + 1] += bands - low
    step, margin = layout.stride * SECONDS, (layout.patch - layout.stride) / 2  # patches may overlap
    rows, begins = [], []
    ends = [*(part.meta["window"][0] for part in parts[1:]), sample.meta["duration"]]
    for part, (tokens, values), end in zip(parts, found, ends):
        assert tokens.grid is not None
        at = part.meta["window"][0] + margin * SECONDS + step * np.arange(tokens.grid[0])
        inside = (at < end - 1e-6) | (np.arange(len(at)) == 0)  # a sound shorter than a patch has one
        rows.append((values.reshape(tokens.grid) @ spread[:, :-1])[inside])
        begins.append(at[inside])
    seconds = np.append(np.concatenate(begins), max(sample.meta["duration"], begins[-1][-1] + 1e-3))
    share = (margin + layout.stride * np.arange(spread.shape[1])) / layout.bands
    return {"values": _shares(np.concatenate(rows)), "seconds": seconds, "hertz": _hertz(share, tokenizer.config.form)}


def _hertz(share: Float[np.ndarray, " k"], form: str) -> Float[np.ndarray, " k"]:
    """Share of the spectrogram's height -> frequency: bands are even on the mel scale (HTK's)."""
    lowest, highest = 2595 * np.log10(1 + np.array((125, 7500) if form == "yamnet" else (20, 8000)) / 700)
    return 700 * (10 ** ((lowest + share * (highest - lowest)) / 2595) - 1)


def _on_cloud(pipeline: Pipeline, sample: Sample, parts: Sequence[Sample], found: Found) -> dict[str, Any]:
    """Every point from the three nearest patches, by inverse squared distance; the mean over mirrored views, which have
    the same patches."""
    centers, meta = sample.data["centers"].numpy().astype(np.float64), sample.meta
    values = _shares(np.mean([one for _, one in found], 0))
    of_patches = values[: len(centers)]
    xyz = np.asarray(meta["xyz"], np.float64)
    index, weight = interpolate_weights((xyz - np.asarray(meta["center"])) / meta["scale"], centers)
    points = (of_patches[index] * weight).sum(1)
    return {"values": _shares(points), "places": xyz, "elsewhere": float(values[len(centers) :].sum())}


def _as_tokens(pipeline: Pipeline, sample: Sample, parts: Sequence[Sample], found: Found) -> dict[str, Any]:
    places = np.concatenate([tokens.pos[0].cpu().numpy() for tokens, _ in found])
    return {"values": _shares(np.concatenate([one for _, one in found])), "places": places}


PLACED = {"image": _on_image, "audio": _on_sound, "point_cloud": _on_cloud}
