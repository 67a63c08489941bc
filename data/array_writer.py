"""Embeddings as one array: .npy (vectors alone) or .npz, in memory that does not grow with their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from polysense.core.errors import InputError
from polysense.core.predictions import Embedding, Prediction
from polysense.data.writers import WRITERS, Writer


class ArrayWriter(Writer):
    """`vectors` (n, d) float32; in .npz also `sources`, `modalities` and what all rows have, by name."""

    binary: ClassVar[bool] = True

    def __init__(self, path: str | Path, *options: Any) -> None:
        super().__init__(path, *options)
        self._names: list[tuple[str, str]] = []  # sources and modalities
        self._width = 0

    def add(self, prediction: Prediction, record: dict[str, Any]) -> None:
        if not isinstance(prediction, Embedding):
            problem = "this format holds embeddings, and the answers are none"
            raise InputError(self.path, problem, "write .jsonl instead")
        if self._names and len(prediction.vector) != self._width:
            problem = f"vectors of {self._width} and {len(prediction.vector)} numbers do not fit one array"
            raise InputError(self.path, problem, "write .jsonl instead")
        self._width = len(prediction.vector)
        self._names.append((prediction.source, str(prediction.meta.get("modality", ""))))
        self.file.write(np.ascontiguousarray(prediction.vector, np.float32).tobytes())

    def finish(self) -> None:
        self.file.close()
        shape = (len(self._names), self._width)
        vectors = np.memmap(self._part, np.float32, "r", shape=shape) if self._names else np.zeros(shape, np.float32)
        whole = self._part.with_suffix(".whole")
        try:
            with whole.open("wb") as file:
                if self.path.suffix.lower() == ".npy":
                    np.save(file, vectors, allow_pickle=False)
                else:
                    sources, modalities = (np.array([pair[i] for pair in self._names], str) for i in (0, 1))
                    about: dict[str, Any] = {name: np.array(str(value)) for name, value in self.about.items()}
                    np.savez(file, vectors=vectors, sources=sources, modalities=modalities, **about)
            whole.replace(self._part)
        finally:
            whole.unlink(missing_ok=True)


WRITERS.update({".npy": ArrayWriter, ".npz": ArrayWriter})
