"""Tokens kept from one epoch for the next where the tokenizer does not learn: the same steps, sooner."""

import numpy as np
import pytest
import soundfile
import torch

import polysense
from polysense.data.dataset import Item
from polysense.tasks import TASKS
from polysense.training import feature_store, token_cache
from polysense.training.compute import start
from polysense.training.evaluate import measure
from polysense.training.examples import FileExamples, Subset
from polysense.training.fit import FitResult
from polysense.training.joint import Recipe, batches, make_optimiser, train_step, train_together
from polysense.training.progress import Progress
from polysense.training.token_cache import TokenExamples, TokenReader, keep_tokens, tokenizer_learns

PATCHES = {"form": "patch", "size": 64}
pytestmark = pytest.mark.usefixtures("own_cache")


def copies(task, build, make, count=4, **over):
    """Two pipelines that are the same, and two lists of examples of inputs of several sizes."""
    what = TASKS[task]
    label = {"classification": "abc", "regression": [{"p": 1.0, "q": 2.0}, {"p": 3.0, "q": 0.0}, {"p": 0.0, "q": 1.0}]}
    items = [Item(make(what.modality, i), label[what.kind][i % 3]) for i in range(count)]
    for _ in range(2):
        pipeline = build(task, **over)
        torch.manual_seed(0)
        pipeline.adapt("lora")
        yield pipeline, FileExamples(items, pipeline.tokenizer, what.modality)


@pytest.mark.parametrize("task, over", [
    ("image-classification", {}),
    ("image-classification", {"tokenizer": {"form": "patch", "size": 64}}),
    ("image-regression", {}),
    ("audio-classification", {"head": {"pooling": ("columns", "peaks"), "layers": (0,)}}),
    ("audio-classification", {"tokenizer": {"window": 0.5}}),
    ("video-classification", {"head": {"pooling": ("mean", "change", "course")}}),
    ("point-cloud-classification", {}),
    ("time-series-classification", {"tokenizer": {"channels": 2}}),
    ("time-series-classification", {"tokenizer": {"channels": 2, "levels": True}}),
    ("time-series-classification", {"tokenizer": {"channels": 2, "form": "kernels"}}),
])  # fmt: skip
def test_tokens_that_are_kept_change_nothing(task, over, build, make, sure):
    (plain, sources), (other, same) = copies(task, build, make, **over)
    recipe = Recipe(train="head", batch_size=4)
    kept, learning, watched = keep_tokens(other, same, Subset(same, [1, 3, 2]), recipe)
    assert isinstance(learning, TokenExamples) and kept is not other
    of_three = sure(measure(plain, Subset(sources, [1, 3, 2]), 2))
    assert of_three and sure(measure(kept, watched, 2)) == pytest.approx(of_three, abs=1e-5)
    steps = []
    for pipeline, part in ((plain, sources), (kept, learning)):
        optimiser = make_optimiser(pipeline, recipe)
        rng, told = np.random.default_rng(0), []
        for batch in batches(pipeline, part, recipe, rng, 3):
            with torch.no_grad():
                told.append(pipeline.eval()(batch[0]))
            train_step(pipeline, iter([batch]), optimiser, start("fp32", "cpu"), recipe)
        steps.append((told, pipeline.state_dict()))
    for one, two in zip(steps[0][0], steps[1][0], strict=True):
        for name in one:
            torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-5)
    assert steps[0][1].keys() == steps[1][1].keys()
    first = build(task, **over).state_dict()
    learnt = [
        name for name in first if not name.startswith("encoder.") and not torch.equal(steps[0][1][name], first[name])
    ]
    assert learnt and all(name.startswith("head.") for name in learnt)


