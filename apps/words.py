"""What `polysense predict zero-shot` names inputs by: words, and a few examples where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polysense.apps.inputs import endings
from polysense.core.errors import InputError
from polysense.tasks import TASKS

if TYPE_CHECKING:
    from polysense.pipeline import Pipeline


def nameable() -> list[str]:
    """Modalities from which something leads into the space of meaning."""
    return [TASKS[name].modality for name in TASKS if TASKS[name].kind == "meaning"]


@dataclass(frozen=True, slots=True)
class Words:
    """Classes that nobody trained."""

    labels: str  # "dog, cat | kitten, bird", or a file with a class a line
    modality: str | None = None  # of all the inputs; None: told by their endings
    templates: Sequence[str] | None = None  # sentences in which {} stands for a name
    none: str | None = None  # the answer where no class fits
    examples: Path | None = None  # a folder with a folder of inputs for each class that has some

    def pipeline(self, modality: str, device: str) -> Pipeline:
        """The classifier of one modality.

        Raises:
            InputError: See `zero_shot`; or the examples are none of this modality.
        """
        from polysense.data.dataset import class_folders, list_files
        from polysense.zero_shot import zero_shot

        shown: dict[str, list[Path]] = {}
        if self.examples is not None:
            if not list_files(self.examples, endings(modality)) and self.examples.is_dir():
                fix = "add some for each class, or predict the other kinds of input by themselves"
                raise InputError(self.examples, f"it holds no {modality.replace('_', ' ')} examples", fix)
            for item in class_folders(self.examples, endings(modality)).items:
                shown.setdefault(item.target, []).append(item.source)
        return zero_shot(modality, self.labels, templates=self.templates, none=self.none, examples=shown or None,
                         device=device)  # fmt: skip
