"""A frozen encoder with an adapter: runs in the encoder's place and shares its very weights.

Any number of adapted encoders stand on one encoder; each costs its own few weights, and pipelines that use different
ones answer side by side.

Shape legend: b batch, n tokens, d width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import polysense.backbone.adapters.bottlenecks
import polysense.backbone.adapters.guided
import polysense.backbone.adapters.own_copies
import polysense.backbone.adapters.prompts  # noqa: F401 (these register their methods)
from polysense.backbone.adapters import peft_methods
from polysense.backbone.adapters.config import METHODS, AdapterConfig, shared_copy
from polysense.backbone.encoder import Encoder
from polysense.core.errors import InputError
from polysense.core.types import Features, Tokens

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapt(encoder: Encoder, config: AdapterConfig) -> AdaptedEncoder:
    """Puts a new adapter beside a frozen encoder. All but prompts, prefixes, and `vera` start as the encoder itself.

    Raises:
        ValueError: The method does not suit this encoder.
    """
    plain = encoder.plain if isinstance(encoder, AdaptedEncoder) else encoder
    return AdaptedEncoder(plain, METHODS[config.method](shared_copy(plain), config), config)


class AdaptedEncoder(Encoder):
    """An `Encoder` in all that others rely on; its fingerprint is that of the frozen encoder, which it never changes.

    Attributes:
        plain: The frozen encoder.
        model: What runs: the encoder's modules with the adapter among them.
        adapter: How it was made.
    """

    def __init__(self, encoder: Encoder, model: nn.Module, adapter: AdapterConfig | None) -> None:
        nn.Module.__init__(self)
        self.config, self.spec, self.packing, self.prefix = (
            encoder.config,
            encoder.spec,
            encoder.packing,
            encoder.prefix,
        )
        # Past nn.Module, which would list the encoder as a child and its weights twice.
        self.__dict__["plain"] = encoder
        self.model, self.adapter = model, adapter

    plain: Encoder

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        return self.model(tokens, layers=layers)

    def fingerprint(self) -> str:
        return self.plain.fingerprint()

    @property
    def learns(self) -> bool:
        return True

    def freeze(self) -> AdaptedEncoder:
        """The encoder is frozen anyway; its adapter goes on learning until `requires_grad_(False)`."""
        return self

    @property
    def method(self) -> str:
        return self.adapter.method if self.adapter is not None else peft_methods.method(self.model)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What the adapter has learnt or learns, by name."""
        base = {id(tensor) for tensor in self.plain.parameters()}
        return {name: one for name, one in self.model.named_parameters() if id(one) not in base}

    def adapter_state(self) -> dict[str, Tensor]:
        """The adapter's tensors, copied; PEFT's in PEFT's own names."""
        if peft_methods.is_peft(self.model):
            return peft_methods.state(self.model)
        return {name: one.detach().clone() for name, one in self.adapter_parameters().items()}

    @torch.no_grad()
    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Puts back what `adapter_state` gave.

        Raises:
            ValueError: Its names or shapes are not this adapter's.
        """
        if peft_methods.is_peft(self.model):
            return peft_methods.load_state(self.model, state)
        own = self.adapter_parameters()
        if wrong := sorted(name for name in {*own, *state} if name not in own or name not in state
                           or own[name].shape != state[name].shape):  # fmt: skip
            raise ValueError(f"it holds other tensors than this adapter has, such as {wrong[0]}")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Writes `adapter_config.json` and `adapter_model.safetensors`; PEFT's adapters in PEFT's own format."""
        if peft_methods.is_peft(self.model):
            return peft_methods.save(self.model, folder)
        from safetensors.torch import save_file

        assert self.adapter is not None
        (folder / CONFIG).write_text(json.dumps({"polysense": asdict(self.adapter)}, indent=1) + "\n")
        save_file({name: one.contiguous() for name, one in self.adapter_state().items()}, folder / WEIGHTS)

    def merged(self) -> Encoder:
        """A plain encoder with its own weights that computes the same, without the adapter's cost.

        Raises:
            InputError: The method adds what no weight of a plain encoder can hold.
        """
        if peft_methods.is_peft(self.model):
            return peft_methods.merged(self)
        from polysense.backbone.adapters.own_copies import merged

        return merged(self)


def load_adapter(encoder: Encoder, folder: str | Path) -> AdaptedEncoder:
    """The adapter of a folder, written by us or by PEFT for this very encoder. Nothing is unpickled.

    Raises:
        InputError: The folder holds no adapter, or one that does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    told = _config(folder)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(folder / WEIGHTS, f"it is no whole safetensors file ({error})", "copy it again") from error
    try:
        if "peft_type" in told:
            return AdaptedEncoder(encoder, peft_methods.load(shared_copy(encoder), folder, state), None)
        adapted = adapt(encoder, AdapterConfig(**told["polysense"]))
        adapted.load_adapter_state(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = f"this adapter does not fit the encoder ({error})"
        raise InputError(folder, problem, "use the encoder that it was trained on, or fit it again") from error
    return adapted


def _config(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            folder, f"it holds no adapter ({error})", f"give a folder with {CONFIG} and {WEIGHTS}"
        ) from error
    if not isinstance(told, dict):
        raise InputError(folder / CONFIG, "it describes no adapter", "copy it again")
    return told
