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
__all__ = ["AdapterSet", "InputError", "Known", "Pipeline", "bundles", "fit", "load", "load_encoder", "open_detector"]

# Whoever runs Python in a checkout's root finds this folder before the installed package; its sisters (core, heads, …)
# then stand one level up.
_root = Path(__file__).parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "core" / "registry.py").is_file():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from polysense.adapter_set import AdapterSet
    from polysense.backbone.weights import load_encoder
    from polysense.bundle import bundles
    from polysense.core.errors import InputError
    from polysense.core.types import Known
    from polysense.open_vocabulary import open_detector
    from polysense.pipeline import Pipeline

_HOMES = {"AdapterSet": "adapter_set", "InputError": "core.errors", "Known": "core.types", "Pipeline": "pipeline",
          "bundles": "bundle", "load_encoder": "backbone.weights", "open_detector": "open_vocabulary"}  # fmt: skip


def load(name_or_path: str | Path, device: str = "cpu", engine: str = "torch") -> Pipeline:
    """Loads a pipeline: a task's embedded bundle, a bundle folder, or a Hub repository.

    Args:
        name_or_path: Which.
        device: Where to compute.
        engine: What runs the encoder: "torch", or on the CPU "onnx" or "onnx-int8"; see `Pipeline.with_engine`.
    """
    from polysense.pipeline import Pipeline

    return Pipeline.from_pretrained(name_or_path, device, engine)


def fit(
    task: str, data: str | Path, out: str | Path | None = None, *, method: str = "head", **options: Any
) -> Pipeline:
    """Fine-tunes on your data and gives back the pipeline, ready to predict.

    Args:
        task: What to learn ("image-classification").
        data: Labelled data: a folder, a table or a list (docs/data.md).
        out: Bundle folder to write; None keeps the pipeline in memory alone.
        method: "probe", "head", an adapter's name ("lora" …), or "auto".
        options: Further arguments of `polysense.training.fit.fit`.

    Raises:
        InputError: Data or options cannot be used.
    """
    import tempfile

    run = getattr(import_module("polysense.training.choose"), "fit_best" if method == "auto" else "fit")
    given = options if method == "auto" else {**options, "method": method}
    if out is not None:
        return load(run(task, data, out, **given).path, options.get("device", "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        return load(run(task, data, Path(folder) / "fitted", **given).path, options.get("device", "cpu"))


def __getattr__(name: str) -> Any:
    # Lazy: `import polysense` costs no torch.
    if name in _HOMES:
        return getattr(import_module(f"polysense.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'polysense' has no attribute {name!r}")
