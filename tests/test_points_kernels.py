"""Point kernels: every backend against the reference, on ordinary and degenerate clouds."""

from functools import partial

import numpy as np
import pytest
import torch

from polysense.kernels.points import backends, ball_query, farthest_point_sampling, interpolate_weights, knn
from polysense.kernels.points.torch_points import _knn_rows


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
SAMPLERS, FINDERS = ("numpy", "numba", "torch"), ("scipy", "numba", "torch")
EXACT = ("numba", "torch")  # break ties as the reference does


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_sampling_matches_reference(name, as_tensor):
    xyz = CLOUDS[name]
    xyz = torch.tensor(xyz) if as_tensor else xyz
    for k in {1, min(7, len(xyz)), len(xyz)}:
        expected = farthest_point_sampling(xyz, k, backend="reference")
        for backend in ("auto", *SAMPLERS):
            chosen = farthest_point_sampling(xyz, k, backend=backend)
            assert type(chosen) is type(xyz) and str(chosen.dtype).endswith("int64")
            assert chosen.tolist() == expected.tolist()
        assert len(set(expected.tolist())) == k  # no point twice


@pytest.mark.parametrize("backend", ["reference", *SAMPLERS])
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
@pytest.mark.parametrize("backend", ["auto", *FINDERS])
def test_knn_matches_reference(name, as_tensor, backend):
    points = CLOUDS[name]
    queries = np.concatenate([points[:5], points[:5] + np.asarray([0.1, -0.2, 0.3], points.dtype)])
    points, queries = (torch.tensor(v) if as_tensor else v for v in (points, queries))
    for k in {1, min(8, len(points)), len(points)}:
        same, expected = knn(queries, points, k, backend="reference")

        indices, distances = knn(queries, points, k, backend=backend)
        assert type(indices) is type(points) and tuple(indices.shape) == (len(queries), k)
        assert str(indices.dtype).endswith("int64") and distances.dtype == points.dtype
        scale = max(1.0, float(abs(points).max()))  # coordinates of 5e6 keep about 1e-9 of themselves
        tolerance = 1e-5 if str(points.dtype).endswith("32") else 1e-14 * scale
        np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=tolerance)
        found = ((queries[:, None] - points[indices]) ** 2).sum(-1)  # the indices mean what the distances say
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)
        assert all(len(set(row)) == k for row in indices.tolist())
        if backend in EXACT:
            assert indices.tolist() == same.tolist() and distances.tolist() == expected.tolist()


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
        (lambda x: farthest_point_sampling(x[:, :2], 2), "must be an array \\(points, 3\\)"),
        (lambda x: farthest_point_sampling(x[:0], 1), "at least one point"),
        (lambda x: farthest_point_sampling(x.astype(int), 1), "floating point"),
        (lambda x: farthest_point_sampling(x * np.nan, 1), "10 of 10 points are not finite"),
        (lambda x: knn(x, np.where(np.arange(10)[:, None] == 3, np.inf, x), 1), "points: 1 of 10 points is not finite"),
        (lambda x: farthest_point_sampling(x, 2, start=1, seed=1), "start or seed"),
        (lambda x: farthest_point_sampling([x, x], 2, start=[1]), "1 indices for 2 clouds"),
        (lambda x: farthest_point_sampling([], 2), "at least one cloud"),
        (lambda x: farthest_point_sampling(x, 2, lengths=[3]), "lengths go with a batch"),
        (lambda x: farthest_point_sampling(x[None], 2, lengths=[11]), "each from 1 to 10"),
        (lambda x: farthest_point_sampling([x, x[:3]], 4), "number of points, 3"),
        (lambda x: farthest_point_sampling([x, x.astype(np.float32)], 4), "one type and device"),
        (lambda x: farthest_point_sampling(x.astype(np.longdouble), 4, backend="numba"), "use float64"),
        (lambda x: knn([x, x], x, 1), "queries for 2 clouds and 1"),
        (lambda x: ball_query(x, x, 0.0, 1), "radius must be"),
        (lambda x: ball_query(x, x, np.nan, 1), "radius must be"),
        (lambda x: ball_query(x, x, 1.0, 0), "k must be at least 1"),
        (lambda x: knn(x, x, 11), "k must be from 1 to the number of points, 10"),
        (lambda x: knn(x, x.astype(np.float32), 1), "one type"),
        (lambda x: knn(x, x, 1, backend="numpy"), "unknown backend 'numpy'"),
        (lambda x: farthest_point_sampling(x.tolist(), 2), "must be an array"),
        (lambda x: farthest_point_sampling(None, 2), "must be an array"),
        (lambda x: farthest_point_sampling(x, 2.0), "k must be a whole number, got 2.0"),
        (lambda x: knn(x, x, None), "k must be a whole number"),
        (lambda x: ball_query(x, x, 1.0, 2.5), "k must be a whole number"),
        (lambda x: interpolate_weights(x[None], x[None]), "one cloud at a time"),
        (lambda x: interpolate_weights([x], [x]), "one cloud at a time"),
        (lambda x: farthest_point_sampling((x * 1e20).astype(np.float32), 2), "not finite .* beyond ±5e"),
        (lambda x: farthest_point_sampling(x.astype(np.longdouble) * np.inf, 2), "10 of 10 points are not finite"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).random((10, 3)))


