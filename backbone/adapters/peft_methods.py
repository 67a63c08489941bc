"""LoRA, DoRA, VeRA and IA3 by the library PEFT, in its own file format."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from polysense.backbone.adapters.config import METHODS, AdapterConfig
from polysense.backbone.encoder import Encoder

if TYPE_CHECKING:
    from polysense.backbone.adapters.adapted import AdaptedEncoder

VERA_RANKS = 32  # VeRA's rank for one of LoRA's: its matrices are drawn, not learnt


@METHODS.register("lora")
def lora(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """A product of two thin matrices beside each weight (Hu et al. 2022, LoRA)."""
    return _lora(encoder, config)


@METHODS.register("dora")
def dora(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """The same for a weight's direction, and its size by itself (Liu et al. 2024, DoRA)."""
    return _lora(encoder, config, use_dora=True)


def _lora(encoder: Encoder, config: AdapterConfig, **more: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    told = LoraConfig(r=config.rank, lora_alpha=cast(int, config.alpha), lora_dropout=config.dropout,
                      target_modules=list(config.targets), **more)  # fmt: skip
    return get_peft_model(cast(Any, encoder), told)


@METHODS.register("vera")
def vera(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """Two matrices drawn once for all layers, and learned factors of their rows (Kopiczko et al. 2024, VeRA)."""
    from peft import VeraConfig, get_peft_model

    told = VeraConfig(r=VERA_RANKS * config.rank, vera_dropout=config.dropout, target_modules=list(config.targets))
    return get_peft_model(cast(Any, encoder), told)


@METHODS.register("ia3")
def ia3(encoder: Encoder, config: AdapterConfig) -> nn.Module:
    """Learned factors of what a layer gives, or takes (Liu et al. 2022, IA3)."""
    from peft import IA3Config, get_peft_model

    takes = [target for target in config.targets if target == "mlp.fc2"]
    told = IA3Config(target_modules=list(config.targets), feedforward_modules=takes)
    return get_peft_model(cast(Any, encoder), told)


def is_peft(model: nn.Module) -> bool:
    """Whether PEFT made it, without importing PEFT."""
    return type(model).__module__.startswith("peft.")


def method(model: nn.Module) -> str:
    """Which of PEFT's methods it is, by our names where we have one."""
    config = cast(Any, model).peft_config["default"]
    return "dora" if getattr(config, "use_dora", False) else str(config.peft_type.value).lower()


def make(encoder: Encoder, config: Any) -> nn.Module:
    """A new adapter by PEFT's own configuration."""
    from peft import get_peft_model

    return get_peft_model(cast(Any, encoder), copy.deepcopy(config))


def state(model: nn.Module) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(cast(Any, model)).items()}


def load_state(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raises ValueError where the tensors are not those of the model's adapter."""
    from peft import set_peft_model_state_dict

    own = state(model)
    if wrong := sorted(
        n for n in {*own, *tensors} if n not in own or n not in tensors or own[n].shape != tensors[n].shape
    ):
        raise ValueError(f"it holds other tensors than this adapter has, such as {wrong[0]}")
    set_peft_model_state_dict(cast(Any, model), tensors)


def save(model: nn.Module, folder: Path) -> None:
    """PEFT's own files, for one adapter."""
    cast(Any, model).save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # the bundle has a card of its own


def load(encoder: Encoder, folder: Path, tensors: dict[str, Tensor]) -> nn.Module:
    """An adapter that PEFT wrote, on the encoder; it goes on learning until told otherwise."""
    from peft import PeftConfig

    told = PeftConfig.from_pretrained(str(folder))
    told.inference_mode = False
    model = make(encoder, told)
    load_state(model, tensors)
    return model


def merged(adapted: AdaptedEncoder) -> Encoder:
    """A plain encoder with the adapter in its own weights."""
    model = copy.deepcopy(adapted.model)  # merging writes into weights, which are the frozen encoder's
    encoder = cast(Any, model).merge_and_unload()
    encoder.spec = ""
    return encoder.freeze()
