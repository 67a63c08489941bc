"""Attention: every backend equals the reference, forward and backward; errors are clear."""

import pytest
import torch

from polysense.kernels.attention import attention, available_backends


def _inputs(dtype=torch.float32):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8, dtype=dtype, requires_grad=True) for n in (5, 7, 7))
    mask = torch.arange(7)[None] < torch.tensor([[7], [3], [1]])
    return q, k, v, mask


@pytest.mark.parametrize("backend", [*available_backends(), "auto"])
@pytest.mark.parametrize("masked", [False, True])
def test_backend_equals_the_reference_forward_and_backward(backend, masked):
    q, k, v, mask = _inputs()
    results = []
    for name in ("reference", backend):
        out = attention(q, k, v, mask=mask if masked else None, backend=name)
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", available_backends())
def test_padding_does_not_reach_the_answer(backend):
    q, k, v, mask = _inputs()
    out = attention(q, k, v, mask=mask, backend=backend)
    alone = attention(q[1:2], k[1:2, :, :3], v[1:2, :, :3], backend=backend)
    torch.testing.assert_close(out[1:2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", available_backends())
def test_a_sequence_without_real_keys_gives_zeros(backend):
    q, k, v, mask = _inputs()
    mask = mask.clone()
    mask[2] = False
    out = attention(q, k, v, mask=mask, backend=backend)
    assert torch.equal(out[2], torch.zeros_like(out[2])) and out[0].abs().sum() > 0


def test_wrong_shapes_types_and_backends_are_refused():
    q, k, v, mask = _inputs()
    with pytest.raises(ValueError, match="do not go together"):
        attention(q, k[:2], v, mask=mask)
    with pytest.raises(ValueError, match="mask must be bool"):
        attention(q, k, v, mask=mask.float())
    with pytest.raises(ValueError, match="unknown softmax attention backend 'flash9'"):
        attention(q, k, v, backend="flash9")
