"""Small convolutional front parts of tokenizers, with batch norms folded into biases.

`lite0` is EfficientNet-lite0 (Tan & Le 2019) without its wide last layer: all blocks (0-15, stride 32), or its front
(blocks 0-10, stride 16, or 0-2, stride 4). `yamnet` is the front of YAMNet's MobileNet v1 (Howard et al. 2017; layers
1-9, stride 16). Their published weights, Apache-2.0, may begin a tokenizer (see NOTICE); with random weights the same
shapes train from scratch.

Shape legend: b batch, c channels, h height, w width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


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
YAMNET = ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), (1, 512), (1, 512))  # (stride, channels)
YAMNET_EARLY = 6  # how many of them lead to the output that layers 8 and 9 go on from


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

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.blocks(F.relu6(self.first(x)))


class YamnetStem(nn.Module):
    """Log-mel (b, 1, frames, 64 bands) -> (b, 1024, frames/16, 4). The number of frames must be a multiple of 16.

    What layers 7 and 9 give, side by side: sounds are told best by the later one, what is said by the earlier one.
    """

    stride, channels = 16, 1024

    def __init__(self) -> None:
        super().__init__()
        self.first = PaddedConv(1, 32, 3, 2)
        blocks, channels = [], 32
        for stride, out_channels in YAMNET:
            blocks.append(Separable(channels, out_channels, stride))
            channels = out_channels
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Float[Tensor, "b 1 t 64"]) -> Float[Tensor, "b 1024 t2 4"]:
        early = self.blocks[:YAMNET_EARLY](F.relu(self.first(x)))
        return torch.cat([early, self.blocks[YAMNET_EARLY:](early)], 1)
