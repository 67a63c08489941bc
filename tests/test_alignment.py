"""Alignment: an order of neurons changes nothing, is found again, and what is aligned has a mean close to both."""

import pytest
import torch

from polysense.apps import cli
from polysense.backbone.alignment import (
    BlockMaps,
    align,
    costs,
    distance,
    sinkhorn,
    transport,
    with_inner,
    with_stream,
)
from polysense.backbone.averaging import average_encoders
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.neurons import activations, blocks_of
from polysense.backbone.weights import load_encoder, save_encoder
from polysense.core.types import Tokens

SHAPES = {
    "plain": {},
    "with prefix, scales and norms": {"class_token": True, "registers": 2, "layer_scale": True, "pre_norm": True},
    "without biases, with query-key norms": {"qkv_bias": False, "qk_norm": True, "final_norm": False},
}


def random_encoder(seed=3, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Encoder(EncoderConfig(**{"width": 24, "depth": 2, "heads": 3, **options}))
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, 0, 0.3)
    return encoder.freeze()


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def encoder(request):
    return random_encoder(**request.param)


def batch(width=24, padding=0.0):
    """Three sequences of 6, 4 and 1 tokens."""
    own = torch.Generator().manual_seed(1)
    mask = torch.arange(6) < torch.tensor([[6], [4], [1]])
    x = torch.randn(3, 6, width, generator=own).masked_fill(~mask.unsqueeze(-1), padding)
    return Tokens(x, mask, torch.zeros(3, 6, 3))


def in_order(tokens, order):
    return tokens.replace(tokens.x[..., order])


