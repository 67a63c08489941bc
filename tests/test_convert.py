"""Converted encoders give the original's features: every option, masks, packing, hidden layers, gradients."""

import copy

import pytest
import timm
import torch

import polysense
from polysense.backbone import checkpoints
from polysense.backbone.convert import ConvertedEncoder, to_crms_norm, to_rms_norm
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.mixers import build_mixer_encoder
from polysense.backbone.packing import packing_of
from polysense.core.types import Tokens

WAYS = {
    "plain": {},
    "prefix tokens": {"class_token": True, "registers": 2},
    "norm before": {"class_token": True, "pre_norm": True, "activation": "quick_gelu"},
    "no final norm": {"final_norm": False},
    "no final norm, all else": {
        "final_norm": False, "class_token": True, "registers": 1, "pre_norm": True, "layer_scale": True, "qk_norm": True
    },
    "layer scale": {"layer_scale": True, "eps": 1e-5, "mlp_ratio": 2.5},
    "query-key norm": {"qk_norm": True, "qkv_bias": False},
    "sigmoid in windows": {"attention_kind": "sigmoid", "windows": (None, 2, 1), "registers": 1},
}  # fmt: skip
CONVERSIONS = [to_rms_norm, to_crms_norm]
LAYERS = (0, 1, 2, -1)


def _encoder(**over):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=24, depth=3, heads=2, **over))
    for parameter in encoder.parameters():  # no zeros and ones anywhere: they would hide mistakes
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return encoder


def _tokens(d=24, counts=(7, 3, 0, 9), n=12, masked=True):
    torch.manual_seed(1)
    mask = torch.zeros(len(counts), n, dtype=torch.bool)
    for row, count in enumerate(counts):
        mask[row, torch.randperm(n)[:count]] = True
    # A mean of their own for each token: what is taken off has to come back.
    x = torch.randn(len(counts), n, d) + 2 * torch.randn(len(counts), n, 1)
    return Tokens(x, mask if masked else None, torch.zeros(len(counts), n, 1))


def _assert_same(converted, encoder, tokens, layers=LAYERS):
    """Equal to 1e-5 of the largest output."""
    with torch.no_grad():
        ours, theirs = converted(tokens, layers=layers), encoder(tokens, layers=layers)
    assert ours.hidden.keys() == theirs.hidden.keys() == set(layers)
    real = tokens.dense_mask()
    pairs = [(ours.last.x[real], theirs.last.x[real])]
    pairs += [(ours.hidden[layer].x[real], theirs.hidden[layer].x[real]) for layer in layers]
    assert (ours.cls is None) == (theirs.cls is None)
    if ours.cls is not None:
        pairs.append((ours.cls[real.any(1)], theirs.cls[real.any(1)]))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))
    return ours


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("convert", CONVERSIONS)
@pytest.mark.parametrize("way", WAYS)
def test_the_features_are_the_same(way, convert, packing):
    encoder = _encoder(**WAYS[way]).freeze()
    encoder.packing = packing
    converted = convert(encoder)
    assert packing_of(_tokens().mask) is not None and converted.packing == packing
    _assert_same(converted, encoder, _tokens())
    _assert_same(converted, encoder, _tokens(masked=False))
    _assert_same(converted, encoder, _tokens(), layers=())


@pytest.mark.parametrize("convert", CONVERSIONS)
@pytest.mark.parametrize("seed", range(3))
def test_random_configurations(seed, convert):
    pick = torch.Generator().manual_seed(seed)
    flags = [bool(torch.randint(2, (), generator=pick)) for _ in range(6)]
    names = ("class_token", "pre_norm", "final_norm", "layer_scale", "qk_norm", "qkv_bias")
    over = dict(zip(names, flags, strict=True)) | {"registers": seed, "eps": 10.0 ** -(seed + 4)}
    encoder = _encoder(**over).freeze()
    _assert_same(convert(encoder), encoder, _tokens())


