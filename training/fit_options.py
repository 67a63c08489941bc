"""What is asked of a fit, checked before anything is read: a wrong word should cost no minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from polysense.backbone.adapters import METHODS
from polysense.core.errors import InputError
from polysense.tasks import TASKS, Task
from polysense.training.card import check_examples
from polysense.training.compute import check_precision
from polysense.training.pretrain_log import check_board


def check_options(
    task: str,
    train: str,
    method: str,
    *,
    precision: str,
    device: str,
    board: bool,
    examples: bool,
    draw: Callable[..., Any] | None,
    augment: bool | None,
    augment_with: Sequence[str],
) -> Task:
    """The task of this name, if a fit can do what is asked.

    Args:
        task, train, method, precision, device, draw, augment, augment_with: As for `fit`.
        board: TensorBoard's files are wanted.
        examples: Wrong answers are wanted on the card.

    Raises:
        InputError: There is no such way to learn, the task learns nothing from labels, or what an option needs is not
            here.
    """
    if train not in ("tokenizer+head", "head"):
        raise InputError(f"train={train}", "unknown choice", "use tokenizer+head or head")
    if method not in METHODS and method not in ("probe", "head"):
        raise InputError(f"method={method}", "unknown choice", f"use probe, head, {', '.join(sorted(METHODS))}")
    what = TASKS[task]
    if what.kind in ("embedding", "meaning") or what.head == "naming":
        raise InputError(task, "it learns nothing from labels", "choose a task such as image-classification")
    check_precision(precision, device)
    if board:
        check_board()
    if examples:
        check_examples(what, draw)
    if augment_with:
        from polysense.training.scenes import check_extras

        check_extras(what, augment_with, augment)
    return what
