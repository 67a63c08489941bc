"""Several adapters of one encoder become one: what each has learnt, weighed (Wortsman et al. 2022, "Model soups").

LoRA adds a product B A to a weight. Its factors mean nothing by themselves (B R⁻¹ and R A give the same product), so
the products are averaged and not the factors: factors side by side have exactly that sum, at the sum of the ranks.
DoRA's direction is averaged in the same way and its sizes as numbers. All other methods are averaged number by number.

Shape legend: r rank of one adapter, R the sum of ranks, i inputs and o outputs of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.backbone.adapters import peft_methods
from polysense.backbone.adapters.config import shared_copy
from polysense.backbone.averaging import average_tensors

if TYPE_CHECKING:
    from polysense.backbone.adapters.adapted import AdaptedEncoder

FACTORS = ("lora_A", "lora_B", "lora_magnitude_vector")  # in the names of what LoRA and DoRA learn
RANKS = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
OF_TRAINING = {"inference_mode", "lora_dropout", "vera_dropout", "base_model_name_or_path", "revision", "auto_mapping",
               "init_lora_weights", "peft_version", "task_type"}  # fmt: skip


def average(adapters: Sequence[AdaptedEncoder], weights: Sequence[float]) -> AdaptedEncoder:
    """One adapter on the same encoder.

    Args:
        adapters: Of one method on encoders of one fingerprint; LoRA's and DoRA's ranks may differ.
        weights: One for each.

    Raises:
        ValueError: The methods, their options or the encoders differ.
    """
    first = adapters[0]
    for other in adapters[1:]:
        if other.method != first.method:
            raise ValueError(f"one adapter is {first.method}, the other {other.method}")
        if other.fingerprint() != first.fingerprint():
            raise ValueError("the adapters stand on different encoders")
    if first.method in ("lora", "dora"):
        return _average_products(adapters, weights)
    return _average_numbers(adapters, weights)


def _average_numbers(adapters: Sequence[AdaptedEncoder], weights: Sequence[float]) -> AdaptedEncoder:
    from polysense.backbone.adapters.adapted import AdaptedEncoder, adapt

    first = adapters[0]
    states = [one.adapter_state() for one in adapters]
    drawn = [name for name in states[0] if "vera_A" in name or "vera_B" in name]
    if any(not torch.equal(state.get(name, states[0][name]), states[0][name]) for state in states for name in drawn):
        raise ValueError("VeRA's matrices were drawn differently")  # and each has learnt for its own
    state = average_tensors(states, weights)
    if peft_methods.is_peft(first.model):
        _same_options([_config(one) for one in adapters])
        made = AdaptedEncoder(first.plain, peft_methods.make(shared_copy(first.plain), _config(first)), first.adapter)
    else:
        assert first.adapter is not None
        for other in adapters[1:]:
            assert other.adapter is not None
            if replace(other.adapter, dropout=first.adapter.dropout) != first.adapter:
                raise ValueError("the adapters have different options")
        made = adapt(first.plain, first.adapter)
    made.load_adapter_state(state)
    return made


def _average_products(adapters: Sequence[AdaptedEncoder], weights: Sequence[float]) -> AdaptedEncoder:
    """Σ wᵢ sᵢ Bᵢ Aᵢ as one product: the rows of all Aᵢ one under another, the columns wᵢ sᵢ Bᵢ side by side."""
    from polysense.backbone.adapters.adapted import AdaptedEncoder

    for one in adapters:
        if odd := sorted(n for n in one.adapter_state() if not any(part in n for part in FACTORS)):
            raise ValueError(f"an adapter learns more than LoRA's factors, such as {odd[0]}")
    layers = [_lora_layers(one) for one in adapters]
    if any(found.keys() != layers[0].keys() for found in layers):
        raise ValueError("the adapters stand beside different layers")
    _same_options([_config(one) for one in adapters], apart=RANKS)
    ranks = {name: sum(found[name].r["default"] for found in layers) for name in layers[0]}
    config = copy.copy(_config(adapters[0]))
    # Scaled by alpha / r = 1: each summand has its own scale within B.
    config.r = config.lora_alpha = max(ranks.values())
    config.rank_pattern, config.alpha_pattern, config.use_rslora = {}, {}, False
    plain = adapters[0].plain
    made = AdaptedEncoder(plain, peft_methods.make(shared_copy(plain), config), None)
    with torch.no_grad():
        for name, layer in _lora_layers(made).items():
            a, b = _side_by_side([found[name] for found in layers], weights)
            layer.lora_A["default"].weight.zero_()[: len(a)] = a
            layer.lora_B["default"].weight.zero_()[:, : len(a)] = b
            if config.use_dora:
                sizes = [found[name].lora_magnitude_vector["default"].weight for found in layers]
                layer.lora_magnitude_vector["default"].weight.copy_(_mean(sizes, weights))
    return made


def _same_options(configs: Sequence[Any], apart: set[str] | None = None) -> None:
    """Raises ValueError where PEFT's options differ, apart from some and from what matters in training alone."""
    told = [{k: v for k, v in config.to_dict().items() if k not in OF_TRAINING | (apart or set())}
            for config in configs]  # fmt: skip
    for other in told[1:]:
        if wrong := sorted(key for key in {*told[0], *other} if _plain(told[0].get(key)) != _plain(other.get(key))):
            raise ValueError(f"the adapters have different options, such as {wrong[0]}")


def _plain(value: Any) -> Any:
    """PEFT reads lists where it was given sets, and has no order in either."""
    return sorted(map(str, value)) if isinstance(value, list | set | tuple) else value


def _config(adapted: AdaptedEncoder) -> Any:
    return cast(Any, adapted.model).peft_config["default"]


def _lora_layers(adapted: AdaptedEncoder) -> dict[str, Any]:
    named = adapted.model.named_modules()
    return {name: one for name, one in named if isinstance(getattr(one, "lora_A", None), nn.Module)}


def _side_by_side(layers: Sequence[Any], weights: Sequence[float]) -> tuple[Float[Tensor, "R i"], Float[Tensor, "o R"]]:
    a = [layer.lora_A["default"].weight for layer in layers]
    b = [layer.lora_B["default"].weight for layer in layers]
    scales = [w * layer.scaling["default"] for w, layer in zip(weights, layers, strict=True)]
    return torch.cat(a, 0), torch.cat([scale * one for scale, one in zip(scales, b, strict=True)], 1)


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return average_tensors([{"": one} for one in tensors], weights)[""]
