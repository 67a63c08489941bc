"""The audio tokenizer: layout, windows, masks, gradients."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from polysense.tokenizers import audio_features
from polysense.tokenizers.audio import AudioConfig, AudioTokenizer
from polysense.tokenizers.base import TOKENIZERS

FORMS = ["yamnet", "ast", "legacy"]


def noise(seconds: float, seed: int = 0) -> tuple[np.ndarray, int]:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32), 16_000


def tokenizer(form: str = "yamnet", **options: object) -> AudioTokenizer:
    torch.manual_seed(0)
    return AudioTokenizer(AudioConfig(width=32, form=form, **options))  # type: ignore[arg-type]


def test_registered_and_rebuilt_from_its_configuration() -> None:
    one = TOKENIZERS["audio"](AudioConfig(width=48, form="ast", window=5.0))
    config = AudioConfig(**json.loads(json.dumps(one.config_dict())))
    assert config == one.config
    AudioTokenizer(config).load_state_dict(one.state_dict())


@pytest.mark.parametrize(("options", "message"), [({"form": "mel"}, "yamnet"), ({"window": 0.1}, "at least 0.16")])
def test_wrong_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioTokenizer(AudioConfig(**options))


LAYOUT = [("yamnet", 1.0, (7, 6)), ("yamnet", 0.05, (1, 6)), ("yamnet", 10.0, (63, 6)), ("ast", 1.0, (10, 12)),
          ("ast", 0.05, (1, 12)), ("legacy", 1.0, (20, 20)), ("legacy", 2.24, (20, 20))]  # fmt: skip


@pytest.mark.parametrize(("form", "seconds", "grid"), LAYOUT)
def test_layout(form: str, seconds: float, grid: tuple[int, int]) -> None:
    one = tokenizer(form)
    sample = one.read(noise(seconds))
    tokens = one(one.collate([sample]))
    assert tokens.grid == grid and tokens.x.shape == (1, grid[0] * grid[1], 32)
    assert sample.meta["duration"] == pytest.approx(seconds)
    pos = tokens.pos.view(*grid, 2)
    late = 2 if form == "yamnet" else 0  # tokens that cover two bands each stand behind the others
    for columns in pos[..., 1].split([grid[1] - late, late], 1):
        assert (columns.diff(dim=1) > 0).all()
    assert pos[..., 1].min() > 0 and pos[..., 1].max() < 1
    if late:
        torch.testing.assert_close(pos[0, 4:, 1], pos[0, :4, 1].view(2, 2).mean(1))
    if grid[0] > 1:
        assert torch.allclose(pos[..., 0].diff(dim=0), torch.tensor(one.layout.stride * 0.01))


def test_tokens_begin_with_the_stem_alone() -> None:
    one = tokenizer()
    batch = one.collate([one.read(noise(0.5))])
    stem = one.stem(batch["mel"][:, None]).permute(0, 2, 3, 1)  # (1, rows, 6, c)
    wanted = torch.cat([one.project.early(stem[:, :, :4]), one.project.late(stem[:, :, 4:])], 2).flatten(1, 2)
    assert torch.allclose(one(batch).x, wanted, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_batched_equals_single(form: str) -> None:
    one = tokenizer(form).eval()
    if one.position is not None:
        torch.nn.init.normal_(one.position.project.weight)
    samples = [one.read(noise(seconds, i)) for i, seconds in enumerate((1.0, 0.05, 2.0, 0.7, 0.7))]
    together = one(one.collate(samples))
    for i, sample in enumerate(samples):
        alone = one(one.collate([sample]))
        chosen = together.dense_mask()[i]
        assert int(chosen.sum()) == int(alone.dense_mask().sum())
        assert torch.allclose(together.x[i][chosen], alone.x[0][alone.dense_mask()[0]], atol=1e-5)
        assert torch.equal(together.pos[i][chosen], alone.pos[0][alone.dense_mask()[0]])


def test_padding_is_masked_and_whole_batches_have_no_mask() -> None:
    one = tokenizer()
    mask = one(one.collate([one.read(noise(1.0)), one.read(noise(0.2))])).mask
    assert mask is not None and mask.view(2, 7, 6)[:, :, 0].sum(1).tolist() == [7, 2]
    assert one(one.collate([one.read(noise(1.0)), one.read(noise(0.99))])).mask is None
    legacy = tokenizer("legacy")
    mask = legacy(legacy.collate([legacy.read(noise(1.0))])).mask
    assert mask is not None and mask.view(20, 20)[:, 0].sum() == 10  # 98 frames: patches that begin before frame 98


@pytest.mark.parametrize("form", FORMS)
def test_gradient_reaches_every_parameter(form: str) -> None:
    one = tokenizer(form)
    tokens = one(one.collate([one.read(noise(1.0)), one.read(noise(0.3))]))
    tokens.x[tokens.dense_mask()].square().sum().backward()
    for name, parameter in one.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


WINDOWS = [(9.0, [(0, 9)]), (24.0, [(0, 10), (10, 20), (14, 24)]), (26.0, [(0, 10), (10, 20), (20, 26)]),
           (20.0, [(0, 10), (10, 20)])]  # fmt: skip


@pytest.mark.parametrize(("seconds", "expected"), WINDOWS)
def test_long_recordings_become_windows(seconds: float, expected: list[tuple[float, float]]) -> None:
    one = tokenizer()
    parts = one.split(one.read(noise(seconds)))
    assert [part.meta["window"] for part in parts] == [pytest.approx(window, abs=0.025) for window in expected]
    assert all(part.meta["duration"] == seconds for part in parts)
    assert parts[-1].meta["window"][1] == seconds
    wave, rate = noise(seconds)
    # Windows of the spectrogram are spectrograms of the windows.
    begin = round(parts[-1].meta["window"][0] * rate)
    own = audio_features.yamnet_mel(torch.from_numpy(wave[begin:]))
    assert torch.allclose(parts[-1].data["mel"], own, atol=1e-3)


def test_a_window_owns_its_memory() -> None:
    one = tokenizer()
    part = one.split(one.read(noise(31.0)))[0]
    assert part.data["mel"].untyped_storage().nbytes() == part.data["mel"].nbytes


@pytest.mark.parametrize("form", FORMS)
def test_silence_and_very_short_sounds_are_finite(form: str) -> None:
    one = tokenizer(form)
    for wave in (np.zeros(1, np.float32), np.zeros(16_000, np.float32), np.ones(500, np.float32)):
        sample = one.read((wave, 16_000))
        assert torch.isfinite(sample.data["mel"]).all()
        assert torch.isfinite(one(one.collate([sample])).x).all()


def test_pitch_shows_in_the_right_band() -> None:
    wave = np.sin(2 * math.pi * 1000 * np.arange(8000) / 16_000).astype(np.float32)
    mel = tokenizer().read((wave, 16_000)).data["mel"]
    centres = audio_features.mel_weights(64, 125.0, 7500.0).argmax(0) * 16_000 / 512
    assert float((centres[mel.mean(0).argmax()] - 1000).abs()) < 60
