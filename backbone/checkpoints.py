"""Reads encoders out of published files and timm models: plain state dicts to `Encoder`, strictly.

Layouts known: `blocks.{i}.norm1.weight …` (timm, polysense) and `{i}.norm1.weight …` (Meta-Transformer: an
`nn.Sequential` of timm blocks, LayerNorm eps 1e-5, no class token, no positions, no final norm).
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.core.errors import InputError

HEADS_BY_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16}  # ViT family, tiny to giant


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a safetensors file or a pickled state dict (weights only) and the configuration it carries, if any.

    Raises:
        InputError: There is no such file, or it is neither.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(path, "there is no such file", "give the path of a .safetensors or .pth checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118
    except SafetensorError:
        pass  # not safetensors; published Meta-Transformer files are pickles, some without an ending
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        problem = "it is neither a safetensors file nor a state dict that loads with weights_only"
        raise InputError(path, problem, "download it again, or save the model's state_dict alone") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(path, "it holds no state dict", "save the model's state_dict alone")
    return dict(state), {}


def from_file(path: Path) -> Encoder:
    """Builds the encoder that a file describes; strict: every block tensor must be there, in shape, and no other.

    Raises:
        InputError: The file is unreadable or the keys or shapes differ; the message says which.
    """
    state, config = read_state(path)
    if any(re.match(r"\d+\.norm1\.weight$", key) for key in state):
        state = {f"blocks.{key}": value for key, value in state.items()}
        config = {"eps": 1e-5, "final_norm": False, **config}
    encoder = Encoder(_infer_config(path, state, config))
    load_strict(encoder, state, path)
    return encoder


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Loads a state dict of exactly the module's keys and shapes, as float32.

    Raises:
        InputError: Something differs; the message lists up to five keys of each kind.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
              for key in sorted(own.keys() & state.keys()) if own[key].shape != state[key].shape]  # fmt: skip
    lists = (("missing", missing), ("unexpected", unknown), ("of another shape", shapes))
    faults = [
        f"{len(keys)} {kind}: {', '.join(keys[:5])}{' …' if len(keys) > 5 else ''}" for kind, keys in lists if keys
    ]
    if faults:
        raise InputError(
            source, "its weights do not fit (" + "; ".join(faults) + ")", "use a checkpoint of this layout"
        )
    module.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})


def from_timm(model: Any) -> Encoder:
    """Copies the blocks, prefix tokens and norms of a timm `VisionTransformer`.

    The positions of class token and registers are added to them here; those of patches belong to the image tokenizer.

    Raises:
        ValueError: The model is not a plain ViT (its parts are named).
    """
    state = {key: value for key, value in model.state_dict().items()}
    block: Any = _check_plain(model)
    config = EncoderConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        qkv_bias=block.attn.qkv.bias is not None,
        qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
        layer_scale=not isinstance(block.ls1, nn.Identity),
        eps=block.norm1.eps,
        activation="quick_gelu" if "quick" in type(block.mlp.act).__name__.lower() else "gelu",
        class_token=model.cls_token is not None,
        registers=model.num_reg_tokens,
        pre_norm=not isinstance(model.norm_pre, nn.Identity),
        final_norm=not isinstance(model.norm, nn.Identity),
    )
    encoder = Encoder(config)
    wanted = {key: state[key] for key in encoder.state_dict() if key in state}
    if not model.no_embed_class and model.num_prefix_tokens and model.pos_embed is not None:
        tokens = [name for name in ("cls_token", "reg_token") if name in wanted]
        sizes = [wanted[name].shape[1] for name in tokens]
        for name, extra in zip(tokens, state["pos_embed"][:, : sum(sizes)].split(sizes, 1), strict=True):
            wanted[name] = wanted[name] + extra
    load_strict(encoder, wanted, type(model).__name__)
    return encoder


def _check_plain(model: Any) -> Any:
    """The first block of a ViT whose blocks this encoder can run; says what is foreign otherwise."""
    from timm.models.vision_transformer import Block, VisionTransformer

    name = type(model).__name__
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{name} is not a plain vision transformer; choose a timm model named vit_*, deit* or *clip*")
    foreign = {type(block).__name__ for block in model.blocks if type(block) is not Block}
    block = model.blocks[0]
    for part in (block, getattr(block, "mlp", None), getattr(block, "attn", None)):
        known = {"Block", "Mlp", "Attention"}
        if type(part).__name__ not in known:
            foreign.add(type(part).__name__)
    if foreign:
        raise ValueError(f"{name} has parts that the plain encoder does not: {', '.join(sorted(foreign))}")
    return block


def _infer_config(path: Path, state: Mapping[str, Tensor], given: Mapping[str, Any]) -> EncoderConfig:
    """Reads the shape of the encoder off the tensors; what they cannot tell comes from `given` or from convention."""
    numbers = {int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}
    if not numbers or "blocks.0.norm1.weight" not in state or "blocks.0.mlp.fc1.weight" not in state:
        raise InputError(path, "no transformer blocks in it", "give a checkpoint with keys like blocks.0.norm1.weight")
    width = state["blocks.0.norm1.weight"].shape[0]
    if not given.get("heads") and width not in HEADS_BY_WIDTH and width % 64:
        raise InputError(path, f"cannot tell the number of heads at width {width}", "save it with polysense")
    inferred = {
        "width": width,
        "depth": max(numbers) + 1,
        "heads": HEADS_BY_WIDTH.get(width, max(width // 64, 1)),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "layer_scale": "blocks.0.ls1.gamma" in state,
        "class_token": "cls_token" in state,
        "registers": state["reg_token"].shape[1] if "reg_token" in state else 0,
        "pre_norm": "norm_pre.weight" in state,
        "final_norm": "norm.weight" in state,
    }
    known = {field.name for field in fields(EncoderConfig)}
    return EncoderConfig(**{**inferred, **{key: value for key, value in given.items() if key in known}})
