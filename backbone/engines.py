"""Engines: what runs a frozen encoder. "torch" is the encoder itself; "onnx" and "onnx-int8" are onnxruntime on a CPU.

Shape legend: b batch, n tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from polysense.backbone.encoder import Encoder
from polysense.backbone.onnx_files import onnx_file, open_session, require_onnx, run_session
from polysense.backbone.packing import packing_of
from polysense.core.errors import InputError
from polysense.core.types import Features, Tokens

ENGINES = ("torch", "onnx", "onnx-int8")
WORTH_A_CALL = 32  # real tokens that a call must have on average: fewer compute less than a call costs


def with_engine(encoder: Encoder, engine: str) -> Encoder:
    """The same frozen encoder, run by another engine; the weights are shared.

    Args:
        encoder: Any encoder of `load_encoder`; one that is run by onnxruntime already is as good.
        engine: One of `ENGINES`.

    Raises:
        InputError: There is no such engine, its extra is missing, or it cannot run this encoder or its adapter.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine}", "there is no such engine", f"choose one of: {', '.join(ENGINES)}")
    if encoder.learns and engine != "torch":  # an adapter: the graph is of its merged weights
        from polysense.backbone.adapters import AdaptedEncoder

        assert isinstance(encoder, AdaptedEncoder)
        encoder = encoder.merged()
    plain = encoder.plain if isinstance(encoder, OnnxEncoder) else encoder
    return plain if engine == "torch" else OnnxEncoder(plain, engine)


def engine_of(encoder: Encoder) -> str:
    """The name of the engine that runs it."""
    return encoder.engine if isinstance(encoder, OnnxEncoder) else "torch"


class OnnxEncoder(Encoder):
    """An encoder run by onnxruntime: for inference only, in float32 on the CPU, with torch's number of threads.

    It has the configuration, the weights and the fingerprint of the encoder it was made of. Graphs are exported when
    they are first needed, one without and one with a mask. Padding is left out where it pays: sequences of one length
    then run together, without a mask.
    """

    def __init__(self, encoder: Encoder, engine: str) -> None:
        require_onnx()
        if type(encoder) is not Encoder:
            raise InputError(f"engine {engine}", f"it runs plain encoders only, not a {type(encoder).__name__}",
                             "use the engine torch")  # fmt: skip
        torch.nn.Module.__init__(self)
        self.__dict__.update(encoder.freeze().__dict__)  # the very modules: no second copy of the weights
        # Past nn.Module, which would list the encoder as a child and its weights twice.
        self.__dict__["plain"] = encoder
        self.engine = engine
        self._device_check(next(encoder.parameters()))

    plain: Encoder
    engine: str

    def forward(self, tokens: Tokens, *, layers: Sequence[int] = ()) -> Features:
        """As `Encoder.forward`.

        Raises:
            ValueError: The width or a layer does not fit; a gradient is wanted; or something is not float32 on the CPU.
        """
        if torch.is_grad_enabled() and tokens.x.requires_grad:
            raise ValueError(f"the engine {self.engine} only infers; to learn, load with engine='torch'")
        if tokens.x.shape[-1] != self.config.width:
            raise ValueError(f"tokens of width {tokens.x.shape[-1]} do not fit an encoder of width {self.config.width}")
        self._device_check(tokens.x)
        self._device_check(next(self.parameters()))
        if tokens.x.numel() == 0:  # onnxruntime reshapes nothing that is empty
            return self.plain(tokens, layers=layers)
        numbers = tuple(self._layer_number(layer) for layer in layers)
        outputs = self._run(tokens.x, tokens.mask, numbers)
        hidden = {layer: tokens.replace(x) for layer, x in zip(layers, outputs[1:])}
        return Features(tokens.replace(outputs[0]), hidden, outputs[-1] if self.config.class_token else None)

    def train(self, mode: bool = True) -> OnnxEncoder:
        """Frozen: there is no training mode."""
        if mode:
            raise ValueError(f"the engine {self.engine} only infers; to learn, load with engine='torch'")
        super().train(False)
        return self

    def _run(self, x: Tensor, mask: Tensor | None, layers: tuple[int, ...]) -> list[Tensor]:
        """The graph's outputs, of padded shapes."""
        if mask is None:
            return run_session(self._session(layers, False), (x,))
        # The packing does not tell which sequence a class token belongs to.
        packing = packing_of(mask) if self.packing and not self.config.class_token else None
        runs = [] if packing is None else [(n, len(list(group))) for n, group in groupby(packing.lengths)]
        if packing is None or sum(packing.lengths) < WORTH_A_CALL * len(runs):
            return run_session(self._session(layers, True), (x, mask))
        session = self._session(layers, False)
        parts = packing.pack(x)[0].split([n * b for n, b in runs])
        outputs = [run_session(session, (part.view(b, n, -1),)) for part, (n, b) in zip(parts, runs)]
        return [packing.unpack(torch.cat([y.flatten(0, 1) for y in same])[None]) for same in zip(*outputs)]

    def _session(self, layers: tuple[int, ...], masked: bool) -> Any:
        files = self.__dict__.setdefault("_files", {})
        if (layers, masked) not in files:
            files[layers, masked] = onnx_file(self.plain, layers, masked=masked, int8=self.engine == "onnx-int8")
        return _shared_session(files[layers, masked], torch.get_num_threads())

    def _device_check(self, x: Tensor) -> None:
        if x.device.type != "cpu" or x.dtype != torch.float32:
            raise ValueError(
                f"the engine {self.engine} runs float32 on the CPU, not {x.dtype} on {x.device}; use engine='torch'"
            )


_shared_session = lru_cache(maxsize=8)(open_session)  # pipelines of one encoder share it, as they do in torch
