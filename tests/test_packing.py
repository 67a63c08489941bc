"""Packing: a batch without its padding gives the padded batch's answers and gradients, windows and kinds included."""

import json

import pytest
import torch

from polysense.backbone import encoder as encoders
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.packing import packing_of, window_bias
from polysense.backbone.weights import load_encoder, save_encoder
from polysense.core.types import Tokens

WAYS = {
    "plain": {},
    "prefix tokens": {"class_token": True, "registers": 2, "pre_norm": True, "layer_scale": True},
    "query-key norm": {"qk_norm": True, "final_norm": False},
    "windows": {"windows": (None, 2, 0)},
    "windows and prefix": {"windows": (1, None, 3), "class_token": True},
    "sigmoid": {"attention_kind": "sigmoid"},
    "sigmoid in windows": {"attention_kind": "sigmoid", "windows": (None, 2, 1), "registers": 1},
}


def _encoder(**over):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=24, depth=3, heads=2, **over))
    for parameter in encoder.parameters():  # LayerScale and prefix tokens start near zero and would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def _tokens(counts=(7, 3, 3, 0, 9), n=12, holes=True):
    """Real tokens at random places of each row, not at its start only: grids of several sizes look so."""
    torch.manual_seed(1)
    mask = torch.zeros(len(counts), n, dtype=torch.bool)
    for row, count in enumerate(counts):
        places = torch.randperm(n)[:count] if holes else torch.arange(count)
        mask[row, places] = True
    x = torch.randn(len(counts), n, 24, requires_grad=True)
    return Tokens(x, mask, torch.zeros(len(counts), n, 1))


def _run(encoder, tokens, packing):
    encoder.packing = packing
    features = encoder(tokens, layers=(0, 1, -1))
    loss = sum(part.x[tokens.mask].square().sum() for part in (features.last, *features.hidden.values()))
    if features.cls is not None:
        loss = loss + features.cls.square().sum()
    gradients = torch.autograd.grad(loss, [tokens.x, *encoder.parameters()])
    return features, gradients


@pytest.mark.parametrize("way", WAYS)
def test_packed_equals_padded_with_gradients(way, monkeypatch):
    encoder, tokens = _encoder(**WAYS[way]), _tokens()
    used = []
    monkeypatch.setattr(encoders, "packing_of", lambda *a: used.append(packing_of(*a)) or used[-1])
    (packed, ours), (padded, theirs) = _run(encoder, tokens, True), _run(encoder, tokens, False)
    assert len(used) == 1 and used[0] is not None, "it did not pack"
    pairs = [(packed.last, padded.last), *((packed.hidden[i], padded.hidden[i]) for i in (0, 1, -1))]
    for a, b in pairs:
        torch.testing.assert_close(a.x[tokens.mask], b.x[tokens.mask], rtol=2e-6, atol=2e-6)
    if packed.cls is not None:
        torch.testing.assert_close(packed.cls, padded.cls, rtol=2e-6, atol=2e-6)
    size = max(float(b.abs().max()) for b in theirs)  # some gradients are zero but for rounding (the bias of k_norm)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6 * size)
    assert not packed.last.x[~tokens.mask].any() and not packed.hidden[1].x[~tokens.mask].any()


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_batched_equals_single(way, packing):
    encoder, tokens = _encoder(**WAYS[way]).freeze(), _tokens()
    encoder.packing = packing
    both = encoder(tokens, layers=(1,))
    for i, mask in enumerate(tokens.mask):
        alone = encoder(Tokens(tokens.x[i : i + 1, mask], None, tokens.pos[i : i + 1, mask]), layers=(1,))
        torch.testing.assert_close(both.last.x[i, mask], alone.last.x[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both.hidden[1].x[i, mask], alone.hidden[1].x[0], rtol=1e-5, atol=1e-5)
        if both.cls is not None:
            torch.testing.assert_close(both.cls[i], alone.cls[0], rtol=1e-5, atol=1e-5)


def test_a_window_hides_what_is_far_and_a_full_block_does_not():
    tokens = _tokens((12,), 12, holes=False)
    for windows, reaches in (((2, 2, 1), 5), ((2, None, 1), 11)):
        last = _encoder(windows=windows)(tokens).last.x
        (gradient,) = torch.autograd.grad(last[0, 0].sum(), tokens.x)
        assert gradient[0].any(-1).nonzero().max() == reaches


def test_windows_count_real_tokens():
    mask = torch.tensor([[True, False, False, True, True]])
    hidden = window_bias(mask, 1, torch.float32)[0, 0] < 0
    assert hidden[0].tolist() == [False, False, False, False, True]
    assert hidden[3, [0, 3, 4]].tolist() == [False] * 3


@pytest.mark.parametrize("counts", [(12, 12), (12, 11)])
def test_little_padding_is_not_packed(counts):
    assert packing_of(_tokens(counts).mask) is None


def test_nothing_real_is_not_packed():
    assert packing_of(None) is None and packing_of(torch.zeros(2, 3, dtype=torch.bool)) is None
    assert torch.isfinite(_encoder()(_tokens((0, 0))).last.x).all()


def test_packing_sorts_and_puts_back():
    tokens = _tokens()
    packing = packing_of(tokens.mask)
    assert packing.lengths == (9, 7, 3, 3)
    packed = packing.pack(tokens.x)
    assert torch.equal(packed[0, :9], tokens.x[4, tokens.mask[4]])
    assert torch.equal(packing.unpack(packed), tokens.x * tokens.mask[..., None])


@pytest.mark.parametrize("way", ["plain", "windows and prefix", "sigmoid"])
def test_an_exported_encoder_serves_other_sizes_and_masks(way):
    encoder = _encoder(**WAYS[way]).freeze()

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x, mask):
            return self.encoder(Tokens(x, mask, x[..., :1])).last.x

    first, other = _tokens(), _tokens((5, 17), 20)
    sizes = {0: torch.export.Dim("b", max=64), 1: torch.export.Dim("n", max=512)}
    program = torch.export.export(Plain(), (first.x.detach(), first.mask), dynamic_shapes=({**sizes}, {**sizes}))
    for tokens in (first, other):
        expected = encoder(tokens).last.x[tokens.mask]
        actual = program.module()(tokens.x.detach(), tokens.mask)[tokens.mask]
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_half_values_pack_under_autocast():
    encoder, tokens = _encoder(qk_norm=True).freeze(), _tokens()
    expected = encoder(tokens).last.x[tokens.mask]
    with torch.autocast("cpu", torch.bfloat16):
        actual = encoder(tokens).last.x[tokens.mask]
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.2)


def test_windows_and_kind_are_saved_and_change_the_fingerprint(tmp_path):
    encoder = _encoder(windows=(None, 2, 4), attention_kind="sigmoid")
    save_encoder(encoder, tmp_path / "e.safetensors")
    again = load_encoder(f"file:{tmp_path / 'e.safetensors'}")
    assert again.config == encoder.config and again.fingerprint() == encoder.fingerprint()
    assert again.fingerprint() != _encoder().fingerprint()
    assert EncoderConfig(**json.loads(json.dumps({"depth": 2, "windows": [None, 3]}))).windows == (None, 3)


@pytest.mark.parametrize("over", [{"windows": (1, 2)}, {"windows": (None, -1, 2)}, {"attention_kind": "hard"}])
def test_what_does_not_fit_is_refused(over):
    with pytest.raises(ValueError, match=r"windows must be 3 numbers|attention_kind must be"):
        EncoderConfig(width=24, depth=3, heads=2, **over)