@pytest.mark.parametrize("task", ["image-classification", "audio-classification", "point-cloud-classification"])
def test_one_step_is_the_same(task, build, make):
    (plain, sources), (other, same) = copies(task, build, make)
    recipe = Recipe(train="head", batch_size=6, lr=1e-3)
    kept, learning, _ = keep_tokens(other, same, same, recipe)
    for pipeline, part in ((plain, sources), (kept, learning)):
        optimiser = torch.optim.SGD(make_optimiser(pipeline, recipe).param_groups, lr=1e-2)
        (batch,) = batches(pipeline, part, recipe, np.random.default_rng(0), 1)
        train_step(pipeline, iter([batch]), optimiser, start("fp32", "cpu"), recipe)
    for (name, one), two in zip(plain.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(two, one, atol=1e-6, rtol=0, msg=name)


def test_the_tokenizer_runs_once_a_sequence(build, make, monkeypatch):
    (pipeline, sources), _ = copies("audio-classification", build, make)
    seen, forward = [], type(pipeline.tokenizer).forward
    monkeypatch.setattr(type(pipeline.tokenizer), "forward",
                        lambda self, batch: (seen.append(len(batch["meta"])), forward(self, batch))[1])  # fmt: skip
    recipe = Recipe(train="head", batch_size=3, epochs=2, patience=9, least_steps=4)
    train_together(*keep_tokens(pipeline, sources, sources, recipe), recipe, Progress(False))
    count = sum(len(sources.whole(i)[0]) for i in range(len(sources)))
    assert sum(seen) == 2 * count  # for learning and for watching
    monkeypatch.setattr(token_cache, "TOKEN_BYTES", 0)
    seen.clear()
    train_together(*keep_tokens(pipeline, sources, sources, recipe), recipe, Progress(False))
    assert sum(seen) > 3 * count  # nothing fits: made each time


def test_where_tokens_are_not_kept(build, make):
    (pipeline, sources), _ = copies("image-classification", build, make)
    kept = lambda recipe, part=sources: keep_tokens(pipeline, part, part, recipe)[0] is not pipeline  # noqa: E731
    assert kept(Recipe(train="head"))
    assert not kept(Recipe(train="head", epochs=0)) and not kept(Recipe(train="head", augment=True))
    assert not kept(Recipe()) and tokenizer_learns(pipeline, Recipe())
    assert not kept(Recipe(train="head"), [1, 2])
    pipeline.settled = {f"tokenizer.{name}" for name in pipeline.tokenizer.state_dict()}
    assert kept(Recipe(settled_lr=0.0)) and not kept(Recipe(settled_lr=0.1))
    dense = build("image-segmentation", tokenizer={"fine": True})
    files = FileExamples([], dense.tokenizer, "image")
    assert dense.tokenizer.fine_channels and keep_tokens(dense, files, files, Recipe(train="head"))[0] is dense


def test_padded_grids_and_masks_of_their_own(build, make):
    """A batch of grids of several sizes equals what the tokenizer makes of the same samples, where tokens are real."""
    pipeline = build("image-classification")
    reader = TokenReader(pipeline.tokenizer)
    samples = [pipeline.tokenizer.read(make("image", i)) for i in range(4)]
    with torch.no_grad():
        wanted = pipeline.tokenizer(pipeline.tokenizer.collate(samples))
    batch = reader.collate([reader.tokens_of(sample, torch.device("cpu")) for sample in samples])
    found = reader(batch)
    assert found.grid == wanted.grid and torch.equal(found.dense_mask(), wanted.dense_mask())
    real = found.dense_mask()
    assert not real.all()
    torch.testing.assert_close(found.x[real], wanted.x[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pos[real], wanted.pos[real])
    assert all("token_grid" not in about for about in batch["meta"])
    alone = reader(reader.collate([reader.tokens_of(samples[0], torch.device("cpu"))]))
    assert alone.mask is None


def test_adapter_and_head_learn_while_the_tokenizer_stays(quick, image_folders, encoder_spec):
    torch.manual_seed(1)
    result, bundle = quick("image-classification", image_folders, train="head", method="lora",
                           tokenizer_options=PATCHES, epochs=2, lr=1e-2)  # fmt: skip
    fresh = polysense.Pipeline.build("image-classification", encoder=encoder_spec, tokenizer=PATCHES,
                                     head={"classes": ("a", "b", "c")}, adapter={"method": "lora"})  # fmt: skip
    assert isinstance(result, FitResult) and result.epochs == 2
    for name, value in fresh.tokenizer.state_dict().items():
        assert torch.equal(value, bundle.tokenizer.state_dict()[name]), name
    adapter = fresh.encoder.adapter_parameters()
    assert result.trainable == sum(p.numel() for p in [*adapter.values(), *fresh.head.parameters()])
    optimiser = make_optimiser(fresh, Recipe(train="head"))
    learning = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert learning == {id(p) for p in [*adapter.values(), *fresh.head.parameters()]}
    assert not any(p.requires_grad for p in fresh.tokenizer.parameters())


def test_sounds_from_files(quick, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = tmp_path / "sounds" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1 * (1 + i % 2), 8000), 16_000)
    runs = [quick("audio-classification", tmp_path / "sounds", train="head", method="houlsby", epochs=2, seed=3,
                  tokenizer_options={"window": 0.5}, out=tmp_path / name)[0] for name in ("one", "two")]  # fmt: skip
    assert runs[0].metrics == runs[1].metrics  # the same seed, the second time with features from disk
    assert runs[0].epochs == 2 and feature_store.entries()
