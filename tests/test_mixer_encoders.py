"""Encoders of mixers and FIT: the encoder's contract, whatever mixes the tokens."""

import pytest
import torch

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.fit import FitConfig, FitEncoder
from polysense.backbone.mixers import MixerBlock, MixerEncoder, build_mixer_encoder
from polysense.core.types import Tokens
from polysense.kernels.mixers import MIXERS, pool

NAMES = sorted(MIXERS)
WIDTH, HEADS = 8, 2
CONFIG = EncoderConfig(width=WIDTH, depth=2, heads=HEADS)


def _tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[0], mask[1, :3, :2] = True, True
    x = torch.randn(2, 20, WIDTH, generator=generator)
    return Tokens(x, mask.flatten(1), torch.zeros(2, 20, 2), (4, 5))


def _encoders():
    for name in NAMES:
        yield pytest.param(lambda name=name: build_mixer_encoder(CONFIG, (name,)), id=name)
    yield pytest.param(lambda: build_mixer_encoder(CONFIG, ("hyena", "attention")), id="hybrid")
    yield pytest.param(lambda: FitEncoder(CONFIG, FitConfig(group=4, latents=2)), id="fit")


@pytest.mark.parametrize("make", _encoders())
def test_encoder_keeps_the_contract(make):
    torch.manual_seed(0)
    encoder = make()
    assert isinstance(encoder, Encoder)
    tokens = _tokens()
    features = encoder(tokens, layers=(0, 1, -1))
    assert set(features.hidden) == {0, 1, -1} and features.last.grid == tokens.grid and features.cls is None
    torch.testing.assert_close(features.hidden[0].x[tokens.mask], tokens.x[tokens.mask])
    torch.testing.assert_close(encoder.norm(features.hidden[-1].x)[tokens.mask], features.last.x[tokens.mask])
    features.last.x[tokens.mask].square().sum().backward()
    for key, parameter in encoder.named_parameters():
        if "filters.0" not in key:  # Hyena's third axis
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    small = Tokens(tokens.x[1:, tokens.mask[1]], None, torch.zeros(1, 6, 2), (3, 2))
    alone = encoder(small).last.x
    torch.testing.assert_close(features.last.x[1:, tokens.mask[1]], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        encoder(Tokens(torch.zeros(1, 2, 4), None, torch.zeros(1, 2, 1)))
    with pytest.raises(ValueError, match="does not exist"):
        encoder(tokens, layers=(3,))


@pytest.mark.parametrize("make", _encoders())
@pytest.mark.parametrize(("b", "n"), [(0, 6), (2, 0), (0, 0)])
def test_nothing_in_nothing_out(make, b, n):
    encoder = make()
    for mask in (None, torch.ones(b, n, dtype=torch.bool)):
        features = encoder(Tokens(torch.zeros(b, n, WIDTH), mask, torch.zeros(b, n, 1)), layers=(1,))
        assert features.last.x.shape == features.hidden[1].x.shape == (b, n, WIDTH)


@pytest.mark.parametrize("make", _encoders())
def test_start_as_identity_freeze_and_fingerprint(make):
    torch.manual_seed(0)
    encoder = make()
    before = encoder.fingerprint()
    if any(isinstance(module, pool.Pool) for module in encoder.modules()):
        with pytest.raises(ValueError, match="layer_scale"):
            encoder.start_as_identity()
        encoder = build_mixer_encoder(EncoderConfig(width=WIDTH, depth=2, heads=HEADS, layer_scale=True), ("pool",))
    tokens = _tokens()
    encoder.start_as_identity()
    hidden = encoder(tokens, layers=(-1,)).hidden[-1]
    torch.testing.assert_close(hidden.x[tokens.mask], tokens.x[tokens.mask])
    assert encoder.fingerprint() != before
    assert not any(parameter.requires_grad for parameter in encoder.freeze().parameters())


def test_softmax_blocks_load_an_encoders_weights_and_answer_alike():
    plain, mixed = Encoder(CONFIG), build_mixer_encoder(CONFIG)
    mixed.load_state_dict(plain.state_dict())
    tokens = _tokens()
    expected, actual = plain(tokens).last.x, mixed(tokens).last.x
    torch.testing.assert_close(actual[tokens.mask], expected[tokens.mask], rtol=1e-5, atol=1e-5)


def test_mixers_cycle_through_the_blocks_and_take_options():
    config = EncoderConfig(width=WIDTH, depth=5, heads=HEADS)
    encoder = build_mixer_encoder(config, ("pool", "hyena"), {"hyena": {"order": 3}})
    assert encoder.names == ("pool", "hyena", "pool", "hyena", "pool")
    assert encoder.blocks[1].attn.order == 3 and isinstance(encoder.blocks[0], MixerBlock)
    sizes = {build_mixer_encoder(CONFIG, ("pool",), {"pool": {"size": size}}).fingerprint() for size in (3, 5)}
    torch.manual_seed(0)
    first = MixerEncoder(CONFIG, ("pool",))
    torch.manual_seed(0)
    assert first.fingerprint() == MixerEncoder(CONFIG, ("pool",)).fingerprint() and len(sizes) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CONFIG, "hyena"), "a sequence"),
        ((CONFIG, ()), "a sequence"),
        ((CONFIG, ("convolution",)), "unknown mixer 'convolution'"),
        ((CONFIG, ("pool",), {"hyena": {}}), "no block uses: hyena"),
        ((CONFIG, ("pool",), {"pool": {"radius": 3}}), "the mixer pool takes no radius"),
        ((CONFIG, ("pool",), {"pool": {"width": 3}}), "the mixer pool takes no width"),
        ((EncoderConfig(width=WIDTH, heads=HEADS, class_token=True),), "no class_token"),
        ((EncoderConfig(width=WIDTH, heads=HEADS, qk_norm=True),), "no qk_norm"),
    ],
)
def test_wrong_encoders_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_mixer_encoder(*arguments)


def test_fit_mixes_within_groups_and_through_latents_beyond():
    torch.manual_seed(0)
    encoder = FitEncoder(EncoderConfig(width=WIDTH, depth=1, heads=HEADS), FitConfig(group=4, latents=2))
    x = torch.randn(1, 10, WIDTH)
    changed = x.clone()
    changed[:, 9] += torch.randn(WIDTH)  # a shift of all channels alike would not pass a LayerNorm

    def answer(x):
        return encoder(Tokens(x, None, torch.zeros(1, 10, 1))).last.x

    assert ((answer(x) - answer(changed)).abs().sum(-1)[0] > 1e-8).all()
    for block in encoder.blocks:  # without the way back from the latents a group is alone
        torch.nn.init.zeros_(block.write.proj.weight)
    moved = (answer(x) - answer(changed)).abs().sum(-1)[0] > 1e-8
    assert moved.tolist() == [False] * 8 + [True] * 2
    with pytest.raises(ValueError, match="must be positive"):
        FitConfig(group=0)
    with pytest.raises(ValueError, match="no class_token"):
        FitEncoder(EncoderConfig(class_token=True))
