"""Segmentation heads of pixels and points: learn, do not depend on the batch, answer at the original size."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from polysense.core.errors import InputError
from polysense.core.types import Features, Tokens
from polysense.heads.base import HEADS
from polysense.heads.grid import to_grid, upsample_mask
from polysense.heads.segment import SegmentationConfig, SegmentationHead, dice_loss, upsampled_argmax
from polysense.heads.segment_points import PointSegmentationConfig, PointSegmentationHead

WIDTH = 24
CLASSES = ("sky", "road", "tree")
GRIDS = [(3, 4), (4, 4), (2, 3)]
META = [{"size": (r * 16 + 5, c * 16 - 3), "grid": (r, c), "source": f"{r}x{c}"} for r, c in GRIDS]


def features(grids=GRIDS, padding=0.0, layers=()):
    height, width = max(g[0] for g in grids), max(g[1] for g in grids)
    mask = torch.zeros(len(grids), height, width, dtype=torch.bool)
    sets = []
    for layer in range(len(layers) + 1):
        x = torch.full((len(grids), height, width, WIDTH), padding)
        for i, (rows, cols) in enumerate(grids):
            own = torch.Generator().manual_seed(100 * rows + 10 * cols + layer)
            x[i, :rows, :cols] = torch.randn(rows, cols, WIDTH, generator=own)
            mask[i, :rows, :cols] = True
        sets.append(x.flatten(1, 2))
    flat = None if mask.all() else mask.flatten(1)
    made = [Tokens(x, flat, torch.zeros(len(grids), height * width, 2), (height, width)) for x in sets]
    return Features(made[0], dict(zip(layers, made[1:], strict=True)))


def head(**options):
    torch.manual_seed(0)
    return SegmentationHead(SegmentationConfig(CLASSES, **{"channels": 24, **options}), WIDTH)


def masks():
    """Upper part sky, lower left road, lower right tree."""
    made = []
    for meta in META:
        mask = np.zeros(meta["size"], np.uint8)
        mask[meta["size"][0] // 2 :] = 1
        mask[meta["size"][0] // 2 :, meta["size"][1] // 2 :] = 2
        made.append(mask)
    return made


def train(model, read, target, steps, rate=3e-3):
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(model(read), target)["loss"].backward()
        optimiser.step()
    return model.eval()


def test_learns_a_few_images_and_answers_at_their_size():
    model = head()
    train(model, features(), model.targets(masks(), META), 100)
    with torch.no_grad():
        answers = model.decode(model(features()), META)
    for answer, mask, meta in zip(answers, masks(), META, strict=True):
        assert answer.index.shape == meta["size"] and answer.source == meta["source"]
        assert (answer.index == mask).mean() > 0.95
        assert answer.confidence > 0.8


def with_fine(read, channels, grids=GRIDS):
    """The same features, with finer maps that depend on the sample alone."""
    height, width = read.last.grid
    maps = []
    for level, count in enumerate(channels, 1):
        one = torch.zeros(len(grids), count, height << level, width << level)
        for i, (rows, cols) in enumerate(grids):
            own = torch.Generator().manual_seed(1000 * level + 10 * rows + cols)
            sides = (rows << level, cols << level)
            one[i, :, : sides[0], : sides[1]] = torch.randn(count, *sides, generator=own)
        maps.append(one)
    return replace(read, last=replace(read.last, fine=tuple(maps)))


@pytest.mark.parametrize("fine", [(), (5,), (5, 3), (5, 3, 2)])
@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
def test_batched_equals_single(padding, fine):
    model = head(upsample=2, fine=fine).eval()
    with torch.no_grad():
        together = model(with_fine(features(padding=padding), fine))["logits"]
        for i, (rows, cols) in enumerate(GRIDS):
            alone = model(with_fine(features([(rows, cols)]), fine, [(rows, cols)]))["logits"][0]
            torch.testing.assert_close(together[i, :, : rows * 4, : cols * 4], alone, atol=1e-5, rtol=0)


def test_finer_maps_show_what_tokens_have_lost():
    """Which class a cell's quarter has is told by the finer map alone."""
    model = head(upsample=1, fine=(1,), dropout=0.0)
    tokens = Tokens(torch.zeros(1, 16, WIDTH), None, torch.zeros(1, 16, 2), (4, 4))
    sides = torch.randint(0, 2, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    read = Features(replace(tokens, fine=(2.0 * sides - 1,)))
    with pytest.raises(ValueError, match="set fine"):
        model(Features(tokens))
    # A norm over one channel would leave nothing of it.
    model.pyramid.ups[0].lateral[0] = torch.nn.Identity()
    train(model, read, {"mask": sides[0]}, 100)
    assert torch.equal(model(read)["logits"].argmax(1), sides[0])


def test_padding_does_not_change_loss_or_answer():
    model = head().eval()
    with torch.no_grad():
        out = model(features())
        wider = {"logits": F.pad(out["logits"], (0, 8, 0, 4), value=9.0)}
        target = model.targets(masks(), META)
        assert torch.equal(model.loss(out, target)["loss"], model.loss(wider, target)["loss"])
        for a, b in zip(model.decode(out, META), model.decode(wider, META), strict=True):
            assert np.array_equal(a.index, b.index) and a.confidence == b.confidence


def test_gradient_reaches_every_parameter_even_with_nan_padding():
    model = head(layers=(2, 5), depth=1, fine=(5, 3))
    assert model.layers == (2, 5)
    out = model(with_fine(features(padding=float("nan"), layers=(2, 5)), (5, 3)))
    model.loss(out, model.targets(masks(), META))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_ignored_class_is_neither_learned_nor_answered():
    model = head(ignore=1)
    target = model.targets(masks(), META)
    assert set(target["mask"].unique().tolist()) == {0, 2, 255}
    out = model(features())
    loss = model.loss(out, target)["loss"]
    loss.backward()
    assert loss.isfinite() and model.classify.bias.grad[1] == 0
    assert all((answer.index != 1).all() for answer in model.decode(out, META))


def test_wholly_ignored_batch_has_a_finite_loss():
    model = head()
    target = model.targets([np.full(m["size"], 255, np.uint8) for m in META], META)
    loss = model.loss(model(features()), target)["loss"]
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize("form", ["path", "pil", "array"])
def test_targets_sample_the_centres_of_the_cells(form, tmp_path):
    mask = np.kron(np.arange(12).reshape(3, 4) % 3, np.ones((8, 8))).astype(np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    label = {"path": tmp_path / "m.png", "pil": Image.fromarray(mask), "array": mask}[form]
    meta = {"size": (24, 32), "grid": (3, 4)}
    target = head(upsample=0).targets([label], [meta])["mask"]
    assert target[0].tolist() == (np.arange(12).reshape(3, 4) % 3).tolist()


def test_cropped_images_are_seen_and_answered_through_their_window():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:30], mask[10:30, 30:40] = 1, 2
    meta = {"size": (40, 60), "grid": (2, 2), "window": (20.0, 10.0, 40.0, 30.0)}
    model = head(upsample=0)
    assert model.targets([mask], [meta])["mask"].tolist() == [[[1, 2], [1, 2]]]
    out = {"logits": F.one_hot(torch.tensor([[[1, 2], [1, 2]]]), 3).movedim(-1, 1).float()}
    index = model.decode(out, [meta])[0].index
    assert index.shape == (40, 60) and (index[:, :30] == 1).all() and (index[:, 30:] == 2).all()


def test_wrong_masks_are_input_errors():
    with pytest.raises(InputError, match="holds the index 7"):
        head().targets([np.full(META[0]["size"], 7)], META[:1])
    with pytest.raises(InputError, match=r"3x4: its mask is 53x61 but the image is 61x53"):
        head().targets([np.zeros((61, 53), int)], META[:1])


def test_strips_agree_with_whole_interpolation(monkeypatch):
    monkeypatch.setattr("polysense.heads.upsample.STRIP", 1000)
    for h, w, size in [(5, 7, (61, 83)), (8, 8, (5, 3)), (1, 1, (4, 4))]:
        logits = torch.randn(4, h, w)
        whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
        found = upsampled_argmax(logits, size)
        assert found.dtype == np.uint8 and (found == whole.numpy()).mean() > 0.99


def test_dice_is_zero_for_certain_right_answers_and_one_for_wrong_ones():
    mask = torch.tensor([[[0, 1], [1, 255]]])
    right = F.one_hot(mask.clamp(max=2), 3).movedim(-1, 1) * 100.0
    assert float(dice_loss(right, mask)) == pytest.approx(0, abs=1e-5)
    assert float(dice_loss(right.roll(1, 1), mask)) == pytest.approx(1, abs=1e-5)


def test_grid_of_tokens():
    x, mask = to_grid(features(padding=float("nan")).last)
    assert x.shape == (3, WIDTH, 4, 4) and mask.shape == (3, 1, 4, 4)
    assert (x[0, :, 3] == 0).all() and mask[2].sum() == 6
    assert upsample_mask(mask)[2].sum() == 24
    with pytest.raises(ValueError, match="grid"):
        to_grid(Tokens(torch.zeros(1, 4, 2), None, torch.zeros(1, 4, 3)))


@pytest.mark.parametrize("name", ["segmentation", "point_segmentation"])
def test_config_round_trip_and_registry(name):
    kind = HEADS[name]
    model = kind(kind.Config(CLASSES, layers=(1,)), WIDTH)
    assert kind.Config(**json.loads(json.dumps(model.config_dict()))) == model.config


# --- points -----------------------------------------------------------------------------------------------------------


def clouds(counts=(400, 300)):
    """Points in map coordinates, tokens at some of them; above the middle height is class 1."""
    made = []
    for i, count in enumerate(counts):
        rng = np.random.default_rng(i)
        xyz = rng.uniform(-1, 1, (count, 3)) * 5 + [500_000.0, 4_000_000.0, 30.0]
        labels = (xyz[:, 2] > 30).astype(np.int64)
        made.append(({"xyz": xyz, "center": np.array([500_000.0, 4_000_000.0, 30.0]), "scale": 5.0}, labels))
    return [meta for meta, _ in made], [labels for _, labels in made]


def point_features(metas, counts=(32, 20), padding=0.0):
    x = torch.full((len(metas), max(counts), WIDTH), padding)
    pos = torch.full((len(metas), max(counts), 3), padding)
    mask = torch.zeros(len(metas), max(counts), dtype=torch.bool)
    for i, (meta, count) in enumerate(zip(metas, counts, strict=True)):
        own = torch.Generator().manual_seed(count)
        x[i, :count] = torch.randn(count, WIDTH, generator=own)
        pos[i, :count] = torch.from_numpy((meta["xyz"][:count] - meta["center"]) / meta["scale"]).float()
        mask[i, :count] = True
    return Features(Tokens(x, None if mask.all() else mask, pos))


def point_head(**options):
    torch.manual_seed(0)
    return PointSegmentationHead(PointSegmentationConfig(("low", "high"), **{"channels": 32, **options}), WIDTH)


def test_points_learn_a_boundary_within_the_groups():
    metas, labels = clouds()
    model, read = point_head(queries=300), point_features(metas)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        model.loss(model(read), model.targets(labels, metas))["loss"].backward()
        optimiser.step()
    model.eval()
    for answer, truth in zip(model.decode(model(read), metas), labels, strict=True):
        assert answer.index.shape == truth.shape and (answer.index == truth).mean() > 0.95
        assert answer.confidence > 0.8


@pytest.mark.parametrize("padding", [0.0, float("nan")])
def test_points_batched_equals_single(padding):
    metas, _ = clouds()
    model = point_head().eval()
    points = torch.rand(2, 50, 3) * 2 - 1
    with torch.no_grad():
        together = model.query(model(point_features(metas, padding=padding)), points)
        for i, count in enumerate((32, 20)):
            alone = model.query(model(point_features(metas[i : i + 1], (count,))), points[i : i + 1])[0]
            torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)


