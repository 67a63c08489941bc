"""polysense: one frozen encoder, every sense.

>>> import polysense
>>> polysense.load("image-classification")("cat.jpg")[0].answer()  # doctest: +SKIP
'cat'
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InputError", "Known", "Pipeline", "bundles", "load", "load_encoder"]

# Whoever runs Python in a checkout's root finds this folder before the installed package; its sisters (core, heads, …)
# then stand one level up.
_root = Path(__file__).parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "core" / "registry.py").is_file():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from polysense.backbone.weights import load_encoder
    from polysense.bundle import bundles
    from polysense.core.errors import InputError
    from polysense.core.types import Known
    from polysense.pipeline import Pipeline

_HOMES = {"InputError": "core.errors", "Known": "core.types", "Pipeline": "pipeline",
          "load_encoder": "backbone.weights", "bundles": "bundle"}  # fmt: skip


def load(name_or_path: str | Path, device: str = "cpu", engine: str = "torch") -> Pipeline:
    """Loads a pipeline: a task's embedded bundle, a bundle folder, or a Hub repository.

    Args:
        name_or_path: Which.
        device: Where to compute.
        engine: What runs the encoder: "torch", or on the CPU "onnx" or "onnx-int8"; see `Pipeline.with_engine`.
    """
    from polysense.pipeline import Pipeline

    return Pipeline.from_pretrained(name_or_path, device, engine)


def __getattr__(name: str) -> Any:
    # Lazy: `import polysense` costs no torch.
    if name in _HOMES:
        return getattr(import_module(f"polysense.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'polysense' has no attribute {name!r}")
