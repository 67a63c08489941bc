"""Attention: every kind and backend equals the written-out reference, forward and backward, in every layout."""

import math

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from polysense.kernels.attention import api, attention, available_backends, available_kinds, flex
from polysense.kernels.attention.call import make_call

KINDS = ("softmax", "sigmoid")  # those of this file; others have files of their own
PAIRS = [(kind, backend) for kind in KINDS for backend in available_backends(kind)]
CPU = [pair for pair in PAIRS if pair[1] not in ("flex", "flash") and "triton" not in pair[1]]
GPU_ONLY = [pair for pair in PAIRS if pair[1] in ("flex", "flash")]

PADDED = {
    "plain": {},
    "mask": {"mask": True},
    "bias": {"bias": (1, 2, 9, 9)},
    "mask and bias": {"mask": True, "bias": (3, 1, 1, 9)},
    "causal": {"causal": True},
    "window 0": {"window": 0},
    "window 2": {"window": 2},
    "window beyond": {"window": 40},
    "all at once": {"mask": True, "bias": (9, 9), "window": 3, "causal": True},
    "mask and window": {"mask": True, "window": 1},
}
PACKED = {
    "plain": {},
    "causal": {"causal": True},
    "window 1": {"window": 1},
    "window and causal": {"window": 2, "causal": True},
}
LENGTHS = (4, 4, 1, 0, 9, 4)


def _qkv(b, n, m, dtype=torch.float64, d=4, e=6, device="cpu"):
    torch.manual_seed(0)
    shapes = ((b, 2, n, d), (b, 2, m, d), (b, 2, m, e))
    return [torch.randn(shape, dtype=dtype, device=device).requires_grad_() for shape in shapes]


def _options(options, n=9, b=3):
    options = dict(options)
    if "mask" in options:  # one sequence is whole, one has a hole and a tail, one has no real key
        mask = torch.ones(b, n, dtype=torch.bool)
        mask[1, 1], mask[1, 5:], mask[2] = False, False, False
        options["mask"] = mask
    if "bias" in options:
        torch.manual_seed(2)
        options["bias"] = torch.randn(options["bias"], dtype=torch.float64, requires_grad=True)
    return options


def _loops(kind, q, k, v, mask=None, bias=None, window=None, causal=False, scale=None):
    """Attention number by number, straight from the definitions."""
    b, h, n, d = q.shape
    m, out = k.shape[2], torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    bias = torch.zeros(b, h, n, m) if bias is None else bias.expand(b, h, n, m)
    for s in range(b):
        real = [j for j in range(m) if mask is None or mask[s, j]]
        for g in range(h):
            for i in range(n):
                keys = [j for j in real if (window is None or abs(i - j) <= window) and (not causal or j <= i)]
                scores = [float(q[s, g, i] @ k[s, g, j]) * (scale or d**-0.5) + float(bias[s, g, i, j]) for j in keys]
                if kind == "softmax":
                    weights = [math.exp(x) / sum(math.exp(y) for y in scores) for x in scores]
                else:
                    weights = [1 / (1 + math.exp(-x + math.log(len(real)))) for x in scores]
                for weight, j in zip(weights, keys, strict=True):
                    out[s, g, i] += weight * v[s, g, j]
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", PADDED.values(), ids=PADDED)
def test_the_reference_is_the_definition(kind, options):
    q, k, v = (x.detach() for x in _qkv(3, 9, 9))
    options = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in _options(options).items()}
    out = attention(q, k, v, kind=kind, backend="reference", scale=0.7, **options)
    torch.testing.assert_close(out, _loops(kind, q, k, v, scale=0.7, **options))


def _results(inputs, **options):
    """Answer and gradients; the loss has no kink and no zero gradient anywhere."""
    out = attention(*inputs, **options)
    learned = [*inputs, *([options["bias"]] if options.get("bias") is not None else [])]
    return [out, *torch.autograd.grad((out + 0.3).square().sum(), learned)]


