"""The two ways to one ridge regression."""

import torch

from polysense.training.probe_forecast import _from_moments, _from_rows


def test_rows_and_moments_agree() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(30, 50, generator=rng), torch.ones(30, 1)], 1)  # more inputs than rows
    y = torch.randn(30, 4, generator=rng)
    weight = torch.rand(30, 1, generator=rng).expand(-1, 4)
    scaled = x.double() * weight[:, :1].double()
    by_moments = list(_from_moments(scaled.T @ x.double(), scaled.T @ y.double()))
    by_rows = list(_from_rows(x.split(8), y.split(8), weight.split(8)))
    assert len(by_rows) == len(by_moments)
    for one, other in zip(by_moments, by_rows, strict=True):
        torch.testing.assert_close(other.double(), one, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(by_rows[0], by_rows[-1], atol=1e-3)
