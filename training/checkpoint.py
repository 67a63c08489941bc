"""Checkpoints of a fit: a hidden folder `.BUNDLE.fit` beside the bundle, from which an interrupted fit goes on.

One checkpoint is one safetensors file, whose header holds what is no tensor as JSON: so it is replaced whole or not at
all, and nothing is ever unpickled. The folder goes when the bundle is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysense.core.errors import InputError
from polysense.training.compute import is_main
from polysense.training.examples import Examples, FileExamples, Subset, TableExamples, WindowExamples

# Arguments of `fit` that may be others when it goes on; all others make another training.
MAY_CHANGE = ("about", "accumulate", "batch_size", "device", "lr", "max_minutes", "patience", "progress", "resume",
              "tensorboard", "threads")  # fmt: skip
Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and all else as JSON-able facts


class Keeper:
    """The checkpoints of one fit.

    Args:
        out: Bundle that the fit is to write.
        resume: True goes on where an interrupted fit stopped, False begins anew; None does neither.

    Raises:
        InputError: An interrupted fit stands there, and it was not said what shall become of it.
    """

    def __init__(self, out: str | Path, resume: bool | None = None) -> None:
        self.out = Path(out).expanduser()
        self.folder = self.out.absolute().with_name(f".{self.out.name}.fit")
        self.settings: dict[str, Any] = {}
        if resume is False and is_main():
            self.remove()
        elif resume is None and self.under_way():
            raise InputError(out, "an interrupted fit of it stands beside it", "add --resume to go on, or --fresh")

    def under_way(self) -> bool:
        """Whether there is a checkpoint."""
        return (self.folder / "state.safetensors").is_file()

    def begun_with(self) -> dict[str, Any]:
        """The settings of the fit that was interrupted; none where there is no checkpoint."""
        if not self.under_way():
            return {}
        settings: dict[str, Any] = self._read("state")[1]["settings"]
        return settings

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Says which fit this is.

        Raises:
            InputError: The one that was interrupted had other settings or other data.
        """
        self.settings = json.loads(json.dumps(dict(settings), default=str))
        before = self.begun_with()
        names = sorted(before.keys() | self.settings.keys(), key=lambda name: (name.endswith("sha256"), name))
        for name in names if before else ():
            old, new = before.get(name), self.settings.get(name)
            if old == new or name in MAY_CHANGE:
                continue
            problem = f"{name} was {old} when this fit began and is {new} now"
            if name.endswith("sha256"):
                what = name.removesuffix("_sha256").replace("_", " ")
                problem = f"the {what} is not what it was when this fit began"
            raise InputError(self.out, problem, "give what was there before, or begin anew with --fresh")

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], name: str = "state") -> None:
        """Writes a checkpoint in the place of the one before.

        Raises:
            InputError: There is no room for it; the one before still stands.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if not is_main():
            return
        whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        path = self.folder / f"{name}.safetensors"
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(whole, partial, {"facts": json.dumps({**facts, "settings": self.settings})})
            with partial.open("rb+") as file:  # a power cut must not leave an empty file under the final name
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            fix = "make room; the same command with --resume then goes on from the checkpoint before"
            raise InputError(self.folder, f"no checkpoint can be written ({error})", fix) from error

    def load(self, name: str = "state") -> Checkpoint | None:
        """The last checkpoint, or None.

        Raises:
            InputError: It is damaged.
        """
        return self._read(name) if (self.folder / f"{name}.safetensors").is_file() else None

    def _read(self, name: str) -> Checkpoint:
        from safetensors import SafetensorError, safe_open

        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118 (it is no mapping)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(path, f"the checkpoint is damaged ({error})", "begin anew with --fresh") from error

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def random_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of all random numbers that a training draws, JSON-able: `rng`, torch's on each device, Python's."""
    import random

    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"numpy": rng.bit_generator.state, "torch": torch.get_rng_state().numpy().tobytes().hex(),
            "cuda": [one.numpy().tobytes().hex() for one in on_gpus], "python": random.getstate()}  # fmt: skip


def set_random_state(state: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Puts back what `random_state` gave."""
    import random

    def tensor(text: str) -> Tensor:
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

    rng.bit_generator.state = state["numpy"]
    torch.set_rng_state(tensor(state["torch"]))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensor(text) for text in state["cuda"]])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def fingerprint(*parts: Examples) -> str:
    """SHA-256 of examples: values that are in memory; names, sizes and times of change of files."""
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(_content(part)):
            digest.update(piece)
    return digest.hexdigest()


def _content(examples: Examples) -> Any:
    if isinstance(examples, Subset):
        return [examples.indices, _content(examples.parent)]
    if isinstance(examples, FileExamples):
        return [[item.source, item.target] for item in examples.items]
    if isinstance(examples, TableExamples):
        return [[sample.data for sample in examples.samples], examples.targets]
    if isinstance(examples, WindowExamples):
        return [examples.frames, [np.asarray(rows) for rows in examples.ends]]
    return [examples.whole(i)[1] for i in range(len(examples))]


def _pieces(value: Any) -> Iterator[bytes]:
    """A value as bytes, whatever it is made of; other values give other bytes."""
    import pandas as pd

    yield type(value).__name__.encode() + b":"
    if isinstance(value, Tensor | np.ndarray):
        array = np.asarray(value)
        yield f"{array.shape}{array.dtype}".encode()
        yield repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
    elif isinstance(value, pd.DataFrame | pd.Series | pd.Index):
        yield value.to_csv().encode() if not isinstance(value, pd.Index) else repr(value.tolist()).encode()
    elif isinstance(value, Path) or (isinstance(value, str) and os.path.isfile(value)):
        stat = os.stat(value)
        yield f"{Path(value).resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()
    elif isinstance(value, Mapping):
        for key in value:
            yield from _pieces([key, value[key]])
    elif isinstance(value, Set):
        yield from _pieces(sorted(value, key=repr))  # two processes go through a set in different orders
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for one in value:
            yield from _pieces(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _pieces(getattr(value, field.name))
    elif isinstance(value, str | bytes | int | float | bool | np.generic) or value is None:
        yield repr(value).encode()
    else:
        raise TypeError(f"examples of {type(value).__name__} have no fingerprint")
