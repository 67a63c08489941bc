"""Written-out attention is what the encoder does, masked tokens count nothing, and a planted token is found."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from polysense.apps import cli
from polysense.apps.attention_pictures import draw_relevance
from polysense.backbone import checkpoints
from polysense.backbone.adapters import METHODS, AdapterConfig, adapt
from polysense.backbone.attention_maps import (
    PAST_ATTENTION,
    attention_maps,
    class_gradient,
    last_layer,
    rollout,
    written_out,
)
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.mixers import build_mixer_encoder
from polysense.backbone.token_merging import merge_tokens_in
from polysense.core.errors import InputError
from polysense.core.types import Tokens
from polysense.relevance import METHODS as READINGS
from polysense.relevance import relevance
from polysense.tasks import MODALITIES

WIDTH, COUNTS = 24, (9, 4, 6)
KINDS = {
    "plain": {},
    "vit": {"class_token": True, "registers": 2, "qk_norm": True, "layer_scale": True, "pre_norm": True},
    "windows": {"windows": (1, None, 2)},
    "sigmoid": {"attention_kind": "sigmoid"},
}


def make_encoder(kind="plain", seed=0):
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(width=WIDTH, depth=3, heads=3, **KINDS[kind]))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return encoder.freeze()


def make_tokens(counts=COUNTS, seed=1):
    """Sequences of several lengths; NaN stands at padded places."""
    generator = torch.Generator().manual_seed(seed)
    n = max(counts)
    x = torch.full((len(counts), n, WIDTH), torch.nan)
    for row, count in zip(x, counts):
        row[:count] = torch.randn(count, WIDTH, generator=generator)
    mask = torch.arange(n) < torch.tensor(counts)[:, None]
    pos = torch.rand(len(counts), n, 3, generator=generator)
    return Tokens(x, None if bool(mask.all()) else mask, pos)


def adapted(method, encoder):
    torch.manual_seed(3)
    made = adapt(encoder, AdapterConfig(method, rank=2, tokens=2, kernel=3, neighbours=2))
    for parameter in made.adapter_parameters().values():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    return made.requires_grad_(False).eval()


def real(tokens, x):
    return x[tokens.dense_mask()]


def score_of(features):
    """Reads the input, the last tokens' mean and, where there is one, the class token."""
    last, first = features.last, features.hidden[0]
    total = 0.0
    for tokens in (last, first):
        inside = tokens.dense_mask()[..., None]
        total = total + tokens.x.masked_fill(~inside, 0.0).sum(1)[:, 0] / inside.sum(1)[:, 0]
    return total if features.cls is None else total + features.cls[:, 1]


def gradient(encoder, tokens):
    return class_gradient(encoder, tokens, score_of, (0,))


