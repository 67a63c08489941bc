"""Many bundles of one encoder, held together: what they have in common is in memory once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from polysense.backbone.adapters import AdaptedEncoder
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline


class AdapterSet(Mapping[str, Pipeline]):
    """Answers by the bundle that a request names.

    Each bundle has its own tokenizer, adapter and head, whatever its task; the encoder stands in memory once, and so
    does every tensor that two bundles have bit for bit. Requests may come from several threads. For inference: what
    would learn in one bundle would change in others.

    Args:
        bundles: Names, tasks or folders by the name that requests give; or a list, then by the folder's own name.
        device: Where to compute.

    Raises:
        InputError: There is none, two have one name, one cannot be loaded, or they stand on different encoders.
    """

    def __init__(self, bundles: Mapping[str, str | Path] | Sequence[str | Path], device: str = "cpu") -> None:
        named = dict(bundles) if isinstance(bundles, Mapping) else {Path(bundle).name: bundle for bundle in bundles}
        if not named or len(named) < len(bundles):
            raise InputError("bundles", "there is none, or two of one name", "give them as {name: folder}")
        self._pipelines = {name: Pipeline.from_pretrained(bundle, device) for name, bundle in named.items()}
        first, *others = self._pipelines
        for name in others:
            if self._pipelines[name].encoder_hash != self._pipelines[first].encoder_hash:
                problem = f"it stands on another encoder than {first}"
                raise InputError(name, problem, "load bundles of one encoder together")
        share_tensors(list(self._pipelines.values()))
        # Threads of different bundles run at once; some adapters keep notes while they run, so those of one do not.
        self._locks = {name: Lock() for name in self._pipelines}

    def __call__(self, name: str, sources: Any, batch_size: int = 16, **options: Any) -> list[Any]:
        """Predicts as `Pipeline` does, by the bundle of this name.

        Raises:
            InputError: There is none of this name, or a source cannot be used.
        """
        if name not in self._pipelines:
            raise InputError(name, "no bundle of this name is loaded", f"choose from: {', '.join(self._pipelines)}")
        with self._locks[name]:
            return self._pipelines[name](sources, batch_size, **options)

    def __getitem__(self, name: str) -> Pipeline:
        return self._pipelines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pipelines)

    def __len__(self) -> int:
        return len(self._pipelines)

    def nbytes(self) -> int:
        """Bytes of all weights in memory, each counted once."""
        return nbytes(list(self._pipelines.values()))


def tensors_of(pipeline: Pipeline) -> Iterator[Tensor]:
    """All parameters and buffers; of an adapter's frozen encoder those too that the adapter has replaced."""
    parts = [pipeline, pipeline.encoder.plain] if isinstance(pipeline.encoder, AdaptedEncoder) else [pipeline]
    for part in parts:
        yield from part.parameters()
        yield from part.buffers()


def share_tensors(pipelines: Sequence[Pipeline]) -> None:
    """Lets tensors that are equal bit for bit stand in one memory; nothing learns on."""
    known: dict[tuple[Any, ...], list[Tensor]] = {}
    for pipeline in pipelines:
        for tensor in tensors_of(pipeline.requires_grad_(False)):
            alike = known.setdefault((tensor.dtype, tensor.device, tuple(tensor.shape)), [])
            same = next((one for one in alike if one is tensor or torch.equal(one, tensor)), None)
            if same is None:
                alike.append(tensor)
            else:
                tensor.data = same.data


def nbytes(pipelines: Sequence[Pipeline]) -> int:
    """Bytes of the weights of pipelines, those that they share counted once."""
    stored = (tensor.untyped_storage() for pipeline in pipelines for tensor in tensors_of(pipeline))
    return sum({storage.data_ptr(): storage.nbytes() for storage in stored}.values())
