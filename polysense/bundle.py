"""Bundles: folders that hold a task's tokenizer and head. Listing them imports no torch.

A bundle is `config.json` (versioned), `model.safetensors` and `README.md` (its card). The encoder is named with its
hash, not copied; tensors equal to those of the embedded default tokenizer are not copied either.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError
from polysense.tasks import TASKS, Task

FORMAT = 1
PARTS = {"tokenizer": ("name", "config", "embedded_tensors"), "head": ("name", "config"), "encoder": ("spec", "sha256")}
FIELDS = ("format", "task", *PARTS, "metrics", "about")


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """What a bundle says about itself."""

    name: str
    task: str
    modality: str
    path: Path
    metrics: dict[str, float] = field(default_factory=dict)  # measured, by usual names
    measured_on: str = ""  # the data and split of the metrics
    licence: str = ""
    default: bool = False  # the one that `load(task)` takes


def bundles() -> list[BundleInfo]:
    """The bundles that ship with the package, by name."""
    folder = Path(str(files("polysense.weights"))) / "bundles"
    return [read_info(path.parent) for path in sorted(folder.glob("*/config.json"))]


def read_info(folder: Path) -> BundleInfo:
    config = read_config(folder)
    about = config.get("about", {})
    return BundleInfo(
        name=folder.name, task=config["task"], modality=config["tokenizer"]["name"], path=folder,
        metrics=config.get("metrics", {}), measured_on=about.get("measured_on", ""),
        licence=about.get("licence", ""), default=about.get("default", False),
    )  # fmt: skip


def read_config(folder: Path) -> dict[str, Any]:
    """Reads and checks a bundle's `config.json`.

    Raises:
        InputError: It is absent, damaged or of a newer format.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(folder, "it is no bundle (no config.json)", "give a folder written by polysense fit") from None
    except (OSError, ValueError) as error:
        raise InputError(path, "it is not readable JSON", "copy the bundle again") from error
    if not isinstance(config, dict):
        raise InputError(path, "it is no configuration of a bundle", "give a folder written by polysense fit")
    missing = [key for key in FIELDS if key not in config]
    missing += [f"{key}.{name}" for key, names in PARTS.items() for name in names
                if key in config and not (isinstance(config[key], dict) and name in config[key])]  # fmt: skip
    newer = isinstance(config.get("format"), int) and config["format"] > FORMAT
    if missing and not newer:
        raise InputError(path, f"it lacks {', '.join(missing)}", "give a folder written by polysense fit")
    if newer:
        raise InputError(path, f"it has format {config['format']}, newer than this version's {FORMAT}",
                         "upgrade polysense")  # fmt: skip
    return config


def find_bundle(name: str | Path) -> Path | None:
    """The folder of an embedded bundle (by name or task), of a local one, or None."""
    shipped = bundles()
    for info in shipped:
        if info.name == str(name):
            return info.path
    for info in sorted(shipped, key=lambda info: not info.default):
        if info.task == str(name):
            return info.path
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def needs_no_bundle(name: str) -> bool:
    """Whether it is a task whose answers are what encoder and tokenizer give: an embedding, though not of tables."""
    return name in TASKS and TASKS[name].kind == "embedding" and TASKS[name].modality != "tabular"


def fetch_bundle(name: str) -> Path:
    """Fetches a bundle that is not here.

    Raises:
        InputError: It is a task for which none ships, no name of a bundle at all, or the Hub does not give it.
    """
    if name in TASKS:
        raise _none_ships(TASKS[name])
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        fix = "see polysense models for the names, or give a bundle folder or a Hub repository owner/name"
        raise InputError(name, "there is no bundle of this name", fix)
    return download_bundle(name)


def _none_ships(task: Task) -> InputError:
    if task.kind == "embedding":
        fix = "make one for yours: Pipeline.build('tabular-embedding', sources=[table])"
        return InputError(task.name, "its columns differ from table to table, so none ships", fix)
    if task.head == "naming":
        fix = 'name the classes: polysense predict zero-shot FILES --labels "dog, cat"'
        return InputError(task.name, "its classes are those that you name", fix)
    fix = f"train one with: polysense fit {task.name} DATA --out BUNDLE"
    return InputError(task.name, "no bundle for this task ships with polysense", fix)


def download_bundle(repo: str) -> Path:
    """Fetches a bundle from the Hugging Face Hub (`owner/name`).

    Raises:
        InputError: The Hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(repo, "the Hub does not give this bundle", "check the name and the connection") from error
