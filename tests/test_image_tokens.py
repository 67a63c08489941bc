"""The image tokenizer: sizes, grids, all forms, and a published ViT's own front part."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from polysense.core.errors import InputError
from polysense.tokenizers.base import TOKENIZERS
from polysense.tokenizers.image import ImageConfig, ImageTokenizer, from_timm
from polysense.tokenizers.image_grid import CLIP_MEAN, fit_size, resize, seen_window

CONFIGS = {
    "lite0": ImageConfig(width=192, size=64),
    "lite0-16": ImageConfig(width=24, size=64, stride=16),
    "lite0-sincos": ImageConfig(width=24, size=64, positions="sincos"),
    "lite0-plain": ImageConfig(width=24, size=64, positions="none", resize="crop"),
    "patch": ImageConfig(width=24, form="patch", size=48, patch=16),
    "patch-fourier": ImageConfig(width=24, form="patch", size=48, positions="fourier", resize="squash"),
    "vit": ImageConfig(width=24, form="vit", size=48, patch=8, bias=False),
    "vit-oblong": ImageConfig(width=24, form="vit", size=48, patch=8, grid=(5, 7)),
    "lite0-fine": ImageConfig(width=192, size=64, fine=True),
    "lite0-16-fine": ImageConfig(width=24, size=64, stride=16, fine=True),
    "patch-fine": ImageConfig(width=24, form="patch", size=48, patch=16, fine=True),
    "vit-14-fine": ImageConfig(width=24, form="vit", size=56, patch=14, fine=True),
}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def build(config: ImageConfig, shaken: bool = True) -> ImageTokenizer:
    """A tokenizer whose zero-initialised parts are no longer zero, as after training."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(config).eval()
    if shaken and config.positions == "fourier":
        nn.init.normal_(tokenizer.position.project.weight, std=0.1)
    return tokenizer


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_batched_equals_single(name: str) -> None:
    tokenizer = build(CONFIGS[name])
    samples = [tokenizer.read(noise(*size)) for size in ((60, 60), (40, 90), (90, 30), (61, 59))]
    batch = tokenizer(tokenizer.collate(samples))
    mask = batch.dense_mask()
    assert batch.x.shape[-1] == tokenizer.width
    for i, sample in enumerate(samples):
        single = tokenizer(tokenizer.collate([sample]))
        assert single.mask is None and single.grid == sample.meta["grid"]
        torch.testing.assert_close(batch.x[i][mask[i]], single.x[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.pos[i][mask[i]], single.pos[0])
        for whole, alone in zip(batch.fine, single.fine, strict=True):
            rows, columns = alone.shape[2:]
            torch.testing.assert_close(whole[i, :, :rows, :columns], alone[0], atol=1e-5, rtol=1e-5)
            assert not whole[i, :, rows:].any() and not whole[i, :, :, columns:].any()


@torch.no_grad()
def test_finer_maps_lie_in_the_cells() -> None:
    """Channels as announced, each map twice as fine; the pixels of a patch stand in its cell."""
    for name, channels in (("lite0-fine", (112, 40, 24)), ("lite0-16-fine", (40, 24)), ("patch-fine", (192, 48)),
                           ("vit-14-fine", (147,)), ("patch", ())):  # fmt: skip
        tokenizer = build(CONFIGS[name])
        tokens = tokenizer(tokenizer.collate([tokenizer.read(noise(60, 90))]))
        assert tokenizer.fine_channels == channels == tuple(one.shape[1] for one in tokens.fine), name
        assert tokens.grid is not None
        for i, one in enumerate(tokens.fine, 1):
            assert one.shape[2:] == (tokens.grid[0] << i, tokens.grid[1] << i)
    tokenizer = build(CONFIGS["patch-fine"])
    batch = tokenizer.collate([tokenizer.read(noise(48, 48))])
    finest = tokenizer(batch).fine[-1]
    corner = tokenizer.normalized(batch["image"])[0, :, 4:8, 8:12]  # second row, third column of cells of 4 pixels
    torch.testing.assert_close(finest[0, :, 1, 2].view(3, 4, 4), corner)


@torch.no_grad()
def test_padding_stands_right_and_below() -> None:
    tokenizer = build(CONFIGS["lite0"])
    batch = tokenizer(tokenizer.collate([tokenizer.read(noise(64, 128)), tokenizer.read(noise(128, 64))]))
    assert batch.grid == (3, 3) and batch.mask is not None
    assert batch.mask[0].view(3, 3).tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert batch.mask[1].view(3, 3).tolist() == [[True, False, False]] * 3


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    tokenizer = build(CONFIGS[name], shaken=False)
    samples = [tokenizer.read(noise(60, 60)), tokenizer.read(noise(90, 40))]
    tokenizer(tokenizer.collate(samples)).x.square().sum().backward()
    for parameter_name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_survives_json(name: str) -> None:
    tokenizer = TOKENIZERS["image"](CONFIGS[name])
    again = TOKENIZERS["image"].Config(**json.loads(json.dumps(tokenizer.config_dict())))
    assert again == CONFIGS[name]
    ImageTokenizer(again).load_state_dict(tokenizer.state_dict())


@pytest.mark.parametrize(
    "wrong",
    [{"form": "cnn"}, {"resize": "stretch"}, {"positions": "learned"}, {"stride": 8}, {"interpolation": "nearest"}],
)
def test_wrong_configurations(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        ImageTokenizer(ImageConfig(**wrong))


@torch.no_grad()
def test_at_the_start_tokens_are_the_stems_features() -> None:
    tokenizer = build(ImageConfig(width=320), shaken=False)  # as wide as the stem
    batch = tokenizer.collate([tokenizer.read(noise(100, 100))])
    features = tokenizer.stem((batch["image"].float() - 127) / 128)
    assert tokenizer(batch).x.shape == (1, 16, 320)
    torch.testing.assert_close(tokenizer(batch).x[0], features[0].flatten(1).T, atol=1e-6, rtol=1e-6)


def test_positions_are_cell_centres_over_the_longer_side() -> None:
    tokenizer = build(ImageConfig(size=128))
    tokens = tokenizer(tokenizer.collate([tokenizer.read(noise(40, 90))]))
    rows, columns = tokens.grid or (0, 0)
    assert columns > rows > 1
    torch.testing.assert_close(tokens.pos[0, 0], torch.tensor([0.5, 0.5]) / columns)
    torch.testing.assert_close(tokens.pos[0, 1], torch.tensor([0.5, 1.5]) / columns)
    torch.testing.assert_close(tokens.pos[0, columns], torch.tensor([1.5, 0.5]) / columns)


def test_meta_describes_the_original() -> None:
    sample = build(CONFIGS["lite0"]).read(noise(100, 200))
    assert sample.meta["size"] == (100, 200) and sample.meta["window"] == (0, 0, 200, 100)
    assert sample.data["image"].shape == (3, *sample.meta["input_size"]) and sample.data["image"].dtype == torch.uint8
    assert tuple(32 * n for n in sample.meta["grid"]) == sample.meta["input_size"]


def test_files_keep_their_name_and_true_size(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(noise(900, 1200)).save(path)
    tokenizer = build(CONFIGS["lite0"])
    sample = tokenizer.read(path)
    assert sample.source == str(path) and sample.meta["size"] == (900, 1200)
    assert tokenizer.collate([sample])["meta"][0]["source"] == str(path)
    with pytest.raises(InputError, match="no such file"):
        tokenizer.read(tmp_path / "none.jpg")


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (7, 5000), (500, 20)])
@pytest.mark.parametrize("name", ["lite0", "patch"])
@torch.no_grad()
def test_extreme_shapes_stay_bounded(size: tuple[int, int], name: str) -> None:
    tokenizer = build(CONFIGS[name])
    tokens = tokenizer(tokenizer.collate([tokenizer.read(noise(*size))]))
    assert 1 <= tokens.x.shape[1] <= 2 * (tokenizer.config.size / tokenizer.config.step) ** 2
    assert torch.isfinite(tokens.x).all() and tokens.pos.max() < 1


def test_area_keeps_aspect_and_area() -> None:
    for aspect in (1.0, 4 / 3, 16 / 9, 3.0, 1 / 2):
        height, width = fit_size(1000, round(1000 * aspect), 512, 32, "area")
        assert width / height == pytest.approx(aspect, rel=0.12)
        assert math.sqrt(height * width) == pytest.approx(512, rel=0.08)
        assert height % 32 == width % 32 == 0
    assert fit_size(10, 900, 100, 32, "squash") == fit_size(10, 900, 100, 32, "crop") == (96, 96)


def test_crop_takes_the_centre() -> None:
    assert seen_window(256, 512, "crop") == (144, 16, 368, 240)
    array = np.zeros((256, 512, 3), np.uint8)
    array[16:240, 144:368] = 200
    assert resize(Image.fromarray(array), (224, 224), "crop", "bicubic").min() == 200
    assert resize(Image.fromarray(array), (224, 224), "squash", "bicubic").min() == 0


def test_resize_is_antialiased() -> None:
    checkers = np.indices((256, 256)).sum(0) % 2 * 255
    image = Image.fromarray(checkers.astype(np.uint8)).convert("RGB")
    for interpolation in ("bilinear", "bicubic"):
        assert (resize(image, (32, 32), "squash", interpolation).float() - 127.5).abs().max() < 8


@torch.no_grad()
def test_patch_form_is_a_linear_map_of_each_patch() -> None:
    tokenizer = build(CONFIGS["patch"])
    batch = tokenizer.collate([tokenizer.read(noise(48, 48))])
    second = tokenizer.normalized(batch["image"])[0, :, :16, 16:32]
    expected = tokenizer.proj.weight.flatten(1) @ second.flatten() + tokenizer.proj.bias
    torch.testing.assert_close(tokenizer(batch).x[0, 1], expected, atol=1e-5, rtol=1e-5)


def test_in_memory_forms_agree() -> None:
    tokenizer, array = build(CONFIGS["lite0"]), noise(60, 80)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    expected = tokenizer.read(array).data["image"]
    for same in (buffer.getvalue(), Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1), array / 255):
        assert torch.equal(tokenizer.read(same).data["image"], expected)


