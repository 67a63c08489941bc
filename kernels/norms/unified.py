"""Unified Normalization: a norm by running quadratic means that a linear layer can take over.

Yang et al. 2022, "Unified Normalization for Accelerating and Stabilizing Transformers" (ACM MM).

Shape legend: t real tokens of a batch, d width, m window.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from polysense.kernels.norms.tokens import TokenNorm


class UnifiedNorm(TokenNorm):
    """x / sqrt(quadratic mean + eps) · weight + bias, channel by channel.

    The quadratic mean of a channel over a batch's tokens fluctuates much more in transformers than in convolutional
    networks. So training divides by the geometric mean of those of the last `window` batches, which extreme ones move
    less than the arithmetic mean, and the term of the gradient that comes from the statistics is an average of as many
    steps.

    A batch is an outlier if, with it, the arithmetic mean of some channel's window exceeds the geometric one by more
    than window · variance of the roots in the window before, of all channels; within one window and channel they can
    lie no further apart. An outlier is normalised by itself, as all batches are during the warm-up, and enters no
    window. The running mean takes it nevertheless, or a lasting change of the data would be refused for ever.

    Evaluation divides by the running mean.

    Where this departs from the authors' code: the gradient is exact during the warm-up, and is not rescaled by the
    ratio of batch and running statistics.

    When to use it: to train an encoder whose norms must cost nothing in the end (`merge_unified`), with large, mixed
    batches. Not for small batches, and not in place of the LayerNorm of trained weights: it is another function.

    Args:
        width: d.
        window: m, batches that are averaged; 1 leaves smoothing and filtration out.
        warmup: First batches that are normalised by themselves; the authors use 4000.
        filter_outliers: See above. The authors recommend it for images, not for text.
        eps: Added to the quadratic mean.
        momentum: Weight of a batch in the running means.

    Raises:
        ValueError: As of `TokenNorm`, or window or warmup is out of range.
    """

    running: Tensor
    window: Tensor
    gradient: Tensor
    gradients: Tensor
    outliers: Tensor

    def __init__(
        self,
        width: int,
        window: int = 4,
        warmup: int = 4000,
        filter_outliers: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(width, eps, momentum)
        if window < 1 or warmup < 0:
            raise ValueError(f"window must be at least 1 and warmup at least 0, got {window} and {warmup}")
        self.warmup, self.filter_outliers = warmup, filter_outliers
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running", torch.ones(width))  # quadratic means
        self.register_buffer("window", torch.ones(window, width))  # of the last batches
        self.register_buffer("gradient", torch.zeros(width))  # running mean of what `_Divide` takes off
        self.register_buffer("gradients", torch.zeros(window, width))  # of the last batches
        self.register_buffer("outliers", torch.zeros((), dtype=torch.long))  # batches taken for outliers

    def normalise(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        if not self.training or not len(x):
            scale, shift = self.scale_shift()
            return x * scale + shift
        place = self.step % len(self.window)
        mean, smooth = self._quadratic_mean(x.detach(), place)
        self.step += 1
        return _Divide.apply(x, torch.rsqrt(mean + self.eps), smooth, place, self) * self.weight + self.bias

    @torch.no_grad()
    def _quadratic_mean(self, x: Tensor, place: int) -> tuple[Float[Tensor, " d"], Bool[Tensor, ""] | None]:
        """What to divide this batch by, and whether that is smoothed; None during the warm-up.

        All choices are tensors: none waits for a GPU.
        """
        m = len(self.window)
        own = x.square().mean(0).to(self.window.dtype)
        spread = self.window.sqrt().var(correction=0)  # of all channels together: single ones would cry wolf
        self.window[place] = own
        if m == 1 or self.step < max(m, self.warmup):
            self.running.lerp_(own, self.momentum)
            return own, None
        geometric = self.window.log().mean(0).exp()
        smooth = torch.ones((), dtype=torch.bool, device=x.device)
        if self.filter_outliers:
            smooth = ~(self.window.mean(0) - geometric > m * spread).any()
            self.window[place] = torch.where(smooth, own, self.running)
            self.outliers += ~smooth
        mean = torch.where(smooth, geometric, own)
        self.running.lerp_(mean, self.momentum)
        return mean, smooth

    def smooth_gradient(
        self, own: Float[Tensor, " d"], smooth: Bool[Tensor, ""] | None, place: int
    ) -> Float[Tensor, " d"]:
        """The average of this batch's mean of gradient · output and those before; its own where nothing is smoothed."""
        kept = own.to(self.gradients.dtype)
        self.gradients[place] = kept if smooth is None else torch.where(smooth, kept, self.gradient)
        average = kept if smooth is None else torch.where(smooth, self.gradients.mean(0), kept)
        self.gradient.lerp_(average, self.momentum)
        return own if smooth is None else torch.where(smooth, self.gradient.to(own.dtype), own)

    def scale_shift(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        return self.weight * torch.rsqrt(self.running + self.eps), self.bias

    def extra_repr(self) -> str:
        return f"{self.width}, window={len(self.window)}, warmup={self.warmup}, filter_outliers={self.filter_outliers}"


class _Divide(torch.autograd.Function):
    """z = x · inverse, where `inverse` came from the same tokens; its share of the gradient is smoothed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inverse: Tensor, smooth: Tensor | None, place: int, norm: UnifiedNorm) -> Tensor:
        z = x * inverse
        ctx.save_for_backward(z, inverse)
        ctx.smooth, ctx.place, ctx.norm = smooth, place, norm
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, inverse = ctx.saved_tensors
        taken_off = ctx.norm.smooth_gradient((grad * z).mean(0), ctx.smooth, ctx.place)
        return (grad - taken_off * z) * inverse, None, None, None, None
