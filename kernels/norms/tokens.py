"""What norms with statistics over tokens share: padding is left out, and a fixed form that merges.

Shape legend: t real tokens of a batch, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TokenNorm(nn.Module, ABC):
    """Normalises each channel over all real tokens of a batch in training, by fixed numbers afterwards.

    In evaluation an answer does not depend on what else is in the batch; in training it does, as with batch norm.
    Statistics are of one process: they are not shared between devices.

    Args:
        width: d.
        eps: Added to the mean of squares or to the variance.
        momentum: Weight of a batch in the running statistics.

    Raises:
        ValueError: The width is not positive, or the momentum not above 0 and at most 1.
    """

    def __init__(self, width: int, eps: float, momentum: float) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"the width of a norm must be at least 1, got {width}")
        if not 0 < momentum <= 1:
            raise ValueError(f"the momentum must be above 0 and at most 1, got {momentum}")
        self.width, self.eps, self.momentum = width, eps, momentum
        self.step = 0  # training batches seen; a plain number, so that no step waits for a GPU

    def forward(self, x: Float[Tensor, "*b d"], mask: Bool[Tensor, "*b"] | None = None) -> Float[Tensor, "*b d"]:
        """Normalises.

        Args:
            x: Tokens.
            mask: True where a token is real; None where all are. What stands elsewhere is never read.

        Returns:
            As x; zeros at padded places.

        Raises:
            ValueError: Width or mask does not fit.
        """
        if x.shape[-1] != self.width:
            raise ValueError(f"tokens of width {x.shape[-1]} do not fit a norm of width {self.width}")
        exact = torch.promote_types(x.dtype, torch.float32)
        if mask is None:
            return self.normalise(x.reshape(-1, self.width).to(exact)).to(x.dtype).view(x.shape)
        if mask.dtype != torch.bool or mask.shape != x.shape[:-1]:
            raise ValueError(f"mask must be bool {tuple(x.shape[:-1])}, got {mask.dtype} {tuple(mask.shape)}")
        return torch.zeros_like(x).masked_scatter(mask[..., None], self.normalise(x[mask].to(exact)).to(x.dtype))

    @abstractmethod
    def normalise(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t d"]:
        """Normalises real tokens, and learns their statistics in training."""

    @abstractmethod
    def scale_shift(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """The fixed form: x · scale + shift."""

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = int(state)
