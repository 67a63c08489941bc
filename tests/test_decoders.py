"""Decoders of the segmentation head: every one keeps the head's contract."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.core.options import make_config
from polysense.core.types import Features, Tokens
from polysense.heads.decoders import DECODERS, PyramidPooling, enlarged, pooled, spread
from polysense.heads.segment import SegmentationConfig, SegmentationHead
from polysense.pipeline import Pipeline

WIDTH = 24
CLASSES = ("sky", "road", "tree")
GRIDS = [(3, 4), (7, 5), (2, 3), (1, 8)]
FINE = (5, 3)
EVEN = [(4, 4), (6, 4), (4, 6)]  # borders of the masks below lie between tokens, so that a linear map can draw them


def metas(grids=GRIDS):
    return [{"size": (r * 16 + 5, c * 16 - 3), "grid": (r, c), "source": f"{r}x{c}"} for r, c in grids]


def features(grids=GRIDS, padding=0.0):
    """Tokens and finer maps that depend on the size of the sample alone."""
    height, width = (max(sides) for sides in zip(*grids, strict=True))
    x = torch.full((len(grids), height, width, WIDTH), padding)
    mask = torch.zeros(len(grids), height, width, dtype=torch.bool)
    maps = [torch.zeros(len(grids), c, height << i, width << i) for i, c in enumerate(FINE, 1)]
    for b, (rows, cols) in enumerate(grids):
        own = torch.Generator().manual_seed(100 * rows + cols)
        x[b, :rows, :cols] = torch.randn(rows, cols, WIDTH, generator=own)
        mask[b, :rows, :cols] = True
        for i, one in enumerate(maps, 1):
            one[b, :, : rows << i, : cols << i] = torch.randn(one.shape[1], rows << i, cols << i, generator=own)
    flat = None if mask.all() else mask.flatten(1)
    pos = torch.zeros(len(grids), height * width, 2)
    return Features(Tokens(x.flatten(1, 2), flat, pos, (height, width), tuple(maps)))


def head(decoder, **options):
    torch.manual_seed(0)
    return SegmentationHead(SegmentationConfig(CLASSES, **{"channels": 24, "fine": FINE, "decoder": decoder,
                                                           **options}), WIDTH)  # fmt: skip


def masks(grids=GRIDS):
    """Upper part sky, lower left road, lower right tree."""
    made = []
    for meta in metas(grids):
        mask = np.zeros(meta["size"], np.uint8)
        mask[meta["size"][0] // 2 :] = 1
        mask[meta["size"][0] // 2 :, meta["size"][1] // 2 :] = 2
        made.append(mask)
    return made


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
@pytest.mark.parametrize("name", DECODERS)
def test_batched_equals_single(name, padding):
    model = head(name).eval()
    with torch.no_grad():
        together = model(features(padding=padding))["logits"]
        assert together.shape == (4, 3, 28, 32)
        for i, (rows, cols) in enumerate(GRIDS):
            alone = model(features([(rows, cols)]))["logits"][0]
            torch.testing.assert_close(together[i, :, : rows * 4, : cols * 4], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_gradient_reaches_every_parameter(name):
    model = head(name)
    model.loss(model(features(padding=float("nan"))), model.targets(masks(), metas()))["loss"].backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", DECODERS)
def test_learns_a_few_images_and_answers_at_their_size(name):
    model = head(name)
    about, read = metas(EVEN), features(EVEN)
    target = model.targets(masks(EVEN), about)
    optimiser = torch.optim.AdamW(model.parameters(), 6e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(model(read), target)["loss"].backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        answers = model.decode(model(read), about)
    for answer, mask, meta in zip(answers, masks(EVEN), about, strict=True):
        assert answer.index.shape == meta["size"] and answer.source == meta["source"]
        assert (answer.index == mask).mean() > 0.85


@pytest.mark.parametrize("name", DECODERS)
def test_ignored_class_is_neither_learned_nor_answered(name):
    model = head(name, ignore=1)
    out = model(features())
    model.loss(out, model.targets(masks(), metas()))["loss"].backward()
    assert model.classify.bias.grad[1] == 0
    assert all((answer.index != 1).all() for answer in model.decode(out, metas()))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("options", [{"upsample": 0}, {"upsample": 3}, {"fine": ()}, {"layers": (1,)}])
def test_configuration_survives_json_and_any_number_of_doublings(name, options):
    model = head(name, **options).eval()
    twin = SegmentationHead(SegmentationConfig(**json.loads(json.dumps(model.config_dict()))), WIDTH).eval()
    twin.load_state_dict(model.state_dict())
    read = features()
    read = replace(read, hidden={1: read.last})
    with torch.no_grad():
        out = model(read)["logits"]
        assert twin.config == model.config and torch.equal(twin(read)["logits"], out)
    assert out.shape[2:] == (7 << model.config.upsample, 8 << model.config.upsample)


@pytest.mark.parametrize("name", DECODERS)
def test_bundles_keep_their_decoder(name, build, encoder_spec, make, tmp_path):
    pipeline = build("image-segmentation", encoder_spec, head={"decoder": name})
    loaded = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / name))
    assert loaded.head.config.decoder == name
    assert np.array_equal(loaded(make("image"))[0].index, pipeline(make("image"))[0].index)


def test_older_bundles_have_the_pyramid():
    """Their configuration names no decoder, and their tensors are called as ever."""
    model = head("pyramid")
    config = {key: value for key, value in model.config_dict().items() if key != "decoder"}
    again = SegmentationHead(SegmentationConfig(**config), WIDTH)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert {name.split(".")[0] for name in model.state_dict()} == {"pyramid", "classify"}


def test_a_decoder_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match="unknown decoder 'unet'; choose one of: linear, pyramid, uper"):
        make_config(SegmentationConfig, {"classes": CLASSES, "decoder": "unet"}, "head")


def test_the_linear_decoder_is_linear_in_the_normalised_tokens():
    model = head("linear", upsample=1).eval()
    assert {name for name, _ in model.named_parameters()} == {
        "pyramid.neck.norms.0.weight", "pyramid.neck.norms.0.bias", "pyramid.neck.project.weight",
        "pyramid.neck.project.bias", "classify.weight", "classify.bias"}  # fmt: skip
    read = features([(4, 4)])
    neck = model.pyramid.neck
    cells = model.classify(neck.project(neck.norms[0](read.last.x)).transpose(1, 2).unflatten(2, (4, 4)))
    wanted = F.interpolate(cells, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(read)["logits"], wanted, atol=1e-5, rtol=1e-5)


def padded(rows, cols, to=(9, 11), value=7.0):
    x = torch.full((1, 4, *to), value)
    x[..., :rows, :cols] = torch.randn(4, rows, cols, generator=torch.Generator().manual_seed(rows))
    mask = torch.zeros(1, 1, *to, dtype=torch.bool)
    mask[..., :rows, :cols] = True
    return x, mask


@pytest.mark.parametrize(("rows", "cols"), [(9, 11), (5, 7), (1, 3), (6, 6)])
def test_pooling_and_enlarging_are_torchs_on_the_real_cells(rows, cols):
    x, mask = padded(rows, cols)
    own = x[..., :rows, :cols]
    for bins in (1, 2, 3, 6):
        small = F.adaptive_avg_pool2d(own, bins)
        torch.testing.assert_close(pooled(x, mask, bins), small, atol=1e-5, rtol=1e-5)
        wanted = F.interpolate(small, (rows, cols), mode="bilinear", align_corners=False)
        torch.testing.assert_close(spread(small, mask)[..., :rows, :cols], wanted, atol=1e-5, rtol=1e-5)
    for times in (1, 2, 4):
        wanted = F.interpolate(own, scale_factor=times, mode="bilinear", align_corners=False)
        found = enlarged(x, mask, times)[..., : times * rows, : times * cols]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_pyramid_pooling_sees_the_whole_image():
    """One cell changes what is said far away, which no 3 x 3 convolution does."""
    torch.manual_seed(0)
    model = PyramidPooling(8)
    x = torch.randn(1, 8, 20, 20)
    moved, mask = x.clone(), torch.ones(1, 1, 20, 20, dtype=torch.bool)
    moved[..., 0, 0] += 10
    assert (model(x, mask) - model(moved, mask))[..., -1, -1].abs().max() > 1e-5