def test_points_gradient_reaches_every_parameter():
    metas, labels = clouds()
    model = point_head()
    model.loss(model(point_features(metas, padding=float("nan"))), model.targets(labels, metas))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_fewer_tokens_than_neighbours_and_a_point_upon_a_token():
    metas, _ = clouds((4, 4))
    model = point_head().eval()
    out = model(point_features(metas, (2, 1)))
    assert model.query(out, out["pos"]).isfinite().all()


def test_queries_are_seeded_and_differ_from_step_to_step():
    metas, labels = clouds()
    first, second = point_head(queries=64), point_head(queries=64)
    a, b = first.targets(labels, metas), first.targets(labels, metas)
    assert a["points"].shape == (2, 64, 3) and not torch.equal(a["points"], b["points"])
    assert torch.equal(a["points"], second.targets(labels, metas)["points"])
    assert torch.equal(a["labels"], (a["points"][..., 2] > 0).long())  # labels still belong to their points


def test_points_ignored_and_wrong_labels():
    metas, labels = clouds()
    model = point_head(ignore=1)
    assert 1 not in model.targets(labels, metas)["labels"]
    out = model(point_features(metas))
    assert all((answer.index != 1).all() for answer in model.decode(out, metas))
    with pytest.raises(InputError, match="400 points but labels of shape"):
        point_head().targets([labels[0][:5], labels[1]], metas)
    with pytest.raises(InputError, match="label is 5"):
        point_head().targets([labels[0] * 5, labels[1]], metas)


def test_large_clouds_are_decoded_in_blocks():
    count = 200_000
    xyz = np.random.default_rng(0).uniform(-1, 1, (count, 3)).astype(np.float32)
    meta = {"xyz": xyz, "center": np.zeros(3), "scale": 1.0}
    model = point_head().eval()
    with torch.no_grad():
        out = model(point_features([meta], (64,)))
        tracemalloc.start()
        answer = model.decode(out, [meta])[0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        whole = model.query(out, torch.from_numpy(xyz[None, :5000]))[0].argmax(-1).numpy()
    assert answer.index.shape == (count,) and (answer.index[:5000] == whole).all()
    assert peak < 30e6  # NumPy's share; every block is 2 MB of double coordinates
