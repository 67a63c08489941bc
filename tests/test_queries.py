"""The head of queries: three answers of one head, padding, gradients, an open world, and what it learns from shapes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import polysense
from polysense.core.errors import InputError
from polysense.core.predictions import Mask, Segments
from polysense.core.types import Features, Tokens
from polysense.data.segments import NOTHING, VOID, SegmentTarget
from polysense.heads.mask_decoder import MaskDecoder
from polysense.heads.mask_loss import match, truth_masks
from polysense.heads.queries import ANSWERS, QueryConfig, QueryHead
from polysense.heads.query_answers import Found, as_mask, as_segments
from polysense.training.metrics import score

WIDTH = 24
CLASSES = ("disc", "square", "sky", "ground")
GRIDS = [(3, 4), (4, 4), (2, 3)]
META = [{"size": (r * 16, c * 16), "grid": (r, c), "source": f"{r}x{c}"} for r, c in GRIDS]
FORMS = [{"decoder": "masked"}, {"decoder": "kmeans"}, {"decoder": "masked", "open_world": True}]


def features(grids=GRIDS, padding=0.0):
    height, width = max(g[0] for g in grids), max(g[1] for g in grids)
    mask = torch.zeros(len(grids), height, width, dtype=torch.bool)
    x = torch.full((len(grids), height, width, WIDTH), padding)
    for i, (rows, cols) in enumerate(grids):
        own = torch.Generator().manual_seed(100 * rows + cols)
        x[i, :rows, :cols] = torch.randn(rows, cols, WIDTH, generator=own)
        mask[i, :rows, :cols] = True
    tokens = Tokens(x.flatten(1, 2), mask.flatten(1), torch.zeros(len(grids), height * width, 2), (height, width))
    return Features(tokens)


def head(**options):
    torch.manual_seed(0)
    usual = {"things": CLASSES[:2], "channels": 24, "queries": 6, "reads": 4, "heads": 3}
    return QueryHead(QueryConfig(CLASSES, **usual | options), WIDTH)


def truth(meta):
    """Sky over ground, two discs, and a corner of which nothing is said."""
    index = np.zeros(meta["size"], np.int32)
    index[meta["size"][0] // 2 :] = 1
    index[4:12, 4:12], index[4:12, 20:28] = 2, 3
    index[-4:, -4:] = VOID
    return SegmentTarget(index, ["sky", "ground", "disc", "disc"])


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_padding_changes_nothing(options):
    model = head(**options).eval()
    together = model(features())
    scale = together["masks"].shape[-1] // 4
    for padded in (model(features(padding=1e4)), model(features(padding=float("nan")))):
        assert all(torch.allclose(padded[name], together[name], atol=1e-4) for name in together)
    for i, (rows, cols) in enumerate(GRIDS):
        single = model(features([GRIDS[i]]))
        torch.testing.assert_close(single["classes"][0], together["classes"][i], atol=1e-4, rtol=1e-4)
        own = together["masks"][i, ..., : rows * scale, : cols * scale]
        torch.testing.assert_close(single["masks"][0], own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_gradient_reaches_every_parameter(options):
    model = head(**options).train()
    target = model.targets([truth(meta) for meta in META], META)
    model.loss(model(features()), target)["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_classes_do_not_teach_queries_what_is_no_object_in_an_open_world():
    def reached(**options):
        model = head(**options).train()
        out = model(features())
        out["classes"].sum().backward()
        return any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "classify" not in n)

    assert reached() and not reached(open_world=True)


def test_the_truth_of_each_task():
    model = head()
    target = model.targets([truth(META[0])], META[:1])
    index, labels = target["index"][0].flatten(), target["labels"][0]
    found = {}
    for task in ANSWERS:
        classes, masks = truth_masks(index, labels, model._wanted(labels, task), task == "semantic")
        found[task] = [CLASSES[i] for i in classes]
        assert masks.sum(0).max() == 1 and not masks[:, index == VOID].any()
    assert found == {"semantic": ["disc", "sky", "ground"], "instance": ["disc", "disc"],
                     "panoptic": ["sky", "ground", "disc", "disc"]}  # fmt: skip


def test_void_cells_do_not_count_and_background_does():
    model = head().train()
    torch.manual_seed(1)
    out = model(features())
    out["task"] = torch.full_like(out["task"], 2)
    target = model.targets([truth(meta) for meta in META], META)
    void = target["index"] == VOID

    def loss(cells):
        other = {**out, "masks": out["masks"].clone()}
        other["masks"].masked_fill_(cells[:, None, None], 9.0)
        return model.loss(other, target)["loss"].item()

    assert loss(void) == pytest.approx(loss(torch.zeros_like(void)), rel=1e-6)
    assert loss(target["index"] == 0) != pytest.approx(loss(torch.zeros_like(void)), rel=1e-3)
    nothing = truth(META[0])
    nothing.index[nothing.index == 0] = NOTHING
    assert (model.targets([nothing], META[:1])["index"] == NOTHING).any()


def test_matching_finds_the_cheapest_pairs():
    truths = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    masks = torch.tensor([[-9.0, -9, 9, 9], [9, 9, -9, -9], [0, 0, 0, 0]])
    query, segment = match(None, masks, torch.tensor([0, 1]), truths)
    assert dict(zip(query.tolist(), segment.tolist(), strict=True)) == {0: 1, 1: 0}
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 0]])  # equal masks: classes decide
    query, segment = match(logits, torch.zeros(3, 4), torch.tensor([1, 0]), truths)
    assert dict(zip(query.tolist(), segment.tolist(), strict=True)) == {0: 1, 1: 0}
    assert len(match(None, masks, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))[0]) == 0


def found_by_hand(fit=None):
    """A disc in the left half, another in the right one, sky everywhere but unsure, and one that finds nothing."""
    masks = torch.full((5, 8, 8), -6.0)
    masks[0, :, :4], masks[1, :, 4:], masks[2] = 6.0, 6.0, 2.0
    masks[4, :2, :2] = 6.0
    classes = torch.tensor([[0.9, 0, 0, 0, 0.1], [0.8, 0, 0.1, 0, 0.1], [0, 0, 0.5, 0, 0.5], [0, 0, 0, 0, 1],
                            [0, 0, 0.05, 0, 0.95]])  # fmt: skip
    return Found(classes, masks, fit)


def segments(found, **over):
    usual = {"regions": True, "threshold": 0.3, "kept": 0.7, "unknown": "object"}
    return as_segments(found, CLASSES, [True, True, False, False], {"size": (32, 32), "source": "x"}, **usual | over)


def test_segments_share_no_pixel_and_the_surest_come_first():
    answer = segments(found_by_hand())
    assert list(answer.labels) == ["disc", "disc"] and answer.scores[0] > answer.scores[1] > 0.3
    assert answer.areas().tolist() == [512, 512] and (answer.index >= 0).all()
    assert answer.boxes().tolist() == [[0, 0, 16, 32], [16, 0, 32, 32]]
    record = json.loads(json.dumps(answer.to_record()))
    assert record["answer"] == "2 disc" and record["segments"][1]["pixels"] == 512
    loose = segments(found_by_hand(), kept=0.0)
    assert list(loose.labels) == ["disc", "disc"]  # the sky has no pixel left
    empty = segments(found_by_hand(), threshold=0.99)
    assert len(empty.labels) == 0 and (empty.index == -1).all() and empty.answer() == "nothing"


def test_regions_of_one_class_are_one_and_instances_leave_them_out():
    found = found_by_hand()
    found.classes[:2] = torch.tensor([0, 0, 0.9, 0, 0.1])
    assert list(segments(found).labels) == ["sky"] and segments(found).areas().tolist() == [1024]
    assert list(segments(found, regions=False).labels) == []


def test_an_open_world_names_what_it_does_not_know():
    answer = segments(found_by_hand(torch.tensor([0.9, 0.9, 0.1, 0.1, 0.95])), kept=0.1)
    assert sorted(answer.labels) == ["disc", "disc", "object"]


def test_a_semantic_answer_weighs_classes_by_masks():
    answer = as_mask(found_by_hand(), CLASSES, {"size": (32, 32), "source": "x"})
    assert isinstance(answer, Mask) and answer.answer() == "disc 100%" and 0.5 < answer.confidence <= 1


def test_what_a_crop_did_not_see_continues_its_border():
    meta = {"size": (32, 40), "window": (4.0, 0.0, 36.0, 32.0), "source": "x"}
    answer = as_segments(found_by_hand(), CLASSES, [True] * 4, meta, True, 0.3, 0.7, "object")
    assert answer.index.shape == (32, 40) and (answer.index[:, :4] == answer.index[:, 4:5]).all()


def test_refusals():
    with pytest.raises(ValueError, match="unknown decoder 'soft'"):
        MaskDecoder(8, 2, 1, 2, "soft")
    with pytest.raises(ValueError, match="unknown answer 'all'"):
        QueryConfig(CLASSES, answer="all")
    model = head()
    with pytest.raises(InputError, match="'cat', which is no class"):
        model.targets([SegmentTarget(np.zeros((48, 64), np.int32), ["cat"])], META[:1])
    with pytest.raises(InputError, match="64x40 but the image is 64x48"):
        model.targets([SegmentTarget(np.zeros((40, 64), np.int32), ["sky"])], META[:1])
    with pytest.raises(InputError, match="windows"):
        model.merge(model(features()), torch.tensor([0, 0, 1]), META)


def shapes(rng, size=(64, 96)):
    """Sky over ground and one to three objects, and their truth."""
    h, w = size
    ys, xs = np.mgrid[:h, :w]
    line = int(rng.integers(h // 3, 2 * h // 3))
    pixels = np.where(ys[..., None] < line, (120, 170, 230), (90, 140, 60)).astype(float)
    index, labels = (ys >= line).astype(np.int32), ["sky", "ground"]
    for _ in range(int(rng.integers(1, 4))):
        r, cy, cx, kind = int(rng.integers(9, 14)), rng.integers(14, h - 14), rng.integers(14, w - 14), rng.integers(2)
        own = (ys - cy) ** 2 + (xs - cx) ** 2 < r * r if kind == 0 else (abs(ys - cy) < r) & (abs(xs - cx) < r)
        pixels[own] = (220, 60, 40) if kind == 0 else (240, 220, 60)
        index[own] = len(labels)
        labels.append(CLASSES[kind])
    noisy = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy), SegmentTarget(index, labels)


@pytest.mark.slow
def test_learns_shapes_and_answers_three_ways():
    rng = np.random.default_rng(0)
    options = {"classes": CLASSES, "things": CLASSES[:2], "channels": 64, "queries": 12}
    pipeline = polysense.Pipeline.build("panoptic-segmentation", tokenizer={"size": 96}, head=options, seed=0)
    optimiser = torch.optim.AdamW(pipeline.head.parameters(), 1e-3, weight_decay=0.05)
    for _ in range(150):
        pairs = [shapes(rng) for _ in range(8)]
        batch = pipeline.tokenizer.collate([pipeline.tokenizer.read(image) for image, _ in pairs])
        pipeline.train()
        target = pipeline.head.targets([truth for _, truth in pairs], batch["meta"])
        optimiser.zero_grad()
        pipeline.head.loss(pipeline(batch), target)["loss"].backward()
        optimiser.step()
    pipeline.eval()
    images, truths = zip(*(shapes(rng) for _ in range(12)), strict=True)
    answers = pipeline(list(images))
    assert all(isinstance(answer, Segments) for answer in answers)
    assert score("panoptic", answers, truths, CLASSES, things=CLASSES[:2])["pq"] > 0.7
    pipeline.head.answer, pipeline.head.threshold = "instance", 0.01
    answers = pipeline(list(images))
    assert not {"sky", "ground"} & {label for answer in answers for label in answer.labels}
    assert score("instances", answers, truths, CLASSES, things=CLASSES[:2])["map50"] > 0.6
    pipeline.head.answer = "semantic"
    masks = [np.array([CLASSES.index(label) for label in truth.labels])[truth.index] for truth in truths]
    assert score("segmentation", pipeline(list(images)), masks, CLASSES)["miou"] > 0.85
