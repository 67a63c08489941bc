"""What a bundle's card shows beside its metrics: a table of classes, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "card"  # of a bundle, that holds the pictures


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, and the sentence under it."""

    png: bytes
    caption: str


@dataclass(frozen=True, slots=True)
class Card:
    """Measured on the part that the metrics are of.

    Attributes:
        per_class: Metrics of each class by usual names.
        pictures: By file name.
    """

    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """What the bundle's configuration keeps."""
        captions = {name: picture.caption for name, picture in self.pictures.items()}
        return {"per_class": self.per_class, "pictures": captions}

    def write(self, folder: Path) -> None:
        """Writes the pictures into a bundle's folder."""
        if self.pictures:
            (folder / FOLDER).mkdir()
        for name, picture in self.pictures.items():
            (folder / FOLDER / name).write_bytes(picture.png)

    @classmethod
    def read(cls, config: Mapping[str, Any], folder: Path) -> Card:
        """The card of a bundle; pictures that someone deleted are left out."""
        there = {name: folder / FOLDER / Path(name).name for name in config.get("pictures", {})}
        pictures = {name: Picture(path.read_bytes(), config["pictures"][name])
                    for name, path in there.items() if path.is_file()}  # fmt: skip
        return cls(config.get("per_class", {}), pictures)

    def lines(self) -> list[str]:
        """Markdown."""
        found: list[str] = []
        if self.per_class:
            names = list(next(iter(self.per_class.values())))
            found += [f"| class | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
            for label, row in self.per_class.items():
                cells = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values())
                found.append(f"| {escaped(label)} | {' | '.join(cells)} |")
            found.append("")
        for name, picture in self.pictures.items():
            found += [f"![{picture.caption}]({FOLDER}/{name})", "", picture.caption, ""]
        return found


def escaped(label: str) -> str:
    """A class name inside of a table, where an upright stroke would begin the next cell."""
    return label.replace("|", "\\|").replace("\n", " ")
