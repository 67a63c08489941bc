"""Attention over ranks equals attention in one process, values and gradients; on two gloo processes of this machine."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from polysense.kernels.attention import attention, context_parallel
from polysense.kernels.attention.context_parallel import context_parallel_attention

METHODS = ("ring", "all_gather", "auto")
# Keys (and, where they differ, queries) of the two ranks.
CASES = {
    "even": {"lengths": (6, 6)},
    "ragged": {"lengths": (4, 7)},
    "causal": {"lengths": (4, 7), "causal": True},
    "causal, longer first": {"lengths": (7, 4), "causal": True},
    "an empty shard": {"lengths": (0, 5)},
    "an empty shard, causal": {"lengths": (5, 0), "causal": True},
    "more queries than keys": {"lengths": (2, 3), "queries": (5, 4)},
    "no keys": {"lengths": (0, 0), "queries": (2, 1)},
    "scale": {"lengths": (3, 4), "scale": 0.9},
    "float32": {"lengths": (4, 7), "causal": True, "dtype": torch.float32},
    "bfloat16": {"lengths": (4, 7), "dtype": torch.bfloat16},
}


def _whole(lengths, queries=None, causal=False, scale=None, dtype=torch.float64):
    """q, k, v and the gradient of the answer for the whole sequence."""
    torch.manual_seed(0)
    n, m = sum(queries or lengths), sum(lengths)
    q, k, v, do = (torch.randn(2, 2, t, w).double() for t, w in ((n, 4), (m, 4), (m, 6), (n, 6)))
    return [x.to(dtype) for x in (q, k, v, do)]


def _expected(case):
    """Answer and gradients in one process, in float64 from the same rounded inputs."""
    *inputs, do = (x.double() for x in _whole(**case))
    inputs = [x.requires_grad_() for x in inputs]
    out = attention(*inputs, causal=case.get("causal", False), scale=case.get("scale"), backend="reference")
    return [out.detach(), *torch.autograd.grad(out, inputs, do)]


def _own(x, lengths, rank):
    return x.split(list(lengths), 2)[rank]


def _answers(rank, name, method, group=None):
    case = CASES[name]
    lengths, queries = case["lengths"], case.get("queries", case["lengths"])
    q, k, v, do = _whole(**case)
    inputs = [_own(x, t, rank).clone().requires_grad_() for x, t in ((q, queries), (k, lengths), (v, lengths))]
    out = context_parallel_attention(
        *inputs, group=group, causal=case.get("causal", False), scale=case.get("scale"), method=method
    )
    out.backward(_own(do, queries, rank))
    assert out.dtype == inputs[0].dtype
    return [out.detach(), *(x.grad for x in inputs)]


def _fails(*args, **options):
    try:
        context_parallel_attention(*args, **options)
    except ValueError as error:
        return str(error)
    return "it ran"


def _faults(rank):
    """What this rank hears of faults; were one rank to raise alone, the other would wait for ever."""
    good, wide = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 5)
    halves = good.half()
    return {
        "shapes of one rank": _fails(good, wide if rank == 1 else good, good),
        "types of one rank": _fails(good, halves if rank == 0 else good, good),
        "between ranks": _fails(*[good.expand(1, 1 + rank, 3, 4)] * 3),
        "causal": _fails(good[:, :, :2], good, good, causal=True),
        "no heads": _fails(*[good[:, : 1 - rank]] * 3),
    }


def _alone(group, method):
    """A group of one rank within the two: its member counts from 0 again."""
    torch.manual_seed(1)
    q = torch.randn(1, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    out = context_parallel_attention(q, q, q, group=group, causal=True, method=method)
    expected = attention(q, q, q, causal=True, backend="reference")
    pairs = (out, expected), *zip(torch.autograd.grad(out.sum(), q), torch.autograd.grad(expected.sum(), q))
    return max((x - y).abs().max().item() for x, y in pairs)


def _serve(rank, folder):
    """One of two ranks: finds everything out and writes it down."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    context_parallel._CHUNK = 3  # several chunks in a shard
    found = {f"{name}, {method}": _answers(rank, name, method) for name in CASES for method in METHODS}
    groups = [dist.new_group([r]) for r in range(2)]
    alone = {method: _alone(groups[rank], method) for method in METHODS}
    torch.save({"cases": found, "faults": _faults(rank), "alone": alone}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks have found: this file runs as a script, which starts them."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process(ranks, name, method):
    case = CASES[name]
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-2}.get(case.get("dtype"), 1e-12)
    answers = [torch.cat(parts, 2) for parts in zip(*(found["cases"][f"{name}, {method}"] for found in ranks))]
    for got, expected in zip(answers, _expected(case), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_ranks_of_a_group_count_within_it(ranks, method):
    assert max(found["alone"][method] for found in ranks) < 1e-12


@pytest.mark.parametrize(
    "fault, own, other",
    [
        ("shapes of one rank", (1, "do not go together"), "do not fit on rank 1"),
        ("types of one rank", (0, "must have one float type"), "do not fit on rank 0"),
        ("between ranks", (0, r"ranks differ in heads: [1, 2]"), "ranks differ in heads"),
        ("causal", (0, "as many queries as keys"), "as many queries as keys"),
        ("no heads", (1, "at least one head"), "do not fit on rank 1"),
    ],
)
def test_every_rank_hears_of_a_fault(ranks, fault, own, other):
    rank, message = own
    assert message in ranks[rank]["faults"][fault]
    assert other in ranks[1 - rank]["faults"][fault]


def test_auto_takes_the_ring_for_many_keys(monkeypatch):
    taken = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(context_parallel, "_meet", lambda q, *_: context_parallel._Ranks(None, 0, (q.shape[2], 10**6)))
    monkeypatch.setattr(context_parallel._Ring, "apply", lambda *_: taken.append("ring"))
    monkeypatch.setattr(context_parallel, "_by_gathering", lambda *_: taken.append("all_gather"))
    for width in (4, 400):
        context_parallel_attention(*[torch.zeros(1, 1, 2, width)] * 3)
    assert taken == ["all_gather", "ring"]


def test_what_no_rank_can_run_is_refused():
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="unknown method 'tree'; choose auto, ring or all_gather"):
        context_parallel_attention(q, q, q, method="tree")
    with pytest.raises(ValueError, match="no process group: call"):
        context_parallel_attention(q, q, q)


if __name__ == "__main__":
    torch.multiprocessing.spawn(_serve, (sys.argv[1],), nprocs=2)
