"""`load_encoder(spec)`: one function for every place that encoder weights come from."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polysense.backbone import checkpoints
from polysense.backbone.encoder import Encoder
from polysense.core.errors import InputError

SPECS = "embedded, timm:NAME, hub:REPO, file:PATH or random:NAME"


def embedded_folder() -> Path:
    """Folder of the weights that ship with the package."""
    return Path(str(files("polysense.weights")))


def load_encoder(spec: str = "embedded") -> Encoder:
    """Loads a frozen encoder.

    Args:
        spec: `embedded` (polysense's own jointly pretrained weights, offline); `timm:NAME` (any plain timm ViT with its
            pretrained weights); `hub:REPO` or `hub:REPO#FILE` (a Hugging Face Hub repository: a timm model, or a
            checkpoint file of a known layout); `file:PATH` (safetensors, or a published Meta-Transformer `.pth`);
            `random:NAME` (a timm architecture with seeded random weights, for tests and benchmarks).

    Returns:
        The encoder, frozen, in evaluation mode; `encoder.spec` is the spec.

    Raises:
        InputError: The spec is unknown, the weights cannot be had or do not fit.
    """
    kind, _, name = spec.partition(":")
    if kind == "embedded":
        encoder = checkpoints.from_file(embedded_folder() / (f"{name or 'encoder'}.safetensors"))
    elif kind in ("timm", "random") and name:
        encoder = _as_encoder(create_timm(spec), spec)
    elif kind == "hub" and name:
        encoder = _from_hub(name)
    elif kind == "file" and name:
        encoder = checkpoints.from_file(Path(name).expanduser())
    else:
        raise InputError(spec, "unknown encoder", f"use {SPECS}")
    encoder.spec = spec
    return encoder.freeze()


def create_timm(spec: str, head: bool = False) -> torch.nn.Module:
    """The whole timm model behind a `timm:NAME` or `random:NAME` spec.

    Args:
        spec: Which.
        head: With its last linear map (a classifier, or the projection of a CLIP model).

    Raises:
        InputError: timm has no model of that name, or its weights cannot be downloaded.
    """
    import timm

    kind, _, name = spec.partition(":")
    if not timm.is_model(name.split(".")[0]) and not name.startswith("hf-hub:"):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]) or "vit_base_patch16_224"
        raise InputError(spec, "timm has no model of this name", f"choose one such as {near}")
    options: dict[str, Any] = {} if head else {"num_classes": 0}
    if kind == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(name, pretrained=False, **options).eval()
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return timm.create_model(name, pretrained=True, **options).eval()
    except (OSError, RuntimeError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        fix = "connect to the internet once so that timm can download them, or use file:PATH"
        raise InputError(spec, "its pretrained weights cannot be had", fix) from error


def _as_encoder(model: torch.nn.Module, spec: str) -> Encoder:
    try:
        return checkpoints.from_timm(model)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(spec, str(error), "use a plain ViT") from error


def _from_hub(name: str) -> Encoder:
    """A repository with a timm `config.json`, or one checkpoint file (named after `#`, else `model.safetensors`)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, file = name.partition("#")
    try:
        if not file:
            config = json.loads(Path(hf_hub_download(repo, "config.json")).read_text())
            if "architecture" in config:
                return _as_encoder(create_timm(f"timm:hf-hub:{repo}"), f"hub:{name}")
        path = Path(hf_hub_download(repo, file or "model.safetensors"))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        fix = "check the name and the connection; name the file as hub:REPO#FILE if it is not model.safetensors"
        raise InputError(f"hub:{name}", "the Hub does not give it", fix) from error
    return checkpoints.from_file(path)


def save_encoder(encoder: Encoder, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes weights and configuration as one safetensors file."""
    from safetensors.torch import save_file

    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in encoder.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(state, partial, metadata={"config": json.dumps(encoder.config_dict())})
    partial.replace(path)


@lru_cache(maxsize=8)
def embedded_tokenizer_state(modality: str) -> dict[str, Tensor]:
    """Weights of the default tokenizer of a modality, as float32, by name; treat them as read-only.

    Raises:
        InputError: The package carries none for this modality.
    """
    return _tokenizer_state(embedded_folder() / "tokenizers", modality)[0]


def tokenizer_weights(spec: str, modality: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of the tokenizer that was pretrained with an encoder.

    Args:
        spec: The encoder's. Beside a `file:PATH` they stand in `tokenizers/MODALITY.safetensors`.
        modality: Which tokenizer.

    Returns:
        Both empty where there are none; the embedded ones have the default configuration.
    """
    kind, _, name = spec.partition(":")
    if kind == "embedded" and _tokenizer_file(embedded_folder() / "tokenizers", modality).is_file():
        return embedded_tokenizer_state(modality), {}
    folder = Path(name).expanduser().parent / "tokenizers"
    if kind != "file" or not _tokenizer_file(folder, modality).is_file():
        return {}, {}
    return _tokenizer_state(folder, modality)


def _tokenizer_file(folder: Path, modality: str) -> Path:
    """Where a tokenizer's weights stand. Clips that were not pretrained themselves begin with what pictures taught."""
    path = folder / f"{modality}.safetensors"
    return folder / "image.safetensors" if modality == "video" and not path.is_file() else path


def _tokenizer_state(folder: Path, modality: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = _tokenizer_file(folder, modality)
    state, config = checkpoints.read_state(path)
    if path.stem != modality:  # what both have
        state = {name: value for name, value in state.items() if name.startswith(("stem.", "project."))}
        config = {"stride": config["stride"]} if "stride" in config else {}
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}, config
