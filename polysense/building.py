"""The parts of an untrained pipeline: a tokenizer with what was pretrained for its encoder, a head that suits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from polysense.backbone.encoder import Encoder
from polysense.backbone.weights import create_timm, tokenizer_weights
from polysense.components import get_head, get_tokenizer
from polysense.core.errors import InputError
from polysense.core.options import check_options, make_config
from polysense.heads.base import Head
from polysense.tasks import Task
from polysense.tokenizers.base import Tokenizer


def new_tokenizer(
    modality: str, encoder: Encoder, options: dict[str, Any], sources: Sequence[Any]
) -> tuple[Tokenizer, list[str]]:
    """A tokenizer for this encoder (timm's own patch embedding, embedded weights, or seeded ones), and the names of
    the tensors that are not random."""
    kind, _, _ = encoder.spec.partition(":")
    cls, name = get_tokenizer(modality), f"{modality} tokenizer"
    check_options(cls.Config, options, name)
    if modality == "image" and kind in ("timm", "random") and options.get("form", "vit") == "vit":
        from polysense.tokenizers.image import from_timm

        patches = from_timm(create_timm(encoder.spec), **{k: v for k, v in options.items() if k != "form"})
        return patches, sorted(patches.state_dict()) if kind == "timm" else []
    _, pretrained = tokenizer_weights(encoder.spec, modality)
    columns = pretrained.pop("columns", ())
    config: Any = make_config(cls.Config, {"width": encoder.config.width, **pretrained, **options}, name)
    try:
        config = cls.fit_config(config, sources) if sources else config
        tokenizer = cls(_with_schema(config, columns) if columns else config)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(name, str(error), f"see {cls.Config.__name__} for the options") from error
    return tokenizer, load_tokenizer_weights(tokenizer, modality, encoder.spec)


def _with_schema(config: Any, columns: Sequence[Mapping[str, Any]]) -> Any:
    """A table's configuration with the columns that its tokenizer was pretrained on, where they are the same ones."""
    known = {(column["name"], column["kind"]) for column in columns}
    if {(column.name, column.kind) for column in config.columns} != known:
        return config
    return replace(config, columns=tuple(columns))


def load_tokenizer_weights(tokenizer: Tokenizer, modality: str, spec: str = "embedded") -> list[str]:
    """Copies the tensors that were pretrained with an encoder and whose names and shapes the tokenizer has.

    Returns:
        Their names; none where the encoder came without tokenizers, or knows a table of other columns.
    """
    own = tokenizer.state_dict()
    state, config = tokenizer_weights(spec, modality)
    if "columns" in config and [c["name"] for c in config["columns"]] != [c.name for c in tokenizer.config.columns]:
        return []
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    tokenizer.load_state_dict(fitting, strict=False)
    return sorted(fitting)


def new_head(task: Task, options: Mapping[str, Any], tokenizer: Tokenizer, width: int) -> Head:
    """A head of new weights; of the finer maps that a tokenizer has it reads all, unless told otherwise."""
    cls, options = get_head(task.head), dict(options)
    if "fine" in (field.name for field in fields(cls.Config)):
        options.setdefault("fine", getattr(tokenizer, "fine_channels", ()))
    config: Any = make_config(cls.Config, options, f"head of {task.name}")
    return cls(config, width)
