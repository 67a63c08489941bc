"""The second phase of a fit: what learns and how fast, the best state, time limits, seeds, and losses that blow up."""

import numpy as np
import pytest
import torch

from polysense.core.errors import InputError
from polysense.heads.classify import ClassificationHead
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.training import fit_phases, fit_recipe, joint
from polysense.training.compute import start
from polysense.training.joint import Average, Best, Recipe, batches, make_optimiser, train_step
from polysense.training.progress import Progress
from polysense.training.sources import open_sources

PATCHES = {"form": "patch", "size": 64}  # learns colours from random weights, fast


@pytest.mark.parametrize("train", ["tokenizer+head", "head"])
def test_what_learns(train, image_folders, encoder):
    sources = open_sources(TASKS["image-classification"], image_folders)
    pipeline = Pipeline.build("image-classification", encoder=encoder, tokenizer=PATCHES, head=sources.head_options())
    before = {name: value.clone() for name, value in pipeline.state_dict().items()}
    recipe = Recipe(train=train, batch_size=8)
    examples = sources.examples(pipeline.tokenizer, "")
    optimiser = make_optimiser(pipeline, recipe)
    for batch in batches(pipeline, examples, recipe, np.random.default_rng(0), 3):
        train_step(pipeline, iter([batch]), optimiser, start(), recipe)
    parameters = dict(pipeline.named_parameters())
    changed = {name.split(".")[0] for name in parameters if not torch.equal(parameters[name], before[name])}
    still = {name.split(".")[0] for name in parameters if torch.equal(parameters[name], before[name])}
    assert changed == ({"tokenizer", "head"} if train == "tokenizer+head" else {"head"})
    assert still == ({"encoder"} if train == "tokenizer+head" else {"encoder", "tokenizer"})


def test_average_stands_in_for_the_weights_and_leaves_them():
    weight = torch.nn.Parameter(torch.zeros(2))
    average, wanted = Average([weight], 0.5), torch.zeros(2)
    for step in range(1, 12):
        with torch.no_grad():
            weight += 1.0
        average.update()
        decay = min(0.5, step / (step + 9))
        wanted = decay * wanted + (1 - decay) * step
        with average:
            torch.testing.assert_close(weight.detach(), wanted)
        assert weight.tolist() == [step, step]
    without = Average([weight], 0.0)
    without.update()
    with without:
        assert weight.tolist() == [11, 11]


def test_what_is_kept_are_the_averaged_weights(image_folders, encoder):
    """The state that training leaves scores as it was reported, and is not the last one of the optimiser."""
    sources = open_sources(TASKS["image-classification"], image_folders)
    pipeline = Pipeline.build("image-classification", encoder=encoder, tokenizer=PATCHES, head=sources.head_options())
    examples, last = sources.examples(pipeline.tokenizer, ""), {}

    class Watching(Progress):
        def epoch(self, *told):
            last.update(weight=pipeline.head.classify[-1].weight.detach().clone())

    recipe = Recipe(epochs=1, batch_size=8, average=0.9)
    _, untrained = joint.train_together(pipeline, examples, examples, recipe, Watching(False))
    assert not untrained  # else what is kept would be the state before training
    kept = pipeline.head.classify[-1].weight
    assert kept.isfinite().all() and not torch.equal(kept, last["weight"])


def test_dense_tasks_have_a_recipe_of_their_own():
    dense = fit_recipe.recipe_for(TASKS["object-detection"], lr=1e-3, settled_lr=None, augment=None, batch_size=None)
    assert (dense.batch_size, dense.settled_lr, dense.augment, dense.average) == (8, 0.0, True, 0.99)
    asked = fit_recipe.recipe_for(TASKS["image-segmentation"], settled_lr=0.1, augment=False, batch_size=2)
    assert (asked.batch_size, asked.settled_lr, asked.augment) == (2, 0.1, False)
    assert fit_recipe.recipe_for(TASKS["image-classification"]) == Recipe()


def test_embedded_tensors_learn_more_slowly():
    pipeline = Pipeline.build("image-classification", head={"classes": ("a", "b")})
    optimiser = make_optimiser(pipeline, Recipe(lr=1e-3, settled_lr=0.1, weight_decay=0.05))
    names = {id(parameter): name for name, parameter in pipeline.named_parameters()}
    seen = set()
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["lr"] == pytest.approx(1e-4 if name in pipeline.settled else 1e-3), name
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0), name
    assert pipeline.settled and seen == {name for name in names.values() if not name.startswith("encoder.")}
    kept = make_optimiser(pipeline, Recipe(settled_lr=0.0)).param_groups
    assert {names[id(p)] for group in kept for p in group["params"]} == seen - pipeline.settled


