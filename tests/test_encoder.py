"""The encoder equals timm's blocks, reads published layouts strictly, and stays frozen and padding-invariant."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from polysense.backbone import checkpoints
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.weights import load_encoder, save_encoder
from polysense.core.errors import InputError
from polysense.core.types import Tokens

PLAIN_VITS = [
    "vit_tiny_patch16_224",  # class token with a position
    "deit3_small_patch16_224",  # LayerScale, class token without a position
    "vit_small_patch14_reg4_dinov2",  # registers, LayerScale
    "vit_base_patch16_clip_224",  # norm before the blocks
    "vit_base_patch32_clip_quickgelu_224",  # OpenAI's activation
    "vit_base_patch16_siglip_224",  # no class token
]


def _tokens(b=2, n=5, d=192, masked=True):
    torch.manual_seed(1)
    mask = torch.arange(n)[None] < torch.tensor([[n], [3]]) if masked else None
    return Tokens(torch.randn(b, n, d), mask, torch.zeros(b, n, 1))


def _small(**over):
    torch.manual_seed(0)
    return Encoder(EncoderConfig(width=48, depth=3, heads=3, **over)).freeze()


@pytest.mark.parametrize("name", PLAIN_VITS)
def test_equals_timm(name):
    model = timm.create_model(name, pretrained=False, num_classes=0, img_size=56, dynamic_img_size=False).eval()
    for parameter in model.parameters():  # LayerScale and tokens start near zero and would hide mistakes
        nn.init.normal_(parameter, std=0.05)
    encoder = checkpoints.from_timm(model).freeze()
    image = torch.randn(2, 3, 56, 56) if model.patch_embed.patch_size[0] != 32 else torch.randn(2, 3, 64, 64)
    model.set_input_size(img_size=image.shape[-2:])
    encoder = checkpoints.from_timm(model).freeze()
    patches = model.patch_embed(image)
    offset = 0 if model.no_embed_class else model.num_prefix_tokens
    x = patches + model.pos_embed[:, offset:]
    with torch.no_grad():
        features = encoder(Tokens(x, None, torch.zeros(*x.shape[:2], 2)))
        expected = model.forward_features(image)
    torch.testing.assert_close(features.last.x, expected[:, model.num_prefix_tokens :], rtol=1e-4, atol=1e-4)
    if model.cls_token is not None:
        torch.testing.assert_close(features.cls, expected[:, 0], rtol=1e-4, atol=1e-4)


def _meta_transformer(width, depth, heads):
    """What the published file holds: an nn.Sequential of timm blocks, LayerNorm eps 1e-5, nothing else."""
    from functools import partial

    from timm.models.vision_transformer import Block

    norm = partial(nn.LayerNorm, eps=1e-5)
    blocks = [Block(width, heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
    return nn.Sequential(*blocks).eval()


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16)])
def test_reads_a_published_meta_transformer_file_without_suffix(tmp_path, width, heads):
    torch.manual_seed(0)
    blocks = _meta_transformer(width, 2, heads)
    path = tmp_path / "Meta-Transformer_patch14_encoder"
    torch.save(blocks.state_dict(), path)
    encoder = load_encoder(f"file:{path}")
    assert (encoder.config.eps, encoder.config.heads, encoder.config.depth) == (1e-5, heads, 2)
    assert not encoder.config.final_norm and not encoder.config.class_token
    tokens = _tokens(d=width, masked=False)
    with torch.no_grad():
        torch.testing.assert_close(encoder(tokens).last.x, blocks(tokens.x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "depth", "heads", "tensors", "count"),
                         [(768, 12, 12, 144, 85_054_464), (1024, 24, 16, 288, 302_309_376)])  # fmt: skip
def test_published_sizes(width, depth, heads, tensors, count):
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(width=width, depth=depth, heads=heads, eps=1e-5, final_norm=False))
        published = _meta_transformer(width, depth, heads).state_dict()
    own = {name.removeprefix("blocks."): value.shape for name, value in encoder.state_dict().items()}
    assert own == {name: value.shape for name, value in published.items()}
    assert len(own) == tensors and sum(p.numel() for p in encoder.parameters()) == count


def test_a_wrong_file_says_which_keys_and_shapes_differ(tmp_path):
    state = _meta_transformer(768, 2, 12).state_dict()
    state["1.mlp.fc2.weight"] = torch.zeros(768, 100)
    del state["0.norm2.bias"]
    state["0.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(InputError) as caught:
        load_encoder(f"file:{tmp_path / 'bad.pth'}")
    for part in ("bad.pth", "1 missing: blocks.0.norm2.bias", "1 unexpected: blocks.0.extra",
                 "blocks.1.mlp.fc2.weight is (768, 100), not (768, 3072)"):  # fmt: skip
        assert part in str(caught.value)


class _Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"0.norm1.weight": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="weights_only"):
        load_encoder(f"file:{tmp_path / 'evil.pth'}")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "neither"), (b"not weights", "neither"), (None, "no such file")]
)
def test_unreadable_files(tmp_path, content, problem):
    path = tmp_path / "encoder.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        load_encoder(f"file:{path}")


def test_a_file_without_blocks(tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "cnn.safetensors")
    with pytest.raises(InputError, match="no transformer blocks"):
        load_encoder(f"file:{tmp_path / 'cnn.safetensors'}")


@pytest.mark.parametrize("spec", ["nonsense", "timm:", "random:vit_nope", "hub:", "random:resnet18"])
def test_unknown_specs(spec):
    with pytest.raises(InputError):
        load_encoder(spec)


def test_hub_without_network_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import
    with pytest.raises(InputError, match="the Hub does not give it"):
        load_encoder("hub:nobody/nothing-here-at-all")


def test_save_and_load_are_bit_equal(tmp_path):
    encoder = _small(qk_norm=True, layer_scale=True, class_token=True, registers=2, pre_norm=True)
    save_encoder(encoder, tmp_path / "e.safetensors")
    again = load_encoder(f"file:{tmp_path / 'e.safetensors'}")
    assert again.config == encoder.config and again.fingerprint() == encoder.fingerprint()


def test_fingerprint_sees_one_changed_weight():
    encoder = _small()
    before = encoder.fingerprint()
    encoder.blocks[1].mlp.fc1.bias.data[0] += 1e-6
    assert encoder.fingerprint() != before


@pytest.mark.parametrize("over", [{}, {"class_token": True, "registers": 3}])
def test_padding_does_not_change_real_tokens(over):
    encoder = _small(**over)
    tokens = _tokens(d=48)
    alone = Tokens(tokens.x[1:, :3], None, tokens.pos[1:, :3])
    both, single = encoder(tokens, layers=(0, 2)), encoder(alone, layers=(0, 2))
    torch.testing.assert_close(both.last.x[1:, :3], single.last.x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.hidden[2].x[1:, :3], single.hidden[2].x, rtol=1e-5, atol=1e-5)
    assert torch.equal(both.hidden[0].x, tokens.x) or over


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_what_stands_at_padded_places_is_never_read(kind, packing):
    encoder = _small(attention_kind=kind)
    encoder.packing = packing
    tokens = _tokens(d=48)
    spoilt = tokens.replace(tokens.x.masked_fill(~tokens.mask.unsqueeze(-1), float("nan")))
    clean, found = encoder(tokens).last.x[tokens.mask], encoder(spoilt).last.x[tokens.mask]
    torch.testing.assert_close(found, clean, rtol=1e-5, atol=1e-5)


def test_hidden_layers_count_from_either_end():
    encoder = _small(final_norm=False)
    features = encoder(_tokens(d=48), layers=(3, -1, 1))
    assert torch.equal(features.hidden[-1].x, features.last.x)
    assert not torch.equal(features.hidden[1].x, features.last.x)
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        encoder(_tokens(d=48), layers=(4,))


def test_the_identity_start_changes_nothing_and_can_learn():
    encoder = Encoder(EncoderConfig(width=48, depth=2, heads=3, final_norm=False)).start_as_identity()
    tokens = _tokens(d=48)
    out = encoder(tokens).last.x
    assert torch.equal(out[tokens.mask], tokens.x[tokens.mask])
    out.square().sum().backward()
    assert encoder.blocks[0].mlp.fc2.weight.grad.abs().sum() > 0


def test_frozen_passes_gradients_through_but_keeps_none():
    encoder = _small()
    tokens = _tokens(d=48)
    tokens.x.requires_grad_(True)
    encoder(tokens).last.x.square().sum().backward()
    assert tokens.x.grad.abs().sum() > 0 and all(p.grad is None for p in encoder.parameters())


def test_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match="width 192 do not fit an encoder of width 48"):
        _small()(_tokens(d=192))
