"""A probe over many strengths: each solved as alone, the best kept, and nothing computed twice."""

import numpy as np
import pytest
import torch

from polysense.training import feature_store, fit_data
from polysense.training.feature_cache import FeatureCache
from polysense.training.probe import GRID, _rotated, _solutions, probe

PATCHES = {"form": "patch", "size": 64}
pytestmark = pytest.mark.usefixtures("own_cache")


def test_fit_again_computes_nothing(quick, image_folders, monkeypatch, tmp_path):
    caches = []

    class Watched(FeatureCache):
        def __init__(self, *given):
            super().__init__(*given)
            caches.append(self)

    monkeypatch.setattr(fit_data, "FeatureCache", Watched)
    options = {"tokenizer_options": PATCHES, "method": "probe"}
    first, bundle = quick("image-classification", image_folders, **options, out=tmp_path / "one")
    again, same = quick("image-classification", image_folders, **options, out=tmp_path / "two")
    without, plain = quick("image-classification", image_folders, **options, out=tmp_path / "three", cache=False)
    assert [cache.passes for cache in caches] == [2, 0, 2]  # training and validation part
    assert first.metrics == again.metrics == without.metrics
    assert torch.equal(bundle.head.classify[-1].weight, same.head.classify[-1].weight)
    assert torch.equal(bundle.head.classify[-1].weight, plain.head.classify[-1].weight)
    assert len(feature_store.entries()) == 2
    tried = bundle.about["probe_losses"]
    assert list(map(float, tried)) == list(GRID) and len(set(tried.values())) > 5
    assert "probe losses" in (first.path / "README.md").read_text()


def test_the_grid_is_solved_as_each_of_it_alone(build):
    """Along a path, in the coordinates of the rows: the same weights as scikit-learn's from the beginning."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    x = (rng.normal(size=(3, 96))[labels] + rng.normal(size=(60, 96))).astype(np.float32)
    z, axes = _rotated(x)
    assert z.shape[1] <= 60
    np.testing.assert_allclose(z @ axes.T, x, atol=1e-4)
    strengths = GRID[:12]
    found = _solutions(
        torch.from_numpy(x), {"labels": torch.from_numpy(labels)}, build("image-classification"), strengths
    )
    for strength, (weight, _) in zip(strengths, found, strict=True):
        model = LogisticRegression(C=strength / np.sqrt(96), max_iter=500, tol=1e-6).fit(x, labels)
        np.testing.assert_allclose(weight.numpy(), model.coef_, atol=2e-3)


def test_the_best_of_the_grid_is_kept(pictures_of):
    pipeline, pictures = pictures_of(lasting=False)
    probed = probe(pipeline, pictures, pictures, 8, GRID)
    assert set(probed.tried) == set(GRID) and probed.strength == min(probed.tried, key=probed.tried.get)
    table = probed.table()
    assert len(table) == 21 and sum(line.endswith("<") for line in table) == 1