def _assert_equal(actual, expected, **tolerance):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize(("kind", "backend"), [*CPU, *((kind, "auto") for kind in KINDS)])
@pytest.mark.parametrize("options", PADDED.values(), ids=PADDED)
def test_padded_equals_the_reference_forward_and_backward(kind, backend, options):
    inputs, options = _qkv(3, 9, 9), _options(options)
    if backend == "packed" or (backend == "blocked" and "window" not in options):
        with pytest.raises(ValueError, match="cannot run this call"):
            attention(*inputs, kind=kind, backend=backend, **options)
        return
    expected = _results(inputs, kind=kind, backend="reference", **options)
    _assert_equal(_results(inputs, kind=kind, backend=backend, **options), expected)


@pytest.mark.parametrize(("kind", "backend"), [*CPU, *((kind, "auto") for kind in KINDS)])
@pytest.mark.parametrize("options", PACKED.values(), ids=PACKED)
def test_packed_equals_each_sequence_alone(kind, backend, options):
    inputs = _qkv(1, sum(LENGTHS), sum(LENGTHS))
    if backend == "sdpa" or (backend == "blocked" and "window" not in options):
        with pytest.raises(ValueError, match="cannot run this call"):
            attention(*inputs, kind=kind, backend=backend, lengths=LENGTHS, **options)
        return
    alone = [attention(*parts, kind=kind, backend="reference", **options)
             for parts in zip(*(x.split(LENGTHS, 2) for x in inputs), strict=True)]  # fmt: skip
    out = torch.cat(alone, 2)
    expected = [out, *torch.autograd.grad((out + 0.3).square().sum(), inputs)]
    _assert_equal(_results(inputs, kind=kind, backend=backend, lengths=LENGTHS, **options), expected)


@pytest.mark.parametrize(("kind", "backend"), [pair for pair in CPU if pair[1] not in ("packed", "blocked")])
@pytest.mark.parametrize("masked", [False, True])
def test_other_queries_than_keys(kind, backend, masked):
    inputs = _qkv(3, 5, 9)
    options = {**(_options({"mask": True}) if masked else {}), "kind": kind}
    _assert_equal(_results(inputs, backend=backend, **options), _results(inputs, backend="reference", **options))


@pytest.mark.parametrize(("kind", "backend"), [pair for pair in CPU if pair[1] in ("blocked", "chunked")])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [5, 70])
def test_many_blocks_and_chunks_equal_the_reference(kind, backend, causal, window):
    padded, packed = _qkv(2, 203, 203, torch.float32), _qkv(1, 300, 300, torch.float32)
    mask = torch.arange(203) < torch.tensor([[203], [150]])
    options = {"kind": kind, "window": window, "causal": causal}
    for inputs, layout in ((padded, {"mask": mask}), (packed, {"lengths": (150, 33, 117)})):
        expected = _results(inputs, backend="reference", **options, **layout)
        _assert_equal(_results(inputs, backend=backend, **options, **layout), expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():  # other block sizes
            out = attention(*inputs, backend=backend, **options, **layout)
        torch.testing.assert_close(out, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, (2, 0, 7)])
def test_a_window_beyond_all_keys_takes_no_room(lengths):
    q, k, v = (x.detach() for x in _qkv(1, 9, 9, torch.float32))
    wide = attention(q, k, v, window=10**12, lengths=lengths, backend="blocked")
    torch.testing.assert_close(wide, attention(q, k, v, lengths=lengths, backend="reference"))