def shuffled(encoder, seed=0):
    """Another order of all neurons: of the stream, and of those within the blocks."""
    own = torch.Generator().manual_seed(seed)
    d, h = encoder.config.width, encoder.config.heads

    def channels(heads, stay):
        of_head = [torch.arange(d // h) if stay else torch.randperm(d // h, generator=own) for _ in heads]
        return torch.eye(d)[torch.cat([i * (d // h) + one for i, one in zip(heads, of_head, strict=True)])]

    maps = []
    for block in blocks_of(encoder):
        heads, hidden = torch.randperm(h, generator=own).tolist(), block.mlp.fc1.out_features
        units = torch.eye(hidden)[torch.randperm(hidden, generator=own)]
        maps.append(BlockMaps(units, channels(heads, encoder.config.qk_norm), channels(heads, False)))
    return torch.randperm(d, generator=own), maps


def test_another_order_computes_the_same(encoder):
    order, maps = shuffled(encoder)
    real = batch().mask
    expected = encoder(batch(), layers=(0, 1))
    inner = with_inner(encoder, maps)(batch(), layers=(1,))
    torch.testing.assert_close(inner.last.x[real], expected.last.x[real], atol=1e-5, rtol=1e-5)
    found = with_stream(encoder, order)(in_order(batch(), order), layers=(0, 1))
    torch.testing.assert_close(found.last.x[real], expected.last.x[..., order][real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.hidden[1].x[real], expected.hidden[1].x[..., order][real], atol=1e-5, rtol=1e-5)
    if encoder.config.class_token:
        torch.testing.assert_close(found.cls, expected.cls[:, order], atol=1e-5, rtol=1e-5)
    assert distance(with_inner(encoder, maps), encoder) > 0.5 and distance(with_stream(encoder, order), encoder) > 0.5


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_order_is_found_again(encoder, by, stream):
    order, maps = shuffled(encoder)
    order = order if stream else torch.arange(encoder.config.width)
    other = with_inner(with_stream(encoder, order), maps)
    before = other.fingerprint()
    tokens = {"tokens": [in_order(batch(), order)], "tokens_to": [batch()]} if by == "activations" else {}
    found = align(other, encoder, stream=stream, **tokens)
    for name, value in found.encoder.state_dict().items():
        torch.testing.assert_close(value, encoder.state_dict()[name], atol=1e-5, rtol=0)
    assert torch.equal(order[found.stream], torch.arange(len(order)))
    assert other.fingerprint() == before and not any(p.requires_grad for p in found.encoder.parameters())


def test_an_order_is_found_under_noise_in_the_embedded_encoder():
    encoder = load_encoder()
    order, maps = shuffled(encoder)
    other = with_inner(with_stream(encoder, order), maps)
    with torch.no_grad():
        for i, parameter in enumerate(other.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.2 * parameter.std(correction=0) * noise)
    found = align(other, encoder, stream=True)
    assert distance(other, encoder) > 1 and distance(found.encoder, encoder) < 0.21
    x = batch(192)
    torch.testing.assert_close(
        found.encoder(x).last.x[x.mask], other(in_order(x, order)).last.x[..., order.argsort()][x.mask],
        atol=1e-4, rtol=1e-4)  # fmt: skip


def test_the_mean_of_aligned_encoders_is_nearer_to_both():
    """Two encoders that learnt the same apart: one moved a little, its neurons in another order."""
    first = random_encoder()
    second = with_inner(average_encoders([first, random_encoder(4)], [0.9, 0.1]), shuffled(first)[1])
    aligned = align(second, first).encoder
    real, wanted = batch().mask, first(batch()).last.x
    away = [(average_encoders([first, one], [0.5, 0.5])(batch()).last.x - wanted)[real].norm()
            for one in (second, aligned)]  # fmt: skip
    assert away[1] < 0.5 * away[0]


def test_strangers_come_no_further_apart():
    first, second = random_encoder(), random_encoder(4)
    assert distance(align(second, first).encoder, first) < distance(second, first)
    assert distance(align(second, first, stream=True).encoder, first) < distance(second, first)
    assert align(first, first).encoder.fingerprint() == first.fingerprint()


def test_transport_is_the_cheapest_permutation_or_near_it():
    here = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 0, 2, 6, 4, 5])
    cost = costs(here, here[order])
    torch.testing.assert_close(cost, torch.cdist(here[order], here).square().double(), atol=1e-4, rtol=1e-4)
    assert torch.equal(transport(cost, 0).argmax(1), order)
    for soft in (0.02, 0.2, 5.0):
        plan = sinkhorn(cost, soft)
        torch.testing.assert_close(plan.sum(0), torch.ones(7).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(plan.sum(1), torch.ones(7).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sinkhorn(cost, 0.005), transport(cost, 0).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sinkhorn(cost, 1e4), torch.full((7, 7), 1 / 7).double(), atol=1e-3, rtol=0)
    assert torch.isfinite(sinkhorn(torch.zeros(3, 3), 0.1)).all()


def test_soft_maps_mix_and_near_zero_they_do_not():
    first = random_encoder()
    second = with_inner(first, shuffled(first)[1])
    assert distance(align(second, first, soft=0.005).encoder, first) < 1e-3
    mixed = align(second, first, soft=1.0)
    assert distance(mixed.encoder, first) > 0.1 and mixed.blocks[0].mlp.max() < 0.9
    torch.testing.assert_close(mixed.blocks[0].keys.sum(0), torch.ones(24), atol=1e-5, rtol=0)


def test_activations_leave_padding_out():
    encoder = random_encoder()
    padded, clean = activations(encoder, [batch(padding=float("nan"))]), activations(encoder, [batch()])
    assert padded.stream.shape == (24, 2 * 11) and padded.blocks[0].mlp.shape == (96, 11)
    assert torch.equal(padded.stream, clean.stream) and torch.equal(padded.blocks[1].keys, clean.blocks[1].keys)
    assert not any(module._forward_hooks for module in encoder.modules())
    real = batch().mask
    found = torch.cat([encoder(batch(), layers=(i,)).hidden[i].x[real].T for i in (1, 2)], 1)
    torch.testing.assert_close(padded.stream, found, atol=1e-5, rtol=1e-5)


def test_faults_are_clear():
    with pytest.raises(ValueError, match="same shape"):
        align(random_encoder(depth=1), random_encoder())
    with pytest.raises(ValueError, match="same inputs"):
        align(random_encoder(), random_encoder(4), tokens=[batch()], tokens_to=[batch(), batch()])
    with pytest.raises(ValueError, match="different shapes"):
        average_encoders([random_encoder(depth=1), random_encoder()], [0.5, 0.5])


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def test_the_command_line(tmp_path, capsys):
    first = random_encoder()
    order, maps = shuffled(first)
    paths = [tmp_path / f"{name}.safetensors" for name in ("a", "b", "c", "d", "small")]
    a, b, c, d, small = paths
    new = tmp_path / "e.safetensors"
    for encoder, path in (
        (first, a),
        (with_inner(with_stream(first, order), maps), b),
        (random_encoder(depth=1), small),
    ):
        save_encoder(encoder, path)
    assert run("merge-encoders", a, b, "--align", "--stream", "--out", c) == 0
    assert "Aligned: 0.0000" in capsys.readouterr().out
    for name, value in load_encoder(f"file:{c}").state_dict().items():
        torch.testing.assert_close(value, first.state_dict()[name], atol=1e-5, rtol=0)
    assert run("merge-encoders", a, b, "--weight", 0.25, "--out", d) == 0
    mean = load_encoder(f"file:{d}").state_dict()["norm.weight"]
    torch.testing.assert_close(mean, 0.75 * first.norm.weight + 0.25 * first.norm.weight[order])
    capsys.readouterr()
    for arguments, problem in (((a, small, "--out", new), "its shape is not that of"),
                               ((a, b, "--out", c), "something stands there"),
                               ((a, b, "--out", tmp_path / "e"), "ends in .safetensors"),
                               ((a, b, "--soft", 0.1, "--out", new), "add --align"),
                               ((a, tmp_path / "no", "--out", new), "no such file")):  # fmt: skip
        assert run("merge-encoders", *arguments) == 1
        error = capsys.readouterr().err
        assert problem in error and error.count("\n") == 1
