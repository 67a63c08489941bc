"""Finds tokenizers and heads by name, importing only the file that is asked for."""

from __future__ import annotations

from importlib import import_module

from polysense.heads.base import HEADS, Head
from polysense.tokenizers.base import TOKENIZERS, Tokenizer

TOKENIZER_MODULES = {
    name: f"polysense.tokenizers.{name}"
    for name in ("image", "video", "audio", "point_cloud", "time_series", "tabular", "text")
}
HEAD_MODULES = {
    "classification": "polysense.heads.classify",
    "regression": "polysense.heads.regress",
    "embedding": "polysense.heads.embed",
    "meaning": "polysense.heads.meaning",
    "naming": "polysense.heads.meaning",
    "forecasting": "polysense.heads.forecast",
    "segmentation": "polysense.heads.segment",
    "point_segmentation": "polysense.heads.segment_points",
    "detection": "polysense.heads.detect",
    "queries": "polysense.heads.queries",
    "set_detection": "polysense.heads.set_detect",
}


def get_tokenizer(name: str) -> type[Tokenizer]:
    """The tokenizer class registered under a name; ValueError lists the names if there is none."""
    if name in TOKENIZER_MODULES:
        import_module(TOKENIZER_MODULES[name])
    return TOKENIZERS[name]


def get_head(name: str) -> type[Head]:
    """The head class registered under a name; ValueError lists the names if there is none."""
    if name in HEAD_MODULES:
        import_module(HEAD_MODULES[name])
    return HEADS[name]
