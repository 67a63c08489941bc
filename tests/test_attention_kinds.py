"""Attention kinds beyond softmax and sigmoid: parity with the reference, gradients, padding, packing, meaning."""

import pytest
import torch

from polysense.kernels.attention import attention, available_backends
from polysense.kernels.attention.block_diagonal import BLOCK
from polysense.kernels.attention.slab import depthwise
from polysense.kernels.attention.urpe import Toeplitz

KINDS = ("urpe", "linear", "block_diagonal", "slab")
FAST = [(kind, backend) for kind in KINDS for backend in available_backends(kind) if backend != "reference"]
H, D, E = 2, 4, 3


def _extra(kind, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    if kind == "urpe":
        return {"toeplitz": torch.randn(H, 9, generator=generator, dtype=dtype, requires_grad=True)}
    if kind == "slab":
        return {"conv": torch.randn(H * E, 1, 5, generator=generator, dtype=dtype, requires_grad=True)}
    return {}


def _qkv(b, n, m=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((b, H, n, D), (b, H, m or n, D), (b, H, m or n, E))
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes]


def _options(kind):
    yield {}
    yield {"causal": True}
    yield {"scale": 0.7}
    if kind == "urpe":
        yield {"window": 2}
        yield {"window": 40, "causal": True}
        yield {"bias": torch.randn(1, H, 1, 150, generator=torch.Generator().manual_seed(1))}
    if kind == "block_diagonal":
        yield {"window": 16}
        yield {"window": 5, "causal": True}


CASES = [(kind, backend, options) for kind, backend in FAST for options in _options(kind)]


@pytest.mark.parametrize(("kind", "backend", "options"), CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_fast_backend_equals_the_reference_forward_and_backward(kind, backend, options, masked):
    """150 tokens are more than one chunk of every kind."""
    q, k, v = _qkv(2, 150)
    extra = {} if kind == "slab" and options.get("causal") else _extra(kind)
    mask = torch.rand(2, 150, generator=torch.Generator().manual_seed(3)) < 0.8 if masked else None
    results = []
    for name in ("reference", backend):
        out = attention(q, k, v, kind=kind, mask=mask, extra=extra, backend=name, **options)
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v, *extra.values()))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "backend"), [pair for pair in FAST if pair[0] != "block_diagonal"])
def test_fewer_queries_than_keys(kind, backend):
    q, k, v = _qkv(2, 5, 9)
    extra = _extra(kind) if kind == "urpe" else {}
    expected = attention(q, k, v, kind=kind, extra=extra, backend="reference")
    torch.testing.assert_close(attention(q, k, v, kind=kind, extra=extra, backend=backend), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_gradcheck(kind, backend):
    extra = _extra(kind, torch.float64)
    mask = torch.tensor([[True, True, True, True, True], [True, False, True, False, False]])
    window = {"window": 2} if kind == "block_diagonal" else {}
    names = list(extra)

    def run(q, k, v, *rest):
        return attention(q, k, v, kind=kind, mask=mask, extra=dict(zip(names, rest)), backend=backend, **window)

    assert torch.autograd.gradcheck(run, (*_qkv(2, 5, dtype=torch.float64), *extra.values()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_padding_does_not_reach_the_answer(kind, backend):
    q, k, v = (x.detach() for x in _qkv(2, 9))
    mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    for x in (k, v):
        x[1, :, 5:] = float("nan")
    extra = _extra(kind)
    out = attention(q, k, v, kind=kind, mask=mask, extra=extra, backend=backend)
    alone = attention(*(x[1:, :, :5] for x in (q, k, v)), kind=kind, extra=extra, backend=backend)
    torch.testing.assert_close(out[1:, :, :5], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_equals_each_sequence_alone(kind, backend, causal):
    lengths = [6, 0, 1, 9]
    q, k, v = _qkv(1, sum(lengths))
    extra = {} if kind == "slab" and causal else _extra(kind)
    options = {"kind": kind, "causal": causal, "extra": extra, "backend": backend}
    packed = attention(q, k, v, lengths=lengths, **options)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = attention(q[:, :, part], k[:, :, part], v[:, :, part], **options)
        torch.testing.assert_close(packed[:, :, part], alone, rtol=1e-5, atol=1e-5)
        start += length


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_sequence_without_real_keys_gives_zeros_and_finite_gradients(kind, backend):
    q, k, v = _qkv(2, 4)
    mask = torch.tensor([[True] * 4, [False] * 4])
    extra = {} if kind == "slab" else _extra(kind)
    out = attention(q, k, v, kind=kind, mask=mask, extra=extra, backend=backend)
    assert torch.equal(out[1], torch.zeros_like(out[1])) and out[0].abs().sum() > 0
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(kind, dtype):
    """2,000 keys of one sign would leave float16's range or bfloat16's eight bits if they were summed there."""
    q, k, v = (x.detach().abs().to(dtype) for x in _qkv(1, 2000))
    extra = {name: value.detach().to(dtype) for name, value in _extra(kind).items()}
    out = attention(q, k, v, kind=kind, extra=extra)
    assert out.dtype == dtype
    exact = attention(q.double(), k.double(), v.double(), kind=kind, extra={n: x.double() for n, x in extra.items()})
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_empty_sequences(kind, backend):
    """Values as wide as keys, too: these take other kernels of torch's."""
    for v in (torch.zeros(2, H, 0, E), torch.zeros(2, H, 0, D)):
        q = torch.zeros(2, H, 0, D)
        extra = {} if kind == "slab" else _extra(kind)
        assert attention(q, q, v, kind=kind, extra=extra, backend=backend).shape == v.shape
        packed = attention(q[:1], q[:1], v[:1], kind=kind, extra=extra, lengths=[0, 0], backend=backend)
        assert packed.shape == v[:1].shape


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "block_diagonal"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_no_queries_get_no_answers(kind, backend):
    q, k, v = torch.zeros(2, H, 0, D), torch.zeros(2, H, 4, D), torch.zeros(2, H, 4, E)
    extra = {} if kind == "slab" else _extra(kind)
    assert attention(q, k, v, kind=kind, extra=extra, backend=backend).shape == (2, H, 0, E)


def test_urpe_with_ones_is_softmax_and_tells_equal_tokens_apart_otherwise():
    q, k, v = _qkv(1, 6)
    factors = Toeplitz(H, 3)
    urpe = attention(q, k, v, kind="urpe", extra={"toeplitz": factors()})
    torch.testing.assert_close(urpe, attention(q, k, v))
    same = [x[:, :, :1].expand(-1, -1, 6, -1) for x in (q, k, v)]
    with torch.no_grad():
        factors.values[:, 4:] = 0.0  # look back and at oneself only
    out = attention(*same, kind="urpe", extra={"toeplitz": factors()})
    expected = (torch.arange(6.0) + 1)[:, None] / 6 * same[2][0, 0]
    torch.testing.assert_close(out[0, 0], expected)


def test_urpe_reads_offsets_as_key_minus_query_and_the_ends_beyond_the_reach():
    q, k = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
    out = attention(q, k, torch.eye(4)[None, None], kind="urpe", extra={"toeplitz": torch.tensor([[4.0, 8.0, 12.0]])})
    expected = torch.tensor([[2.0, 3, 3, 3], [1, 2, 3, 3], [1, 1, 2, 3], [1, 1, 1, 2]])
    torch.testing.assert_close(out[0, 0], expected)


def test_linear_answers_have_unit_mean_square():
    out = attention(*_qkv(2, 50), kind="linear")
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2, H, 50), rtol=1e-4, atol=1e-4)


def test_block_diagonal_is_softmax_within_blocks():
    q, k, v = _qkv(1, BLOCK + 5)
    out = attention(q, k, v, kind="block_diagonal")
    for part in (slice(0, BLOCK), slice(BLOCK, BLOCK + 5)):
        torch.testing.assert_close(out[:, :, part], attention(q[:, :, part], k[:, :, part], v[:, :, part]))


def test_slab_averages_values_and_adds_the_convolution():
    q, k, v = _qkv(1, 12)
    weights = q.relu() @ k.relu().transpose(-2, -1)
    expected = weights @ v / (weights.sum(-1, keepdim=True) + 1e-6 / D**-0.5)
    torch.testing.assert_close(attention(q, k, v, kind="slab"), expected, rtol=1e-4, atol=1e-5)
    identity = torch.zeros(H * E, 1, 3)
    identity[:, :, 1] = 1
    torch.testing.assert_close(attention(q, k, v, kind="slab", extra={"conv": identity}), expected + v)


@pytest.mark.parametrize("grid", [(12,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_depthwise_convolves_on_the_grid(grid, axes):
    """Against a sum over taps and cells; fewer axes than the kernel meet its middle, more are pieces."""
    v = torch.randn(2, H, 12, E)
    weight = torch.randn(H * E, 1, *(3, 5, 3)[:axes])
    out = depthwise(v, weight, grid=grid).reshape(2, H, *grid, E)
    full = (1,) * (3 - len(grid)) + grid
    taps = weight.reshape(H, E, *(1,) * (3 - axes), *weight.shape[2:])
    cells = v.reshape(2, H, *full, E)
    expected = torch.zeros(2, H, *full, E)
    places = list(torch.cartesian_prod(*(torch.arange(size) for size in full)).tolist())
    for at in places:
        for other in places:
            tap = [b - a + size // 2 for a, b, size in zip(at, other, taps.shape[2:])]
            if all(0 <= t < size for t, size in zip(tap, taps.shape[2:])):
                expected[:, :, *at] += cells[:, :, *other] * taps[:, :, *tap]
    torch.testing.assert_close(out, expected.reshape(out.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("urpe", {}, "urpe needs its factors"),
        ("urpe", {"extra": {"toeplitz": torch.ones(H, 4)}}, "an odd number of offsets"),
        ("linear", {"bias": torch.zeros(4, 4)}, "no scores"),
        ("linear", {"window": 2}, "block_diagonal"),
        ("linear", {"extra": {"gain": torch.ones(E)}}, "takes no gain"),
        ("block_diagonal", {"bias": torch.zeros(4, 4)}, "takes no bias"),
        ("block_diagonal", {"window": 0}, "at least one token"),
        ("slab", {"bias": torch.zeros(4, 4)}, "no scores"),
        ("slab", {"window": 2}, "block_diagonal"),
        ("slab", {"extra": {"conv": torch.ones(H * E, 1, 4)}}, "an odd number of taps"),
        ("slab", {"extra": {"conv": torch.ones(H * E, 1, 3)}, "causal": True}, "looks both ways"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_calls_that_cannot_run_are_refused(kind, options, message, backend):
    with pytest.raises(ValueError, match=message):
        attention(*_qkv(1, 4), kind=kind, backend=backend, **options)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "backend"), FAST)
def test_gpu_equals_cpu(kind, backend):
    q, k, v = (x.detach() for x in _qkv(2, 300))
    extra = {name: value.detach() for name, value in _extra(kind).items()}
    mask = torch.arange(300)[None] < torch.tensor([[300], [170]])
    expected = attention(q, k, v, kind=kind, mask=mask, extra=extra, backend="reference")
    moved = {name: value.cuda() for name, value in extra.items()}
    actual = attention(q.cuda(), k.cuda(), v.cuda(), kind=kind, mask=mask.cuda(), extra=moved, backend=backend)
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=1e-3)
