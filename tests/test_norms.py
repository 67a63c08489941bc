"""Norms: parity with plain formulas and torch, gradients, masks, and merging into linear layers."""

import copy
import math

import pytest
import torch
from torch import nn

from polysense.kernels.norms import (
    CRMSNorm,
    LayerNorm,
    PRepBN,
    RepBN,
    RMSNorm,
    UnifiedNorm,
    compress,
    expand,
    merge_repbn,
    merge_scale_shift,
    merge_unified,
)

D = 6


def _x(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (3, 5, D)
    return torch.randn(shape, generator=generator, dtype=dtype) * torch.linspace(0.5, 3, shape[-1], dtype=dtype) + 0.4


def _mask():
    return torch.tensor([[1, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0]]).bool()


def _shuffled(module, seed=3):
    """No zeros and ones in weights: they would hide mistakes."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + 1)
    return module


# Compressed RMSNorm


def test_crms_norm_is_layer_norm_of_what_the_vector_stands_for():
    x = _x(4, 7, 12, dtype=torch.float64)
    norm = CRMSNorm(11, eps=1e-4, elementwise_affine=False)
    expected = nn.functional.layer_norm(x, (12,), eps=1e-4)
    torch.testing.assert_close(expand(norm(compress(x))), expected, rtol=1e-10, atol=1e-10)
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(RMSNorm(12, 1e-4, False)(centred), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(expand(compress(x)), centred, rtol=1e-10, atol=1e-10)
    assert LayerNorm is nn.LayerNorm and RMSNorm is nn.RMSNorm


def test_crms_norm_learns_and_has_gradients():
    norm = _shuffled(CRMSNorm(3)).double()
    assert torch.autograd.gradcheck(norm, (_x(2, 3, dtype=torch.float64).requires_grad_(),))
    x = _x(2, 3, dtype=torch.float64)
    plain = CRMSNorm(3, elementwise_affine=False)
    torch.testing.assert_close(norm(x), plain(x) * norm.weight)
    zero = torch.zeros(1, 3, requires_grad=True)
    plain(zero).sum().backward()
    assert torch.isfinite(zero.grad).all() and not plain(zero).any()


def test_crms_norm_sums_halves_in_float32():
    x = (_x(4, 255) * 300).half()  # squares of these leave the range of half precision
    y = CRMSNorm(255, elementwise_affine=False)(x)
    exact = CRMSNorm(255, elementwise_affine=False)(x.double())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), exact, rtol=2e-3, atol=1e-3)


# Unified norm


def _own(x, norm):
    """The batch by its own quadratic means, by autograd."""
    mean = x.flatten(0, -2).square().mean(0)
    return x / torch.sqrt(mean + norm.eps) * norm.weight + norm.bias


def test_unified_warms_up_with_the_batch_and_its_exact_gradient():
    norm, x = _shuffled(UnifiedNorm(D, warmup=10)).double(), _x(dtype=torch.float64)
    results = []
    for function in (norm, lambda x: _own(x, norm)):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [leaf, norm.weight, norm.bias])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_unified_divides_by_the_geometric_mean_of_the_window():
    norm = _shuffled(UnifiedNorm(D, window=3, warmup=0, filter_outliers=False))
    batches = [_x(seed=i) * (1 + i) for i in range(6)]
    running = torch.ones(D)
    means = [x.flatten(0, 1).square().mean(0) for x in batches]
    for i, x in enumerate(batches):
        mean = means[i] if i < 3 else (means[i] * means[i - 1] * means[i - 2]) ** (1 / 3)
        running = 0.9 * running + 0.1 * mean
        expected = x / torch.sqrt(mean + 1e-5) * norm.weight + norm.bias
        torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running, running)
    fixed = batches[0] / torch.sqrt(running + 1e-5) * norm.weight + norm.bias
    torch.testing.assert_close(norm.eval()(batches[0]), fixed, rtol=1e-5, atol=1e-5)


def test_unified_smooths_the_gradient_as_written():
    norm = UnifiedNorm(D, window=2, warmup=0, filter_outliers=False, momentum=0.25)
    means, products, smooth = [], [], torch.zeros(D)
    for i in range(4):
        x = _x(seed=i).requires_grad_()
        means.append(x.detach().flatten(0, 1).square().mean(0))
        mean = means[i] if i < 2 else (means[i] * means[i - 1]).sqrt()
        z = x.detach() / torch.sqrt(mean + 1e-5)
        grad = _x(seed=10 + i)
        products.append((grad * z).flatten(0, 1).mean(0))
        average = products[i] if i < 2 else (products[i] + products[i - 1]) / 2
        smooth = 0.75 * smooth + 0.25 * average
        norm(x).backward(grad)
        expected = (grad - (products[i] if i < 2 else smooth) * z) / torch.sqrt(mean + 1e-5)
        torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)


def test_unified_sets_an_outlier_aside():
    norm = UnifiedNorm(D, window=4, warmup=0)
    for i in range(8):
        norm(_x(seed=i))
    assert not norm.outliers
    before, kept = norm.running.clone(), norm.window.clone()
    x = (_x(seed=9) * 100).requires_grad_()
    y = norm(x)
    assert norm.outliers == 1
    torch.testing.assert_close(y, _own(x, norm), rtol=1e-5, atol=1e-5)  # not smoothed
    place = 8 % 4
    torch.testing.assert_close(norm.window[place], before)  # the window took the running mean in its place
    rest = [i for i in range(4) if i != place]
    assert torch.equal(norm.window[rest], kept[rest])
    own = x.detach().flatten(0, 1).square().mean(0)
    torch.testing.assert_close(norm.running, 0.9 * before + 0.1 * own)
    gradient = norm.gradient.clone()
    (ours,) = torch.autograd.grad(y.sin().sum(), x)
    (exact,) = torch.autograd.grad(_own(x, norm).sin().sum(), x)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)
    assert torch.equal(norm.gradients[place], gradient)
    unfiltered = UnifiedNorm(D, window=4, warmup=0, filter_outliers=False)
    for i in range(9):
        unfiltered(_x(seed=i) * (100 if i == 8 else 1))
    assert not unfiltered.outliers and float(unfiltered.window[place].min()) > 100


def test_unified_lets_a_lasting_change_in():
    norm = UnifiedNorm(D, window=4, warmup=0)
    for i in range(80):
        norm(_x(seed=i) * (1 if i < 8 else 30))
    assert 0 < norm.outliers < 60
    means = torch.stack([(_x(seed=i) * 30).flatten(0, 1).square().mean(0) for i in range(8, 80)]).mean(0)
    assert ((norm.running / means).log().abs() < math.log(1.5)).all()


# Batch norm that takes over


def test_repbn_is_batch_norm_and_a_share_of_the_input():
    norm, plain = _shuffled(RepBN(D)), nn.BatchNorm1d(D)
    plain.load_state_dict(norm.bn.state_dict())
    x = _x()
    expected = plain(x.flatten(0, 1)).view_as(x) + norm.eta * x
    torch.testing.assert_close(norm(x), expected)
    norm.eval(), plain.eval()
    expected = plain(x.flatten(0, 1)).view_as(x) + norm.eta * x
    torch.testing.assert_close(norm(x), expected)
    alone = copy.deepcopy(norm).train()
    torch.testing.assert_close(alone(x[:1, :1]), norm(x[:1, :1]))  # one token has no variance
    assert torch.equal(alone.bn.running_mean, norm.bn.running_mean)


def test_prepbn_goes_from_layer_norm_to_repbn():
    norm, x = _shuffled(PRepBN(D, steps=4, warmup=1)), _x()
    gammas = []
    for _ in range(7):
        gammas.append(norm.gamma)
        expected = norm.gamma * norm.ln(x) + (1 - norm.gamma) * copy.deepcopy(norm.repbn)(x)
        torch.testing.assert_close(norm(x), expected)
    assert gammas == [1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert torch.equal(norm.eval()(x), norm.repbn(x)) and norm.step == 7
    early = _shuffled(PRepBN(D, steps=4))
    assert torch.equal(early.eval()(x), early.ln(x))


@pytest.mark.parametrize("norm", [UnifiedNorm(D, window=2, warmup=1), PRepBN(D, steps=3), RepBN(D)])
def test_all_parameters_get_a_gradient_at_any_step(norm):
    norm = _shuffled(copy.deepcopy(norm))
    for i in range(5):
        norm.zero_grad()
        x = _x(seed=i).requires_grad_()
        norm(x).sin().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in norm.parameters())
        assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


# Padding, saving, faults


def _norms():
    return [UnifiedNorm(D, window=2, warmup=1), RepBN(D), PRepBN(D, steps=3)]


@pytest.mark.parametrize("which", range(3))
def test_padding_is_never_read(which):
    """Values, gradients and statistics are those of the real tokens alone, even if padding holds NaN."""
    masked, alone = (_shuffled(_norms()[which]) for _ in range(2))
    mask = _mask()
    for i in range(4):
        x = _x(seed=i)
        padded = x.masked_fill(~mask[..., None], math.nan).requires_grad_()
        real = x[mask].requires_grad_()
        ours, theirs = masked(padded, mask), alone(real)
        torch.testing.assert_close(ours[mask], theirs)
        assert not ours[~mask].any()
        ours.sin().sum().backward(), theirs.sin().sum().backward()
        torch.testing.assert_close(padded.grad[mask], real.grad)
        assert not padded.grad[~mask].any()
    for a, b in zip(masked.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(masked.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    both = masked.eval()(x, mask)
    torch.testing.assert_close(both[0, mask[0]], masked(x[:1, mask[0]])[0])  # batched equals single


@pytest.mark.parametrize("which", range(3))
def test_no_real_token_changes_no_statistics(which):
    norm = _norms()[which]
    before = [buffer.clone() for buffer in norm.buffers()]
    y = norm(_x(), torch.zeros(3, 5, dtype=torch.bool))
    assert not y.any() and all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))


@pytest.mark.parametrize("which", range(3))
def test_training_goes_on_where_it_was_saved(which):
    norm = _shuffled(_norms()[which])
    for i in range(3):
        norm(_x(seed=i))
    again = _norms()[which]
    again.load_state_dict(norm.state_dict())
    assert again.step == norm.step == 3 and all(isinstance(v, torch.Tensor) for v in norm.state_dict().values())
    assert torch.equal(again(_x(seed=4)), norm(_x(seed=4)))


@pytest.mark.parametrize("which", range(3))
def test_half_values_keep_their_type(which):
    norm = _shuffled(_norms()[which])
    y = norm(_x().bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), _shuffled(_norms()[which])(_x()), rtol=0.05, atol=0.05)


def test_faults_are_named():
    x = _x()
    for norm in _norms():
        with pytest.raises(ValueError, match="width 5 do not fit a norm of width 6"):
            norm(x[..., :5])
        with pytest.raises(ValueError, match=r"mask must be bool \(3, 5\)"):
            norm(x, _mask().float())
        with pytest.raises(ValueError, match=r"mask must be bool \(3, 5\)"):
            norm(x, _mask()[:2])
    with pytest.raises(ValueError, match="width 6 do not fit a norm of width 5"):
        CRMSNorm(5)(x)
    with pytest.raises(ValueError, match="at least 2 entries"):
        compress(x[..., :1])
    for make in (lambda: CRMSNorm(0), lambda: RepBN(0), lambda: RepBN(D, momentum=0.0), lambda: UnifiedNorm(D, 0),
                 lambda: UnifiedNorm(D, warmup=-1), lambda: PRepBN(D, 0), lambda: PRepBN(D, 3, -1)):  # fmt: skip
        with pytest.raises(ValueError, match="must be"):
            make()


# Merging


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_scale_and_shift_merge(bias, shifted):
    linear, x = _shuffled(nn.Linear(D, 4, bias=bias)), _x()
    scale, shift = _x(D, seed=5), _x(D, seed=6) if shifted else None
    before = copy.deepcopy(linear.state_dict())
    merged = merge_scale_shift(scale, shift, linear)
    torch.testing.assert_close(merged(x), linear(x * scale + (0 if shift is None else shift)), rtol=1e-5, atol=1e-5)
    assert (merged.bias is None) == (not bias and not shifted)
    assert all(torch.equal(linear.state_dict()[name], value) for name, value in before.items())
    assert all(p.requires_grad for p in merged.parameters())
    assert merge_scale_shift(scale, shift, linear.half()).weight.dtype == torch.float16
    with pytest.raises(ValueError, match=r"scale must be \(6,\)"):
        merge_scale_shift(scale[:5], shift, linear)


@pytest.mark.parametrize("which", range(3))
def test_trained_norms_merge(which):
    norm, merge = _shuffled(_norms()[which]), (merge_unified, merge_repbn, merge_repbn)[which]
    linear = _shuffled(nn.Linear(D, 4))
    for i in range(5):
        norm(_x(seed=i))
    x = _x(seed=9)
    torch.testing.assert_close(merge(norm, linear)(x), linear(norm.eval()(x)), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=f"a {type(norm).__name__} does not merge here"):
        (merge_repbn, merge_unified, merge_unified)[which](norm, linear)


def test_a_norm_on_its_way_does_not_merge():
    norm = PRepBN(D, steps=4)
    norm(_x())
    with pytest.raises(ValueError, match=r"a share of 0\.75 in this norm; train 4 steps \(now 1\)"):
        merge_repbn(norm, nn.Linear(D, 4))
