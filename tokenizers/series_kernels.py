"""Fixed dilated kernels over a series, pooled by segment: the form "kernels" of the time series tokenizer.

MiniRocket (Dempster et al. 2021, "MiniRocket: A Very Fast (Almost) Deterministic Transform for Time Series
Classification") convolves a series with 84 fixed kernels of nine steps at several dilations and takes, for each, the
share of steps whose response lies above a bias, a quantile of the training data's responses. Here the share is taken
in each of a few segments, so that every segment is a token; a projection, solved for on the training series, brings
the features to the encoder's width. The mean over tokens is then MiniRocket's feature vector up to that projection.

Written here, not taken from a library: aeon's and sktime's transforms pool whole series and need numba; nothing that
polysense depends on has them.

Shape legend: b sequences, t steps, c variates, n segments, k kernels (84), q biases of a kernel, f features, d width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 9  # steps of a kernel
HIGH = 3  # of them with weight 2; the others have -1, so that the weights of a kernel sum to zero
KERNELS = math.comb(TAPS, HIGH)
RAMP = 0.05  # of a kernel's deviation over which a step goes from "below the bias" to "above"
FEWEST = 0.05  # deviation of a feature among the training series below which it is not enlarged further
BIAS_SERIES = 32  # training series whose responses the biases are quantiles of
SIZE = 1.0  # root mean square of a dimension of the mean tokens, over the training series
SUMMARY_SHARE = 0.3  # variance of what `summary` gives, relative to that of the shares


def dilations_of(steps: int, most: int) -> tuple[int, ...]:
    """At most `most` distances between taps, in even ratios from 1 to the one whose kernel spans all steps."""
    octaves = math.log2(max((steps - 1) / (TAPS - 1), 1))
    return tuple(sorted({round(2 ** (octaves * i / max(most - 1, 1))) for i in range(most)}))


def segment_weights(steps: Int[Tensor, " b"], length: int, count: int) -> Float[Tensor, "b t n"]:
    """Averaging over `count` segments of each sequence, whose last `steps` of `length` places are real.

    Segments overlap where there are fewer steps than segments, or where they do not divide.
    """
    place = torch.arange(length, device=steps.device)[None, :, None] - (length - steps)[:, None, None]
    i = torch.arange(count, device=steps.device)
    begin = steps[:, None] * i // count
    end = torch.maximum((steps[:, None] * (i + 1) + count - 1) // count, begin + 1)
    inside = (place >= begin[:, None]) & (place < end[:, None])
    return inside / (end - begin)[:, None]


class LocalKernels(nn.Module):
    """Series, padded with zeros on the left -> a token for each segment.

    Kernels, variates and biases are fixed; `fit` sets the biases and the projection from training series. Only the
    projection learns.

    Args:
        channels: Variates read together; each kernel reads a random choice of them, as MiniRocket's does.
        width: Of a token.
        segments: Tokens of a series.
        span: Steps of a typical series: the longest kernel reaches over so many.
        features: Shares to compute, about; rounded up to whole biases of each kernel and dilation.
        dilations: Distances between taps, at most.
    """

    def __init__(self, channels: int, width: int, segments: int, span: int, features: int, dilations: int) -> None:
        super().__init__()
        self.dilations = dilations_of(span, dilations)
        self.biases = math.ceil(features / (KERNELS * len(self.dilations)))
        base = torch.full((KERNELS, TAPS), -1.0)
        for row, high in zip(base, itertools.combinations(range(TAPS), HIGH), strict=True):
            row[list(high)] = 2.0
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("reads", _choose_variates(len(self.dilations), channels))
        # Until `fit`: quantiles for white noise.
        deviation = base.square().sum(1).sqrt() * self.reads.sum(-1).sqrt()  # (dilations, k)
        levels = torch.special.ndtri(quantile_levels(len(self.dilations), self.biases))
        self.register_buffer("bias", levels * deviation[..., None])  # (dilations, k, q)
        self.register_buffer("deviation", deviation)  # of each kernel's responses, (dilations, k)
        self.shares = self.bias.numel()
        self.project = nn.Linear(self.shares + (segments + 2) * channels, width)

    base: Tensor
    reads: Tensor
    bias: Tensor
    deviation: Tensor

    def forward(self, values: Float[Tensor, "b t c"], averaging: Float[Tensor, "b t n"]) -> Float[Tensor, "b n d"]:
        return self.project(self.features(values, averaging))

    def features(self, values: Float[Tensor, "b t c"], averaging: Float[Tensor, "b t n"]) -> Float[Tensor, "b n f"]:
        """Shares and summary, before the projection.

        Padding is as zero as what a convolution sees beyond a series' ends, so that it changes nothing.
        """
        parts = []
        for i, response in enumerate(self.responses(values)):
            scaled = response / (RAMP * self.deviation[i, :, None])
            edges = self.bias[i] / (RAMP * self.deviation[i, :, None]) - 0.5  # (k, q)
            # A ramp instead of a step: rounding, which differs with the batch, must not turn a 0 into a 1.
            parts += [(scaled - edge[:, None]).clamp(0, 1) @ averaging for edge in edges.T]  # (b, k, n) each
        return torch.cat([*parts, summary(values, averaging)], 1).transpose(1, 2)

    def responses(self, values: Float[Tensor, "b t c"]) -> Iterator[Float[Tensor, "b k t"]]:
        """What the kernels answer at each step, dilation by dilation."""
        x = values.transpose(1, 2)
        for dilation, reads in zip(self.dilations, self.reads, strict=True):
            weight = reads[:, :, None] * self.base[:, None]  # (k, c, taps)
            yield F.conv1d(x, weight.to(x.dtype), padding=dilation * (TAPS // 2), dilation=dilation)

    @torch.no_grad()
    def fit_biases(self, series: Sequence[Float[Tensor, "t c"]]) -> None:
        """Sets biases to quantiles of the training series' responses, which `deviation` measures."""
        answers = [list(self.responses(values[None])) for values in series]
        levels = quantile_levels(len(self.dilations), self.biases)
        for i in range(len(self.dilations)):
            joined = torch.cat([answer[i][0] for answer in answers], 1).sort(1).values  # (k, steps)
            self.deviation[i] = joined.std(1, correction=0).clamp_min(1e-6)
            self.bias[i] = joined.gather(1, (levels[i] * (joined.shape[1] - 1)).long())

    @torch.no_grad()
    def fit_projection(self, pooled: Float[Tensor, "r f"], generator: torch.Generator) -> None:
        """Sets the projection to the principal components of training series' mean features, turned at random.

        The rotation spreads the components evenly over the width, so that a probe that standardises each dimension
        keeps their proportions and does not enlarge noise.

        Args:
            pooled: Mean features over the segments of r training series.
            generator: Of the rotation.
        """
        x = pooled.double()
        mean, std = x.mean(0), x.std(0, correction=0)
        scale = std.clamp_min(FEWEST).reciprocal()
        rest = len(std) - self.shares
        shares_variance = (std * scale)[: self.shares].square().sum().clamp_min(1e-6)
        scale[self.shares :] *= (SUMMARY_SHARE * shares_variance / rest).sqrt()
        z = (x - mean) * scale
        # The components of few rows and many columns come from the rows' inner products.
        power, rows = torch.linalg.eigh(z @ z.T)
        width = self.project.out_features
        kept = (power > 1e-9 * power[-1].clamp_min(1e-12)).nonzero().flatten()[-width:]
        axes = z.T @ (rows[:, kept] / power[kept].sqrt())  # (f, components), orthonormal
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=x.dtype)).Q[: len(kept)]
        gain = SIZE / (power[kept].sum() / (len(x) * width)).clamp_min(1e-12).sqrt()
        weight = (axes @ turn).T * scale * gain
        self.project.weight.copy_(weight)
        self.project.bias.copy_(-(weight @ mean))


