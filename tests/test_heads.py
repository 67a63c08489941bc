"""Pooled and forecasting heads: padding invariance, units, calibration, merging."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polysense.core.types import Features, Tokens
from polysense.heads.classify import ClassificationConfig, ClassificationHead
from polysense.heads.embed import EmbeddingConfig, EmbeddingHead
from polysense.heads.forecast import ForecastConfig, ForecastHead
from polysense.heads.pool import OF_SOUNDS, STATISTICS, Pool, masked_statistic
from polysense.heads.regress import RegressionConfig, RegressionHead

WIDTH, TOKENS, HORIZON = 24, 5, 6
LENGTHS = (5, 2, 3, 1)


def features(lengths=LENGTHS, padding=0.0, layers=(), cls=False, left=False, to=TOKENS):
    """Random tokens, the same for a length whatever the batch, with anything at padded places."""
    mask = torch.zeros(len(lengths), to, dtype=torch.bool)
    sets = [torch.full((len(lengths), to, WIDTH), padding) for _ in range(1 + len(layers))]
    for i, length in enumerate(lengths):
        real = slice(to - length, to) if left else slice(length)
        mask[i, real] = True
        for layer, x in enumerate(sets):
            x[i, real] = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(10 * length + layer))
    made = [Tokens(x, None if bool(mask.all()) else mask, torch.zeros(*mask.shape, 1), (to, 1, 1)) for x in sets]
    prefix = sets[0].nan_to_num().sum(1) if cls else None
    return Features(made[0], dict(zip(layers, made[1:], strict=True)), prefix)


def classifier(**options):
    torch.manual_seed(0)
    return ClassificationHead(ClassificationConfig(**{"classes": ("a", "b", "c"), **options}), WIDTH)


def forecaster(**options):
    torch.manual_seed(0)
    return ForecastHead(ForecastConfig(**{"horizon": HORIZON, "tokens": TOKENS, "reduce": 4, **options}), WIDTH)


OF_CLIPS = tuple(kind for kind in STATISTICS if kind not in OF_SOUNDS)
HEADS = {
    "classify": classifier,
    "classify-hidden": lambda: classifier(hidden=8, pooling=OF_CLIPS, layers=(0, 2), dropout=0.1),
    "classify-labels": lambda: classifier(multi_label=True),
    "regress": lambda: RegressionHead(RegressionConfig(("p", "q"), (1.0, 2.0), (3.0, 4.0)), WIDTH),
    "regress-chain": lambda: RegressionHead(RegressionConfig(("p", "q"), chain=True), WIDTH),
    "embed": lambda: EmbeddingHead(EmbeddingConfig(layers=(1,)), WIDTH),
    "forecast": forecaster,
    "forecast-hidden": lambda: forecaster(hidden=3, quantiles=(0.05, 0.95)),
}
LABELS = {"classify": ["a", "b", "c", "a"], "classify-hidden": ["a", "b", "c", "a"], "regress": [1.0, 2.0, 3.0, 4.0],
          "classify-labels": [["a"], ["a", "c"], [], ["b"]],
          "forecast": list(np.random.default_rng(0).normal(size=(4, HORIZON)))}  # fmt: skip
META = [{"loc": [2.0], "scale": [0.5], "names": [f"v{i}"], "source": f"s{i}"} for i in range(4)]


def head_and_features(name, **options):
    head = HEADS[name]()
    left = name.startswith("forecast")
    return head, features(layers=head.layers, left=left, **options)


@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_nothing(name):
    head, batch = head_and_features(name)
    head.eval()
    together = head(batch)
    padded = [features(LENGTHS, value, head.layers, left=name.startswith("forecast")) for value in (7.0, -1e4)]
    for out in map(head, padded):
        assert all(torch.allclose(out[key], together[key], atol=1e-5) for key in together)
    for i, length in enumerate(LENGTHS):
        count = TOKENS if name.startswith("forecast") else length  # the forecaster's windows always have all tokens
        single = head(features([length], 0.0, head.layers, left=name.startswith("forecast"), to=count))
        for key in together:
            torch.testing.assert_close(single[key][0], together[key][i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", STATISTICS)
def test_padding_may_be_nan(kind):
    clean, dirty = (features(padding=value).last for value in (0.0, float("nan")))
    x = dirty.x.clone().requires_grad_()
    grid = dirty.grid if kind not in OF_SOUNDS else (x.shape[1], 1)
    found = masked_statistic(Tokens(x, dirty.mask, dirty.pos, grid), kind)
    torch.testing.assert_close(found, masked_statistic(Tokens(clean.x, clean.mask, clean.pos, grid), kind))
    found.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in HEADS if name != "embed"])
def test_gradient_reaches_every_parameter(name):
    head, batch = head_and_features(name)
    labels = LABELS.get(name, LABELS[name.split("-")[0]])
    if name.startswith("regress"):
        labels = [{"p": v, "q": -v} for v in labels]
    head.loss(head(batch), head.targets(labels, META))["loss"].backward()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", HEADS)
def test_configuration_survives_json(name):
    head = HEADS[name]()
    again = type(head)(type(head.config)(**json.loads(json.dumps(head.config_dict()))), WIDTH)
    assert again.config == head.config
    again.load_state_dict(head.state_dict())


def test_course_keeps_when_and_where():
    grid, x = (12, 3, 6), torch.randn(1, 12 * 3 * 6, 2)
    whole = masked_statistic(Tokens(x, None, torch.zeros(1, 216, 3), grid), "course").view(6, 3, 3, 2)
    by_hand = x.view(6, 2, 3, 3, 2, 2).mean((1, 4))  # two moments and two columns make one cell
    torch.testing.assert_close(whole, by_hand)
    padded = torch.full((1, 14, 4, 6, 2), float("nan"))
    padded[:, :12, :3] = x.view(1, *grid, 2)
    mask = torch.zeros(1, 14, 4, 6, dtype=torch.bool)
    mask[:, :12, :3] = True
    more = Tokens(padded.flatten(1, 3), mask.flatten(1), torch.zeros(1, 336, 3), (14, 4, 6))
    torch.testing.assert_close(masked_statistic(more, "course").view(6, 3, 3, 2), by_hand)
    assert Pool(2, ("course", "mean"), (0,)).width == 2 * 2 * 55


def test_cells_and_columns_keep_when_and_how_high():
    grid, x = (6, 6), torch.randn(1, 36, 2)
    moments = x.view(3, 2, 6, 2)  # two moments make one cell, columns stay
    by_hand = {"cells": moments.mean(1), "columns": x.view(6, 6, 2).mean(0), "peaks": x.view(6, 6, 2).amax(0)}
    padded = torch.full((1, 9, 6, 2), float("nan"))
    padded[:, :6] = x.view(1, 6, 6, 2)
    mask = torch.arange(9)[None, :, None].expand(1, 9, 6) < 6
    whole = Tokens(x, None, torch.zeros(1, 36, 2), grid)
    more = Tokens(padded.flatten(1, 2), mask.flatten(1), torch.zeros(1, 54, 2), (9, 6))
    for kind, wanted in by_hand.items():
        torch.testing.assert_close(masked_statistic(whole, kind), wanted.flatten()[None])
        torch.testing.assert_close(masked_statistic(more, kind), wanted.flatten()[None])
    assert Pool(2, ("cells", "columns", "mean")).width == 2 * 25


def test_pooled_parts_have_unit_variance_but_change_keeps_its_size():
    x = torch.randn(2, 12, WIDTH, generator=torch.Generator().manual_seed(0))

    def pooled(factor):
        tokens = Tokens(factor * x, None, torch.zeros(2, 12, 3), (3, 2, 2))
        features = Features(tokens, {}, tokens.x[:, 0])
        return Pool(WIDTH, ("mean", "change", "cls"))(features).unflatten(1, (3, WIDTH))

    once, twice = pooled(1.0), pooled(2.0)
    torch.testing.assert_close(twice[:, 1], 2 * once[:, 1])
    torch.testing.assert_close(twice[:, ::2], once[:, ::2], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(once[:, ::2].var(-1, correction=0), torch.ones(2, 2), atol=1e-3, rtol=1e-3)


def test_of_sounds_each_cell_has_unit_variance():
    loud = torch.tensor([1.0, 9.0, 1.0, 0.1, 1.0, 5.0]).repeat(6)[None, :, None]
    x = loud * torch.randn(1, 36, WIDTH, generator=torch.Generator().manual_seed(0))
    pooled = Pool(WIDTH, ("columns", "cells"))(Features(Tokens(x, None, torch.zeros(1, 36, 2), (6, 6))))
    cells = pooled.view(24, WIDTH)
    torch.testing.assert_close(cells.var(-1, correction=0), torch.ones(24), atol=1e-2, rtol=0)


def test_statistics_by_hand():
    x = torch.tensor([[[1.0, -4], [3, 2], [9, 9]]])
    tokens = Tokens(x, torch.tensor([[True, True, False]]), torch.zeros(1, 3, 1))
    assert masked_statistic(tokens, "mean").tolist() == [[2, -1]]
    assert masked_statistic(tokens, "max").tolist() == [[3, 2]]
    assert masked_statistic(tokens, "last").tolist() == [[3, 2]]
    assert masked_statistic(tokens, "std").tolist() == [pytest.approx([1, 3], abs=1e-5)]
    moving = Tokens(x, torch.tensor([[True, True, False]]), torch.zeros(1, 3, 1), (3, 1, 1))
    assert torch.equal(masked_statistic(moving, "change"), (x[:, 1] - x[:, 0]).abs())
    with pytest.raises(ValueError, match="use it for video"):
        masked_statistic(tokens, "change")
    with pytest.raises(ValueError, match="use it for video"):
        masked_statistic(tokens, "course")
    empty = Tokens(x, torch.zeros(1, 3, dtype=torch.bool), torch.zeros(1, 3, 1), (3, 1, 1))
    assert all(masked_statistic(empty, kind).abs().max() < 2e-3 for kind in OF_CLIPS)
    silent = Tokens(x, torch.zeros(1, 3, dtype=torch.bool), torch.zeros(1, 3, 1), (3, 1))
    assert masked_statistic(silent, "cells").tolist() == [[0.0] * 36]
    with pytest.raises(ValueError, match="use it for audio"):
        masked_statistic(tokens, "cells")


def test_pool_widths_and_the_class_token():
    for pooling, layers, width in ((("mean",), (), 1), (("mean", "max", "std"), (0, 1), 9), (("cls", "mean"), (1,), 3)):
        pool = Pool(WIDTH, pooling, layers)
        out = pool(features((5, 2, 3, 4), layers=layers, cls=True))  # the std of one token would be constant
        assert out.shape == (4, pool.width) and pool.width == width * WIDTH
        parts = out.view(4, width, WIDTH)
        torch.testing.assert_close(parts.mean(-1), torch.zeros(4, width), atol=1e-5, rtol=0)
        torch.testing.assert_close(parts.var(-1, correction=0), torch.ones(4, width), atol=1e-3, rtol=0)
        assert not list(pool.parameters())
    with pytest.raises(ValueError, match="class token"):
        Pool(WIDTH, ("cls",))(features())
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        Pool(WIDTH, ("median",))
    with pytest.raises(ValueError, match="unknown pooling"):
        masked_statistic(features().last, "median")


def test_classes_must_differ():
    for classes in ((), ("a",), ("a", "a")):
        with pytest.raises(ValueError, match="at least two"):
            classifier(classes=classes)
    assert classifier(classes=("a",), multi_label=True).config.classes == ("a",)
    with pytest.raises(ValueError, match="'d' is not one of this head's: a, b, c"):
        classifier().targets(["a", "d"], META[:2])


def test_decoded_labels_are_sorted_probabilities():
    out = {"logits": torch.tensor([[0.0, 2.0, 1.0]])}
    one, = classifier().decode(out, META[:1])  # fmt: skip
    assert one.names == ["b", "c", "a"] and one.chosen == ["b"] and one.source == "s0"
    assert one.scores == pytest.approx(sorted(out["logits"][0].softmax(0).tolist(), reverse=True))
    several = classifier(multi_label=True, threshold=0.6).decode(out, META[:1])[0]
    assert several.chosen == ["b", "c"] and several.scores == pytest.approx([0.8808, 0.7311, 0.5], abs=1e-4)
    assert classifier(multi_label=True).decode({"logits": torch.tensor([[-9.0, -9, -9]])}, META[:1])[0].chosen == []


@pytest.mark.parametrize("multi_label", [False, True])
def test_calibration_lowers_the_log_loss(multi_label):
    rng = np.random.default_rng(0)
    honest = torch.from_numpy(rng.normal(0, 1.5, (2000, 3))).float()
    if multi_label:
        target = (torch.from_numpy(rng.random((2000, 3))) < honest.sigmoid()).float()
    else:
        target = torch.multinomial(honest.softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    for factor in (3.0, 0.4):  # too sure, too timid
        head = classifier(multi_label=multi_label, label_smoothing=0.0 if multi_label else 0.3)
        logits = honest * factor
        before = F.nll_loss(logits.log_softmax(-1), target) if not multi_label else head.loss(
            {"logits": logits}, {"labels": target})["loss"]  # fmt: skip
        head.calibrate(logits, target)
        assert float(head.temperature) == pytest.approx(factor, rel=0.12)
        probabilities = head.probabilities({"logits": logits})
        after = (
            F.binary_cross_entropy(probabilities, target) if multi_label else F.nll_loss(probabilities.log(), target)
        )
        assert after < before - 0.02
        assert "temperature" in head.state_dict()


def test_regression_answers_in_the_targets_units():
    head = RegressionHead(RegressionConfig(("p", "q"), (10.0, -5.0), (2.0, 0.5)), WIDTH)
    labels = [{"p": 13.0, "q": -5.25}, {"q": -4.0, "p": 8.0}]
    target = head.targets(labels, META[:2])
    assert target["values"].tolist() == [[1.5, -0.5], [-1.0, 2.0]]
    assert [answer.values for answer in head.decode(target, META[:2])] == labels
    plain = RegressionHead(RegressionConfig(), WIDTH)
    assert plain.decode(plain.targets([2.5], META[:1]), META[:1])[0].values == {"value": 2.5}


def test_embeddings_have_unit_length():
    head = EmbeddingHead(EmbeddingConfig(), WIDTH)
    answers = head.decode(head(features()), META)
    assert all(np.linalg.norm(answer.vector) == pytest.approx(1, abs=1e-5) for answer in answers)
    raw = EmbeddingHead(EmbeddingConfig(normalise=False), WIDTH)
    assert np.linalg.norm(raw.decode(raw(features()), META)[0].vector) > 2


def test_windows_are_averaged():
    head = classifier()
    out = {"logits": torch.arange(12.0).view(4, 3)}
    owner = torch.tensor([0, 0, 0, 1])
    assert head.merge(out, owner, META)["logits"].tolist() == [[3, 4, 5], [9, 10, 11]]
    assert [about["source"] for about in head.merge_meta(META, owner)] == ["s0", "s3"]
    assert head.merge(out, torch.arange(4), META)["logits"] is out["logits"]


def trained(head, batch, target, steps=60):
    optimiser = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = head.loss(head(batch), target)["loss"]
        loss.backward()
        optimiser.step()
    return float(loss.detach())


@torch.no_grad()
def test_quantiles_never_cross():
    head, batch = head_and_features("forecast")
    for seed in range(5):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
        assert (head(batch)["quantiles"].diff(dim=-1) >= 0).all()
    answer = head.eval().decode(head.merge(head(batch), torch.tensor([0, 0, 1, 1]), META),
                                head.merge_meta([{**m, "history": np.zeros((3, 1))} for m in META],
                                                torch.tensor([0, 0, 1, 1])))[0]  # fmt: skip
    levels = np.stack([answer.quantiles[level] for level in sorted(answer.quantiles)])
    assert (np.diff(levels, axis=0) >= 0).all()


def test_forecaster_learns_means_and_quantiles():
    head = forecaster(dropout=0.0)
    batch = features([5] * 4, layers=head.layers)
    batch = Features(Tokens(batch.last.x * torch.arange(1.0, 5)[:, None, None], None, batch.last.pos), batch.hidden)
    target = head.targets(LABELS["forecast"], META)
    nothing = {name: torch.zeros_like(value) for name, value in head(batch).items()}
    assert trained(head, batch, target) < 0.3 * head.loss(nothing, target)["loss"].item()


def test_missing_future_values_do_not_count():
    head, batch = head_and_features("forecast")
    head.eval()
    labels = np.random.default_rng(1).normal(size=(4, HORIZON))
    holes = labels.copy()
    holes[:, 3:] = np.nan
    losses = []
    for value in (0.0, 1e6):
        out = {key: x.clone() for key, x in head(batch).items()}
        out["mean"][:, 3:] += value
        out["quantiles"][:, 3:] += value
        losses.append(head.loss(out, head.targets(list(holes), META))["loss"].item())
    assert losses[0] == losses[1] and np.isfinite(losses[0])
    head.loss(head(batch), head.targets(list(holes * np.nan), META))["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_errors_count_as_the_metric_counts_them():
    head = forecaster(variate_scale=(("v0", 0.5), ("v1", 5.0)))
    weight = head.targets(LABELS["forecast"], META)["weight"].tolist()
    assert weight == pytest.approx([1.0, 0.01, 1.0, 1.0])  # (scale / std)², at least 0.01; 1 for unknown variates


def test_wrong_number_of_tokens():
    head = forecaster()
    with pytest.raises(ValueError, match="5 tokens, got 4"):
        head(features([4], to=4, layers=head.layers))
