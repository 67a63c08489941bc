"""The Triton kernels equal the reference, forward and backward: in Triton's interpreter here, on a GPU where one is.

The interpreter has to be chosen before Triton is imported, which other tests may have done: this file runs itself once,
as a script in a process of its own, and the tests read what it found.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from polysense.kernels.attention import attention, available_backends, reference, triton_attention
from polysense.kernels.attention.call import make_call

KINDS = ("softmax", "sigmoid")
# Tiles are 16 × 16 in the interpreter. n (and m) tokens, d (and e) width, h heads, b sequences.
CASES = {
    "one tile": {"n": 7},
    "tiles and a rest, two heads": {"n": 20, "b": 2, "h": 2},
    "whole tiles only": {"n": 32},
    "fewer queries than keys": {"n": 5, "m": 37, "d": 24, "e": 40},
    "more queries than keys": {"n": 37, "m": 5},
    "width 64": {"n": 20, "d": 64},
    "width 80": {"n": 20, "d": 80},
    "width 5": {"n": 20, "d": 5},
    "scale": {"n": 20, "scale": -0.7},
    "causal": {"n": 36, "causal": True},
    "window 0": {"n": 20, "window": 0},
    "window 3": {"n": 36, "window": 3},
    "window of whole tiles": {"n": 52, "window": 17},
    "window and causal": {"n": 52, "window": 17, "causal": True},
    "window beyond": {"n": 20, "window": 60},
    "prefixes": {"n": 20, "b": 3, "mask": "prefix"},
    "holes": {"n": 36, "b": 3, "mask": "holes"},
    "holes, window and causal": {"n": 36, "b": 3, "mask": "holes", "window": 2, "causal": True},
    "packed": {"lengths": (20, 0, 1, 16), "h": 2},
    "packed, causal": {"lengths": (20, 0, 1, 19), "causal": True},
    "packed, window": {"lengths": (20, 0, 1, 19), "window": 2},
    "packed, all empty": {"lengths": (0, 0)},
    "no sequences": {"n": 5, "b": 0},
    "no keys": {"n": 5, "m": 0},
    "float16": {"n": 36, "dtype": "float16"},
    "float16, width 80, packed": {"lengths": (20, 3), "d": 80, "dtype": "float16"},
    "one projection": {"n": 20, "h": 2, "view": True},
    "gradient of a sum": {"n": 20, "sum": True},
}
REFUSED = {
    "bias": ({}, {"bias": torch.zeros(4, 4)}, "takes no bias"),
    "float64": ({"dtype": "float64"}, {}, "float64 is not supported"),
    "width": ({"d": 160}, {}, "1 to 128 wide, got 160"),
    "bfloat16": ({"dtype": "bfloat16"}, {}, "interpreter multiplies bfloat16"),
}


def _inputs(n=4, m=None, d=16, e=None, h=1, b=1, dtype="float32", view=False, lengths=None, device="cpu"):
    torch.manual_seed(0)
    n = sum(lengths) if lengths is not None else n
    m, e = n if m is None else m, d if e is None else e
    if view:  # as the encoder makes them: columns of one projection
        qkv = torch.randn(b, n, 3, h, d, dtype=getattr(torch, dtype), device=device)
        return [x.detach().requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4)]
    shapes = ((b, h, n, d), (b, h, m, d), (b, h, m, e))
    return [torch.randn(s, device=device).to(getattr(torch, dtype)).requires_grad_() for s in shapes]


def _mask(kind, b, n):
    """Three sequences: a whole one, one with a tail, and one that ends early, has a hole, or nothing at all."""
    mask = torch.ones(b, n, dtype=torch.bool)
    mask[1, n - 3 :] = False
    mask[2, 1 if kind == "prefix" else 0 :] = False
    if kind == "holes":
        mask[1, 2], mask[1, 16:32] = False, False  # 16 to 32 is a tile
        mask[0, :5] = False
    return mask


def _errors(kind, case, device="cpu"):
    """Largest differences from the reference of answer and gradients, relative to the largest value."""
    case = dict(case)
    options = {name: case.pop(name) for name in ("causal", "window", "scale") if name in case}
    total, mask = case.pop("sum", False), case.pop("mask", None)
    inputs = _inputs(**case, device=device)
    if mask:
        options["mask"] = _mask(mask, case["b"], case["n"]).to(device)
    if "lengths" in case:
        options["lengths"] = case["lengths"]
    call = make_call(*inputs, **options)
    out = attention(*inputs, kind=kind, backend="triton", **options)
    expected = getattr(reference, kind)(call)
    assert out.shape == expected.shape and out.dtype == expected.dtype
    gradient = torch.ones_like(out).sum(-1, keepdim=True).expand_as(out) if total else torch.randn_like(out)
    pairs = [(out, expected), *zip(*(torch.autograd.grad(x, inputs, gradient) for x in (out, expected)), strict=True)]
    scales = [max(1.0, y.abs().max().item()) if y.numel() else 1.0 for _, y in pairs]
    return {
        name: ((x.float() - y.float()).abs().max().item() / scale if x.numel() else 0.0)
        for name, (x, y), scale in zip(("out", "dq", "dk", "dv"), pairs, scales, strict=True)
    }


def _reason(inputs, options):
    try:
        attention(*_inputs(**inputs), backend="triton", **options)
    except ValueError as error:
        return str(error)
    return "it ran"


@pytest.fixture(scope="module")
def interpreted():
    """What this file, run as a script in the interpreter, has found."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_reference_s(interpreted, kind, name):
    errors = interpreted[f"{kind}, {name}"]
    tolerance = 2e-3 if "float16" in name else 3e-6
    assert set(errors) == {"out", "dq", "dk", "dv"}, errors
    assert all(error <= tolerance for error in errors.values()), errors


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_run_is_refused_with_the_reason(interpreted, name):
    assert REFUSED[name][2] in interpreted[f"refused, {name}"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gpu_or_the_interpreter_it_says_so(kind, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "triton" in available_backends(kind)
    with pytest.raises(ValueError, match=r"cannot run this call: .*(on cpu, Triton needs a GPU|not installed)"):
        attention(*_inputs(), kind=kind, backend="triton")


GPU_CASES = {
    "image": {"b": 8, "h": 12, "n": 197, "d": 64},
    "narrow heads": {"b": 4, "h": 3, "n": 1024, "d": 16},
    "width 80, causal": {"b": 2, "h": 4, "n": 1000, "d": 80, "causal": True},
    "width 96, window": {"b": 2, "h": 4, "n": 2000, "d": 96, "window": 100},
    "width 128, window and causal": {"b": 1, "h": 4, "n": 2048, "d": 128, "window": 300, "causal": True},
    "prefixes": {"b": 3, "h": 3, "n": 700, "d": 64, "mask": "prefix"},
    "holes": {"b": 3, "h": 3, "n": 700, "d": 64, "mask": "holes"},
    "packed": {"h": 3, "d": 64, "lengths": (1000, 1, 0, 313, 64, 2000)},
    "packed, causal": {"h": 3, "d": 64, "lengths": (1000, 1, 0, 313, 64, 2000), "causal": True},
    "cross": {"b": 2, "h": 3, "n": 33, "m": 1500, "d": 64},
    "one projection": {"b": 4, "h": 3, "n": 300, "d": 64, "view": True},
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
@pytest.mark.parametrize("name", GPU_CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_it_is_the_reference(kind, name, dtype):
    errors = _errors(kind, {**GPU_CASES[name], "dtype": dtype}, "cuda")
    tolerance = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    assert all(error <= tolerance for error in errors.values()), errors


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_on_a_gpu_it_is_as_near_the_truth_as_sdpa(dtype):
    inputs = _inputs(b=4, h=6, n=777, d=64, dtype=dtype, device="cuda")
    truth = reference.softmax(make_call(*(x.detach().double() for x in inputs)))
    mine, theirs = (
        (attention(*inputs, backend=backend).double() - truth).abs().max() for backend in ("triton", "sdpa")
    )
    assert mine <= 2 * theirs


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_tiles_are_chosen_by_measurement(kind):
    kernels = triton_attention._kernels()
    inputs = _inputs(b=2, h=2, n=333, d=48, dtype="float16", device="cuda")
    attention(*inputs, kind=kind, backend="triton").sum().backward()
    for kernel in (kernels.forward_kernel, kernels.dq_kernel, kernels.dkv_kernel):
        assert len(kernel.configs) > 1
        assert any(key[0] == 512 and key[1] == 48 for key in kernel.cache), "333 tokens were not tuned as up to 512"


def _found():
    """Runs every case; only to be called where kernels are interpreted."""
    found = {f"{kind}, {name}": _errors(kind, case) for kind in KINDS for name, case in CASES.items()}
    return found | {f"refused, {name}": _reason(*case[:2]) for name, case in REFUSED.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(_found()))