@pytest.mark.parametrize("backend", ["reference", *SAMPLERS, *FINDERS])
def test_any_byte_order_and_layout_is_read(backend):
    xyz = CLOUDS["float32"][:100]
    find = partial(knn, k=4, backend=backend) if backend in FINDERS else None
    frozen = xyz.copy()
    frozen.flags.writeable = False
    for other in (xyz.astype(">f4"), np.asfortranarray(xyz), xyz[::-1].copy()[::-1], frozen):
        if find is not None:
            assert np.array_equal(find(other, other)[0], find(xyz, xyz)[0])
            assert np.array_equal(ball_query(other, other, 0.3, 4)[0], ball_query(xyz, xyz, 0.3, 4)[0])
        if backend in ("reference", *SAMPLERS):
            found, wanted = (farthest_point_sampling(x, 9, backend=backend) for x in (other, xyz))
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_start_of_a_large_cloud_far_from_the_origin_is_its_farthest_point(as_tensor):
    """Coordinates of a national grid: added up in float32 their mean would lie kilometres outside the cloud."""
    rng = np.random.default_rng(0)
    xyz = (rng.random((1_000_000, 3)) * 100 + [400_000, 5_600_000, 300]).astype(np.float32)
    xyz[123_456] = 400_050, 5_600_300, 350  # 250 off to the north, where the wrong mean would be near
    cloud = torch.from_numpy(xyz) if as_tensor else xyz
    assert farthest_point_sampling(cloud, 1).tolist() == [123_456]


def test_half_precision_is_widened():
    xyz = torch.rand(20, 3).half()
    assert farthest_point_sampling(xyz, 5).tolist() == farthest_point_sampling(xyz.float(), 5).tolist()


@pytest.mark.parametrize("backend", ["reference", *SAMPLERS])
@pytest.mark.parametrize("form", ["list", "batch", "tensor"])
def test_sampling_in_a_batch_is_that_of_each_cloud(backend, form):
    rng = np.random.default_rng(2)
    clouds = [rng.normal(size=(n, 3)).astype(np.float32) for n in (40, 25, 60)]
    given, lengths = padded(clouds, form)
    for kwargs in ({}, {"seed": 5}):
        chosen = farthest_point_sampling(given, 9, lengths=lengths, backend=backend, **kwargs)
        assert isinstance(chosen, list) == (form == "list")
        alone = [farthest_point_sampling(cloud, 9, backend="reference", **kwargs).tolist() for cloud in clouds]
        assert [row.tolist() for row in chosen] == alone
    assert [int(row[0]) for row in farthest_point_sampling(given, 2, lengths=lengths, start=[3, 4, 5])] == [3, 4, 5]


@pytest.mark.parametrize("backend", ["reference", *FINDERS])
@pytest.mark.parametrize("form", ["list", "batch", "tensor"])
def test_neighbours_in_a_batch_are_those_of_each_cloud(backend, form):
    rng = np.random.default_rng(3)
    clouds = [rng.normal(size=(n, 3)).astype(np.float32) for n in (40, 25)]
    given, lengths = padded(clouds, form)
    queries = [cloud[:6] for cloud in clouds] if form == "list" else given[:, :6]
    indices, distances = knn(queries, given, 5, lengths=lengths, backend=backend)
    groups, counts = ball_query(queries, given, 0.9, 5, lengths=lengths, backend=backend)
    for i, cloud in enumerate(clouds):
        alone = knn(cloud[:6], cloud, 5, backend=backend)
        assert indices[i].tolist() == alone[0].tolist() and distances[i].tolist() == alone[1].tolist()
        alone = ball_query(cloud[:6], cloud, 0.9, 5, backend=backend)
        assert groups[i].tolist() == alone[0].tolist() and counts[i].tolist() == alone[1].tolist()


def padded(clouds, form):
    """Clouds as a list, or as a batch padded with what must not be read."""
    if form == "list":
        return clouds, None
    batch = np.full((len(clouds), max(map(len, clouds)), 3), np.nan, np.float32)
    for row, cloud in zip(batch, clouds):
        row[: len(cloud)] = cloud
    return (torch.from_numpy(batch) if form == "tensor" else batch), [len(cloud) for cloud in clouds]


def test_a_seed_draws_the_start_and_nothing_else():
    xyz = CLOUDS["random"]
    picks = [farthest_point_sampling(xyz, 10, seed=seed) for seed in (0, 0, 1)]
    assert picks[0].tolist() == picks[1].tolist() and picks[0][0] != picks[2][0]
    assert picks[0].tolist() == farthest_point_sampling(xyz, 10, start=int(picks[0][0])).tolist()


