"""The data of a fit: looked over for faults, cut into what teaches and what measures, their features kept."""

from __future__ import annotations

from pathlib import Path

from polysense.core.errors import InputError
from polysense.tokenizers.base import Tokenizer
from polysense.training.check_data import check_data
from polysense.training.compute import is_main
from polysense.training.examples import Examples, FileExamples
from polysense.training.feature_cache import FeatureCache
from polysense.training.feature_store import limit_bytes
from polysense.training.joint import Recipe
from polysense.training.progress import Progress
from polysense.training.sources import Sources


def without_faults(
    sources: Sources, data: str | Path, broken_share: float, report: str | Path | None, progress: Progress
) -> Sources:
    """The data but for files that cannot be read; says what else is wrong with them.

    Args:
        sources: With a "train" and a "val" part.
        data: Where they come from, for messages.
        broken_share: Of the files that may be unreadable.
        report: A json file for what is found.
        progress: Told what is found.
    """
    sources, found = check_data(sources, data, broken_share, progress.working)
    for line in found.lines():
        progress.say(line)
    if report is not None and is_main():
        found.write(report)
    return sources


def learning_and_validation(
    sources: Sources, tokenizer: Tokenizer, recipe: Recipe, data: str | Path
) -> tuple[Examples, Examples]:
    """What is learnt from, varied as the recipe says, and what is measured on, as it is.

    Raises:
        InputError: Nothing is in one of them.
    """
    learning = sources.examples(tokenizer, "train", recipe.augment, recipe.augment_with)
    validation = sources.examples(tokenizer, "val")
    if not len(learning):
        raise InputError(data, "its training part is empty", "give examples to learn from")
    if not len(validation):
        raise InputError(data, "its validation part is empty", "give more data or a larger --val-share")
    return learning, validation


def keep_features(parts: tuple[Examples, ...], task: str, data: str | Path, lasting: bool, progress: Progress) -> None:
    """Lets examples of files share one memory for what the encoder makes of them.

    Args:
        parts: Of the data.
        task, data: For the list of what is kept on disk.
        lasting: Keep it on disk too, where that has room for any.
        progress: Told where the disk cannot be used.
    """
    features = FeatureCache({"task": task, "data": str(data)}, lasting and limit_bytes() > 0, progress.say)
    for examples in parts:
        if isinstance(examples, FileExamples):
            examples.features = features
