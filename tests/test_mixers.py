"""Token mixers: parity with references, gradients, padding, batches, grids."""

import pytest
import torch

from polysense.kernels.mixers import MIXERS, hyena, pool, selective_scan
from polysense.kernels.mixers.growth import growth_names, measure, slope

NAMES = sorted(MIXERS)
WIDTH, HEADS = 8, 2
OPTIONS = {"block_diagonal": {"block": 3}, "urpe": {"reach": 4}}


def _mixer(name, **options):
    torch.manual_seed(0)
    mixer = MIXERS[name](WIDTH, HEADS, **{**OPTIONS.get(name, {}), **options})
    for parameter in mixer.parameters():  # initial ones and zeros hide faults
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer.eval()


def _scattered(mask):
    """Padding between real tokens, as `Tokens.cat` makes it."""
    return mask[:, torch.randperm(mask.shape[1], generator=torch.Generator().manual_seed(5))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", [None, (12,), (3, 4), (2, 3, 2)])
def test_shapes_and_finite_gradients_to_all_parameters(name, grid):
    mixer = _mixer(name)
    x = torch.randn(2, 12, WIDTH, requires_grad=True)
    mask = torch.arange(12)[None] < torch.tensor([[12], [7]])
    out = mixer(x, mask, grid)
    assert out.shape == x.shape and out.isfinite().all()
    out[mask].square().sum().backward()
    assert x.grad[mask].abs().sum() > 0 and not x.grad[~mask].any()
    for key, parameter in mixer.named_parameters():
        if name == "hyena" and grid != (2, 3, 2) and "filters." in key and "filters.2" not in key:
            continue  # filters of axes that this grid has not
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    mixer = _mixer(name).double()
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False]])
    assert torch.autograd.gradcheck(lambda x: mixer(x, mask, (2, 3))[mask], (x,))


