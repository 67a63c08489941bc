"""Hyena along every axis of a grid: long convolutions with implicit filters, gated by the tokens themselves.

Poli et al. 2023, "Hyena Hierarchy: Towards Larger Convolutional Language Models", and for images and clips Zimerman &
Wolf 2024, "Multi-Dimensional Hyena for Spatial Inductive Bias" (the product form: one filter for each axis). With
projections x0, x1, … xN of the tokens, order N gives

    z = xN;   z = h_i * (x_i ⊙ z) for i = N-1 … 1;   y = x0 ⊙ z

A filter h is a small network of the lag between two tokens, times a decay with the lag, so that its size does not grow
with the sequence. Encoders are not causal: filters reach both ways. Lags count tokens, never fractions of the length:
padding a batch changes no answer.

When to use it: images, clips and sound with many tokens, O(n log n) by FFT; a strong sense of place where training
data are few. Content decides only through the gates: tasks that look things up elsewhere in the sequence want some
attention blocks beside it (the paper's hybrid: Hyena first, attention after).

Shape legend: b batch, n tokens, d width, l length of an axis, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polysense.kernels.mixers.base import MIXERS, Mixer, axes_of, clear

LineFunction = Callable[[Tensor], Tensor]  # of (lines, length, channels)


def reference(z: Float[Tensor, "b l c"], h: Float[Tensor, "k c"]) -> Float[Tensor, "b l c"]:
    """`long_convolution` as a matrix of lags for each channel: the oracle."""
    length = z.shape[1]
    at = torch.arange(length, device=z.device)
    return torch.einsum("ijc,bjc->bic", h[at[:, None] - at[None] + length - 1], z)


def long_convolution(z: Float[Tensor, "b l c"], h: Float[Tensor, "k c"]) -> Float[Tensor, "b l c"]:
    """Convolves each channel over the whole length, by FFT, zeros beyond both ends.

    Args:
        z: Signals.
        h: Filters for lags 1 - l … l - 1 (k = 2 l - 1): y[i] = Σ_j h[i - j + l - 1] z[j].

    Raises:
        ValueError: The filter is not of 2 l - 1 lags.
    """
    length = z.shape[1]
    if h.shape != (2 * length - 1, z.shape[-1]):
        raise ValueError(f"a filter for {length} tokens is ({2 * length - 1}, {z.shape[-1]}), got {tuple(h.shape)}")
    exact = torch.promote_types(z.dtype, torch.float32)  # FFTs know no half precision on most devices
    size = fft_size(2 * length - 1)
    # In a circle, lag -1 is the last place: the filter's negative lags go to the end.
    circle = F.pad(h.to(exact).T, (0, size - 2 * length + 1)).roll(1 - length, -1)
    spectrum = torch.fft.rfft(z.to(exact).transpose(1, 2), size) * torch.fft.rfft(circle)
    return torch.fft.irfft(spectrum, size)[..., :length].transpose(1, 2).to(z.dtype)


def fft_size(least: int) -> int:
    """The smallest power of two, or three quarters of one, that is not below `least`."""
    power = 1 << max(least - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= least else power


class ImplicitFilter(nn.Module):
    """Filter values as a network of the lag (Poli et al. 2023, section 3.3: sine layers, then a decaying window).

    Args:
        channels: Filters.
        reach: Lag at which the slowest window has fallen to 1/e in the beginning; windows are learned.
        hidden: Width of the network.
        waves: Wavelengths, 2 to 2^waves tokens, that the network reads beside the lag's logarithm.
    """

    def __init__(self, channels: int, *, reach: float = 512.0, hidden: int = 32, waves: int = 8) -> None:
        super().__init__()
        self.waves = waves
        self.layers = nn.ModuleList([nn.Linear(2 * waves + 2, hidden), nn.Linear(hidden, hidden)])
        self.out = nn.Linear(hidden, channels, bias=False)
        self.log_rate = nn.Parameter(-torch.linspace(0.0, math.log(reach), channels))

    def forward(self, length: int) -> Float[Tensor, "k c"]:
        """Values for lags 1 - length … length - 1."""
        weight = self.out.weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        lag = torch.arange(1 - length, length, device=weight.device, dtype=exact)
        turns = lag[:, None] * torch.pi * 2.0 ** -torch.arange(self.waves, device=weight.device, dtype=exact)
        log_lag = (torch.log1p(lag.abs()) / 8)[:, None]
        z = torch.cat([log_lag, log_lag * lag.sign()[:, None], turns.sin(), turns.cos()], 1).to(weight.dtype)
        for layer in self.layers:
            z = torch.sin(layer(z))
        rate = self.log_rate.to(exact).exp()
        # √tanh(rate) makes a noise keep its size, however far the window reaches and however long the sequence is.
        window = torch.exp(-rate * lag.abs()[:, None]) * torch.tanh(rate).sqrt()
        return self.out(z) * window.to(weight.dtype)


@MIXERS.register("hyena")
class Hyena(Mixer):
    """Gated long convolutions along each axis.

    Args:
        width: Of a token.
        heads: Not used.
        order: Gates; order - 1 long convolutions (the paper's usual order is 2).
        axes: The most axes a grid may mix along; of longer grids the first axes are mixed piece by piece.
        reach: See `ImplicitFilter`.
    """

    layout = "grid"

    def __init__(self, width: int, heads: int = 1, *, order: int = 2, axes: int = 3, reach: float = 512.0) -> None:
        super().__init__(width, heads)
        if order < 2 or axes < 1:
            raise ValueError(f"Hyena needs an order of at least 2 and one axis, got {order} and {axes}")
        self.order, self.axes = order, axes
        self.in_proj = nn.Linear(width, (order + 1) * width)
        # Three taps along each axis; they begin as the identity, so that an axis that never occurs does nothing.
        self.short_filter = nn.Parameter(torch.zeros(axes, 3, (order + 1) * width))
        nn.init.ones_(self.short_filter.data[:, 1])
        self.filters = nn.ModuleList(ImplicitFilter((order - 1) * width, reach=reach) for _ in range(axes))
        self.skip = nn.Parameter(torch.ones(order - 1, width))
        self.proj = nn.Linear(width, width)

    def mix(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None, grid: tuple[int, ...] | None
    ) -> Float[Tensor, "b n d"]:
        layout = axes_of(grid, x.shape[1], self.axes)
        # By the grid's number of axes, not by their lengths: an image of one row may be padded to more.
        lines = range(self.axes - min(len(grid or (0,)), self.axes), self.axes)
        u = clear(self.in_proj(clear(x, mask)), mask)
        for axis in lines:
            # Between axes too: what a convolution left in padded cells must not come back.
            u = clear(along(u, layout, axis + 1, self._short(axis)), mask)
        gate, *between, z = u.chunk(self.order + 1, -1)
        values = [self.filters[axis](layout[axis + 1]).chunk(self.order - 1, -1) for axis in lines]
        for i, x_i in reversed(list(enumerate(between))):
            z = z * x_i
            far = z
            for axis, filters in zip(lines, values, strict=True):
                far = clear(along(far, layout, axis + 1, partial(long_convolution, h=filters[i])), mask)
            z = far + self.skip[i] * z
        return self.proj(gate * z)

    def _short(self, axis: int) -> LineFunction:
        before, here, after = self.short_filter[axis]

        def convolve(part: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
            wide = F.pad(part, (0, 0, 1, 1))
            return wide[:, :-2] * before + part * here + wide[:, 2:] * after

        return convolve


def along(
    x: Float[Tensor, "b n c"], layout: tuple[int, ...], axis: int, function: LineFunction
) -> Float[Tensor, "b n c"]:
    """Applies a function of (lines, length, channels) to every line of the layout along one axis."""
    dense = x.reshape(x.shape[0], *layout, x.shape[-1]).movedim(axis + 1, -2)
    shape = dense.shape
    mixed = function(dense.reshape(-1, *shape[-2:])).reshape(shape)
    return mixed.movedim(-2, axis + 1).reshape(x.shape)
