"""What each class counts in learning, where some are rare."""

from __future__ import annotations

from dataclasses import replace

import torch

from polysense.core.errors import InputError
from polysense.heads.classify import ClassificationHead
from polysense.pipeline import Pipeline
from polysense.training.examples import Examples, FileExamples, TableExamples

KINDS = ("balanced",)


def balance(pipeline: Pipeline, learning: Examples, kind: str = "balanced") -> None:
    """Tells the head to count each class by the inverse of how often it occurs, so that all count alike in sum
    (King & Zeng 2001, "Logistic Regression in Rare Events Data").

    A class without an example counts 1.

    Raises:
        InputError: There is no such kind, or the task has no classes that exclude each other.
    """
    if kind not in KINDS:
        raise InputError(f"class_weights {kind}", "there is none of this name", f"use {', '.join(KINDS)}")
    head = pipeline.head
    if not isinstance(head, ClassificationHead) or head.config.multi_label:
        problem = f"{pipeline.task.name} does not give each input one class"
        raise InputError(f"class_weights {kind}", problem, "leave it out")
    assert isinstance(learning, FileExamples | TableExamples)
    targets = learning.targets if isinstance(learning, TableExamples) else [item.target for item in learning.items]
    counts = head.targets(targets, [])["labels"].bincount(minlength=len(head.config.classes)).double()
    weights = len(targets) / (counts.count_nonzero() * counts.clamp_min(1))
    weights = torch.where(counts > 0, weights, 1.0)
    head.config = replace(head.config, class_weights=tuple(weights.tolist()))
