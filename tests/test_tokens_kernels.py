"""Patches equal convolutions; merging equals a plain loop over each sequence, whatever stands around it."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polysense.kernels.attention import attention
from polysense.kernels.tokens import (
    chain_places,
    merge,
    patch_linear,
    patchify,
    size_bias,
    unmerge,
    unpatchify,
)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Patches


def test_patches_are_those_of_unfold_row_by_row():
    x = randn(2, 3, 8, 12)
    torch.testing.assert_close(patchify(x, 4), F.unfold(x, 4, stride=4).transpose(1, 2), rtol=0, atol=0)
    clip = torch.arange(2 * 4 * 6).view(1, 1, 2, 4, 6)
    assert patchify(clip, (1, 2, 3))[0, 0].tolist() == [0, 1, 2, 6, 7, 8]
    assert patchify(clip, (1, 2, 3))[0, 5].tolist() == [27, 28, 29, 33, 34, 35]
    assert patchify(clip, (2, 4, 6)).shape == (1, 1, 48)


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 3, 8, 12), 4), ((2, 1, 6, 4), (3, 2)), ((0, 3, 8, 8), 4), ((2, 3, 4, 6, 8), (2, 3, 4))]
)
def test_unpatchify_is_the_inverse(shape, patch):
    x = randn(*shape)
    patches = patchify(x, patch)
    assert patches.numel() == x.numel() and patches.shape[0] == shape[0]
    assert torch.equal(unpatchify(patches, patch, shape[2:]), x)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "kernel"), [((2, 3, 12, 8), (4, 2)), ((2, 3, 4, 6, 8), (2, 3, 4))])
def test_patch_linear_is_the_convolution_and_so_are_its_gradients(shape, kernel, bias, last):
    torch.manual_seed(0)
    conv = (nn.Conv2d if len(kernel) == 2 else nn.Conv3d)(3, 5, kernel, kernel, bias=bias).double()
    layout = (torch.channels_last if len(kernel) == 2 else torch.channels_last_3d) if last else torch.contiguous_format
    x = randn(*shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    found, expected = patch_linear(x, conv.weight, conv.bias), conv(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    weights = randn(*found.shape, seed=1, dtype=torch.float64)
    of = [x, *conv.parameters()]
    for one, other in zip(torch.autograd.grad((found * weights).sum(), of),
                          torch.autograd.grad((expected * weights).sum(), of), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other)


def test_patch_linear_in_bfloat16_and_under_autocast():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 8, 4, 4), randn(2, 3, 8, 8)
    expected = conv(x).flatten(2).transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = patch_linear(x, conv.weight, conv.bias)
    half = conv.bfloat16()
    for found in (automatic, patch_linear(x.bfloat16(), half.weight, half.bias)):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patchify(randn(1, 3, 9, 8), 4), r"\(9, 8\) is not a multiple of the patch \(4, 4\)"),
        (lambda: patchify(randn(3, 8, 8), 4), "images .* or clips"),
        (lambda: patchify(randn(1, 3, 8, 8), (4, 4, 4)), "needs 2 sides"),
        (lambda: patchify(randn(1, 3, 8, 8), 0), "at least 1"),
        (lambda: unpatchify(randn(1, 4, 48), 4, (8, 12)), "needs 6 patches"),
        (lambda: unpatchify(randn(1, 4, 47), 4, (8, 8)), "multiple of 16"),
        (lambda: unpatchify(randn(1, 4, 48), 4, (8,)), r"\(h, w\) or \(t, h, w\)"),
        (lambda: patch_linear(randn(1, 3, 8, 8), randn(5, 4, 4, 4)), "does not fit"),
        (lambda: patch_linear(randn(1, 3, 2, 8, 8), randn(5, 3, 4, 4)), "does not fit"),
        (lambda: patch_linear(randn(1, 3, 8, 10), randn(5, 3, 4, 4)), "not a multiple"),
    ],
)
def test_patches_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Merging


def looped(x, metric, size, r, protected):
    """One sequence without padding, as the paper's section 3 says it: groups of the places that became one token."""
    n = len(x)
    unit = metric / np.linalg.norm(metric, axis=-1, keepdims=True)
    first, second = [range(start, n, 2) for start in (0, 1)]
    edges = []
    for i in (i for i in first if i >= protected):
        likeness = [(unit[i] @ unit[j], -j) for j in second if j >= protected]
        if likeness:
            best, j = max(likeness)
            edges.append((-best, i, -j))
    groups = {i: [i] for i in range(n)}
    for _, i, j in sorted(edges)[: min(r, max(n - protected, 0) // 2)]:
        groups[j] += groups.pop(i)
    groups = [groups[i] for i in sorted(groups)]
    means = np.stack([(x[g] * size[g, None]).sum(0) / size[g].sum() for g in groups])
    place = np.array([next(k for k, g in enumerate(groups) if i in g) for i in range(n)])
    return means, np.array([size[g].sum() for g in groups]), place


def masked(b, n, seed=0):
    """Padding anywhere, but not at the first two places; one sequence is full and one has three tokens."""
    mask = torch.rand(b, n, generator=torch.Generator().manual_seed(seed)) < 0.7
    mask[:, :2] = mask[0] = True
    mask[1, 2:] = torch.arange(n - 2) == 3
    return mask


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("protected", [0, 1, 2, 5])
@pytest.mark.parametrize("r", [1, 3, 100])
def test_merge_equals_a_loop_over_each_sequence(r, protected, padded):
    b, n = 4, 13
    x, metric = randn(b, n, 6, dtype=torch.float64), randn(b, n, 4, seed=1, dtype=torch.float64)
    size = torch.randint(1, 9, (b, n), generator=torch.Generator().manual_seed(2)).double()
    mask = masked(b, n) if padded else torch.ones(b, n, dtype=torch.bool)
    hidden = ~mask
    dirty = [v.masked_fill(hidden[..., None], math.nan) for v in (x, metric)]
    dirty_size = size.masked_fill(hidden, math.nan)
    found = merge(*dirty, r, size=dirty_size, protected=protected, mask=mask if padded else None)
    assert found.x.shape[1] == n - min(r, (n - protected) // 2)
    for i in range(b):
        means, sizes, place = looped(*(v[i][mask[i]].numpy() for v in (x, metric, size)), r, protected)
        real = torch.arange(found.x.shape[1]) < len(means) if found.mask is None else found.mask[i]
        assert real.tolist() == [k < len(means) for k in range(len(real))]
        np.testing.assert_allclose(found.x[i][real], means, atol=1e-12)
        np.testing.assert_array_equal(found.size[i][real], sizes)
        np.testing.assert_array_equal(found.place[i][mask[i]], place)
        assert (found.size[i][~real] == 1).all() and 0 <= found.place[i].min() <= found.place[i].max() < len(real)


def test_nothing_to_merge_changes_nothing():
    x = randn(2, 5, 3)
    for r, protected, count in ((0, 0, 5), (4, 5, 5), (4, 4, 5), (4, 0, 1)):
        mask = torch.arange(5).expand(2, 5) < count
        found = merge(x, x, r, protected=protected, mask=mask)
        assert torch.equal(unmerge(found.x, found.place)[mask], x[mask]) and (found.size == 1).all()
        assert found.mask.sum(1).tolist() == [count, count]
    assert merge(x[:, :0], x[:, :0], 3).x.shape == (2, 0, 3)
    empty = merge(x, x, 2, mask=torch.zeros(2, 5, dtype=torch.bool))
    assert not empty.mask.any() and torch.isfinite(empty.size).all()


def test_protected_and_single_tokens_keep_their_bits_and_the_sum_stays():
    x = randn(3, 20, 7)
    x[:, 4] = x[:, 0]  # a token like a protected one
    found = merge(x, x, 6, protected=2)
    assert torch.equal(found.x[:, :2], x[:, :2]) and (found.size[:, :2] == 1).all()
    lone = found.size.gather(1, found.place) == 1
    assert lone.any() and not lone.all() and torch.equal(unmerge(found.x, found.place)[lone], x[lone])
    torch.testing.assert_close((found.x * found.size[..., None]).sum(1), x.sum(1))
    assert found.size.sum(1).tolist() == [20] * 3


def test_an_answer_depends_neither_on_padding_nor_on_the_batch():
    x, mask = randn(5, 24, 8), masked(5, 24, seed=3)
    together = merge(x, x, 5, protected=1, mask=mask)
    for i in range(5):
        alone = x[i][mask[i]][None]
        single = merge(alone, alone, 5, protected=1)
        torch.testing.assert_close(together.x[i][together.mask[i]], single.x[0], rtol=0, atol=1e-6)
        assert torch.equal(together.place[i][mask[i]], single.place[0])
        assert torch.equal(together.size[i][together.mask[i]], single.size[0])


def test_among_equals_the_first_merge():
    x = torch.ones(1, 9, 64) + 1e-7 * randn(1, 9, 64)  # equal but for rounding
    found = merge(x, x, 2)
    assert found.place.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5, 6]]  # 0 and 2 join 1
    assert found.size.tolist() == [[3, 1, 1, 1, 1, 1, 1]]


def test_two_merges_lead_back_to_the_first_places():
    x = randn(2, 16, 4)
    one = merge(x, x, 4)
    two = merge(one.x, one.x, 4, size=one.size)
    place = chain_places(one.place, two.place)
    assert two.x.shape == (2, 8, 4) and two.size.sum(1).tolist() == [16, 16]
    for i in range(2):  # every token is the plain mean of all the tokens it stands for
        for k in range(8):
            torch.testing.assert_close(two.x[i, k], x[i][place[i] == k].mean(0))
            assert two.size[i, k] == (place[i] == k).sum()
    torch.testing.assert_close(unmerge(two.x, place), unmerge(unmerge(two.x, two.place), one.place), rtol=0, atol=0)


def test_proportional_attention_sees_merged_tokens_as_the_tokens_they_stand_for():
    x = randn(2, 6, 8).repeat_interleave(2, 1)
    found = merge(x, x, 6)
    assert (found.size == 2).all()
    found = merge(found.x, found.x, 0, size=torch.tensor([[2.0, 1, 3, 1, 2, 5]] * 2))
    counts = found.size[0].int()
    full = found.x.repeat_interleave(counts, 1)[:, None]
    q, few = randn(2, 1, 3, 8, seed=4), found.x[:, None]
    torch.testing.assert_close(attention(q, few, few, bias=size_bias(found.size)), attention(q, full, full))


def test_gradients_of_the_means():
    metric, mask = randn(3, 7, 4, seed=1), masked(3, 7)
    x = randn(3, 7, 1, dtype=torch.float64).requires_grad_()

    def real_means(x):
        found = merge(x, metric, 3, protected=1, mask=mask)
        return found.x[found.mask]

    assert torch.autograd.gradcheck(real_means, x)
    (gradient,) = torch.autograd.grad(real_means(x).sum(), x)
    assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_values_keep_their_type_and_sizes_stay_exact(dtype):
    x = randn(1, 8, 4).to(dtype)
    size = torch.full((1, 8), 1001.0)  # bfloat16 has no 1001
    found = merge(x, x, 4, size=size)
    assert found.x.dtype == dtype and found.size.dtype == torch.float32 and found.size.sum() == 8008
    full = merge(x.float(), x.float(), 4, size=size)
    torch.testing.assert_close(found.x.float(), full.x, atol=0.02, rtol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(merge(x.float(), x.float(), 4, size=size).x, full.x)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"r": -1}, "r must be"),
        ({"r": 1.5}, "r must be"),
        ({"r": True}, "r must be"),
        ({"protected": -1}, "protected must be"),
        ({"metric": randn(2, 5, 3)}, "metric"),
        ({"metric": torch.ones(2, 6, 3, dtype=torch.int64)}, "float type"),
        ({"size": torch.ones(2, 5)}, "size must be"),
        ({"size": torch.ones(2, 6, dtype=torch.int64)}, "size must be"),
        ({"mask": torch.ones(2, 6)}, "mask must be bool"),
    ],
)
def test_calls_that_do_not_fit_are_refused(over, message):
    x = randn(2, 6, 3)
    given = {"metric": x, "r": 1} | over
    with pytest.raises(ValueError, match=message):
        merge(x, given.pop("metric"), given.pop("r"), **given)


def test_unmerge_refuses_another_batch():
    with pytest.raises(ValueError, match="place"):
        unmerge(randn(2, 6, 3), torch.zeros(1, 8, dtype=torch.int64))