@pytest.mark.parametrize("backend", ["auto", "reference", *FINDERS])
def test_a_ball_holds_the_nearest_within_and_repeats_them(backend):
    points = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [9, 0, 0]])
    queries = np.array([[0.1, 0, 0], [9, 0, 0], [50, 0, 0], [3.0, 0, 0]])
    indices, counts = ball_query(queries, points, 2.0, 3, backend=backend)
    assert indices.tolist() == [[0, 1, 2], [4, 4, 4], [-1, -1, -1], [3, 2, 1]] and counts.tolist() == [3, 1, 0, 3]
    indices, counts = ball_query(torch.tensor(queries[:1]), torch.tensor(points), 1.0, 7, backend=backend)
    assert indices.tolist() == [[0, 1, 0, 0, 0, 0, 0]] and counts.tolist() == [2]  # more than there are points


@pytest.mark.parametrize("kind", ["even", "clustered", "rounded"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_clouds_go_through_many_buckets_and_chunks(kind, dtype):
    """Deep trees, several chunks of points and rows, ties everywhere: still index for index."""
    rng = np.random.default_rng(4)
    xyz = {"even": rng.random((6000, 3)), "clustered": rng.standard_cauchy((6000, 3)),
           "rounded": rng.normal(size=(6000, 3)).round(1)}[kind].astype(dtype)  # fmt: skip
    expected = farthest_point_sampling(xyz, 200, backend="numpy")
    assert farthest_point_sampling(xyz, 200, backend="numba").tolist() == expected.tolist()
    same, _ = knn(xyz[:30], xyz, 20, backend="reference")
    assert knn(xyz[:30], xyz, 20, backend="numba")[0].tolist() == same.tolist()
    some, all_ = torch.tensor(xyz[:30]), torch.tensor(xyz)
    parts = [_knn_rows(rows, all_, 20, 512)[0] for rows in some.split(7)]
    assert torch.cat(parts).tolist() == same.tolist()


def test_auto_takes_the_compiled_one_for_large_clouds_only(monkeypatch):
    from polysense.kernels.points import compiled_fps, compiled_neighbours

    xyz = CLOUDS["random"]
    called = []
    for module, name in ((compiled_fps, "farthest_point_sampling"), (compiled_neighbours, "knn")):
        spied = partial(lambda run, *args: called.append(1) or run(*args), getattr(module, name))
        monkeypatch.setattr(module, name, spied)
    farthest_point_sampling(xyz, 5)
    knn(xyz[:3], xyz, 5)
    assert not called
    monkeypatch.setattr(backends, "SAMPLING_WORK", 2500)
    monkeypatch.setattr(backends, "SEARCHED_POINTS", 500)
    farthest_point_sampling(xyz, 5)
    knn(xyz[:3], xyz, 5)
    assert len(called) == 2
    monkeypatch.setattr(backends, "_numba_is_here", lambda: False)
    farthest_point_sampling(xyz, 5)
    knn(xyz[:3], xyz, 5)
    assert len(called) == 2
    with pytest.raises(ValueError, match="numba is not installed"):
        knn(xyz, xyz, 1, backend="numba")


@pytest.mark.slow
def test_ten_million_points():
    xyz = np.random.default_rng(0).random((10_000_000, 3), np.float32)
    chosen = farthest_point_sampling(xyz, 1024, seed=0)
    assert len(set(chosen.tolist())) == 1024
    assert farthest_point_sampling(xyz, 16, seed=0, backend="numpy").tolist() == chosen[:16].tolist()
    indices, distances = knn(xyz[chosen], xyz, 32)
    same, expected = knn(xyz[chosen[:4]], xyz, 32, backend="torch")
    assert indices[:4].tolist() == same.tolist() and distances[:4].tolist() == expected.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("name", CLOUDS)
def test_a_gpu_gives_the_same(name):
    xyz = torch.tensor(CLOUDS[name])
    k = min(7, len(xyz))
    chosen = farthest_point_sampling(xyz.cuda(), k, start=0)
    assert chosen.is_cuda and chosen.tolist() == farthest_point_sampling(xyz, k, start=0, backend="reference").tolist()
    indices, _ = knn(xyz[:5].cuda(), xyz.cuda(), k)
    assert indices.tolist() == knn(xyz[:5], xyz, k, backend="reference")[0].tolist()
    groups, counts = ball_query(xyz[:5].cuda(), xyz.cuda(), 0.5, 3)
    same, count = ball_query(xyz[:5], xyz, 0.5, 3, backend="reference")
    assert groups.tolist() == same.tolist() and counts.tolist() == count.tolist()
    with pytest.raises(ValueError, match="runs on the CPU"):
        knn(xyz.cuda(), xyz.cuda(), 1, backend="scipy")


@pytest.mark.gpu
def test_a_million_points_on_a_gpu():
    xyz = torch.rand(2, 1_000_000, 3, device="cuda")
    chosen = farthest_point_sampling(xyz, 64, start=0)
    assert chosen[1].tolist() == farthest_point_sampling(xyz[1].cpu(), 64, start=0).tolist()
    indices, _ = knn(xyz[:, :100], xyz, 8)
    assert indices[0].tolist() == knn(xyz[0, :100].cpu(), xyz[0].cpu(), 8)[0].tolist()
