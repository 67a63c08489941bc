"""Merging in an encoder: exact where nothing merges or what merges is equal, and harmless to everything around it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from polysense.backbone import token_merging
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.fit import FitEncoder
from polysense.backbone.token_merging import merge_tokens_in
from polysense.core.types import Tokens
from polysense.training.gates import gate, with_encoder
from polysense.training.probe import probe

LOUD = {"layer_scale": True, "qk_norm": True, "class_token": True, "registers": 2, "pre_norm": True}


def make_encoder(**over):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(**{"width": 48, "depth": 3, "heads": 3} | over))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    return encoder.freeze()


def make_tokens(b=3, n=20, masked=True, grid=None):
    x = torch.randn(b, n, 48, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(n) < torch.tensor([n, n // 2, 3])[:b, None] if masked else None
    return Tokens(x, mask, torch.rand(b, n, 2, generator=torch.Generator().manual_seed(2)), grid)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("over", [{}, LOUD], ids=["plain", "loud"])
@pytest.mark.parametrize("r", [0, (0, 0, 0)])
def test_without_merging_it_is_the_plain_encoder(over, masked, r):
    encoder, tokens = make_encoder(**over), make_tokens(masked=masked)
    found, expected = merge_tokens_in(encoder, r)(tokens, layers=(0, -1)), encoder(tokens, layers=(0, -1))
    assert torch.equal(found.last.x, expected.last.x)
    assert torch.equal(found.hidden[0].x, expected.hidden[0].x)
    assert torch.equal(found.hidden[-1].x, expected.hidden[-1].x)
    assert found.cls is None if expected.cls is None else torch.equal(found.cls, expected.cls)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("over", [{}, LOUD | {"registers": 1}, {"class_token": True}], ids=["plain", "loud", "class"])
def test_equal_tokens_merge_without_a_trace(over, masked):
    """Attention in proportion to sizes: two equal tokens and the one they become are the same to everybody."""
    encoder, single = make_encoder(**over), make_tokens(masked=masked)
    tokens = Tokens(*(None if v is None else v.repeat_interleave(2, 1) for v in (single.x, single.mask, single.pos)))
    merging = merge_tokens_in(encoder, (20, 0, 0))
    found, expected = merging(tokens, layers=(1, 2)), encoder(tokens, layers=(1, 2))
    real = tokens.dense_mask()
    torch.testing.assert_close(found.last.x[real], expected.last.x[real], atol=2e-5, rtol=1e-4)
    for layer in (1, 2):
        torch.testing.assert_close(found.hidden[layer].x[real], expected.hidden[layer].x[real], atol=2e-5, rtol=1e-4)
    if expected.cls is not None:
        torch.testing.assert_close(found.cls, expected.cls, atol=2e-5, rtol=1e-4)


def test_every_block_has_r_tokens_fewer():
    encoder, seen = make_encoder(class_token=True), []
    merging = merge_tokens_in(encoder, (4, 0, 9))
    for block in merging.blocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    merging(make_tokens(masked=False))
    assert seen == [17, 17, 9]  # 21 - 4, none, 17 - min(9, 16 // 2)
    encoder(make_tokens(masked=False))
    assert len(seen) == 3  # the given encoder has no hook


def test_what_comes_out_looks_like_what_went_in():
    encoder, tokens = make_encoder(**LOUD), make_tokens(grid=(4, 5))
    found = merge_tokens_in(encoder, 4)(tokens, layers=(0, 2, -1))
    for out in (found.last, *found.hidden.values()):
        assert out.x.shape == tokens.x.shape and out.grid == (4, 5)
        assert out.mask is tokens.mask and out.pos is tokens.pos
    assert set(found.hidden) == {0, 2, -1} and found.cls.shape == (3, 48)
    assert torch.equal(found.hidden[0].x[tokens.mask], encoder(tokens, layers=(0,)).hidden[0].x[tokens.mask])
    assert len(found.last.x[0].unique(dim=0)) == 20 - 3 * 4  # groups of equal vectors; the 3 prefix tokens stay out
    one, other = found.last.x[0], encoder(tokens).last.x[0]
    assert not torch.allclose(one, other) and nn.functional.cosine_similarity(one, other).mean() > 0.8


@pytest.mark.parametrize("packing", [False, True], ids=["masked", "by length"])
@pytest.mark.parametrize("over", [{}, LOUD], ids=["plain", "loud"])
def test_batched_equals_single_whatever_stands_at_padded_places(over, packing, monkeypatch):
    monkeypatch.setattr(token_merging, "WORTH_A_CALL", 1)
    merging, tokens = merge_tokens_in(make_encoder(**over), 3), make_tokens()
    merging.packing = packing
    places = torch.randperm(40, generator=torch.Generator().manual_seed(4))[:20].sort().values
    real = torch.zeros(3, 40, dtype=torch.bool)
    real[:, places] = tokens.mask
    x = tokens.x.masked_fill(~tokens.mask[..., None], float("nan"))
    wide, pos = torch.full((3, 40, 48), float("inf")), torch.zeros(3, 40, 2)
    wide[:, places] = x
    together, apart = merging(Tokens(x, tokens.mask, tokens.pos)), merging(Tokens(wide, real, pos))
    for i in range(3):
        own = tokens.mask[i]
        single = merging(Tokens(tokens.x[i : i + 1, own], None, tokens.pos[i : i + 1, own]))
        torch.testing.assert_close(together.last.x[i, own], single.last.x[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(apart.last.x[i, real[i]], single.last.x[0], atol=1e-5, rtol=1e-4)
        if single.cls is not None:
            torch.testing.assert_close(together.cls[i], single.cls[0], atol=1e-5, rtol=1e-4)


def test_without_padding_no_block_sees_a_mask_or_a_padded_place(monkeypatch):
    seen = []
    inner = token_merging.merge

    def spied(x, *args, **kwargs):
        seen.append((tuple(x.shape[:2]), kwargs["mask"] is None))
        return inner(x, *args, **kwargs)

    monkeypatch.setattr(token_merging, "merge", spied)
    monkeypatch.setattr(token_merging, "WORTH_A_CALL", 64)
    tokens = make_tokens(6, 60, masked=False)
    mask = torch.arange(60) < torch.tensor([30, 60, 30, 50, 60, 30])[:, None]
    merging = merge_tokens_in(make_encoder(class_token=True, depth=1), 2)
    found = merging(Tokens(tokens.x, mask, tokens.pos), layers=(1,))
    assert seen == [((2, 61), True), ((1, 51), True), ((3, 31), True)]
    merging.packing = False
    padded = merging(Tokens(tokens.x, mask, tokens.pos), layers=(1,))
    torch.testing.assert_close(found.cls, padded.cls, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.hidden[1].x[mask], padded.hidden[1].x[mask], atol=1e-5, rtol=1e-4)
    mask[4] = False  # a sequence without a token has a class token still
    merging.packing = True
    assert merging(Tokens(tokens.x, mask, tokens.pos)).cls.isfinite().all() and seen[-1] == ((6, 61), False)


def test_the_given_encoder_is_left_as_it_is():
    encoder = Encoder(EncoderConfig(width=48, depth=2, heads=3), spec="somewhere").train()
    merging = merge_tokens_in(encoder, 2)
    assert merging.training and all(p.requires_grad for p in merging.parameters())
    assert merging.spec == "somewhere" and merging.fingerprint() == encoder.fingerprint()
    pairs = list(zip(encoder.parameters(), merging.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)  # shared memory, not shared flags
    before = encoder(make_tokens()).last.x
    merging.freeze().double()
    assert encoder.training and all(p.requires_grad and p.dtype == torch.float32 for p in encoder.parameters())
    assert torch.equal(encoder(make_tokens()).last.x, before) and type(encoder) is Encoder


def test_gradients_reach_the_tokens():
    merging, tokens = merge_tokens_in(make_encoder(), 4), make_tokens()
    x = tokens.x.clone().requires_grad_()
    merging(tokens.replace(x)).last.x[tokens.mask].square().sum().backward()
    assert (x.grad[tokens.mask].abs().sum(-1) > 0).all() and (x.grad[~tokens.mask] == 0).all()


def test_bfloat16():
    encoder, tokens = make_encoder(**LOUD), make_tokens()
    half = merge_tokens_in(encoder, 4).bfloat16()
    found = half(tokens.replace(tokens.x.bfloat16()))
    assert found.last.x.dtype == torch.bfloat16 and found.last.x[tokens.mask].isfinite().all()


@pytest.mark.parametrize(
    ("encoder", "r", "message"),
    [
        (lambda: make_encoder(windows=(None, 4, None)), 2, "windows"),
        (lambda: make_encoder(attention_kind="sigmoid"), 2, "softmax"),
        (lambda: FitEncoder(EncoderConfig(width=48, depth=1, heads=3)), 2, "FitEncoder"),
        (lambda: merge_tokens_in(make_encoder(), 2), 2, "MergingEncoder"),
        (make_encoder, -1, "r must be"),
        (make_encoder, 1.5, "r must be"),
        (make_encoder, True, "r must be"),
        (make_encoder, (1, 2), "3 of them"),
        (make_encoder, (1, 2, -3), "r must be"),
    ],
)
def test_what_cannot_merge_is_refused(encoder, r, message):
    with pytest.raises(ValueError, match=message):
        merge_tokens_in(encoder(), r)


def test_calls_that_do_not_fit_are_refused_as_by_the_plain_encoder():
    merging, tokens = merge_tokens_in(make_encoder(), 2), make_tokens()
    with pytest.raises(ValueError, match="layer 4"):
        merging(tokens, layers=(4,))
    with pytest.raises(ValueError, match="width 24"):
        merging(Tokens(tokens.x[..., :24], tokens.mask, tokens.pos))


@pytest.mark.parametrize(
    ("task", "modality"),
    [
        ("image-classification", "image"),
        ("image-segmentation", "image"),
        ("forecasting", "time_series"),
    ],
)
def test_heads_find_what_they_expect(build, make, numbers, task, modality):
    pipeline = build(task, tokenizer={"stride": 16}) if modality == "image" else build(task)
    merged = with_encoder(pipeline, merge_tokens_in(pipeline.encoder, 2))
    sources = [make(modality, number) for number in range(3)]
    together = merged(sources)
    for source, found, plain in zip(sources, together, pipeline(sources), strict=True):
        assert type(found) is type(plain)
        assert numbers(found).shape == numbers(plain).shape and not np.array_equal(numbers(found), numbers(plain))
        np.testing.assert_allclose(numbers(merged(source)[0]), numbers(found), atol=1e-4, rtol=1e-3)


class Examples:
    """Generated pictures: grey cells, and a class that only the pattern of one cell of 64 tells."""

    def __init__(self, pipeline, count, seed):
        rng, self.rows = np.random.default_rng(seed), []
        stripes = np.zeros((8, 8, 1), int)
        stripes[::2] = 130
        patterns = [np.zeros_like(stripes), stripes, stripes.transpose(1, 0, 2)]
        for i in range(count):
            pixels = np.kron(rng.integers(60, 120, (8, 8, 3)), np.ones((8, 8, 1), int))
            y, x = rng.integers(8, size=2) * 8
            pixels[y : y + 8, x : x + 8] += patterns[i % 3]
            self.rows.append(([pipeline.tokenizer.read(Image.fromarray(pixels.astype(np.uint8)))], "abc"[i % 3]))

    def __len__(self):
        return len(self.rows)

    def whole(self, i):
        return self.rows[i]

    def train(self, i, rng):
        return [(sample, self.rows[i][1]) for sample in self.rows[i][0]]


def test_the_gate_keeps_mild_merging_and_refuses_what_merges_the_evidence(build):
    pipeline = build("image-classification", tokenizer={"form": "patch", "patch": 8}, head={"pooling": ("max",)})
    validation = Examples(pipeline, 36, 1)
    probe(pipeline, Examples(pipeline, 84, 0), validation, 32)
    mild, harsh = (gate(pipeline, lambda p, r=r: with_encoder(p, merge_tokens_in(p.encoder, r)), validation, 0.05)
                   for r in (8, 32))  # fmt: skip
    assert mild.before > 0.9 and mild.passed and mild.pipeline.encoder.merged == (8, 8)
    assert harsh.before == mild.before and harsh.after < 0.8
    assert not harsh.passed and harsh.pipeline is pipeline and type(pipeline.encoder) is Encoder