def summary(values: Float[Tensor, "b t c"], averaging: Float[Tensor, "b t n"]) -> Float[Tensor, "b m n"]:
    """What shares of zero-sum kernels do not tell: each variate's mean, deviation and mean absolute change by segment.

    The means stand in a row for each place in the series, zero in all other segments, so that the projection knows
    where a mean was, and the mean over tokens still holds the whole course: a day's load curve differs by its hours.
    """
    x = values.transpose(1, 2)
    mean = x @ averaging
    std = ((x.square() @ averaging) - mean.square()).clamp_min(0).add(1e-6).sqrt()
    change = F.pad(x, (1, 0)).diff(dim=-1).abs() @ averaging  # a series begins from zero, padded or not
    course = torch.diag_embed(mean).flatten(1, 2) * averaging.shape[2]  # (b, c·n, n)
    return torch.cat([course, std, change], 1)


def quantile_levels(dilations: int, biases: int) -> Float[Tensor, "dilations k q"]:
    """Levels in (0, 1), spread by the golden ratio over all biases, as MiniRocket spreads them."""
    count = dilations * KERNELS * biases
    return (torch.arange(1, count + 1, dtype=torch.float64) * (5**0.5 - 1) / 2 % 1).float().view(dilations, KERNELS, -1)


def _choose_variates(dilations: int, channels: int) -> Float[Tensor, "dilations k c"]:
    """Which variates each kernel adds up: one to nine, few more often than many."""
    count = (2 ** (torch.rand(dilations, KERNELS, 1) * math.log2(min(channels, 9) + 1))).long()  # 1 … min(c, 9)
    return (torch.rand(dilations, KERNELS, channels).argsort(-1).argsort(-1) < count).float()
