"""Point kernels: every backend against the reference, on ordinary and degenerate clouds."""

import numpy as np
import pytest
import torch

from polysense.kernels.points import farthest_point_sampling, interpolate_weights, knn


def clouds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(500, 3))
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    return {
        "random": ball,
        "float32": ball.astype(np.float32),
        "far from the origin": np.add(ball, (5e6, 4e5, 100.0)),
        "duplicates": np.repeat(ball[:20], 10, axis=0),
        "all the same": np.ones((40, 3)),
        "collinear": np.linspace(0, 1, 60)[:, None] * np.array([1.0, 2.0, 3.0]),
        "flat": ball * [1, 1, 0],
        "cube corners": np.repeat(corners, 3, axis=0),
        "one point": np.zeros((1, 3)),
        "two points": np.array([[0.0, 0, 0], [1, 1, 1]]),
        "a view": ball[::2],
    }


CLOUDS = clouds()


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_sampling_matches_reference(name, as_tensor):
    xyz = CLOUDS[name]
    xyz = torch.tensor(xyz) if as_tensor else xyz
    for k in {1, min(7, len(xyz)), len(xyz)}:
        expected = farthest_point_sampling(xyz, k, backend="reference")
        for backend in ("auto", "numpy"):
            chosen = farthest_point_sampling(xyz, k, backend=backend)
            assert type(chosen) is type(xyz) and str(chosen.dtype).endswith("int64")
            assert chosen.tolist() == expected.tolist()
        assert len(set(expected.tolist())) == k  # no point twice


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_sampling_takes_the_farthest(backend):
    xyz = np.array([[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [4, 0, 0]])
    assert farthest_point_sampling(xyz, 4, start=0, backend=backend).tolist() == [0, 2, 3, 1]
    assert farthest_point_sampling(xyz, 2, backend=backend).tolist() == [2, 0]


def test_sampling_ignores_order():
    xyz = CLOUDS["random"]
    order = np.random.default_rng(1).permutation(len(xyz))
    a, b = xyz[farthest_point_sampling(xyz, 30)], xyz[order][farthest_point_sampling(xyz[order], 30)]
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_knn_matches_reference(name, as_tensor):
    points = CLOUDS[name]
    queries = np.concatenate([points[:5], points[:5] + np.asarray([0.1, -0.2, 0.3], points.dtype)])
    points, queries = (torch.tensor(v) if as_tensor else v for v in (points, queries))
    for k in {1, min(8, len(points)), len(points)}:
        _, expected = knn(queries, points, k, backend="reference")
        indices, distances = knn(queries, points, k)
        assert type(indices) is type(points) and tuple(indices.shape) == (len(queries), k)
        assert str(indices.dtype).endswith("int64") and distances.dtype == points.dtype
        scale = max(1.0, float(abs(points).max()))  # coordinates of 5e6 keep about 1e-9 of themselves
        tolerance = 1e-5 if str(points.dtype).endswith("32") else 1e-14 * scale
        np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=tolerance)
        found = ((queries[:, None] - points[indices]) ** 2).sum(-1)  # the indices mean what the distances say
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)
        assert all(len(set(row)) == k for row in indices.tolist())


def test_interpolation_is_exact_on_points_and_mean_between():
    points = np.array([[0.0, 0, 0], [2, 0, 0], [100, 0, 0]])
    indices, weights = interpolate_weights(np.array([[0.0, 0, 0], [1, 0, 0]]), points)
    assert indices[0, 0] == 0
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights[0], [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(weights[1], [0.5, 0.5, 0], atol=1e-3)
    few, ones = interpolate_weights(torch.rand(4, 3), torch.rand(1, 3))
    assert few.shape == ones.shape == (4, 1) and torch.equal(ones, torch.ones(4, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: farthest_point_sampling(x, 0), "k must be from 1"),
        (lambda x: farthest_point_sampling(x, 11), "k must be from 1 to the number of points, 10"),
        (lambda x: farthest_point_sampling(x, 2, start=10), "start must be"),
        (lambda x: farthest_point_sampling(x, 2, backend="scipy"), "unknown backend 'scipy'"),
        (lambda x: farthest_point_sampling(x[:, :2], 2), "must be \\(points, 3\\)"),
        (lambda x: farthest_point_sampling(x[:0], 1), "at least one point"),
        (lambda x: farthest_point_sampling(x.astype(int), 1), "floating point"),
        (lambda x: farthest_point_sampling(x * np.nan, 1), "not finite"),
        (lambda x: knn(x, x, 11), "k must be from 1 to the number of points, 10"),
        (lambda x: knn(x, x.astype(np.float32), 1), "one type"),
        (lambda x: knn(x, x, 1, backend="numpy"), "unknown backend 'numpy'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).random((10, 3)))


def test_half_precision_is_widened():
    xyz = torch.rand(20, 3).half()
    assert farthest_point_sampling(xyz, 5).tolist() == farthest_point_sampling(xyz.float(), 5).tolist()
