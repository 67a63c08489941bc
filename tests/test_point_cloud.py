"""Point cloud tokenizer: patches, padding, tiny and huge clouds, features, both forms."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from polysense.core.errors import InputError
from polysense.data.point_cloud import Cloud
from polysense.tokenizers.base import TOKENIZERS
from polysense.tokenizers.cloud_shape import CELLS, EXTENT, LAYERS, PROFILE, RINGS, extent_of, profile_of
from polysense.tokenizers.point_cloud import VIEWS, PointCloudConfig, PointCloudTokenizer

SMALL = PointCloudConfig(width=24, points=128, groups=16, neighbours=8, hidden=16)
META = replace(SMALL, form="meta", ratio=0.25)


def ball(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3))


def make(config: PointCloudConfig) -> PointCloudTokenizer:
    torch.manual_seed(0)
    return PointCloudTokenizer(config)


@pytest.mark.parametrize("config", [SMALL, META, replace(SMALL, extent="size"), replace(SMALL, extent="none")],
                         ids=["groups", "meta", "size", "none"])  # fmt: skip
def test_tokens_and_padding_invariance(config):
    tokenizer = make(config)
    clouds = [ball(500), ball(5, 1), ball(1, 2), np.repeat(ball(1, 3), 30, 0), ball(40, 4)]
    samples = [tokenizer.read(cloud) for cloud in clouds]
    batch = tokenizer.collate(samples)
    out = tokenizer(batch)
    groups, extra = 16 if config.form == "groups" else 32, {"none": 0, "size": 1, "shape": 2}[config.extent]
    assert out.x.shape == (5, groups + extra, 24) and out.grid is None
    assert out.mask is not None and out.x.isfinite().all()
    for i, sample in enumerate(samples):
        single = tokenizer(tokenizer.collate([sample]))
        assert single.mask is None  # nothing to pad
        torch.testing.assert_close(out.x[i][out.mask[i]], single.x[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.pos[i][out.mask[i]], single.pos[0])
    counts = out.mask.sum(1) - extra
    assert counts.tolist() == ([16, 5, 1, 16, 16] if config.form == "groups" else [32, 1, 1, 8, 10])


def test_equal_sizes_have_no_mask():
    tokenizer = make(SMALL)
    assert tokenizer(tokenizer.collate([tokenizer.read(ball(200, i)) for i in range(3)])).mask is None


@pytest.mark.parametrize("config", [replace(SMALL, features=("rgb", "normals")), META], ids=["groups", "meta"])
def test_gradient_reaches_every_parameter(config):
    tokenizer = make(config)
    cloud = Cloud(ball(300), {"rgb": np.full((300, 3), 0.5, np.float32), "normals": ball(300, 1).astype(np.float32)})
    tokenizer(tokenizer.collate([tokenizer.read(cloud)])).x.square().sum().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_config_round_trip():
    config = replace(SMALL, features=("intensity",))
    tokenizer = make(config)
    twin = PointCloudTokenizer(PointCloudConfig(**json.loads(json.dumps(tokenizer.config_dict()))))
    twin.load_state_dict(tokenizer.state_dict())
    assert twin.config == config and TOKENIZERS["point_cloud"] is PointCloudTokenizer
    batch = tokenizer.collate([tokenizer.read(np.hstack([ball(50), np.ones((50, 1))]))])
    assert torch.equal(twin(batch).x, tokenizer(batch).x)


def test_meta_gives_the_users_coordinates():
    xyz = ball(700) * 3 + [500_000, 4_000_000, 80]
    sample = make(SMALL).read(xyz)
    meta = sample.meta
    assert meta["points"] == 700 and np.shares_memory(meta["xyz"], xyz)  # a reference, no copy
    back = sample.data["centers"].double().numpy() * meta["scale"] + meta["center"]
    nearest = np.abs(xyz[None] - back[:, None]).max(-1).min(1)
    assert nearest.max() < 1e-5  # centres are points of the cloud, to a hundredth of a millimetre


def test_moving_and_scaling_changes_only_the_extent_token():
    tokenizer = make(SMALL)
    xyz = ball(100)
    a, b = (tokenizer(tokenizer.collate([tokenizer.read(cloud)])).x[0] for cloud in (xyz, xyz * 7 + [100, 200, 300]))
    kept = [i for i in range(len(a)) if i != len(a) - 2]
    torch.testing.assert_close(a[kept], b[kept], atol=1e-4, rtol=1e-4)
    assert (a[-2] - b[-2]).abs().max() > 1e-2


def test_order_of_points_does_not_matter():
    tokenizer = make(SMALL)
    xyz = ball(100)
    a, b = (tokenizer(tokenizer.collate([tokenizer.read(cloud)])).x[0] for cloud in (xyz, xyz[::-1].copy()))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_groups_are_the_nearest_points():
    xyz = ball(100)
    sample = make(SMALL).read(xyz)
    scaled = torch.tensor((xyz - sample.meta["center"]) / sample.meta["scale"]).float()
    assert scaled.norm(dim=1).max() == pytest.approx(1, abs=1e-5)
    for center, group in zip(sample.data["centers"], sample.data["groups"], strict=True):
        distances = (scaled - center).norm(dim=1).sort().values[:8]
        torch.testing.assert_close(group.norm(dim=1), distances, atol=1e-5, rtol=1e-4)


def test_few_points_are_repeated():
    groups = make(SMALL).read(np.array([[0.0, 0, 0], [3, 0, 0]])).data["groups"]
    assert groups.shape == (2, 8, 3) and {tuple(p) for p in groups[0].tolist()} == {
        (0, 0, 0),
        tuple(groups[0, 1].tolist()),
    }


def test_thinning_is_deterministic():
    tokenizer = make(SMALL)
    a, b = (tokenizer.read(ball(5000)).data for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_million_points():
    sample = make(SMALL).read(np.random.default_rng(0).random((1_000_000, 3), np.float32))
    assert sample.data["centers"].shape == (16, 3) and sample.meta["points"] == 1_000_000


def test_features_follow_their_points():
    xyz = ball(100)
    rgb = ((xyz - xyz.min(0)) / np.ptp(xyz, 0)).astype(np.float32)  # a colour that says where the point is
    tokenizer = make(replace(SMALL, features=("rgb",)))
    sample = tokenizer.read(Cloud(xyz, {"rgb": rgb}))
    where = (sample.data["groups"][..., :3] + sample.data["centers"][:, None]).numpy()
    where = where * sample.meta["scale"] + sample.meta["center"]
    expected = (where - xyz.min(0)) / np.ptp(xyz, 0)
    np.testing.assert_allclose(sample.data["groups"][..., 3:], expected, atol=1e-4)


def test_missing_feature_is_named():
    with pytest.raises(InputError, match="has no rgb and no normals"):
        make(replace(SMALL, features=("rgb", "normals"))).read(ball(10))


@pytest.mark.parametrize(
    "change",
    [
        {"form": "x"},
        {"extent": "x"},
        {"features": ("smell",)},
        {"points": 0},
        {"views": 0},
        {"views": 9},
        {"ratio": 0.0},
    ],
)
def test_wrong_settings(change):
    with pytest.raises(ValueError):
        replace(SMALL, **change)


def test_extent_is_finite_and_ordered():
    for xyz in (ball(300), ball(300) * [1, 1, 0], ball(1), np.zeros((5, 3)), ball(300) * [10, 0, 0]):
        xyz = np.asarray(xyz, float)
        center = xyz.mean(0)
        scale = max(float(np.linalg.norm(xyz - center, axis=1).max()), 1e-12) if np.ptp(xyz) and len(xyz) > 1 else 1.0
        numbers = extent_of(xyz, (xyz - center) / scale, center, scale)
        assert numbers.shape == (EXTENT,) and np.isfinite(numbers).all() and np.abs(numbers).max() < 20
    pole, plate = ball(500) * [0.1, 0.1, 5], ball(500) * [5, 5, 0.1]
    for xyz, upright in ((pole, (1, 0)), (plate, (0, 1))):
        numbers = extent_of(xyz, xyz / 20, xyz.mean(0), 20.0)
        assert numbers[8] >= numbers[9] >= numbers[10]
        np.testing.assert_allclose(numbers[11:], upright, atol=0.1)


def test_profile_says_where_the_points_lie():
    centers = ball(16)
    low, high = np.array([-0.5, -0.5, 0]), np.array([0.5, 0.5, 1.0])
    corner = np.concatenate([np.repeat(low[None], 99, 0), high[None]])
    numbers = profile_of(corner, centers)
    assert numbers.shape == (PROFILE,) and np.isfinite(numbers).all()
    cells, rings = numbers[: CELLS**3] ** 2 / CELLS**3, numbers[CELLS**3 : CELLS**3 + LAYERS * RINGS] ** 2
    assert cells[0] == pytest.approx(0.99) and cells[-1] == pytest.approx(0.01)
    assert rings.reshape(LAYERS, RINGS)[0].sum() / (LAYERS * RINGS) == pytest.approx(0.99)
    turned = profile_of(corner * [-1, -1, 1], centers)[CELLS**3 : CELLS**3 + LAYERS * RINGS] ** 2
    np.testing.assert_allclose(turned, rings)  # rings do not see a turn about the upright axis
    for xyz in (ball(1), np.zeros((5, 3)), ball(30) * [1, 0, 0]):
        assert np.isfinite(profile_of(xyz, xyz[:1])).all()


def test_older_bundles_name_the_extent_by_truth_values():
    for old, new in ((True, "size"), (False, "none")):
        config = replace(SMALL, extent=old)
        assert config.extent == new and config == replace(SMALL, extent=new)
    assert [name for name, _ in make(replace(SMALL, extent=True)).named_parameters() if "profile" in name] == []


def test_views_are_the_moved_cloud_cut_again():
    config = replace(SMALL, views=8, features=("rgb", "normals"))
    tokenizer, single = make(config), make(replace(config, views=1))
    random = np.random.default_rng(0)
    xyz, rgb, normals = random.random((90, 3)) ** [1, 2, 3] * [1, 2, 3], random.random((90, 3)), ball(90, 1)
    colours = rgb.astype(np.float32)
    views = tokenizer.split(tokenizer.read(Cloud(xyz, {"rgb": colours, "normals": normals.astype(np.float32)})))
    assert len(views) == 8 and len({tuple(v.data["centers"][0].tolist()) for v in views}) == 8
    for view, (swap, flip_x, flip_y) in zip(views, VIEWS, strict=True):
        order, sign = [1, 0, 2] if swap else [0, 1, 2], [-1 if flip_x else 1, -1 if flip_y else 1, 1]
        turned = (normals[:, order] * sign).astype(np.float32)
        wanted = single.read(Cloud(xyz[:, order] * sign, {"rgb": colours, "normals": turned})).data
        for key, value in view.data.items():
            torch.testing.assert_close(value, wanted[key], atol=1e-4, rtol=1e-4, msg=f"{key} {swap} {flip_x} {flip_y}")
    assert len(single.split(views[0])) == 1 and views[3].meta is views[0].meta


def test_files_are_named(tmp_path):
    np.save(tmp_path / "a.npy", ball(20))
    sample = make(SMALL).read(tmp_path / "a.npy")
    assert sample.source == str(tmp_path / "a.npy")
    assert make(SMALL).collate([sample])["meta"][0]["source"] == sample.source
