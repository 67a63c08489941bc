"""The video tokenizer: batches of unlike clips, motion, and what it shares with the image tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from polysense.core.errors import InputError
from polysense.tokenizers.base import TOKENIZERS
from polysense.tokenizers.image import ImageConfig, ImageTokenizer
from polysense.tokenizers.video import VideoConfig, VideoTokenizer

CONFIGS = {
    "frames": VideoConfig(width=192, size=64, frames=4),
    "frames-16": VideoConfig(width=24, size=64, frames=3, stride=16, resize="squash"),
    "motion": VideoConfig(width=96, form="motion", size=64, frames=4),
    "tubelet": VideoConfig(width=24, form="tubelet", size=48, frames=4),
    "tubelet-area": VideoConfig(width=24, form="tubelet", size=48, frames=6, tube=3, resize="area"),
}
SHAPES = ((9, 60, 60), (2, 40, 90), (1, 90, 30), (30, 61, 59))  # frames, height, width


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def build(config: VideoConfig, shaken: bool = True) -> VideoTokenizer:
    """A tokenizer whose zero-initialised parts are no longer zero, as after training."""
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(config).eval()
    if shaken and config.form == "frames":
        nn.init.normal_(tokenizer.position.project.weight, std=0.1)
        nn.init.normal_(tokenizer.motion.weight, std=0.1)
    return tokenizer


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_batched_equals_single(name: str) -> None:
    tokenizer = build(CONFIGS[name])
    samples = [tokenizer.read(noise(*shape)) for shape in SHAPES]
    batch = tokenizer(tokenizer.collate(samples))
    assert batch.mask is not None and batch.grid is not None and len(batch.grid) == 3
    for i, sample in enumerate(samples):
        single = tokenizer(tokenizer.collate([sample]))
        assert single.mask is None and single.grid is not None and single.grid[1:] == sample.meta["grid"]
        torch.testing.assert_close(batch.x[i][batch.mask[i]], single.x[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.pos[i][batch.mask[i]], single.pos[0])


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_equal_clips_need_no_mask(name: str) -> None:
    tokenizer = build(CONFIGS[name])
    tokens = tokenizer(tokenizer.collate([tokenizer.read(noise(20, 50, 70, seed)) for seed in range(2)]))
    assert tokens.mask is None


@torch.no_grad()
def test_motion_is_blind_to_what_stands_still() -> None:
    tokenizer = build(CONFIGS["motion"])
    still = np.repeat(noise(1, 64, 64), 4, 0)
    assert tokenizer(tokenizer.collate([tokenizer.read(still)])).x.abs().max() == 0
    moved = still.copy()
    moved[2:, :32, :32] = noise(1, 32, 32, 1)
    tokens = tokenizer(tokenizer.collate([tokenizer.read(moved)]))
    size = tokens.x.abs().mean(-1).view(4, 2, 2)  # time, rows, columns
    assert (size[:, 0, 0] > 5 * size[:, 1, 1]).all()
    torch.testing.assert_close(tokens.x.view(4, 4, -1).sum(1)[0], -tokens.x.view(4, 4, -1).sum(1)[3], atol=1e-3, rtol=0)


@torch.no_grad()
def test_clips_of_one_size_but_unlike_length() -> None:
    tokenizer = build(CONFIGS["frames"])
    tokens = tokenizer(tokenizer.collate([tokenizer.read(noise(n, 60, 60)) for n in (4, 2)]))
    assert tokens.grid == (4, 2, 2) and tokens.mask is not None
    assert tokens.mask.view(2, 4, 4).all(2).tolist() == [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    tokenizer = build(CONFIGS[name], shaken=False)
    samples = [tokenizer.read(noise(*shape)) for shape in SHAPES]
    tokens = tokenizer(tokenizer.collate(samples))
    tokens.x[tokens.dense_mask()].square().sum().backward()
    for parameter_name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_survives_json(name: str) -> None:
    tokenizer = TOKENIZERS["video"](CONFIGS[name])
    again = TOKENIZERS["video"].Config(**json.loads(json.dumps(tokenizer.config_dict())))
    assert again == CONFIGS[name]
    VideoTokenizer(again).load_state_dict(tokenizer.state_dict())


@pytest.mark.parametrize(
    "wrong", [{"form": "slowfast"}, {"resize": "stretch"}, {"stride": 8}, {"interpolation": "box"}]
)
def test_wrong_configurations(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        VideoTokenizer(VideoConfig(**wrong))


@torch.no_grad()
def test_usual_sizes() -> None:
    frames = build(VideoConfig())
    assert frames(frames.collate([frames.read(noise(40, 60, 80))])).grid == (8, 3, 5)
    tubelets = build(VideoConfig(width=32, form="tubelet"))
    tokens = tubelets(tubelets.collate([tubelets.read(noise(40, 60, 80))]))
    assert tokens.grid == (8, 14, 14) and tokens.x.shape == (1, 1568, 32)


@torch.no_grad()
def test_a_still_clip_is_the_image_at_every_moment() -> None:
    image = ImageTokenizer(ImageConfig(size=64)).eval()
    nn.init.normal_(image.position.project.weight, std=0.1)
    video = VideoTokenizer(VideoConfig(size=64, frames=3)).eval()
    video.start_from(image)
    still = noise(1, 50, 70)[0]
    tokens = video(video.collate([video.read([still] * 5)]))
    expected = image(image.collate([image.read(still)]))
    assert tokens.grid is not None and tokens.grid[0] == 3
    for moment in tokens.x.unflatten(1, (3, -1))[0]:
        torch.testing.assert_close(moment, expected.x[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.pos.unflatten(1, (3, -1))[0, 0, :, 1:], expected.pos[0])


@torch.no_grad()
def test_motion_is_the_change_since_the_frame_before() -> None:
    tokenizer = build(CONFIGS["frames"], shaken=False)
    batch = tokenizer.collate([tokenizer.read(noise(4, 60, 60))])
    plain = tokenizer(batch).x
    nn.init.eye_(tokenizer.motion.weight)  # project is the identity too, so tokens are features
    change = (tokenizer(batch).x - plain).unflatten(1, (4, 4))
    features = plain.unflatten(1, (4, 4))
    assert change[:, 0].abs().max() == 0
    torch.testing.assert_close(change[:, 1:], features[:, 1:] - features[:, :-1], atol=1e-5, rtol=1e-5)


def test_positions_are_seconds_and_places() -> None:
    tokenizer = build(CONFIGS["frames"])
    sample = tokenizer.read(noise(100, 64, 64))  # four seconds
    tokens = tokenizer(tokenizer.collate([sample]))
    pos = tokens.pos.unflatten(1, (4, 2, 2))[0]
    torch.testing.assert_close(pos[:, 0, 0, 0], torch.tensor([0.48, 1.48, 2.48, 3.48]))
    torch.testing.assert_close(pos[0, 1, 0], torch.tensor([0.48, 0.75, 0.25]))
    assert sample.meta["duration"] == pytest.approx(4.0) and sample.meta["size"] == (64, 64)
    np.testing.assert_allclose(sample.meta["times"], [0.48, 1.48, 2.48, 3.48])


@torch.no_grad()
def test_tubelets_know_their_place_and_fill_up_with_the_last_frame() -> None:
    tokenizer = build(CONFIGS["tubelet"])
    odd = tokenizer.read(noise(3, 48, 48))
    assert len(odd.data["video"]) == 4 and torch.equal(odd.data["video"][3], odd.data["video"][2])
    still = tokenizer(tokenizer.collate([tokenizer.read(np.full((4, 48, 48, 3), 90, np.uint8))])).x[0]
    assert len({tuple(token.tolist()) for token in still}) == len(still)


def test_gif_files_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "blink.gif"
    pages = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white", "red", "blue")]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=250)
    tokenizer = build(CONFIGS["frames"])
    sample = tokenizer.read(path)
    assert sample.source == str(path) and sample.meta["duration"] == pytest.approx(1.0)
    assert sample.data["video"][1].min() > 250 and sample.data["video"][0].max() < 5
    assert tokenizer.collate([sample])["meta"][0]["source"] == str(path)
    with pytest.raises(InputError, match="no such file"):
        tokenizer.read(tmp_path / "none.mp4")
