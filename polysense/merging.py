"""One pipeline out of several of one task: the weighed mean of their weights, at the cost of one.

Weights of one origin can be averaged ("Model soups", Wortsman et al. 2022), those of one model fitted to different data
too (UnIVAL, Shukor et al. 2023). Tokenizer, head and adapter are averaged; the frozen encoder is the same in all.

Shape legend: c classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polysense.backbone.adapters import AdaptedEncoder
from polysense.backbone.adapters.averaging import average
from polysense.backbone.averaging import average_tensors
from polysense.backbone.encoder import Encoder
from polysense.backbone.weights import save_encoder
from polysense.core.errors import InputError
from polysense.heads.base import Head
from polysense.pipeline import Pipeline

OF_TRAINING = ("dropout", "label_smoothing", "class_weights")  # no answer depends on these
OF_MEASURING = ("measured_on", "default")  # facts that do not hold of a mean
REFIT = "fit both alike"


def merge(pipelines: Sequence[Pipeline], weights: Sequence[float] | None = None) -> Pipeline:
    """The pipeline whose weights are the mean of these.

    LoRA's products are averaged, not its factors, so that its rank becomes the sum of ranks. Classes in another order
    are put into that of the first pipeline. Metrics and card begin empty: nobody has measured the mean.

    Args:
        pipelines: At least two of one task, with one configuration and one encoder. They stay as they are.
        weights: One for each, at least 0; divided by their sum. None: all alike.

    Raises:
        InputError: They differ in more than weights, or the weights are no shares.
    """
    shares = _shares(pipelines, weights)
    first, *others = (pipeline.with_engine("torch") for pipeline in pipelines)
    for other in others:
        _check_same(first, other)
    heads = [first.head.state_dict(), *(_in_order(other, first) for other in others)]
    tokenizer, head = copy.deepcopy(first.tokenizer), copy.deepcopy(first.head)
    try:
        tokenizer.load_state_dict(average_tensors([p.tokenizer.state_dict() for p in (first, *others)], shares))
        head.load_state_dict(average_tensors(heads, shares))
        encoder = _average_encoders([p.encoder for p in (first, *others)], shares)
    except ValueError as error:
        names = ", ".join(pipeline.name for pipeline in pipelines)
        raise InputError(names, f"they have no mean: {error}", REFIT) from error
    about = {key: value for key, value in first.about.items() if key not in OF_MEASURING
             and all(key in other.about and other.about[key] == value for other in others)}  # fmt: skip
    about["merged"] = ", ".join(f"{p.name} ({share:.3g})" for p, share in zip(pipelines, shares, strict=True))
    return Pipeline(first.task, tokenizer, encoder, head, about=about).eval()


def into_encoder(pipeline: Pipeline, path: Path) -> Pipeline:
    """The same pipeline without an adapter: a plain encoder in a file of its own computes the same.

    Args:
        pipeline: With an adapter that a plain encoder's weights can hold (LoRA, DoRA, VeRA, IA3, scale, BitFit, full).
        path: Where the encoder is written, as safetensors. Bundles name it by this path.

    Raises:
        InputError: There is no adapter, it cannot be merged, or the file cannot be written.
    """
    if not isinstance(pipeline.encoder, AdaptedEncoder):
        raise InputError(pipeline.name, "it has no adapter to merge into an encoder", "fit it with --method lora")
    encoder = pipeline.encoder.merged()
    path = path.expanduser().resolve()
    write_encoder(encoder, path)
    encoder.spec = f"file:{path}"
    plain = Pipeline(pipeline.task, pipeline.tokenizer, encoder, pipeline.head, name=pipeline.name,
                     metrics=pipeline.metrics, about=pipeline.about).eval()  # fmt: skip
    plain.card = pipeline.card
    return plain


def write_encoder(encoder: Encoder, path: Path) -> None:
    """`save_encoder`, for a path that a user gave: see `check_file`."""
    from safetensors import SafetensorError

    check_file(path)
    try:
        save_encoder(encoder, path)
    except (OSError, SafetensorError) as error:
        raise InputError(path, f"the encoder cannot be written ({error})", "choose another place") from error


def check_file(path: Path) -> None:
    """Makes sure that an encoder may be written there.

    Raises:
        InputError: Something stands there, which bundles may rely on; or the name is not that of a safetensors file.
    """
    if path.suffix != ".safetensors":
        raise InputError(path, "an encoder's file ends in .safetensors", f"name it {path.stem}.safetensors")
    if path.exists():
        raise InputError(path, "something stands there, which bundles may rely on", "choose another name")


def _shares(pipelines: Sequence[Pipeline], weights: Sequence[float] | None) -> list[float]:
    if len(pipelines) < 2:
        raise InputError("merge", f"it takes at least two bundles, and got {len(pipelines)}", "name another one")
    given = [1.0] * len(pipelines) if weights is None else list(weights)
    if len(given) != len(pipelines):
        raise InputError("the weights", f"there are {len(given)} for {len(pipelines)} bundles", "give one for each")
    total = sum(given)
    if not 0 < total < float("inf") or not all(weight >= 0 for weight in given):
        raise InputError("the weights", f"{given} are no shares", "give numbers of at least 0, such as 0.3,0.7")
    return [weight / total for weight in given]


def _check_same(first: Pipeline, other: Pipeline) -> None:
    """Raises InputError where two pipelines differ in more than weights and the order of classes."""
    if other.task.name != first.task.name:
        problem = f"it does {other.task.name}, and {first.name} does {first.task.name}"
        raise InputError(other.name, problem, "merge bundles of one task")
    if other.encoder_hash != first.encoder_hash:
        problem = f"it stands on another encoder than {first.name}"
        raise InputError(other.name, problem, "merge bundles of one encoder, or fit it again on that one")
    if wrong := _differing(first.tokenizer.config, other.tokenizer.config):
        problem = f"its tokenizer differs from that of {first.name} in the option {wrong[0]}"
        raise InputError(other.name, problem, f"{REFIT}, with the same --tokenizer, --seed and columns")
    _check_classes(first, other)
    same = (*OF_TRAINING, "classes")
    if wrong := [name for name in _differing(first.head.config, other.head.config) if name not in same]:
        problem = f"its head differs from that of {first.name} in the option {wrong[0]}"
        raise InputError(other.name, problem, f"{REFIT}, with the same --head and --seed")
    for one, two in ((first, other), (other, first)):
        if isinstance(one.encoder, AdaptedEncoder) and not isinstance(two.encoder, AdaptedEncoder):
            problem = f"it has no adapter, and {one.name} has one ({one.encoder.method})"
            raise InputError(two.name, problem, "fit both with the same --method")


def _check_classes(first: Pipeline, other: Pipeline) -> None:
    here, there = _classes(first.head), _classes(other.head)
    if odd := sorted({*here} ^ {*there}):
        problem = f"its classes are not those of {first.name}, which differ in {', '.join(odd[:5])}"
        raise InputError(other.name, problem, "merge bundles of one set of classes")
    numbered = hasattr(other.head.config, "owner") or _ignores_a_class(other.head)
    if here != there and numbered:
        problem = f"its classes stand in another order than those of {first.name}, and its options count on the order"
        raise InputError(other.name, problem, REFIT)


def _differing(one: Any, two: Any) -> list[str]:
    """Fields of two configurations that differ; the order of `things`, a set of names, does not count."""
    if type(one) is not type(two):
        return ["form"]
    found = []
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if field.name == "things":
            a, b = set(a), set(b)
        if a != b:
            found.append(field.name)
    return found


def _classes(head: Head) -> tuple[str, ...]:
    return tuple(getattr(head.config, "classes", ()))


def _ignores_a_class(head: Head) -> bool:
    ignore = getattr(head.config, "ignore", None)
    return ignore is not None and 0 <= ignore < len(_classes(head))


def _in_order(pipeline: Pipeline, like: Pipeline) -> dict[str, Tensor]:
    """The state of a pipeline's head, its classes in another one's order."""
    state, classes, wanted = pipeline.head.state_dict(), _classes(pipeline.head), _classes(like.head)
    if classes == wanted:
        return state
    order = [classes.index(name) for name in wanted]
    for name, axis in class_axes(pipeline.head).items():
        rest = range(len(classes), state[name].shape[axis])  # a row for "nothing" stands last
        state[name] = state[name].index_select(axis, torch.tensor([*order, *rest], device=state[name].device))
    return state


def class_axes(head: Head) -> dict[str, int]:
    """The axis along which a tensor has its classes, for those that have one: what grows by one with one class more."""
    changes: dict[str, Any] = {"classes": (*_classes(head), "\0")}
    if hasattr(head.config, "class_weights"):
        changes["class_weights"] = ()
    with torch.random.fork_rng(devices=[]):
        grown = type(head)(replace(head.config, **changes), head.width).state_dict()
    return {name: axis for name, value in head.state_dict().items()
            for axis, (size, larger) in enumerate(zip(value.shape, grown[name].shape, strict=True))
            if larger == size + 1}  # fmt: skip


def _average_encoders(encoders: Sequence[Encoder], shares: Sequence[float]) -> Encoder:
    adapted = [encoder for encoder in encoders if isinstance(encoder, AdaptedEncoder)]
    return average(adapted, shares) if adapted else encoders[0]
