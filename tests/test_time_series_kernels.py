"""Form "kernels" of the time series tokenizer: MiniRocket's features by segment, fitted to training series."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from polysense.core.errors import InputError
from polysense.data.dataset import Dataset, Item
from polysense.data.time_series import SeriesFrame
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.tokenizers.series_kernels import KERNELS, LocalKernels, dilations_of, segment_weights
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.training.fit import fit
from polysense.training.fit_pipeline import build_for
from polysense.training.sources import FileSources


def waves(count: int, steps: int = 80, variates: int = 1, seed: int = 0, level: float = 0.0) -> list[SeriesFrame]:
    """Sines ("0") and saw teeth ("1") of random phase, pace and length in noise."""
    rng, frames = np.random.default_rng(seed), []
    for i in range(count):
        length = steps - int(rng.integers(0, steps // 4))
        phase = rng.uniform(0, 1, variates) + np.arange(length)[:, None] * rng.uniform(0.05, 0.08)
        clean = np.sin(2 * np.pi * phase) if i % 2 == 0 else 1.7 * (2 * (phase % 1) - 1)
        values = level + clean + rng.normal(0, 0.2, clean.shape)
        frames.append(SeriesFrame(values, None, [f"x{c}" for c in range(variates)], None, str(i % 2), f"wave{i}"))
    return frames


def fitted(frames: list[SeriesFrame], **options: object) -> TimeSeriesTokenizer:
    torch.manual_seed(0)
    base = {"form": "kernels", "width": 48, "channels": -1, "center": "data", "features": 800, "context": 80}
    config = TimeSeriesTokenizer.fit_config(SeriesConfig(**{**base, **options}), frames)  # type: ignore[arg-type]
    one = TimeSeriesTokenizer(config)
    assert set(one.fit_tensors(frames, 0)) == {f"stem.{name}" for name in one.stem.state_dict()}
    return one.eval()


def tokens_of(one: TimeSeriesTokenizer, frames: list[SeriesFrame]) -> torch.Tensor:
    return one(one.collate([one.read(frame) for frame in frames])).x


def test_kernels_are_those_of_the_paper() -> None:
    base = LocalKernels(1, 8, 4, 80, 84, 1).base
    assert base.shape == (KERNELS, 9) and KERNELS == 84 and not base.sum(1).any()
    places = {tuple((row == 2).nonzero().flatten().tolist()) for row in base}
    assert places == set(itertools.combinations(range(9), 3))


@pytest.mark.parametrize(("steps", "most", "expected"), [(2, 5, (1,)), (17, 5, (1, 2)), (129, 5, (1, 2, 4, 8, 16))])
def test_dilations_reach_over_the_series(steps: int, most: int, expected: tuple[int, ...]) -> None:
    assert dilations_of(steps, most) == expected


def test_segments_cover_every_step_and_no_padding() -> None:
    weights = segment_weights(torch.tensor([3, 12, 17]), 17, 6)
    assert torch.allclose(weights.sum(1), torch.ones(3, 6))
    for row, steps in zip(weights, (3, 12, 17), strict=True):
        assert not row[: 17 - steps].any() and (row[17 - steps :].sum(1) > 0).all()
    assert torch.equal(weights[1, 5:].nonzero()[:, 1], torch.arange(6).repeat_interleave(2))


def test_features_are_shares_of_steps_above_a_bias() -> None:
    frames = waves(6)
    one = fitted(frames, segments=1)
    kernels = one.stem
    assert isinstance(kernels, LocalKernels)
    values = one.read(frames[0]).data["values"]
    weights = segment_weights(torch.tensor([len(values)]), len(values), 1)
    found = kernels.features(values[None], weights)[0, 0, : kernels.shares]
    padded, expected = np.pad(values[:, 0].numpy(), 400), []
    for i, dilation in enumerate(kernels.dilations):
        windows = np.stack([padded[400 + dilation * (tap - 4) :][: len(values)] for tap in range(9)])
        answers = kernels.base.numpy() @ windows  # (k, t)
        expected += [(answers > kernels.bias[i, :, q, None].numpy()).mean(1) for q in range(kernels.biases)]
    assert np.abs(found.numpy() - np.concatenate(expected)).max() < 0.06  # the ramp, in place of a step
    assert np.abs(found.numpy() - np.concatenate(expected)).mean() < 0.01


def test_biases_are_quantiles_of_the_training_series() -> None:
    one = fitted(waves(8))
    batch = one.collate([one.read(frame) for frame in waves(8)])
    weights = segment_weights(batch["steps"], batch["values"].shape[1], 12)
    shares = one.stem.features(batch["values"], weights)[..., : one.stem.shares].mean((0, 1))  # type: ignore[operator]
    assert abs(float(shares.mean()) - 0.5) < 0.05 and float(shares.std()) > 0.2


def test_the_mean_token_knows_when_something_was() -> None:
    """Averaged over tokens, the course is each segment's mean in its own row."""
    kernels = LocalKernels(1, 8, 4, 40, 84, 1)
    weights = segment_weights(torch.tensor([8]), 8, 4)
    rising = torch.arange(8.0)[None, :, None]
    means = kernels.features(rising, weights)[0, :, kernels.shares : kernels.shares + 4].mean(0)
    assert torch.allclose(means, torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_the_mean_token_keeps_what_training_series_differ_in() -> None:
    """Distances between mean tokens are those between standardised features: the rank is below the width."""
    frames = waves(20)
    one = fitted(frames)
    batch = one.collate([one.read(frame) for frame in frames])
    features = one.stem.features(  # type: ignore[operator]
        batch["values"], segment_weights(batch["steps"], batch["values"].shape[1], 12)
    ).mean(1)
    standard = (features - features.mean(0)) / features.std(0, correction=0).clamp_min(0.05)
    standard = standard[:, : one.stem.shares]  # type: ignore[index]
    tokens = one.stem.project(features)  # type: ignore[union-attr,operator]
    assert torch.allclose(tokens.mean(0), torch.zeros(48), atol=1e-4)
    assert torch.corrcoef(torch.stack([torch.pdist(tokens), torch.pdist(standard)]))[0, 1] > 0.95


@pytest.mark.parametrize("variates", [1, 4])
def test_batched_equals_single_after_fitting(variates: int) -> None:
    frames = waves(12, variates=variates, level=1e4)
    one = fitted(frames)
    together = tokens_of(one, frames)
    for i, frame in enumerate(frames):
        assert torch.allclose(together[i], tokens_of(one, [frame])[0], atol=2e-3 * float(together.detach().std()))


def test_variates_and_missing_values() -> None:
    frames = waves(6, variates=3)
    one = fitted(frames)
    gap = frames[0].values.copy()
    gap[10:20, 1] = np.nan
    gap[:, 2] = np.nan
    assert torch.isfinite(tokens_of(one, [SeriesFrame(gap, None, frames[0].names)])).all()
    assert torch.isfinite(tokens_of(one, [SeriesFrame(np.ones((1, 3)), None, frames[0].names)])).all()
    with pytest.raises(InputError, match="1 variates where 3"):
        one.read(np.zeros(9))


@pytest.mark.parametrize("frames", [waves(1), [SeriesFrame(np.full((9, 1), 5.0), None, ["x"])] * 3])
def test_little_or_flat_training_data(frames: list[SeriesFrame]) -> None:
    assert torch.isfinite(tokens_of(fitted(frames), frames + waves(2))).all()


def test_fitting_is_the_same_for_the_same_seed() -> None:
    frames = waves(10, variates=2)
    one, other = fitted(frames), fitted(frames)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def sources(frames: list[SeriesFrame]) -> FileSources:
    items = [Item(frame, frame.label, "val" if i % 5 == 4 else "train") for i, frame in enumerate(frames)]
    return FileSources(Dataset(items, ["0", "1"]), TASKS["time-series-classification"])


def test_default_of_classification_and_a_choice_of_another() -> None:
    given = sources(waves(20, variates=2))
    pipeline = build_for("time-series-classification", given, "embedded", None, None, 0)
    config = pipeline.tokenizer.config
    assert config.form == "kernels" and config.channels == 2 and len(config.spread) == 2
    assert "tokenizer.stem.project.weight" in pipeline.settled
    patches = build_for("time-series-classification", given, "embedded", {"form": "patch", "center": "mean"}, None, 0)
    assert patches.tokenizer.config.form == "patch" and isinstance(patches.tokenizer.stem, torch.nn.Linear)


def test_fit_save_and_load(tmp_path) -> None:
    path = tmp_path / "waves_TRAIN.ts"
    lines = [",".join(f"{v:.4f}" for v in frame.values[:, 0]) + f":{frame.label}" for frame in waves(40)]
    path.write_text("@univariate true\n@classLabel true 0 1\n@data\n" + "\n".join(lines) + "\n")
    result = fit("time-series-classification", tmp_path, tmp_path / "bundle", epochs=0, progress=False)
    loaded = Pipeline.from_pretrained(result.path)
    new = waves(20, seed=1)
    answers = loaded(new)
    assert sum(answer.chosen[0] == frame.label for answer, frame in zip(answers, new, strict=True)) >= 18
    again = Pipeline.from_pretrained(loaded.save_pretrained(tmp_path / "copy"))
    assert [a.scores for a in again(new)] == [a.scores for a in answers]