@pytest.mark.parametrize("convert", CONVERSIONS)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_a_timm_vit(name, convert):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0, depth=3).eval()
    for parameter in model.parameters():
        if parameter.ndim < 2:  # norms, biases and LayerScale start at constants
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    encoder = checkpoints.from_timm(model).freeze()
    _assert_same(convert(encoder), encoder, _tokens(encoder.config.width), layers=(0, 2, -1))


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_the_embedded_encoder(convert):
    encoder = polysense.load_encoder()
    converted = convert(encoder)
    _assert_same(converted, encoder, _tokens(192, (16, 5, 11), 17), layers=(0, 3, -1))
    assert not converted.training and not any(p.requires_grad for p in converted.parameters())
    assert converted.spec == "embedded" and converted.config == encoder.config


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_no_layer_norm_is_left_within_the_blocks(convert):
    converted = convert(_encoder(layer_scale=True, class_token=True))
    assert not any(isinstance(part, torch.nn.LayerNorm) for part in converted.modules())
    width = {to_rms_norm: 24, to_crms_norm: 23}[convert]
    shapes = {name: value.shape for name, value in converted.blocks[0].named_parameters()}
    assert shapes["mlp.fc1.weight"] == (96, width)
    assert [shape for name, shape in shapes.items() if "qkv" in name] == [(72, width), (72,)]


def test_the_stream_stays_centred():
    """Else RMSNorm would read something else than LayerNorm does; small means could hide that."""
    converted, seen = to_rms_norm(_encoder(final_norm=False)), []
    for block in converted.blocks:
        block.register_forward_hook(lambda _module, _args, y: seen.append(converted.stream.centred(y)))
    converted(_tokens(masked=False))
    for x in seen:
        torch.testing.assert_close(x.mean(-1), torch.zeros(x.shape[:2]), rtol=0, atol=1e-5)
    assert [x.shape[-1] for x in seen] == [24, 24, 24]


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_the_original_is_untouched_and_shares_nothing(convert):
    encoder = _encoder(class_token=True, layer_scale=True, qk_norm=True, pre_norm=True)
    before, kept = encoder.fingerprint(), copy.deepcopy(encoder)
    converted = convert(encoder)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    assert encoder.fingerprint() == before
    assert encoder.training and all(p.requires_grad for p in converted.parameters())
    _assert_same(encoder, kept, _tokens())


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_gradients_reach_the_tokens_alike(convert):
    encoder, tokens = _encoder(final_norm=False).freeze(), _tokens()
    tokens.x.requires_grad_(True)
    gradients = []
    for model in (convert(encoder), encoder):
        features = model(tokens, layers=(1,))
        loss = features.last.x[tokens.mask].square().sum() + features.hidden[1].x[tokens.mask].sin().sum()
        gradients += torch.autograd.grad(loss, tokens.x)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_padding_and_company_do_not_matter(convert):
    converted, tokens = convert(_encoder(class_token=True, final_norm=False).freeze()), _tokens()
    spoiled = tokens.replace(tokens.x.masked_fill(~tokens.mask[..., None], 1e3))
    both, other = converted(tokens, layers=(1,)), converted(spoiled, layers=(1,))
    torch.testing.assert_close(other.last.x[tokens.mask], both.last.x[tokens.mask], rtol=1e-5, atol=1e-5)
    for i, mask in enumerate(tokens.mask):
        alone = converted(Tokens(tokens.x[i : i + 1, mask], None, tokens.pos[i : i + 1, mask]), layers=(1,))
        torch.testing.assert_close(both.last.x[i, mask], alone.last.x[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both.hidden[1].x[i, mask], alone.hidden[1].x[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_an_exported_encoder_serves_other_masks(convert):
    converted, tokens = convert(_encoder(final_norm=False).freeze()), _tokens()

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = converted

        def forward(self, x, mask):
            return self.encoder(Tokens(x, mask, x[..., :1])).last.x

    program = torch.export.export(Plain(), (tokens.x, tokens.mask)).module()
    mask = tokens.mask.flip(1)
    expected = converted(Tokens(tokens.x, mask, tokens.pos)).last.x[mask]
    torch.testing.assert_close(program(tokens.x, mask)[mask], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_what_cannot_be_converted_is_refused(convert):
    with pytest.raises(ValueError, match="plain Encoder can be converted, not a ConvertedEncoder"):
        convert(convert(_encoder()))
    with pytest.raises(ValueError, match="not a MixerEncoder"):
        convert(build_mixer_encoder(EncoderConfig(width=24, depth=1, heads=2)))
    for part, name in (("attn", "qkv"), ("mlp", "fc1"), ("mlp", "fc2"), ("attn", "proj")):
        adapted = _encoder()
        module = getattr(adapted.blocks[1], part)
        module.register_module(name, torch.nn.Sequential(getattr(module, name)))
        with pytest.raises(ValueError, match="merge adapters first"):
            convert(adapted)
    converted = convert(_encoder())
    with pytest.raises(ValueError, match="width 8 do not fit an encoder of width 24"):
        converted(_tokens(8))
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        converted(_tokens(), layers=(4,))
    assert isinstance(converted, ConvertedEncoder)
