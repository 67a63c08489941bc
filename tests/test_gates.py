"""The accuracy gate: keeps what costs little, refuses what costs more, and leaves the given pipeline alone."""

import math

import numpy as np
import pytest
import torch

from polysense.core.errors import InputError
from polysense.core.predictions import Labels, Values
from polysense.core.types import Sample
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.training.gates import drop_of, gate, with_encoder


class Known:
    """Examples in memory."""

    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def train(self, i, rng):
        raise NotImplementedError

    def whole(self, i):
        return [Sample({"x": torch.zeros(1)})], self.targets[i]


def answering(pipeline: Pipeline, right: int) -> Pipeline:
    """The pipeline, but its first `right` answers of 100 are "a" and the others "b"."""
    other = with_encoder(pipeline, pipeline.encoder)
    given = iter(["a"] * right + ["b"] * (100 - right))

    def predict(samples, batch_size=16):
        names = [next(given) for _ in samples]
        return [Labels("abc", np.eye(3)["abc".index(n)], (n,)) for n in names]

    other.predict_sequences = predict
    return other


@pytest.mark.parametrize(("after", "passes"), [(90, True), (89, True), (88, False), (95, True)])
def test_a_change_is_kept_up_to_the_allowed_drop(build, after, passes):
    pipeline = answering(build("image-classification"), 90)
    made = []

    def change(given):
        made.append(answering(given, after))
        return made[0]

    found = gate(pipeline, change, Known(["a"] * 100), most_drop=0.01)
    assert found.passed is passes and found.pipeline is (made[0] if passes else pipeline)
    assert found.metric == "accuracy" and found.examples == 100
    assert (found.before, found.after) == pytest.approx((0.90, after / 100))
    assert found.drop == pytest.approx((90 - after) / 100)
    assert str(found).startswith("kept: accuracy 0.9000" if passes else "refused: accuracy 0.9000")


def test_known_metrics_are_not_measured_again(build):
    pipeline = build("image-classification")
    pipeline.predict_sequences = None  # would fail
    found = gate(pipeline, lambda p: answering(p, 70), Known(["a"] * 100), before={"accuracy": 0.9})
    assert found.before == 0.9 and not found.passed and found.pipeline is pipeline


def test_errors_are_judged_by_their_growth():
    mse, accuracy = TASKS["forecasting"], TASKS["image-classification"]
    assert drop_of(mse, 2.0, 2.1) == pytest.approx(0.05) and drop_of(mse, 2.0, 1.0) == pytest.approx(-0.5)
    assert drop_of(mse, 0.0, 0.0) == 0 and drop_of(mse, 0.0, 1e-9) == math.inf
    assert drop_of(accuracy, 0.9, 0.85) == pytest.approx(0.05)
    assert drop_of(accuracy, 0.9, math.nan) == drop_of(mse, 1.0, math.inf) == math.inf


def test_with_encoder_shares_tokenizer_and_head_and_changes_only_the_encoder(build, make):
    pipeline = build("image-classification")
    other = with_encoder(pipeline, type(pipeline.encoder)(pipeline.encoder.config))
    assert other.tokenizer is pipeline.tokenizer and other.head is pipeline.head and other.task is pipeline.task
    assert other.encoder is not pipeline.encoder
    same = with_encoder(pipeline, pipeline.encoder)
    source = make("image", 1)
    np.testing.assert_array_equal(same(source)[0].scores, pipeline(source)[0].scores)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"change": lambda p: p}, ValueError, "another pipeline"),
        ({"most_drop": -0.1}, ValueError, "most_drop"),
        ({"most_drop": math.nan}, ValueError, "most_drop"),
        ({"examples": Known([])}, InputError, "no examples"),
        ({"before": {"f1": 0.5}}, InputError, "no accuracy"),
    ],
)
def test_what_cannot_be_judged_is_named(build, kwargs, error, message):
    call = {"change": lambda p: answering(p, 90), "examples": Known(["a"] * 100)} | kwargs
    with pytest.raises(error, match=message):
        gate(answering(build("image-classification"), 90), **call)


def test_a_task_without_a_metric_is_refused(build):
    with pytest.raises(InputError, match="no metric"):
        gate(build("image-embedding"), lambda p: p, Known(["a"]))


def test_a_regression_passes_through_its_error(build):
    pipeline = build("image-regression")

    def shifted(by):
        other = with_encoder(pipeline, pipeline.encoder)
        other.predict_sequences = lambda samples, batch_size=16: [Values({"p": 1.0 + by}) for _ in samples]
        return other

    examples = Known([{"p": i / 10} for i in range(4)])
    good = gate(shifted(0.0), lambda _: shifted(-0.1), examples, most_drop=0.05)
    assert good.metric == "mse" and good.passed
    bad = gate(shifted(0.0), lambda _: shifted(1.0), examples, most_drop=0.05)
    assert not bad.passed and bad.drop > 0.05
