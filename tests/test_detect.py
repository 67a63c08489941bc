"""Detection head: learns, does not depend on the batch, answers in original pixels."""

import json

import numpy as np
import pytest
import torch

from polysense.core.errors import InputError
from polysense.core.types import Features, Tokens
from polysense.data.dataset import BoxTarget
from polysense.heads.assign import overlaps, task_aligned
from polysense.heads.base import HEADS
from polysense.heads.detect import DetectionConfig, DetectionHead, quality_focal
from polysense.training.metrics import score

WIDTH = 24
GRIDS = [(4, 6), (6, 6), (5, 3), (2, 6)]
META = [{"size": (rows * 30, cols * 34), "grid": (rows, cols), "source": f"{rows}x{cols}"} for rows, cols in GRIDS]
TARGETS = [
    BoxTarget([(10, 10, 100, 90), (120, 50, 160, 84)], ["a", "b"]),
    BoxTarget([(20, 30, 190, 160)], ["b"]),
    BoxTarget([], []),
    BoxTarget([(5, 10, 60, 55), (100, 20, 112, 30), (90, 12, 180, 50)], ["a", "a", "b"]),
]


def features(grids=GRIDS, padding=0.0, layers=(), seed=0):
    """Random tokens: each sample's own are the same whatever it is padded to."""
    height, width = max(g[0] for g in grids), max(g[1] for g in grids)
    mask = torch.zeros(len(grids), height, width, dtype=torch.bool)
    sets = []
    for layer in range(len(layers) + 1):
        x = torch.full((len(grids), height, width, WIDTH), padding)
        for i, (rows, cols) in enumerate(grids):
            own = torch.Generator().manual_seed(1000 * rows + 10 * cols + layer + seed)
            x[i, :rows, :cols] = torch.randn(rows, cols, WIDTH, generator=own)
            mask[i, :rows, :cols] = True
        sets.append(x.flatten(1, 2))
    flat = None if mask.all() else mask.flatten(1)
    pos = torch.zeros(len(grids), height * width, 2)
    made = [Tokens(x, flat, pos, (height, width)) for x in sets]
    return Features(made[0], dict(zip(layers, made[1:], strict=True)))


def head(**options):
    torch.manual_seed(0)
    return DetectionHead(DetectionConfig(("a", "b"), **{"channels": 32, **options}), WIDTH)


@pytest.fixture(scope="module")
def trained():
    model = head()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    read, target = features(), model.targets(TARGETS, META)
    for _ in range(200):
        optimiser.zero_grad()
        model.loss(model(read), target)["loss"].backward()
        optimiser.step()
    return model.eval()


def test_learns_a_few_images(trained):
    with torch.no_grad():
        predictions = trained.decode(trained(features()), META)
    found = score("detection", predictions, TARGETS, ["a", "b"])
    assert found["map50"] > 0.99 and found["map"] > 0.9
    for prediction, meta, target in zip(predictions, META, TARGETS, strict=True):
        assert prediction.size == meta["size"] and prediction.source == meta["source"]
        assert sorted(prediction.labels) == sorted(target.labels)  # nothing else over the threshold
        assert (prediction.xyxy >= 0).all() and (prediction.xyxy[:, [1, 3]] <= meta["size"][0]).all()
        assert (np.diff(prediction.scores) <= 0).all()


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan")])
def test_batched_equals_single(trained, padding):
    with torch.no_grad():
        together = trained.decode(trained(features(padding=padding)), META)
        for i, grid in enumerate(GRIDS):
            alone = trained.decode(trained(features([grid])), META[i : i + 1])[0]
            assert list(alone.labels) == list(together[i].labels)
            np.testing.assert_allclose(alone.scores, together[i].scores, atol=1e-5)
            np.testing.assert_allclose(alone.xyxy, together[i].xyxy, atol=1e-3)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_gradient_reaches_every_parameter_even_with_nan_padding(levels):
    model = head(layers=(1, 2), levels=levels)
    assert model.layers == (1, 2)
    out = model(features(padding=float("nan"), layers=(1, 2)))
    assert out["logits"].shape[1] == sum(36 * 4**level for level in range(levels))
    model.loss(out, model.targets(TARGETS, META))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    # The last bias of each branch and the neck see every batch, so their gradient cannot be zero.
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n != "sizes")


def test_batch_without_any_box_trains_and_answers():
    model = head()
    out = model(features())
    losses = model.loss(out, model.targets([BoxTarget([], [])] * 4, META))
    losses["loss"].backward()
    assert losses["loss"].isfinite() and losses["box"] == 0
    assert all(p.grad is not None for p in model.parameters())
    assert all(len(p.labels) == 0 and p.xyxy.shape == (0, 4) for p in model.decode(out, META))


def test_config_round_trip_and_registry():
    model = head(layers=(3,))
    again = DetectionConfig(**json.loads(json.dumps(model.config_dict())))
    assert again == model.config and HEADS["detection"] is DetectionHead


def test_unknown_label_is_an_input_error():
    with pytest.raises(InputError, match=r"4x6: a box is labelled 'zebra'.*choose from: a, b"):
        head().targets([BoxTarget([(0, 0, 1, 1)], ["zebra"])], META[:1])


def test_targets_are_in_token_cells():
    target = head().targets([BoxTarget([(34, 30, 68, 120)], ["b"]), BoxTarget([], [])], META[:2])
    assert target["boxes"][0].tolist() == [[1.0, 1.0, 2.0, 4.0]]
    assert target["labels"].tolist() == [[1], [-1]]


