"""Clouds in pretraining: generated shapes, exact turning of cut clouds, and the stream's losses."""

import numpy as np
import pytest
import torch

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.data.point_cloud import Cloud
from polysense.tokenizers.point_cloud import PointCloudConfig, PointCloudTokenizer
from polysense.training.pretrain_clouds import SETS, CloudStream, chamfer, varied, view
from polysense.training.synthetic_clouds import PROGRAMS, Part, box, prism, revolve, rod, sample, sheet, synthetic_cloud

SMALL = PointCloudConfig(width=24, points=200, groups=32, neighbours=16, hidden=16)


def test_every_program_makes_many_different_clouds():
    assert synthetic_cloud(np.random.default_rng(0))[0].shape == (2048, 3)  # also fills the table
    assert len(PROGRAMS) > 50
    for name in PROGRAMS:
        rng = np.random.default_rng(0)
        clouds = [sample(PROGRAMS[name](rng), 300, rng) for _ in range(6)]
        for points in clouds:
            assert points.shape == (300, 3) and np.isfinite(points).all(), name
            assert 0.001 < np.ptp(points, axis=0).max() < 100, name
        assert len({round(float(np.ptp(points, axis=0).max()), 6) for points in clouds}) == 6, name


def test_clouds_follow_the_generator():
    one, other, third = (synthetic_cloud(np.random.default_rng(seed), 50) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1] and not np.array_equal(one[0], third[0])
    programs = {synthetic_cloud(np.random.default_rng(seed), 20)[1] for seed in range(300)}
    assert len(programs) > 40 and max(programs) < len(PROGRAMS)


@pytest.mark.parametrize(
    ("part", "area", "low", "high"),
    [
        (box(1, 2, 3), 22, [-0.5, -1, 0], [0.5, 1, 3]),
        (rod(1, 2), 6 * np.pi, [-1, -1, 0], [1, 1, 2]),
        (revolve([0, 1], [1, 0]), np.pi * 2**0.5, [-1, -1, 0], [1, 1, 1]),
        (prism(np.array([[1.0, 1], [-1, 1], [-1, -1], [1, -1]]), 1), 16, [-1, -1, 0], [1, 1, 1]),
        (sheet(2, 4, lambda x, y: x), 8, [-1, -2, -1], [1, 2, 1]),
    ],
)
def test_parts_are_evenly_covered(part, area, low, high):
    points = part.draw(4000, np.random.default_rng(0))
    assert part.area == pytest.approx(area, rel=1e-3)
    np.testing.assert_allclose(points.min(0), low, atol=0.1)
    np.testing.assert_allclose(points.max(0), high, atol=0.1)
    middle = (points[:, 0] > 0).mean()  # all of them are symmetric in x
    assert middle == pytest.approx(0.5, abs=0.04)


def test_a_cone_is_even():
    points = revolve([0, 1], [1, 0]).draw(20_000, np.random.default_rng(0))
    inner = (np.hypot(points[:, 0], points[:, 1]) < 0.5).mean()
    assert inner == pytest.approx(0.25, abs=0.02)


def test_parts_move_and_turn():
    dot = Part(lambda n, rng: np.tile([1.0, 0, 0], (n, 1)), 1.0)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(dot.turn(2, np.pi / 2).at(z=3).draw(1, rng), [[0, 1, 3]], atol=1e-12)
    np.testing.assert_allclose(dot.at(y=2).turn(0, np.pi / 2).draw(1, rng), [[1, 0, 2]], atol=1e-12)


def test_view_thins_and_keeps_size():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(2000, 3)) * [1, 1, 5]
    views = [view(cloud, rng) for _ in range(20)]
    assert len({len(points) for points in views}) > 10 and all(500 < len(points) < 2000 for points in views)
    assert all(3 < points[:, 2].std() < 7 for points in views)  # upright stays upright


def cut(points):
    return PointCloudTokenizer(SMALL).cut(Cloud(points, {}), "x").data


def test_turned_statistics_are_those_of_the_turned_cloud(monkeypatch):
    """What `varied` does to cut clouds is what cutting the turned cloud gives: for each of the 8 symmetries."""
    random = np.random.default_rng(0)
    points = random.random((150, 3)) ** [1, 2, 3] * [1, 2, 3]

    class Choices:
        def __init__(self, bits):
            self.bits = list(bits)

        def random(self, n):
            return np.full(n, 0.0 if self.bits.pop(0) else 1.0)

        def normal(self, loc, scale, n):
            return np.zeros(n)

        def standard_normal(self, shape, dtype):
            return np.zeros(shape, dtype)

    for bits in np.ndindex(2, 2, 2):
        swap, flip_x, flip_y = bits
        moved = points[:, [1, 0, 2]] if swap else points.copy()
        moved = moved * [-1 if flip_x else 1, -1 if flip_y else 1, 1]
        batch = {key: value[None] for key, value in cut(points).items()}
        got, wanted = varied(batch, Choices(bits)), cut(moved)
        for key, value in wanted.items():
            torch.testing.assert_close(got[key][0], value, atol=2e-4, rtol=1e-4, msg=f"{key} {bits}")


def samples(count=12):
    rng = np.random.default_rng(0)
    rows = [cut(synthetic_cloud(rng, 150)[0]) for _ in range(count)]
    out = {key: torch.stack([row[key].half() for row in rows]) for key in rows[0]}
    sets = torch.arange(count) % len(SETS)
    furniture = sets == len(SETS) - 1
    return {**out, "set": sets, "label": torch.where(furniture, -1, torch.arange(count) // 4 % 2),
            "picture": torch.where(furniture, 1, -1), "teacher": torch.rand(2, 20)}  # fmt: skip


def parts(batch_size=12):
    torch.manual_seed(0)
    stream = CloudStream("point_cloud", PointCloudTokenizer(SMALL), batch_size, samples())
    return stream, Encoder(EncoderConfig(width=24, depth=2, heads=3, final_norm=False)).start_as_identity()


def test_stream_has_every_loss_and_reaches_every_parameter():
    stream, encoder = parts()
    with torch.no_grad():  # beyond the identity, so that everything behind it learns too
        for parameter in encoder.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    names, total = set(), 0.0
    for seed in range(8):
        losses = stream.loss(encoder, np.random.default_rng(seed))
        assert all(value.isfinite() and value > 0 for value in losses.values())
        names |= set(losses)
        total = total + torch.stack(list(losses.values())).sum()
    assert names == {"generated", "bimnet", "dales", "teach", "rebuild"}  # and never the classes of furniture
    total.backward()
    unreached = [name for name, p in stream.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_stream_follows_the_generator():
    stream, encoder = parts()
    one, other, third = (stream.loss(encoder, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one == other and one != third


def test_stream_learns():
    stream, encoder = parts()
    optimiser = torch.optim.Adam([*stream.parameters(), *encoder.parameters()], 3e-3)
    history = []
    for step in range(40):
        losses = stream.loss(encoder, np.random.default_rng(step))
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        history.append(float(losses["teach"].detach()) if "teach" in losses else np.nan)
    assert np.nanmean(history[-10:]) < 0.7 * np.nanmean(history[:5])


def test_chamfer_distance():
    a = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    assert chamfer(a, a.flip(1)) == 0
    assert chamfer(a, a + torch.tensor([0.0, 0, 2])) == 4.0
