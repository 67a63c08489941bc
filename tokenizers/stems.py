"""Small convolutional front parts of tokenizers, with batch norms folded into biases.

`lite0` is EfficientNet-lite0 (Tan & Le 2019) without its wide last layer: all blocks (0-15, stride 32), or its front
(blocks 0-10, stride 16, or 0-2, stride 4). `yamnet` is YAMNet's MobileNet v1 (Howard et al. 2017) up to its pooling,
14 layers, read at three depths. Their published weights, Apache-2.0, may begin a tokenizer (see NOTICE); with random
weights the same shapes train from scratch.

Shape legend: b batch, c channels, h height, w width.
"""

from __future__ import annotations

from itertools import pairwise
from math import log, log2
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.tokenizers.audio_features import FLOOR


class Stage(NamedTuple):
    """`repeats` blocks; the first one has the stride and changes the number of channels."""

    expand: int
    kernel: int
    stride: int
    channels: int
    repeats: int


LITE0 = (Stage(1, 3, 1, 16, 1), Stage(6, 3, 2, 24, 2), Stage(6, 5, 2, 40, 2), Stage(6, 3, 2, 80, 3),
         Stage(6, 5, 1, 112, 3), Stage(6, 5, 2, 192, 4), Stage(6, 3, 1, 320, 1))  # fmt: skip
STAGES = {4: 2, 16: 5, 32: 7}  # how many of them give a stride
YAMNET = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), (1, 512), (1, 512), (1, 512), (1, 512), (1, 512),
          (2, 1024), (1, 1024))  # (stride, channels) of layers 2-14; layer 1 is a plain convolution  # fmt: skip
YAMNET_READ = (7, 9, 14)  # layers whose outputs are read
YAMNET_FRAMES = 96  # what the network was trained on: windows of 0.96 s, beyond whose edges there is nothing


def channels_last(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """The same maps, the channels of a pixel side by side: on a CPU an image of 128 pixels then takes about
    two thirds of the time."""
    return x.contiguous(memory_format=torch.channels_last)


def lay_out(stem: nn.Module) -> None:
    """Lays a stem's kernels out as `channels_last` does its maps."""
    for parameter in stem.parameters():
        if parameter.ndim == 4:
            parameter.data = channels_last(parameter.data)


class PaddedConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding for inputs whose sides the total stride divides."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        total = self.kernel_size[0] - self.stride[0]
        if total > 0:
            before, after = total // 2, total - total // 2
            x = F.pad(x, (before, after, before, after))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al. 2018), ReLU6, no squeeze-and-excitation."""

    def __init__(self, channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        hidden = channels * stage.expand
        self.expand = PaddedConv(channels, hidden, 1) if stage.expand != 1 else None
        self.depthwise = PaddedConv(hidden, hidden, stage.kernel, stride, groups=hidden)
        self.project = PaddedConv(hidden, stage.channels, 1)
        self.residual = stride == 1 and channels == stage.channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        y = F.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Separable(nn.Module):
    """Depthwise then pointwise, each with a ReLU (MobileNet v1)."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = PaddedConv(channels, channels, 3, stride, groups=channels)
        self.pointwise = PaddedConv(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return F.relu(self.pointwise(F.relu(self.depthwise(x))))


class Lite0Stem(nn.Module):
    """RGB scaled to -1..1 -> (b, 320, h/32, w/32), (b, 112, h/16, w/16) or (b, 24, h/4, w/4).

    Sides must be multiples of the stride.
    """

    def __init__(self, stride: int = 32) -> None:
        super().__init__()
        if stride not in STAGES:
            raise ValueError(f"the lite0 stem has stride {', '.join(map(str, STAGES))}, not {stride}")
        stages = LITE0[: STAGES[stride]]
        self.stride, self.channels = stride, stages[-1].channels
        self.first = PaddedConv(3, 32, 3, 2)
        blocks, channels = [], 32
        for stage in stages:
            for i in range(stage.repeats):
                blocks.append(InvertedResidual(channels, stage, stage.stride if i == 0 else 1))
                channels = stage.channels
        self.blocks = nn.Sequential(*blocks)
        lay_out(self)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.blocks(F.relu6(self.first(channels_last(x))))

    @property
    def fine_channels(self) -> tuple[int, ...]:
        """Of the maps that `maps` gives beside the last one."""
        ends = [stages[0].channels for stages in pairwise(LITE0) if stages[1].stride == 2]
        return tuple(reversed(ends[1 : int(log2(self.stride)) - 1]))

    def maps(self, x: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c h2 w2"]]:
        """What `forward` gives, and the maps that led to it, each twice as fine as the one before, up to stride 4."""
        x, finer = F.relu6(self.first(channels_last(x))), []
        for block in self.blocks:
            if cast(InvertedResidual, block).depthwise.stride[0] == 2:
                finer.append(x)
            x = block(x)
        return [x, *reversed(finer[1:])]


class YamnetStem(nn.Module):
    """Log-mel (b, 1, frames, 64 bands) -> (b, 1024, frames/16, 6). The number of frames must be a multiple of 16.

    The first four columns are bands of what layers 7 and 9 give, side by side; the last two of what layer 14 makes of
    it at half the resolution (each of its rows stands twice): what is said is told best by the first, what sounds by
    the last. Sounds are read in windows of 0.96 s, one after the other, the last one filled up with silence: in longer
    ones the last layers lose themselves.
    """

    stride, channels, bands, late_bands = 16, YAMNET[-1][1], 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.first = PaddedConv(1, 32, 3, 2)
        blocks, channels = [], 32
        for stride, out_channels in YAMNET:
            blocks.append(Separable(channels, out_channels, stride))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        lay_out(self)

    def forward(self, x: Float[Tensor, "b 1 t 64"]) -> Float[Tensor, "b 1024 t2 6"]:
        frames = x.shape[2]
        x = F.pad(x, (0, 0, 0, -frames % YAMNET_FRAMES), value=log(FLOOR))
        windows = x.unflatten(2, (-1, YAMNET_FRAMES)).transpose(1, 2)  # (b, w, 1, 96, 64)
        maps = self._window(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        return maps.transpose(1, 2).flatten(2, 3)[:, :, : frames // self.stride]

    def _window(self, x: Float[Tensor, "b 1 96 64"]) -> Float[Tensor, "b 1024 6 6"]:
        x, read = F.relu(self.first(channels_last(x))), []
        for layer, block in enumerate(self.blocks, 2):
            x = block(x)
            if layer in YAMNET_READ:
                read.append(x)
        return torch.cat([torch.cat(read[:-1], 1), read[-1].repeat_interleave(2, 2)], 3)