# --- the encoder's own attention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_written_out_is_the_encoder(kind):
    encoder, tokens = make_encoder(kind), make_tokens()
    prints = encoder.fingerprint()
    found, expected = written_out(encoder, tokens, lambda _: None, layers=(0, 2)), encoder(tokens, layers=(0, 2))
    torch.testing.assert_close(real(tokens, found.last.x), real(tokens, expected.last.x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        real(tokens, found.hidden[2].x), real(tokens, expected.hidden[2].x), atol=1e-5, rtol=1e-5
    )
    if kind == "vit":
        torch.testing.assert_close(found.cls, expected.cls, atol=1e-5, rtol=1e-5)
    assert encoder.fingerprint() == prints and encoder.packing
    assert all("attend" not in vars(block.attn) for block in encoder.blocks)  # another user's call stays the fast one


@pytest.mark.parametrize("kind", KINDS)
def test_features_follow_from_the_weights(kind):
    """Weights of one head, times the values, are what the first block's attention gives."""
    encoder, tokens, seen = make_encoder(kind), make_tokens((7,)), []
    with torch.no_grad():
        written_out(encoder, tokens, seen.append)
        x, _ = encoder._with_prefix(tokens)
        block = encoder.blocks[0]
        inner = block.norm1(encoder.norm_pre(x))
        v = block.attn.qkv(inner)[..., 2 * WIDTH :].unflatten(-1, (3, -1)).transpose(1, 2)
        made = block.attn.proj((seen[0] @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(made, block.attn(inner, None), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_adapters_count(method):
    encoder, tokens = adapted(method, make_encoder()), make_tokens()
    found, expected = written_out(encoder, tokens, lambda _: None), encoder(tokens)
    torch.testing.assert_close(real(tokens, found.last.x), real(tokens, expected.last.x), atol=1e-5, rtol=1e-5)
    extra = 2 if method == "prefix" else 0  # keys before the tokens' own
    prompts = 2 if "prompts" in method else 0
    for one in attention_maps(encoder, tokens):
        assert one.shape == (3, 9 + prompts, 9 + prompts + extra)
        torch.testing.assert_close(real(tokens, one.sum(-1)[:, prompts:]), torch.ones(sum(COUNTS)))
    torch.testing.assert_close(last_layer(encoder, tokens).sum(-1), torch.ones(3))
    if method in PAST_ATTENTION:
        for reading in (rollout, gradient):
            with pytest.raises(InputError, match="past attention"):
                reading(encoder, tokens)
    else:
        torch.testing.assert_close(rollout(encoder, tokens).sum(-1), torch.ones(3))
        assert bool((gradient(encoder, tokens).sum(-1) > 0).all())


def test_an_adapter_changes_the_maps():
    encoder, tokens = make_encoder(), make_tokens()
    assert (rollout(adapted("lora", encoder), tokens) - rollout(encoder, tokens)).abs().max() > 1e-3


def test_equals_timm():
    """The explicit softmax(q k) of each of timm's blocks, read by hooks."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=64, depth=3).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    encoder, inputs = checkpoints.from_timm(model).freeze(), []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.forward_features(image)
        tokens = model._pos_embed(model.patch_embed(image))[:, 1:]
        encoder.cls_token.copy_(model._pos_embed(model.patch_embed(image))[:1, :1])
        maps = attention_maps(encoder, Tokens(tokens, None, torch.zeros(2, 16, 2)))
        for block, x, found in zip(model.blocks, inputs, maps, strict=True):
            q, k, _ = block.attn.qkv(x).reshape(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
            expected = (q @ k.transpose(-2, -1) / 8).softmax(-1).mean(1)
            assert found.std() > 1e-3  # no even map
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- one number a token -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reading", [rollout, last_layer, gradient])
def test_shares_and_masks(reading, kind):
    encoder, tokens = make_encoder(kind), make_tokens()
    found = reading(encoder, tokens)
    assert found.shape == (3, 9) and bool((found >= 0).all()) and bool(found.isfinite().all())
    assert bool((found[~tokens.mask] == 0).all())
    if reading is not gradient:
        torch.testing.assert_close(found.sum(-1), torch.ones(3))
    for i, count in enumerate(COUNTS):  # batched equals single
        single = Tokens(tokens.x[i : i + 1, :count], None, tokens.pos[i : i + 1, :count])
        torch.testing.assert_close(found[i, :count], reading(encoder, single)[0], atol=1e-5, rtol=1e-4)


def test_rows_sum_to_one():
    tokens = make_tokens()
    for one in attention_maps(make_encoder("vit"), tokens):
        rows = one.sum(-1)
        torch.testing.assert_close(rows[:, :3], torch.ones(3, 3))  # class token and registers
        torch.testing.assert_close(real(tokens, rows[:, 3:]), torch.ones(sum(COUNTS)))
        assert bool((rows[:, 3:][~tokens.mask] == 0).all())


def test_rollout_is_the_product_of_half_residual_layers():
    encoder, tokens = make_encoder(), make_tokens((5,))
    joint = torch.eye(5)[None]
    for one in attention_maps(encoder, tokens):
        joint = (0.5 * one + 0.5 * torch.eye(5)) @ joint
    torch.testing.assert_close(rollout(encoder, tokens), joint.mean(1))


def test_windows_hide_what_is_far():
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=WIDTH, depth=1, heads=3, windows=(1,))).freeze()
    (one,) = attention_maps(encoder, make_tokens((6,)))
    far = (torch.arange(6)[:, None] - torch.arange(6)).abs() > 1
    assert bool((one[0][far] == 0).all()) and bool((one[0][~far] > 0).all())


def test_the_gradient_finds_the_token_that_matters_for_each_class():
    """One token's value is all that a class reads; another token's, all that another class does."""
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=WIDTH, depth=2, heads=3)).start_as_identity()
    with torch.no_grad():
        for block in encoder.blocks:  # attention that copies channels, with weights all but even
            block.attn.qkv.weight[: 2 * WIDTH] *= 0.1
            block.attn.qkv.weight[2 * WIDTH :] = torch.eye(WIDTH)
            block.attn.proj.weight.copy_(torch.eye(WIDTH))
    encoder.freeze()
    x = torch.randn(1, 12, WIDTH)
    x[..., :2] = 0.0
    x[0, 3, 0] = x[0, 8, 1] = 4.0
    tokens = Tokens(x, None, torch.zeros(1, 12, 1))
    for channel, place in ((0, 3), (1, 8)):
        found = class_gradient(encoder, tokens, lambda features: features.last.x.mean(1)[:, channel])[0]  # noqa: B023
        order = found.sort(descending=True)
        assert order.indices[0] == place and order.values[0] > 4 * order.values[1]
    assert rollout(encoder, tokens).max() < 0.15  # attention alone is all but even


def test_the_gradient_reads_what_bypasses_the_encoder():
    tokens = make_tokens((6,))
    found = class_gradient(make_encoder(), tokens, lambda features: features.hidden[0].x[:, 4].sum(-1).abs(), (0,))[0]
    assert found[4] > 0 and found[[0, 1, 2, 3, 5]].abs().max() == 0


def test_nothing_learns():
    encoder, tokens = make_encoder().requires_grad_(True), make_tokens()
    gradient(encoder, tokens)
    assert all(parameter.grad is None for parameter in encoder.parameters()) and not tokens.x.requires_grad


def test_other_encoders_are_refused():
    tokens = make_tokens((4,))
    mixed = build_mixer_encoder(EncoderConfig(width=WIDTH, depth=1, heads=3), ("pool",))
    for encoder in (mixed, merge_tokens_in(make_encoder(), 1)):
        with pytest.raises(InputError, match=r"only plain encoders.*; use the engine torch"):
            rollout(encoder, tokens)
    with pytest.raises(InputError, match="fill the memory"):
        rollout(make_encoder(), Tokens(torch.zeros(1, 20_000, WIDTH), None, torch.zeros(1, 20_000, 1)))


# --- on the input's own coordinates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", READINGS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_every_modality(build, make, modality, method, tmp_path):
    pipeline, source = build(f"{modality.replace('_', '-')}-classification"), make(modality, 2)
    found = relevance(pipeline, source, method)
    assert found.values.sum() == pytest.approx(1) and found.values.min() >= 0
    assert found.target == (pipeline(source)[0].names[0] if method == "gradient" else None)
    if modality == "image":
        assert found.values.shape == (source.height, source.width)
    elif modality == "audio":
        # Three steps of the first window, up to where the second one begins, which reaches back to last as long.
        assert found.values.shape == (len(found.seconds) - 1, len(found.hertz) - 1) == (10, 4)
        assert found.seconds[-1] == pytest.approx(22_000 / 16_000) and bool((np.diff(found.seconds) > 0).all())
    elif modality == "point_cloud":
        assert found.values.shape == (len(source),) and 0 < found.elsewhere < 1
        np.testing.assert_allclose(found.places, source)
    else:
        assert len(found.places) == len(found.values)
    if modality in ("image", "audio", "point_cloud"):
        path = draw_relevance(found, source, tmp_path / "a.png")
        assert Image.open(path).size == (1000, 560) and np.asarray(Image.open(path)).std() > 5
    else:
        with pytest.raises(InputError, match="alone"):
            draw_relevance(found, source, tmp_path / "a.png")


@pytest.mark.parametrize("form", ["ast", "legacy"])
def test_other_forms_of_sound(build, make, form):
    found = relevance(build("audio-classification", tokenizer={"form": form}), make("audio", 3))
    assert found.values.shape == (len(found.seconds) - 1, len(found.hertz) - 1)
    assert found.values.sum() == pytest.approx(1) and 0 < found.hertz[0] < found.hertz[-1] < 8000


def test_a_cell_lies_where_its_token_does(build):
    """All that the class reads is the brightness of a cell: the picture is brightest there."""
    encoder = Encoder(EncoderConfig(width=48, depth=2, heads=3)).start_as_identity().freeze()
    pipeline = build("image-classification", encoder, tokenizer={"form": "patch", "size": 64, "resize": "squash"},
                     head={"pooling": ("mean",)})  # fmt: skip
    with torch.no_grad():
        pipeline.tokenizer.proj.weight.zero_()[0] = 1 / 768  # channel 0: the mean of a patch; the others: their bias
        pipeline.head.classify[-1].weight.zero_()[0, 0] = 1.0
    picture = np.zeros((96, 160, 3), np.uint8)
    picture[72:, 40:80] = 255  # a cell of the last row of a 4 × 4 grid, each 24 × 40 pixels
    found = relevance(pipeline, Image.fromarray(picture), "gradient", "a")
    y, x = np.unravel_index(found.values.argmax(), found.values.shape)
    assert y >= 72 and 40 <= x < 80 and found.values[:48].sum() < 1e-6


def test_a_crop_leaves_its_surroundings_out(build, make):
    found = relevance(build("image-classification", tokenizer={"resize": "crop"}), make("image", 0))
    seen = found.values > 0
    assert 0 < seen.sum() < seen.size and not seen[:, 0].any()


def test_inference_mode_and_training_mode_make_no_difference(build, make):
    pipeline, image = build("image-classification", head={"dropout": 0.5}), make("image", 1)
    expected = relevance(pipeline, image, "gradient").values
    with torch.inference_mode():
        np.testing.assert_array_equal(relevance(pipeline, image, "gradient").values, expected)
    np.testing.assert_array_equal(relevance(pipeline.train(), image, "gradient").values, expected)
    assert pipeline.training and pipeline.head.training


def test_what_cannot_be_shown_is_refused(build, make, tmp_path):
    image = make("image", 1)
    pipeline = build("image-classification")
    for options, message in (
        ({"method": "magic"}, "choose one of: rollout, last, gradient"),
        ({"target": "b"}, "use the method gradient"),
        ({"method": "gradient", "target": "z"}, "choose one of: a, b, c"),
    ):
        with pytest.raises(InputError, match=message):
            relevance(pipeline, image, **options)
    with pytest.raises(InputError, match="views"):
        relevance(pipeline.with_views(mirror=True), image)
    with pytest.raises(InputError, match="only a classifier"):
        relevance(build("image-regression"), image, "gradient")
    with pytest.raises(InputError, match="blocks"):
        relevance(build("point-cloud-regression", tokenizer={"block": 32}), make("point_cloud", 3))
    table = tmp_path / "t.csv"
    table.write_text("size,count,kind\n1,2,red\n3,4,green\n")
    with pytest.raises(InputError, match="it holds 2 inputs"):
        relevance(build("tabular-regression"), table)


def test_command(build, encoder_spec, make, tmp_path, capsys):
    bundle = build("image-classification", encoder_spec).save_pretrained(tmp_path / "bundle")
    folder = tmp_path / "in"
    folder.mkdir()
    make("image", 1).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as left:
        cli.main(["look", str(bundle), str(folder), "--out", str(tmp_path / "out"), "--method", "gradient",
                  "--target", "b"])  # fmt: skip
    said = capsys.readouterr()
    assert left.value.code == 3 and "skipped" in said.err and "b.png" in said.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert "a.png" in said.out
    with pytest.raises(SystemExit) as left:
        cli.main(["look", str(bundle), str(folder / "a.png"), "--out", str(tmp_path / "out"), "--method", "last",
                  "--target", "b"])  # fmt: skip
    assert left.value.code == 1 and "use the method gradient" in capsys.readouterr().err