@pytest.mark.parametrize("name", NAMES)
def test_real_tokens_answer_alike_wherever_a_line_is_padded(name):
    mixer = _mixer(name)
    mask = _scattered(torch.arange(13)[None] < torch.tensor([[13], [8], [1]]))
    x = torch.randn(3, 13, WIDTH).masked_fill(~mask[..., None], float("nan"))
    batched = mixer(x, mask)
    for i in range(3):
        alone = mixer(x[i : i + 1, mask[i]])
        torch.testing.assert_close(batched[i : i + 1, mask[i]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("grid", "box"), [((4, 5), (3, 2)), ((4, 5), (1, 4)), ((2, 3, 4), (2, 2, 3))])
def test_a_grid_answers_alike_however_it_is_padded(name, grid, box):
    """As `Tokens` of images of several sizes: the real cells are a box at the origin of a larger grid."""
    mixer = _mixer(name)
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[tuple(slice(size) for size in box)] = True
    mask = torch.stack([torch.ones(grid, dtype=torch.bool), mask]).flatten(1)
    x = torch.randn(2, mask.shape[1], WIDTH).masked_fill(~mask[..., None], float("nan"))
    batched = mixer(x, mask, grid)
    torch.testing.assert_close(batched[:1], mixer(x[:1], None, grid), rtol=1e-4, atol=1e-5)
    alone = mixer(x[1:, mask[1]], None, box)
    torch.testing.assert_close(batched[1:, mask[1]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_batched_equals_single_without_a_mask(name):
    mixer = _mixer(name)
    x = torch.randn(3, 12, WIDTH)
    batched = mixer(x, None, (3, 4))
    for i in range(3):
        torch.testing.assert_close(batched[i : i + 1], mixer(x[i : i + 1], None, (3, 4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_without_a_real_token_stays_finite_and_harms_no_other(name):
    mixer = _mixer(name)
    mask = torch.tensor([[False] * 5, [True] * 5])
    x = torch.randn(2, 5, WIDTH)
    out = mixer(x, mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out[1:], mixer(x[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name):
    mixer = _mixer(name)
    x = torch.randn(2, 6, WIDTH)
    with pytest.raises(ValueError, match="reads"):
        mixer(x[..., :4])
    with pytest.raises(ValueError, match="mask must be bool"):
        mixer(x, torch.ones(2, 6))
    with pytest.raises(ValueError, match="does not hold 6 tokens"):
        mixer(x, None, (2, 4))
    with pytest.raises(ValueError, match="positive width"):
        MIXERS[name](0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attention", {"heads": 3}),
        ("pool", {"size": 2}),
        ("pool", {"axes": 4}),
        ("slab", {"size": 4}),
        ("hyena", {"order": 1}),
        ("mamba", {"states": 0}),
    ],
)
def test_wrong_options_are_refused(name, options):
    with pytest.raises(ValueError):
        MIXERS[name](WIDTH, **options)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "linear", "slab"])
@pytest.mark.parametrize("window", [None, 2])
def test_attention_mixes_by_any_kind(kind, window):
    mixer = _mixer("attention", kind=kind, window=window)
    x = torch.randn(2, 7, WIDTH)
    if window is not None and kind in ("linear", "slab"):
        with pytest.raises(ValueError, match="windows"):
            mixer(x)
    else:
        assert mixer(x).isfinite().all()


# ---- pool


@pytest.mark.parametrize("size", [1, 3, 5])
def test_pool_equals_the_mean_of_real_neighbours(size):
    mask = torch.rand(2, 12, generator=torch.Generator().manual_seed(2)) < 0.6
    x = torch.randn(2, 12, WIDTH)
    out = _mixer("pool", size=size)(x, mask, (3, 4))
    torch.testing.assert_close(out[mask], pool.reference(x, mask, (3, 4), size)[mask], rtol=1e-5, atol=1e-5)


def test_pool_reads_a_clip_frame_by_frame_unless_told():
    x = torch.randn(1, 12, WIDTH)
    frames = torch.cat([_mixer("pool")(part, None, (2, 3)) for part in x.split(6, 1)], 1)
    torch.testing.assert_close(_mixer("pool")(x, None, (2, 2, 3)), frames)
    both = pool.reference(x, torch.ones(1, 12, dtype=torch.bool), (2, 2, 3), 3)
    torch.testing.assert_close(_mixer("pool", axes=3)(x, None, (2, 2, 3)), both, rtol=1e-5, atol=1e-5)


# ---- hyena


@pytest.mark.parametrize("length", [1, 2, 7, 33])
def test_long_convolution_equals_the_matrix(length):
    z = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2 * length - 1, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for convolve in (hyena.reference, hyena.long_convolution):
        out = convolve(z, h)
        results.append([out, *torch.autograd.grad(out.square().sum(), (z, h))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_long_convolution_by_hand_and_its_refusal():
    z = torch.tensor([0.0, 1.0, 0.0])[None, :, None]
    h = torch.arange(5.0)[:, None]  # lags -2 … 2
    torch.testing.assert_close(hyena.long_convolution(z, h)[0, :, 0], torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=r"is \(5, 1\)"):
        hyena.long_convolution(z, h[:4])


@pytest.mark.parametrize(("least", "size"), [(1, 1), (2, 2), (3, 3), (5, 6), (7, 8), (1025, 1536), (1537, 2048)])
def test_fft_size(least, size):
    assert hyena.fft_size(least) == size


def test_implicit_filters_do_not_depend_on_the_length():
    filters = hyena.ImplicitFilter(4)
    torch.testing.assert_close(filters(20)[10:-10], filters(10))


@pytest.mark.parametrize("order", [2, 3])
def test_hyena_on_a_grid_equals_its_definition(order):
    """Convolutions as sums over lags, axis by axis."""
    mixer = _mixer("hyena", order=order, axes=2).double()
    x = torch.randn(1, 12, WIDTH, dtype=torch.float64)
    u = mixer.in_proj(x).view(3, 4, -1)
    for axis, size in enumerate((3, 4)):
        taps, wide = mixer.short_filter[axis], torch.zeros_like(u)
        for i in range(size):
            for j in range(max(i - 1, 0), min(i + 2, size)):
                wide.select(axis, i).add_(u.select(axis, j) * taps[j - i + 1])
        u = wide
    *gates, z = u.chunk(order + 1, -1)
    for k in range(order - 1, 0, -1):
        z = z * gates[k]
        far = z
        for axis, size in enumerate((3, 4)):
            h = mixer.filters[axis](size)[:, (k - 1) * WIDTH : k * WIDTH]
            lines = far.movedim(axis, 0)
            mixed = torch.stack([sum(h[i - j + size - 1] * lines[j] for j in range(size)) for i in range(size)])
            far = mixed.movedim(0, axis)
        z = far + mixer.skip[k - 1] * z
    expected = mixer.proj(gates[0] * z).view(1, 12, WIDTH)
    torch.testing.assert_close(mixer(x, None, (3, 4)), expected)


# ---- mamba


def _scan_inputs(n, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    u, delta = (torch.randn(2, n, 3, generator=generator, dtype=dtype) for _ in range(2))
    a = -torch.rand(3, 4, generator=generator, dtype=dtype)
    b, c = (torch.randn(2, n, 4, generator=generator, dtype=dtype) for _ in range(2))
    return [part.requires_grad_() for part in (u, delta.abs() * scale, a, b, c)]


@pytest.mark.parametrize(("n", "segment"), [(1, 4), (4, 4), (7, 3), (13, 256), (13, 1), (50, 16)])
def test_selective_scan_equals_one_step_after_another(n, segment):
    inputs = _scan_inputs(n)
    results = []
    for out in (selective_scan.reference(*inputs), selective_scan.selective_scan(*inputs, segment=segment)):
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        torch.testing.assert_close(selective_scan.selective_scan(*inputs, segment=segment), results[0][0])


def test_selective_scan_gradcheck():
    assert torch.autograd.gradcheck(lambda *x: selective_scan.selective_scan(*x, segment=4), _scan_inputs(6))


def test_selective_scan_survives_decays_that_vanish():
    """Steps of 1000: a product of decays is zero in any type, and dividing by it would be NaN."""
    inputs = _scan_inputs(300, torch.float32, scale=1e3)
    expected = selective_scan.reference(*inputs)
    torch.testing.assert_close(selective_scan.selective_scan(*inputs), expected, rtol=1e-4, atol=1e-2)


def test_selective_scan_refuses_shapes_that_do_not_fit():
    u, delta, a, b, c = _scan_inputs(5)
    for wrong in ((u, delta[:, 1:], a, b, c), (u, delta, a, b[..., 1:], c), (u, delta, a[1:], b, c)):
        with pytest.raises(ValueError, match="must be"):
            selective_scan.selective_scan(*wrong)
    with pytest.raises(ValueError, match="at least one token"):
        selective_scan.selective_scan(u, delta, a, b, c, segment=0)


def test_mamba_is_causal_one_way_and_sees_all_both_ways():
    x = torch.randn(1, 9, WIDTH)
    changed = x.clone()
    changed[:, 5] += 1
    for bidirectional in (False, True):
        mixer = _mixer("mamba", bidirectional=bidirectional)
        moved = (mixer(x) - mixer(changed)).abs().sum(-1)[0] > 1e-6
        assert moved[5:].all()
        assert moved[:5].all() if bidirectional else not moved[:5].any()


# ---- growth


def test_growth_measures_every_name_and_finds_the_slope():
    names = growth_names()
    assert {"attention", "mamba", "kind:softmax", "kind:urpe"} <= set(names)
    rows = measure(names, (16, 32), width=8, heads=2, repeats=1, longest={"pool": 16})
    expected = [(name, tokens) for name in names for tokens in (16, 32) if (name, tokens) != ("pool", 32)]
    assert [(row["name"], row["tokens"]) for row in rows] == expected
    assert all(row["seconds"] > 0 for row in rows)
    made = [{"name": "x", "tokens": n, "seconds": 3e-9 * n**1.5} for n in (100, 1000, 10000)]
    assert slope(made, "x") == pytest.approx(1.5)
    with pytest.raises(ValueError, match="two lengths"):
        slope(made[:1], "x")
