"""Batch norm that takes over from LayerNorm during training, and merges afterwards.

Guo et al. 2024, "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch
Normalization" (ICML), section 3.2.

Shape legend: t real tokens of a batch, d width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polysense.kernels.norms.tokens import TokenNorm


class RepBN(TokenNorm):
    """Batch norm plus a share of its input: BN(x) + eta · x, with one learned eta.

    When to use it: as the last stage of `PRepBN`. Alone, transformers train badly with it.

    Args:
        width: d.
        eps: Added to the variance.
        momentum: Weight of a batch in the running mean and variance.
    """

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(width, eps, momentum)
        self.bn = nn.BatchNorm1d(width, eps, momentum)
        self.eta = nn.Parameter(torch.ones(()))

    def normalise(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        """One token alone has no variance: it is normalised by the running statistics even in training."""
        if self.training and len(x) > 1:
            self.step += 1
            return self.bn(x) + self.eta * x
        scale, shift = self.scale_shift()
        return x * scale + shift

    def scale_shift(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None and variance is not None  # a BatchNorm1d without statistics has none
        factor = self.bn.weight * torch.rsqrt(variance + self.eps)
        return factor + self.eta, self.bn.bias - mean * factor


class PRepBN(TokenNorm):
    """gamma · LayerNorm(x) + (1 - gamma) · RepBN(x); gamma falls from 1 to 0 in a straight line over the training.

    Both parts run at every training step, so that no parameter is ever without a gradient and the running statistics
    are ready when they are needed. Evaluation uses the gamma that training has come to: a half trained encoder is
    evaluated as it is trained, where the authors' code evaluates RepBN alone.

    When to use it: to train an encoder whose norms must cost nothing in the end (`merge_repbn`), from scratch or from
    weights with LayerNorm, whose weights the `ln` part can start from.

    Args:
        width: d.
        steps: Training batches until gamma is 0. Each forward call in training counts, those of accumulated gradients
            and recomputed ones too.
        warmup: Batches before that with gamma 1.
        eps: Added to the variances.
        momentum: Weight of a batch in RepBN's running mean and variance.

    Raises:
        ValueError: As of `TokenNorm`, or steps or warmup is out of range.
    """

    def __init__(self, width: int, steps: int, warmup: int = 0, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(width, eps, momentum)
        if steps < 1 or warmup < 0:
            raise ValueError(f"steps must be at least 1 and warmup at least 0, got {steps} and {warmup}")
        self.steps, self.warmup = steps, warmup
        self.ln = nn.LayerNorm(width, eps)
        self.repbn = RepBN(width, eps, momentum)

    @property
    def gamma(self) -> float:
        """Share of LayerNorm."""
        return min(max(1 - (self.step - self.warmup) / self.steps, 0.0), 1.0)

    def normalise(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        gamma = self.gamma
        self.step += self.training
        if gamma == 0 and not self.training:
            return self.repbn.normalise(x)
        return gamma * self.ln(x) + (1 - gamma) * self.repbn.normalise(x)

    def scale_shift(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The fixed form.

        Raises:
            ValueError: LayerNorm still has a share.
        """
        if self.gamma > 0:
            raise ValueError(
                f"LayerNorm still has a share of {self.gamma:.3g} in this norm; train {self.warmup + self.steps} steps "
                f"(now {self.step}) before it is merged"
            )
        return self.repbn.scale_shift()

    def extra_repr(self) -> str:
        return f"{self.width}, steps={self.steps}, warmup={self.warmup}, gamma={self.gamma:.3g}"