def timm_patches(model: Any, pixels: Tensor) -> Tensor:
    """What a timm ViT adds up before its first block, without class and register tokens."""
    return model._pos_embed(model.patch_embed(pixels))[:, model.num_prefix_tokens :]


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_small_patch32_224", {"img_size": 96}),
        ("vit_base_patch16_clip_224", {}),  # no bias, norm_pre
        ("deit_tiny_distilled_patch16_224", {}),  # two prefix tokens with positions
        ("deit3_small_patch16_224", {}),  # class token without a position
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),  # register tokens
        ("vit_base_patch32_siglip_256", {"img_size": 64}),  # no class token
    ],
)
@torch.no_grad()
def test_parity_with_timm(name: str, over: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, depth=1, **over).eval()
    nn.init.normal_(model.pos_embed)
    tokenizer = from_timm(model)
    assert tokenizer.config.mean == tuple(model.pretrained_cfg["mean"])
    batch = tokenizer.collate([tokenizer.read(noise(50, 70, seed)) for seed in range(2)])
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    expected = timm_patches(model, (batch["image"] / 255 - mean) / std)
    torch.testing.assert_close(tokenizer(batch).x, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_positions_are_interpolated_as_timm_does() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, dynamic_img_size=True).eval()
    nn.init.normal_(model.pos_embed)
    tokenizer = from_timm(model, resize="area", size=128)
    batch = tokenizer.collate([tokenizer.read(noise(60, 110))])
    tokens = tokenizer(batch)
    assert tokens.grid == (6, 11)
    torch.testing.assert_close(
        tokens.x, timm_patches(model, tokenizer.normalized(batch["image"])), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_r_s16_p8_224", "plain patch map"),
        ("beit_base_patch16_224", "absolute positions"),
        ("eva02_tiny_patch14_224", "absolute positions"),
    ],
)
def test_models_without_such_a_front_part(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_timm(timm.create_model(name, num_classes=0))


def test_clip_constants_are_timms() -> None:
    assert timm.data.constants.OPENAI_CLIP_MEAN == CLIP_MEAN