def test_batches_pass_over_small_data_evenly(image_folders, encoder):
    sources = open_sources(TASKS["image-classification"], image_folders)
    pipeline = Pipeline.build("image-classification", encoder=encoder, tokenizer=PATCHES, head=sources.head_options())
    examples = sources.examples(pipeline.tokenizer, "")
    found = list(batches(pipeline, examples, Recipe(batch_size=16), np.random.default_rng(0), 9))
    assert len(found) == 9 and all(len(batch["meta"]) == 16 for batch, _ in found)
    drawn = [about["source"] for batch, _ in found for about in batch["meta"]]
    assert len(drawn) == 4 * 36 and all(drawn.count(source) == 4 for source in set(drawn)) and len(set(drawn)) == 36


def scripted(monkeypatch, scores):
    """Makes `fit` see these validation scores; returns the head's bias at each of them."""
    seen = []

    def fake(pipeline, examples, batch_size):
        seen.append(pipeline.head.classify[-1].bias.detach().clone())
        return {"accuracy": scores[len(seen) - 1] if len(seen) <= len(scores) else 0.0, "log_loss": 1.0}

    monkeypatch.setattr(joint, "measure", fake)
    return seen


def test_early_stopping_keeps_the_best(monkeypatch, quick, image_folders):
    seen = scripted(monkeypatch, [0.5, 0.7, 0.9, 0.8, 0.9, 0.6])
    result, bundle = quick("image-classification", image_folders, tokenizer_options=PATCHES, epochs=9, patience=3)
    assert result.epochs == 5  # two better ones, three that are not
    assert torch.equal(bundle.head.classify[-1].bias, seen[2]) and not torch.equal(seen[2], seen[5])


def test_probe_alone(monkeypatch, quick, image_folders):
    seen = scripted(monkeypatch, [0.5])
    monkeypatch.setattr(fit_phases, "solve_again", lambda pipeline, probed: None)
    result, bundle = quick("image-classification", image_folders, tokenizer_options=PATCHES, epochs=0)
    assert result.epochs == 0 and torch.equal(bundle.head.classify[-1].bias, seen[0]) and seen[0].any()


def test_ties_are_broken_by_confidence(build):
    best = Best(build("image-classification"), {"accuracy": 0.5, "log_loss": 0.7})
    best.offer({"accuracy": 0.5, "log_loss": 0.8})
    assert best.waited == 1
    best.offer({"accuracy": 0.5, "log_loss": 0.6})
    assert best.waited == 0 and best.metrics["log_loss"] == 0.6
    smaller = Best(build("tabular-regression"), {"mse": 2.0})
    smaller.offer({"mse": 2.0})
    assert smaller.waited == 1
    smaller.offer({"mse": 1.0})
    assert smaller.waited == 0


def test_learning_goes_on_while_nothing_is_found_yet(build):
    best = Best(build("panoptic-segmentation"), {"pq": 0.0})
    for loss in (9.0, 8.0, 7.0):
        best.offer({"pq": 0.0}, loss)
        assert best.waited == 0 and not best.first
    best.offer({"pq": 0.0}, 7.5)
    assert best.waited == 1
    best.offer({"pq": 0.1}, 8.0)
    assert best.waited == 0 and best.metrics == {"pq": 0.1}


def test_time_limit(quick, image_folders):
    result, _ = quick("image-classification", image_folders, tokenizer_options=PATCHES, epochs=50, max_minutes=0)
    assert result.epochs == 0


def test_loss_that_is_no_number(monkeypatch, quick, image_folders, tmp_path):
    loss = ClassificationHead.loss

    def broken(self, out, target):
        return {"loss": loss(self, out, target)["loss"] * (float("nan") if self.training else 1)}

    monkeypatch.setattr(ClassificationHead, "loss", broken)
    with pytest.raises(InputError, match=r"epoch 1, step 1: the loss became nan; go on .* --resume and a smaller --lr"):
        quick("image-classification", image_folders, tokenizer_options=PATCHES)
    assert not (tmp_path / "bundle").exists()
