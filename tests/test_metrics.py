"""Metrics against numbers worked out by hand or by another library."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes, Labels, Mask, Series, Values
from polysense.data.dataset import BoxTarget
from polysense.training.metrics import METRICS, make_metric, score

CLASSES = ["a", "b", "c"]


def labels(row, threshold=None):
    order = np.argsort(-np.asarray(row))
    names = [CLASSES[i] for i in order]
    chosen = names[:1] if threshold is None else [CLASSES[i] for i in order if row[i] >= threshold]
    return Labels(names, [float(row[i]) for i in order], chosen)


def test_classification_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([1, 1, 1], 60)
    truth = rng.integers(0, 3, 60)
    found = score("classification", map(labels, scores), [CLASSES[i] for i in truth], CLASSES)
    guess = scores.argmax(1)
    assert found["accuracy"] == pytest.approx((guess == truth).mean())
    assert found["f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores, multi_class="ovr", average="macro"))


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    predictions = [labels([0.9, 0.05, 0.05])] * 10
    found = score("classification", predictions, ["a"] * 6 + ["b"] * 4, CLASSES)
    assert found["ece"] == pytest.approx(0.3, abs=1e-5)


def test_classification_without_negatives_leaves_auroc_out_and_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score("classification", [labels([0.5, 0.3, 0.2])], ["a"], CLASSES)
    assert "auroc" not in found and found["accuracy"] == 1.0


def test_unknown_target_names_the_classes():
    with pytest.raises(InputError, match="choose from: a, b, c"):
        score("classification", [labels([0.5, 0.3, 0.2])], ["zebra"], CLASSES)


def test_multilabel_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    scores, truth = rng.random((40, 3)), rng.random((40, 3)) < 0.4
    targets = [[name for name, true in zip(CLASSES, row) if true] for row in truth]
    found = score("multilabel", [labels(row, 0.5) for row in scores], targets, CLASSES)
    assert found["f1"] == pytest.approx(sk.f1_score(truth, scores >= 0.5, average="macro"))
    assert found["f1_micro"] == pytest.approx(sk.f1_score(truth, scores >= 0.5, average="micro"))
    assert found["map"] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-5)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-5)


def test_regression_agrees_with_scikit_learn():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=30)
    guess = truth + rng.normal(size=30)
    found = score("regression", [Values({"y": v}) for v in guess], [{"y": v} for v in truth])
    assert found["mse"] == pytest.approx(sk.mean_squared_error(truth, guess))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, guess))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, guess))
    assert found["r2"] == pytest.approx(sk.r2_score(truth, guess))
    assert score("regression", [Values({"y": 2.0})], [1.0]) == {"mse": 1.0, "mae": 1.0, "rmse": 1.0}


def test_regression_of_several_targets_is_their_mean():
    guess, truth = np.random.default_rng(1).normal(size=(2, 9, 3))
    found = score("regression", *([make(dict(zip("abc", row))) for row in rows]
                                  for make, rows in ((Values, guess), (dict, truth))))  # fmt: skip
    assert found["mse"] == pytest.approx(sk.mean_squared_error(truth, guess))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, guess))
    assert found["rmse"] == pytest.approx(np.sqrt(((guess - truth) ** 2).mean(0)).mean())
    assert found["r2"] == pytest.approx(sk.r2_score(truth, guess))


def test_segmentation_leaves_out_ignored_pixels_and_absent_classes():
    truth = np.array([[0, 0, 1], [1, 255, 7]])
    answer = np.array([[0, 1, 1], [1, 0, 2]])
    found = score("segmentation", [Mask(answer, CLASSES, 1.0)], [truth], CLASSES, ignore=7)
    assert found["pixel_accuracy"] == pytest.approx(3 / 4)
    assert found["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)  # c is in no truth that counts and in no answer there


def test_segmentation_accumulates_over_images_and_points():
    metric = make_metric("point_segmentation", CLASSES)
    metric.update(Mask(np.array([0, 1]), CLASSES, 1.0), np.array([0, 0]))
    metric.update(Mask(np.array([2]), CLASSES, 1.0), np.array([2]))
    assert metric.per_class() == {"a": 0.5, "b": 0.0, "c": 1.0}
    with pytest.raises(InputError, match="shape"):
        metric.update(Mask(np.array([2]), CLASSES, 1.0), np.array([2, 2]))
    with pytest.raises(InputError, match="index 5"):
        metric.update(Mask(np.array([2]), CLASSES, 1.0), np.array([5]))


def boxes(xyxy, names, scores):
    return Boxes(np.array(xyxy, np.float32).reshape(-1, 4), names, np.array(scores, np.float32), (100, 100))


def test_detection_is_one_for_perfect_boxes_and_counts_misses():
    targets = [BoxTarget([(0, 0, 50, 50), (60, 60, 90, 90)], ["a", "b"]), BoxTarget([], [])]
    perfect = [boxes(targets[0].xyxy, ["a", "b"], [0.9, 0.8]), boxes([], [], [])]
    found = score("detection", perfect, targets, CLASSES)
    assert found == pytest.approx({"map": 1.0, "map50": 1.0, "map75": 1.0})
    # IoU 0.6 with the object of class a: right at .5 to .6, wrong beyond; class b is missed.
    poor = [boxes([(0, 0, 50, 30.01)], ["a"], [0.9]), boxes([], [], [])]
    found = score("detection", poor, targets, CLASSES)
    assert found["map50"] == pytest.approx(0.5) and found["map75"] == 0.0
    assert found["map"] == pytest.approx(0.15)
    assert score("detection", perfect[1:], targets[1:], CLASSES) == {}


def test_forecasting_in_own_and_standardised_units():
    truth = np.array([[0.0, 0.0], [10.0, np.nan]])
    mean = np.array([[1.0, 2.0], [12.0, 5.0]])
    quantiles = {0.1: mean - 1.5, 0.9: mean + 1.5}
    series = Series(mean, quantiles, ["1", "2"], ["u", "v"])
    found = score("forecasting", [series], [truth], scale=[1.0, 2.0])
    assert found["rmse"] == pytest.approx(((1 + 4 + 4) / 3) ** 0.5)
    assert found["mse"] == pytest.approx((1 + 1 + 4) / 3)
    assert found["mae"] == pytest.approx((1 + 1 + 2) / 3)
    assert found["coverage"] == pytest.approx(1 / 3)
    assert found["coverage_wanted"] == pytest.approx(0.8)
    # Errors below the low quantile: .5 / 2 and .5 cost .9 of it; above the band nothing lies.
    low = (0.1 * 0.5 + 0.9 * 0.5 / 2 + 0.9 * 0.5) / 3
    high = (0.1 * 2.5 + 0.1 * 3.5 / 2 + 0.1 * 3.5) / 3
    assert found["pinball"] == pytest.approx((low + high) / 2)
    assert found["crps"] == pytest.approx(low + high)
    assert "mase" not in found  # the history is not known


def test_forecasting_errors_over_the_history_s_own_steps():
    history = np.array([[0.0, 1.0, 5.0], [2.0, np.nan, 5.0], [1.0, 3.0, 5.0]])
    series = Series(np.zeros((2, 3)), {}, ["1", "2"], ["u", "v", "w"], history)
    found = score("forecasting", [series], [np.array([[3.0, 1.0, 1.0], [-6.0, 1.0, np.nan]])])
    # u changes by 2 and 1, v by nothing that is known, w not at all.
    assert found["mase"] == pytest.approx((3 / 1.5 + 6 / 1.5) / 2)


def test_forecasting_of_several_horizons_and_wrong_variates():
    metric = make_metric("forecasting")
    metric.update(Series(np.zeros((4, 1)), {}, ["1"] * 4, ["u"]), np.ones((2, 1)))
    assert metric.compute() == {"mse": 1.0, "mae": 1.0, "rmse": 1.0, "smape": 200.0}
    with pytest.raises(InputError, match="variates"):
        metric.update(Series(np.zeros((4, 1)), {}, ["1"] * 4, ["u"]), np.ones((2, 3)))


@pytest.mark.parametrize("kind", list(METRICS))
def test_every_kind_is_empty_before_the_first_update(kind):
    assert make_metric(kind, CLASSES).compute() == {}


def test_unknown_kind_lists_the_kinds():
    with pytest.raises(ValueError, match="classification, detection"):
        make_metric("telepathy")


def test_series_of_any_size_count_alike_by_their_own_history():
    def series(size):
        history = np.array([[0.0], [2.0]]) * size
        return Series(np.full((1, 1), size), {}, ["1"], ["u"], history)

    found = score("forecasting", [series(1.0), series(1e6)], [np.array([[3.0]]), np.array([[3e6]])], scale="window")
    assert found["mse"] == pytest.approx(4.0) and found["mae"] == pytest.approx(2.0)
    assert found["smape"] == pytest.approx(100.0)