@pytest.mark.parametrize(("kind", "backend"), CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_stays_close_and_keeps_its_type(kind, backend, dtype):
    inputs = _qkv(1, 24, 24, dtype, d=8, e=8)
    options = {"kind": kind, "window": 6} if backend == "blocked" else {"kind": kind}
    if backend == "packed":
        options["lengths"] = (20, 4)
    expected = _results([x.detach().double().requires_grad_() for x in inputs], backend="reference", **options)
    actual = _results(inputs, backend=backend, **options)
    assert all(x.dtype == dtype for x in actual)
    size = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    _assert_equal([x.double() for x in actual], expected, rtol=size, atol=size)


@pytest.mark.parametrize(("kind", "backend"), CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_without_real_keys_gives_zeros_and_no_gradient(kind, backend, dtype):
    if backend == "packed":
        return  # it has no such sequences: an empty one has no queries either
    inputs, options = _qkv(3, 9, 9, dtype, d=8, e=8), _options({"mask": True})
    options["window"] = 2 if backend == "blocked" else None
    out, *gradients = _results(inputs, kind=kind, backend=backend, **options)
    assert not out[2].any() and out[0].all()
    assert all(not gradient[2].any() and gradient[0].any() for gradient in gradients)


@pytest.mark.parametrize(("kind", "backend"), CPU)
def test_gradcheck(kind, backend):
    q, k, v = _qkv(1, 7, 7, d=3, e=2)
    options = {"kind": kind, "backend": backend, "window": 2 if backend == "blocked" else None}
    if backend in ("packed", "blocked"):
        options["lengths"] = (3, 4)
    else:
        options["mask"] = torch.arange(7)[None] < 5
    assert torch.autograd.gradcheck(lambda *x: attention(*x, **options), (q, k, v))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("options", [*PADDED.values(), *({**x, "packed": True} for x in PACKED.values())])
def test_flex_translates_every_option(options):
    options = dict(options)
    if options.pop("packed", False):
        inputs, options = _qkv(1, 22, 22), {**options, "lengths": LENGTHS}
    else:
        inputs, options = _qkv(3, 9, 9), _options(options)
    call = make_call(*(x.detach() for x in inputs), **options)
    expected = attention(*inputs, backend="reference", **options)
    torch.testing.assert_close(flex.attend(call, flex_attention), expected)


@pytest.mark.parametrize(("kind", "backend"), GPU_ONLY)
def test_what_needs_a_gpu_says_so(kind, backend):
    with pytest.raises(ValueError, match=f"the {backend} backend of {kind} attention cannot run .* CUDA only"):
        attention(*_qkv(1, 4, 4), kind=kind, backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "backend"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 20}, {"window": 20, "causal": True}])
