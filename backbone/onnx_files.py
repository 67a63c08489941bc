"""The encoder as an ONNX file in the user's cache folder: exported, checked against torch, quantised.

A file is named after everything its content depends on, so a file that is there is right, and nothing is ever stale.

Shape legend: b batch, n tokens, d width.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polysense.backbone.encoder import Encoder
from polysense.core.errors import InputError
from polysense.core.folders import cache_folder
from polysense.core.types import Tokens

LAYOUT = 2  # raised when this file makes other graphs of the same encoder
OPSET = 17  # the first with LayerNormalization
CLOSE = 1e-4  # largest difference from torch, as a share of the largest value (of 1 where all are smaller)
LARGEST = 1.9e9  # bytes of weights: one ONNX file holds 2 GB


def require_onnx() -> None:
    """Makes sure that the extra is installed, and that onnxruntime keeps what it runs to itself.

    Raises:
        InputError: It is not.
    """
    # From 1.29 on it reports every session (hashes of the model, the file's name) to its maker unless told not to, and
    # puts an id of the machine into the cache folder as it is imported.
    quiet = os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        for name in ("onnx", "onnxruntime"):
            module = import_module(name)
        if quiet == "1":
            module.disable_telemetry_events()  # somebody else may have imported it before
    except ImportError as error:
        fix = "install them with: pip install 'polysense[onnx]'"
        raise InputError("engine onnx", f"it needs onnx and onnxruntime ({error})", fix) from error


def onnx_file(encoder: Encoder, layers: Sequence[int], *, masked: bool, int8: bool) -> Path:
    """The encoder's graph, made now if it is not in the cache.

    Inputs of the graph: x (b, n, d) float32 and, if `masked`, mask (b, n) bool. Outputs, in this order: the last tokens
    (b, n, d), one (b, n, d) for each of `layers`, and the class token (b, d) if the encoder has one.

    Args:
        encoder: A plain frozen encoder, float32 on the CPU.
        layers: Hidden layers, as for `Encoder.forward`.
        masked: Whether batches have padding: a graph without a mask is about a tenth faster.
        int8: Whether the linears' weights are 8-bit integers.

    Raises:
        InputError: The extra is missing, the encoder cannot be exported, or the cache folder cannot be written.
    """
    require_onnx()
    path = cache_folder() / "onnx" / f"{graph_key(encoder, layers)}-{'masked' if masked else 'dense'}.onnx"
    small = path.with_suffix(".int8.onnx")
    try:
        if not path.is_file():
            _write(path, lambda partial: _export(encoder, layers, masked, partial))
        if int8 and not small.is_file():
            _write(small, lambda partial: _quantise(path, partial))
    except OSError as error:
        raise InputError(path.parent, f"the exported encoder cannot be written there ({error.strerror or error})",
                         "set XDG_CACHE_HOME to a folder with room") from error  # fmt: skip
    return small if int8 else path


def graph_key(encoder: Encoder, layers: Sequence[int]) -> str:
    """What the graph depends on: weights, modules (their repr names eps and activations), layers, versions."""
    facts = [LAYOUT, OPSET, encoder.fingerprint(), encoder.config_dict(), encoder.__class__.__name__, str(encoder),
             list(layers), *(version(name) for name in ("torch", "onnx", "onnxruntime"))]  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _write(path: Path, make: Callable[[Path], None]) -> None:
    """Whole or not at all: two processes may make the same file, and either may be killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        partial = Path(folder) / path.name
        make(partial)
        partial.replace(path)


class _Graph(nn.Module):
    """The encoder on plain tensors."""

    def __init__(self, encoder: Encoder, layers: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, tuple(layers)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None) -> tuple[Tensor, ...]:
        features = self.encoder(Tokens(x, mask, x[..., :1]), layers=self.layers)  # no encoder reads coordinates
        hidden = (features.hidden[layer].x for layer in self.layers)
        # An output that is the input as it came needs a node of its own.
        outputs = (features.last.x, *(h + 0 for h in hidden))
        return outputs if features.cls is None else (*outputs, features.cls)


def _export(encoder: Encoder, layers: Sequence[int], masked: bool, path: Path) -> None:
    size = sum(p.numel() for p in encoder.parameters())
    if 4 * size > LARGEST:
        raise InputError("engine onnx", f"an encoder of {size / 1e6:.0f}M parameters is too large for one file",
                         "use the engine torch")  # fmt: skip
    graph = _Graph(encoder, layers).eval()
    names = ["x", "mask"] if masked else ["x"]
    outputs = ["last", *(f"hidden{i}" for i in range(len(layers)))]
    dynamic = {name: {0: "b", 1: "n"} for name in (*names, *outputs)}
    if encoder.config.class_token:
        outputs.append("cls")
        dynamic["cls"] = {0: "b"}
    try:
        # The tracing exporter: a second where the other takes twenty, and plain transformers need no more. Its
        # warnings are about Python's comparisons of shapes, which here only check arguments.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(graph, _example(encoder, 3, 5, masked), str(path), dynamo=False, opset_version=OPSET,
                              input_names=names, output_names=outputs, dynamic_axes=dynamic)  # fmt: skip
    except (RuntimeError, TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError("engine onnx", f"this encoder cannot be exported ({first})", "use the engine torch") from error
    _check(graph, path, encoder, masked)


def _example(encoder: Encoder, b: int, n: int, masked: bool) -> tuple[Tensor, ...]:
    """Tokens and a mask with holes, at least one real token each; the same every time."""
    generator = torch.Generator().manual_seed(b * 1000 + n)
    x = torch.randn(b, n, encoder.config.width, generator=generator)
    mask = torch.rand(b, n, generator=generator) < 0.6
    mask[:, 0] = True
    return (x, mask) if masked else (x,)


@torch.inference_mode()
def _check(graph: nn.Module, path: Path, encoder: Encoder, masked: bool) -> None:
    """A trace may hold the example's shape where it should not: another batch and length tell."""
    session = open_session(path, 1)
    for b, n in ((1, 1), (2, 9)):
        inputs = _example(encoder, b, n, masked)
        got = run_session(session, inputs)
        seen = inputs[1] if masked else torch.ones(b, n, dtype=torch.bool)
        for one, other in zip(graph(*inputs), got, strict=True):
            far = (one - other).abs()
            far = far[seen] if one.ndim == 3 else far
            if not bool((far <= CLOSE * max(1.0, float(one.abs().max()))).all()):
                raise InputError("engine onnx", f"the exported encoder differs from torch by {float(far.max()):.1e}",
                                 "use the engine torch")  # fmt: skip


def _quantise(path: Path, out: Path) -> None:
    """Dynamic quantisation: weights are int8, activations are rounded as they come, everything else stays float.

    A scale for each output channel costs no time. Seven bits, because eight times eight bits overflow a 16-bit sum
    on x86 processors without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it asks on the root logger for a step that changes nothing here
    try:
        quantize_dynamic(path, out, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8,
                         per_channel=True, reduce_range=True, extra_options={"MatMulConstBOnly": True})  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)


def open_session(path: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU.

    Raises:
        InputError: The file is damaged.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait by spinning would take the cores from torch, whose tokenizer and head run between two calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own have no common class
        first = str(error).strip().splitlines()[0]
        raise InputError(path, f"onnxruntime cannot open it ({first})", "delete it: it is made anew") from error


def run_session(session: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in, tensors out; contiguous inputs are not copied."""
    names = [node.name for node in session.get_inputs()]
    feed = {name: value.detach().contiguous().numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]