def test_cropped_images_are_seen_and_answered_through_their_window(trained):
    """The same tokens as a crop of a larger image: the same boxes, moved and scaled."""
    crop = {"size": (500, 600), "grid": GRIDS[0], "window": (100.0, 200.0, 100 + 2 * 204.0, 200 + 2 * 120.0)}
    with torch.no_grad():
        out = trained(features(GRIDS[:1]))
        plain, moved = trained.decode(out, META[:1])[0], trained.decode(out, [crop])[0]
    np.testing.assert_allclose(moved.xyxy, plain.xyxy * 2 + [100, 200, 100, 200], atol=1e-2)
    outside = BoxTarget([(0, 0, 50, 50), *(moved.xyxy.tolist())], ["a", *moved.labels])
    target = trained.targets([outside], [crop])
    assert target["labels"].tolist() == [[trained.config.classes.index(n) for n in moved.labels] + [-1]]
    again = trained.targets([BoxTarget(plain.xyxy, plain.labels)], META[:1])["boxes"]
    torch.testing.assert_close(target["boxes"][:, :-1], again, atol=1e-3, rtol=0)


def test_threshold_and_most_boxes():
    model = head(max_boxes=5)
    out = model(features())
    model.threshold = 0.0
    assert [len(p.labels) for p in model.decode(out, META)] == [5] * 4
    model.threshold = 0.99
    assert [len(p.labels) for p in model.decode(out, META)] == [0] * 4


def test_assignment_prefers_fitting_cells_and_reaches_tiny_objects():
    xs = torch.arange(4) + 0.5
    centers = torch.cartesian_prod(xs, xs).flip(1)
    half = torch.tensor([0.5, 0.5])
    boxes = torch.cat([centers - half, centers + half], 1)
    scores, valid = torch.full((16, 2), 0.5), torch.ones(16, dtype=torch.bool)
    truth = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.9, 1.9, 2.1, 2.1], [0.0, 2.0, 2.0, 4.0]])
    valid[10] = False
    found = task_aligned(scores, boxes, centers, valid, truth, torch.tensor([0, 1, 1]), candidates=3)
    assert found.object[0] == 0 and found.quality[0] == pytest.approx(1.0)  # the cell that is the object
    assert (found.object == 1).sum() == 1  # no centre lies in it, so the nearest real cell learns it
    assert found.object[10] == -1
    assert (found.object == 2).sum() <= 3 and found.quality[found.object == -1].sum() == 0


def test_quality_focal_is_least_at_the_wanted_score():
    logits = torch.linspace(-4, 4, 81)[:, None]
    wanted = torch.full_like(logits, 0.7)
    best = logits[quality_focal(logits, wanted).argmin()].sigmoid()
    assert float(best) == pytest.approx(0.7, abs=0.03)


def test_objectness_learns_beside_classes_that_change_nothing_shared():
    model = head(objectness=True)
    out = model(features(padding=float("nan")))
    losses = model.loss(out, model.targets(TARGETS, META))
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert losses["objectness"] > 0 and model.objectness.weight.grad.abs().sum() > 0
    model.zero_grad()
    model(features())["logits"].sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("pyramid"))
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith("classify"))


def test_objectness_is_not_asked_for_where_nobody_labelled():
    """What stands outside every labelled object has no part in its loss."""
    model = head(objectness=True)
    target = model.targets([BoxTarget([(0, 0, 102, 120)], ["a"])], META[:1])
    out = model(features(GRIDS[:1]))
    inside = (out["centers"] < torch.tensor([3.0, 4.0])).all(-1)
    outside = {**out, "objectness": torch.where(inside, out["objectness"], 9.0)}
    within = {**out, "objectness": torch.where(inside, 9.0, out["objectness"])}
    plain = model.loss(out, target)["objectness"]
    assert inside.any() and not inside.all()
    assert model.loss(outside, target)["objectness"] == plain != model.loss(within, target)["objectness"]


def test_overlaps_take_the_smallest_object_around_a_cell():
    truth = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0]])
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0], [2.0, 0.0, 6.0, 4.0]])
    fits, inside = overlaps(boxes, torch.tensor([[1.0, 1.0], [3.0, 3.0], [5.0, 1.0], [5.0, 1.0]]), truth)
    assert inside.tolist() == [True, True, False, False]
    assert fits.tolist() == pytest.approx([1.0, 1.0, 0.0, 8 / 24])
    assert overlaps(boxes, boxes[:, :2], truth[:0])[1].sum() == 0


def test_the_default_head_is_the_one_that_old_bundles_hold():
    old = {name: value for name, value in head().config_dict().items() if name != "objectness"}
    assert DetectionConfig(**json.loads(json.dumps(old))) == head().config
    assert not any("objectness" in name for name in head().state_dict())
    assert "objectness" not in head()(features())


@pytest.mark.parametrize("objectness", [False, True])
def test_proposals_are_ranked_and_do_not_depend_on_the_batch(objectness):
    model = head(objectness=objectness).eval()
    with torch.no_grad():
        together = model.propose(model(features(padding=float("nan"))), META, most=9)
        for found, grid, meta in zip(together, GRIDS, META, strict=True):
            out = model(features([grid]))
            alone = model.propose(out, [meta], most=9)[0]
            for one, other in zip(found, alone, strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
            ranks = out["objectness"].sigmoid() if objectness else out["logits"].sigmoid().amax(-1)
            assert found.objectness[0] == pytest.approx(float(ranks.max()), abs=1e-5)
            assert len(found.boxes) <= 9 and (found.objectness.diff() <= 0).all()
            assert found.known.shape == (len(found.boxes), 2)
            assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= meta["size"][1]).all()