def test_on_a_gpu(kind, backend, dtype, packed, options):
    lengths = (130, 65, 65, 1)
    inputs = _qkv(1 if packed else 3, 261, 261, dtype, d=64, e=64, device="cuda")
    if packed:
        options = {**options, "lengths": lengths}
    else:
        options = {**options, "mask": torch.arange(261, device="cuda") < torch.tensor([[261], [200], [0]]).cuda()}
    if api._TABLE[kind, backend][1](make_call(*inputs, **options)):
        pytest.skip("it refuses this call")
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = _results(exact, kind=kind, backend="reference", **options)
    actual = [x.double() for x in _results(inputs, kind=kind, backend=backend, **options)]
    size = {torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    _assert_equal(actual, expected, rtol=size, atol=size)


def test_autocast_brings_types_together():
    q, k, v = (x.detach() for x in _qkv(1, 5, 5, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(q, k.bfloat16(), v).dtype == torch.bfloat16


BAD = {
    "do not go together": {"k": torch.zeros(2, 2, 9, 4)},
    r"must be \(batch, heads, tokens, width\)": {"q": torch.zeros(9, 4)},
    "one float type": {"v": torch.zeros(3, 2, 9, 6, dtype=torch.float16)},
    "one device": {"v": torch.zeros(3, 2, 9, 6, dtype=torch.float64, device="meta")},
    "at least one head of width 1": dict.fromkeys("qkv", torch.zeros(3, 0, 9, 4)),
    r"of width 1, got q \(3, 2, 9, 0\)": dict.fromkeys("qkv", torch.zeros(3, 2, 9, 0)),
    "mask is on meta": {"mask": torch.zeros(3, 9, dtype=torch.bool, device="meta")},
    "mask must be bool": {"mask": torch.ones(3, 9)},
    r"mask must be bool \(3, 9\)": {"mask": torch.ones(3, 8, dtype=torch.bool)},
    r"bias must broadcast to \(3, 2, 9, 9\)": {"bias": torch.zeros(2, 9, 8)},
    "bias must be of a float type": {"bias": torch.zeros(9, 9, dtype=torch.bool)},
    "window must be a whole number of at least 0": {"window": -1},
    "window must be a whole number": {"window": 1.5},
    "window must be a whole number of at least 0, or None for all keys, got inf": {"window": float("inf")},
    "window must be a whole number of at least 0, or None for all keys, got nan": {"window": float("nan")},
    "q must be a tensor, got ndarray": {"q": torch.zeros(3, 2, 9, 4).numpy()},
    "mask must be a tensor, got list": {"mask": [[True] * 9] * 3},
    "bias must be a tensor, got float": {"bias": 0.5},
    "as many queries as keys": {"q": torch.zeros(3, 2, 5, 4, dtype=torch.float64), "window": 2},
    "need as many queries": {"q": torch.zeros(3, 2, 5, 4, dtype=torch.float64), "causal": True},
    "with lengths, q, k, v are packed": {"lengths": (9, 9, 9)},
    "mask belongs to the padded layout": {"lengths": (9,), "mask": torch.ones(3, 9, dtype=torch.bool)},
    "bias belongs to the padded layout": {"lengths": (9,), "bias": torch.zeros(9, 9)},
    "lengths must be whole numbers": {"lengths": torch.ones(3)},
    "unknown attention kind 'hard'; choose one of: .*sigmoid.*softmax": {"kind": "hard"},
    "unknown softmax attention backend 'flash9'; choose auto or one of: blocked, .*sdpa": {"backend": "flash9"},
    "unknown sigmoid attention backend 'sdpa'": {"kind": "sigmoid", "backend": "sdpa"},
    "softmax attention takes no toeplitz; it takes: none": {"extra": {"toeplitz": torch.zeros(1)}},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message):
    arguments = dict(zip("qkv", _qkv(3, 9, 9), strict=True)) | BAD[message]
    with pytest.raises(ValueError, match=message):
        attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


@pytest.mark.parametrize("lengths", [(4, 4), (4, 6, -1), (10,)])
def test_lengths_that_do_not_sum_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths must be at least 0 and sum to 9 tokens"):
        attention(*_qkv(1, 9, 9), lengths=lengths)


def test_lengths_may_be_a_tensor():
    inputs = _qkv(1, 9, 9)
    assert torch.equal(attention(*inputs, lengths=torch.tensor([5, 4])), attention(*inputs, lengths=[5, 4]))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_nothing_out(kind):
    q, k, v = (x.detach() for x in _qkv(1, 0, 0))
    for backend in ("auto", "reference"):
        assert attention(q, k, v, kind=kind, backend=backend).shape == (1, 2, 0, 6)
        assert attention(q, k, v, kind=kind, backend=backend, lengths=()).shape == (1, 2, 0, 6)
    assert attention(q, k, v, kind=kind, window=1).shape == (1, 2, 0, 6)


@pytest.mark.parametrize(
    ("kind", "n", "options", "expected"),
    [
        ("softmax", 300, {}, "sdpa"),
        ("softmax", 300, {"causal": True}, "sdpa"),
        ("softmax", 300, {"window": 50}, "blocked"),
        ("softmax", 300, {"window": 100}, "sdpa"),
        ("softmax", 300, {"lengths": (100, 200)}, "packed"),
        ("softmax", 300, {"lengths": (10,) * 30, "window": 8}, "packed"),
        ("softmax", 300, {"lengths": (140, 160), "window": 8}, "blocked"),
        ("sigmoid", 300, {}, "chunked"),
        ("sigmoid", 300, {"lengths": (100, 200), "window": 8}, "chunked"),
    ],
)
def test_auto_takes_the_fastest_that_was_measured(kind, n, options, expected):
    call = make_call(*_qkv(1, n, n, torch.float32), **options)
    assert api._first_that_runs(kind, call) is api._TABLE[kind, expected][0]


def test_kinds_and_backends_are_listed():
    assert {"softmax", "sigmoid"} <= set(available_kinds())
    assert {"reference", "sdpa", "packed", "blocked", "flex", "flash"} <= set(available_backends())
    assert {"reference", "chunked"} <= set(available_backends("sigmoid"))
    with pytest.raises(ValueError, match="unknown attention kind 'hard'"):
        available_backends("hard")
