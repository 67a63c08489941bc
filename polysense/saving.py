"""Pipelines to bundle folders and back, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polysense.backbone.adapters import AdaptedEncoder, load_adapter
from polysense.backbone.checkpoints import load_strict
from polysense.backbone.weights import embedded_tokenizer_state
from polysense.bundle import FORMAT, read_config
from polysense.card import Card
from polysense.components import get_head, get_tokenizer
from polysense.core.errors import InputError
from polysense.tasks import TASKS

if TYPE_CHECKING:
    from polysense.pipeline import Pipeline


def save(pipeline: Pipeline, path: Path, dtype: torch.dtype | None = None) -> Path:
    """Writes a bundle. An existing bundle at `path` is replaced at the end; anything else there is left alone.

    Raises:
        InputError: `path` is a file, or a folder that is no bundle; the encoder could not be found again; or the disk
            is full, and then what stood there before still stands.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = path.expanduser()
    check_place(path)
    state, shared = _own_tensors(pipeline)
    if dtype is not None:
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    config = {
        "format": FORMAT,
        "task": pipeline.task.name,
        "tokenizer": {
            "name": pipeline.task.modality,
            "config": pipeline.tokenizer.config_dict(),
            "embedded_tensors": shared,
            "embedded_sha256": fingerprint({name: pipeline.tokenizer.state_dict()[name] for name in shared}),
        },
        "head": {"name": pipeline.task.head, "config": pipeline.head.config_dict()},
        "encoder": {"spec": _lasting(pipeline.encoder.spec), "sha256": pipeline.encoder_hash},
        "adapter": pipeline.encoder.method if isinstance(pipeline.encoder, AdaptedEncoder) else None,
        "metrics": pipeline.metrics,
        "about": pipeline.about,
        "card": pipeline.card.config(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        (partial / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")
        save_file(state, partial / "model.safetensors")
        if isinstance(pipeline.encoder, AdaptedEncoder):
            pipeline.encoder.save(partial)
        pipeline.card.write(partial)
        (partial / "README.md").write_text(card(pipeline, path.name))
        partial.chmod(0o755)
        _replace(path, partial)
    except (OSError, SafetensorError) as error:
        raise InputError(path, f"the bundle cannot be written ({error})", "make room, and do it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _lasting(spec: str) -> str:
    """The spec by which the encoder is found again, from any folder."""
    if not spec:
        fix = "write it with save_encoder and load it as file:PATH"
        raise InputError("the encoder", "it has no spec by which a bundle could find it again", fix)
    kind, _, name = spec.partition(":")
    return f"file:{Path(name).expanduser().resolve()}" if kind == "file" else spec


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_weights(modules: Mapping[str, nn.Module]) -> str:
    """SHA-256 over all tensors of several pipelines."""
    return fingerprint({f"{name}.{key}": value for name, module in modules.items()
                        for key, value in module.state_dict().items()})  # fmt: skip


def check_place(path: Path) -> None:
    """Makes sure that a bundle may be written there: nothing, an empty folder or an older bundle.

    Raises:
        InputError: Something else stands there, which would be lost; or the folder above cannot be written to.
    """
    free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not free and not is_bundle(path):
        raise InputError(path, "something that is no bundle stands there", "choose another folder")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", dir=above))  # trying is the one test that is always right
    except OSError as error:
        raise InputError(path, f"{above} cannot be written to ({error.strerror})", "choose another folder") from error


def is_bundle(path: Path) -> bool:
    """Whether it is a folder with a bundle's configuration: many other kinds of models have a `config.json` too."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"format", "task", "tokenizer", "head", "encoder"} <= config.keys()


def _replace(path: Path, by: Path) -> None:
    """Puts a folder in the place of another, which is deleted only when the new one stands there."""
    old = by.with_name(f"{by.name}.old")
    if path.exists():
        path.rename(old)
    try:
        by.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _own_tensors(pipeline: Pipeline) -> tuple[dict[str, Tensor], list[str]]:
    """Tokenizer and head tensors to store, and the names of those that the embedded tokenizer has bit for bit."""
    base: dict[str, Tensor] = {}
    if pipeline.encoder.spec == "embedded":
        try:
            base = embedded_tokenizer_state(pipeline.task.modality)
        except InputError:
            base = {}
    state, shared = {}, []
    for name, value in pipeline.tokenizer.state_dict().items():
        if name in base and torch.equal(value.cpu(), base[name]):
            shared.append(name)
        else:
            state[f"tokenizer.{name}"] = value.detach().cpu().contiguous()
    state |= {f"head.{name}": value.detach().cpu().contiguous() for name, value in pipeline.head.state_dict().items()}
    # Tied or sliced tensors would share storage, which safetensors refuses.
    return {name: value.clone() for name, value in state.items()}, shared


def load(cls: type[Pipeline], folder: Path) -> Pipeline:
    """Reads a bundle folder.

    Raises:
        InputError: It is damaged, or was made for another encoder.
    """
    from polysense.pipeline import shared_encoder

    config = read_config(folder)
    if config["task"] not in TASKS:
        raise InputError(folder, f"its task {config['task']!r} is unknown to this version", "upgrade polysense")
    encoder = shared_encoder(config["encoder"]["spec"])
    if encoder.fingerprint() != config["encoder"]["sha256"]:
        problem = f"it was made for another encoder than {config['encoder']['spec']} is now"
        raise InputError(folder, problem, "fit it again, or install the version of polysense that made it")
    try:
        tokenizer_class = get_tokenizer(config["tokenizer"]["name"])
        head_class = get_head(config["head"]["name"])
        tokenizer = tokenizer_class(tokenizer_class.Config(**config["tokenizer"]["config"]))
        head = head_class(head_class.Config(**config["head"]["config"]), encoder.config.width)
    except (TypeError, ValueError) as error:
        raise InputError(folder / "config.json", f"its options do not fit: {error}", "fit the bundle again") from error
    parts = _stored_tensors(folder / "model.safetensors")
    if shared := config["tokenizer"]["embedded_tensors"]:
        base = embedded_tokenizer_state(config["tokenizer"]["name"])
        known = {name: base[name] for name in shared if name in base}
        if fingerprint(known) != config["tokenizer"].get("embedded_sha256", fingerprint(known)):
            problem = f"it was made for another embedded {config['tokenizer']['name']} tokenizer than this version's"
            raise InputError(folder, problem, "fit it again, or install the version of polysense that made it")
        parts["tokenizer"] |= known
    load_strict(tokenizer, parts["tokenizer"], folder / "model.safetensors")
    load_strict(head, parts["head"], folder / "model.safetensors")
    if config.get("adapter"):
        encoder = load_adapter(encoder, folder)
    pipeline = cls(TASKS[config["task"]], tokenizer, encoder, head, name=folder.name, metrics=config["metrics"],
                   about=config["about"]).eval()  # fmt: skip
    pipeline.card = Card.read(config.get("card", {}), folder)
    return pipeline


def _stored_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of "tokenizer" and "head". Only safetensors: a bundle is never unpickled.

    Raises:
        InputError: The file is absent, damaged, or holds other tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(path, f"it is no whole safetensors file ({error})", "copy the bundle again") from error
    parts: dict[str, dict[str, Tensor]] = {"tokenizer": {}, "head": {}}
    for name, value in state.items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise InputError(path, f"its tensor {name!r} is of no known part", "give a folder written by polysense fit")
        parts[part][key] = value
    return parts


def parts_of(pipeline: Pipeline) -> str:
    """What a bundle holds."""
    if isinstance(pipeline.encoder, AdaptedEncoder):
        return f"tokenizer, head and adapter ({pipeline.encoder.method})"
    return "tokenizer and head"


def card(pipeline: Pipeline, folder: str) -> str:
    """The bundle's README: what it is, how to use it, what was measured."""
    rows = [f"| {name} | {value:.4f} |" for name, value in pipeline.metrics.items()]
    facts = [f"- **{key.replace('_', ' ')}**: {value}" for key, value in pipeline.about.items()]
    return "\n".join([
        f"# {pipeline.name}", "", f"A polysense bundle for {pipeline.task.name}: {parts_of(pipeline)} beside the "
        f"frozen encoder `{pipeline.encoder.spec}` (sha256 `{pipeline.encoder_hash[:16]}…`).", "",
        *(["| metric | value |", "|---|---|", *rows, ""] if rows else []), *facts, "", "```python", "import polysense",
        "", f'pipeline = polysense.load("{folder}")', "print(pipeline(path))", "```", "", *pipeline.card.lines(),
    ])  # fmt: skip
