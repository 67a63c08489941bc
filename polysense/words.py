"""Words as points of the space of meaning: names in templates, and files of labels.

Shape legend: m names, d width of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polysense.backbone.anchor import Anchor
from polysense.core.errors import InputError

# What a name is put into: the mean of the templates' vectors stands for it.
TEMPLATES = {
    "image": ("{}", "a photo of a {}"),
    "video": ("{}", "a video of a {}"),
    "audio": ("{}", "the sound of {}"),
    "point_cloud": ("{}", "a 3D model of a {}"),
    "text": ("{}", "this text is about {}"),
}


def word_vectors(
    anchor: Anchor, names: Sequence[Sequence[str]], templates: Sequence[str] = ("{}",)
) -> Float[Tensor, "m d"]:
    """One unit vector for each group of names that mean the same: the mean over names and templates.

    Args:
        anchor: Reads the words.
        names: Groups of synonyms.
        templates: Sentences in which "{}" stands for the name.
    """
    texts = [template.replace("{}", name) for group in names for name in group for template in templates]
    vectors = anchor(texts)
    counts = [len(group) * len(templates) for group in names]
    return F.normalize(torch.stack([part.mean(0) for part in vectors.split(counts)]), dim=-1)


def parse_labels(text: str) -> dict[str, list[str]]:
    """ "dog, cat | kitten, bird" or a file with one class a line -> {"dog": ["dog"], "cat": ["cat", "kitten"], …}.

    A bar parts several names of one class, the first of which is the answer. In files a line is a class; lines that
    begin with # are left out.

    Raises:
        InputError: The file is missing or empty, or a class is named twice.
    """
    path = Path(text)
    if text.lower().endswith(".txt") or (len(text) < 250 and path.is_file()):
        from polysense.data.text import read_texts

        lines = next(read_texts(path)).text.splitlines()
        parts = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    else:
        parts = text.split(",")
    groups = [[name.strip() for name in part.split("|") if name.strip()] for part in parts]
    groups = [group for group in groups if group]
    if not groups:
        raise InputError(f"labels {text!r}", "they name no class", 'give names such as "dog, cat, bird"')
    labels: dict[str, list[str]] = {}
    for group in groups:
        if group[0] in labels:
            raise InputError(f"labels {text!r}", f"{group[0]!r} is named twice", "name every class once")
        labels[group[0]] = group
    return labels


def as_labels(labels: str | Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Labels in any form -> {answer: its names}."""
    if isinstance(labels, str):
        return parse_labels(labels)
    if not labels:
        raise InputError("labels", "they name no class", 'give names such as "dog, cat, bird"')
    if isinstance(labels, Mapping):
        groups = {str(name): [others] if isinstance(others, str) else list(others) for name, others in labels.items()}
        return {name: [word for word in group if word.strip()] or [name] for name, group in groups.items()}
    found = [[part.strip() for part in label.split("|")] for label in labels]
    if len({group[0] for group in found}) < len(found):
        raise InputError("labels", "a class is named twice", "name every class once")
    return {group[0]: group for group in found}
