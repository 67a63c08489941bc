"""Features kept from one fit for the next, and tokens kept from one epoch for the next: the same answers, sooner."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import polysense
from polysense.apps import cli
from polysense.core.errors import InputError
from polysense.data.dataset import Item
from polysense.data.text import Text
from polysense.tasks import TASKS
from polysense.training import feature_cache, feature_store, fit_data, token_cache
from polysense.training.compute import start
from polysense.training.evaluate import measure
from polysense.training.examples import FileExamples, Subset
from polysense.training.feature_cache import FeatureCache, content_hash, key_of, pipeline_hash, pooled_features
from polysense.training.fit import FitResult
from polysense.training.joint import Recipe, batches, make_optimiser, train_step, train_together
from polysense.training.probe import GRID, _rotated, _solutions, probe
from polysense.training.progress import Progress
from polysense.training.sources import open_sources
from polysense.training.token_cache import TokenExamples, TokenReader, keep_tokens, tokenizer_learns

PATCHES = {"form": "patch", "size": 64}


@pytest.fixture(autouse=True)
def disk(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYSENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYSENSE_CACHE_GB", "1")


@pytest.fixture
def examples(image_folders, build):
    """make(**pipeline options) -> a pipeline and examples of pictures, which share one cache on disk."""
    sources = open_sources(TASKS["image-classification"], image_folders)

    def make(lasting=True, tokenizer=PATCHES, **over):
        pipeline = build("image-classification", head=sources.head_options(), tokenizer=tokenizer, **over)
        pictures = sources.examples(pipeline.tokenizer, "")
        pictures.features = FeatureCache({"task": "image-classification", "data": "pictures"}, lasting)
        return pipeline, pictures

    return make


def encoder_calls(pipeline, monkeypatch):
    """The sizes of the batches that pass through the encoder from now on."""
    seen, forward = [], type(pipeline.encoder).forward

    def counting(self, tokens, **rest):
        seen.append(len(tokens.x))
        return forward(self, tokens, **rest)

    monkeypatch.setattr(type(pipeline.encoder), "forward", counting)
    return seen


# Features


def sure(metrics):
    """What does not hang on ties, as ranks of untrained answers do."""
    return {name: value for name, value in metrics.items() if name in ("log_loss", "mse", "rmse", "mae")}


def test_features_pass_through_the_encoder_once(examples, monkeypatch):
    pipeline, pictures = examples()
    pictures.features, cache = None, pictures.features
    x, y = pooled_features(pipeline, pictures, 8)
    half = Subset(pictures, range(1, 36, 2))
    measured, of_half = (sure(measure(pipeline, part, 8)) for part in (pictures, half))
    pictures.features = cache
    seen = encoder_calls(pipeline, monkeypatch)
    for _ in range(2):
        found, labels = pooled_features(pipeline, pictures, 8)
        assert torch.equal(found, x) and torch.equal(labels["labels"], y["labels"])
        assert sure(measure(pipeline, pictures, 8)) == pytest.approx(measured, abs=1e-5)
        assert sure(measure(pipeline, half, 8)) == pytest.approx(of_half, abs=1e-5)
    assert measured and sum(seen) == len(pictures) == 36


def test_another_process_finds_them_on_disk(examples, monkeypatch):
    pipeline, pictures = examples()
    x, _ = pooled_features(pipeline, pictures, 8)
    again, same = examples()
    seen = encoder_calls(again, monkeypatch)
    found, _ = pooled_features(again, same, 8)
    assert torch.equal(found, x) and not seen
    assert same.features.passes == 0


def test_recordings_of_several_windows(build, make, monkeypatch):
    items = [Item(make("audio", i), "abc"[i % 3]) for i in range(6)]
    pipeline = build("audio-classification", tokenizer={"window": 0.5})
    plain, kept = (FileExamples(items, pipeline.tokenizer, "audio") for _ in range(2))
    kept.features = FeatureCache({}, lasting=False)
    x, y = pooled_features(pipeline, kept, 4)
    found, labels = pooled_features(pipeline, kept, 4)
    assert len(x) > 6 and torch.equal(found, x) and torch.equal(labels["labels"], y["labels"])
    for part in (plain, Subset(plain, [4, 1, 3])):
        same = kept if part is plain else Subset(kept, [4, 1, 3])
        seen = encoder_calls(pipeline, monkeypatch)
        assert sure(measure(pipeline, same)) == pytest.approx(sure(measure(pipeline, part)), abs=1e-5)
        assert sum(seen) == sum(len(part.whole(i)[0]) for i in range(len(part)))


CHANGES = {
    "a file's bytes": lambda pipeline, pictures: pictures.items[3].source.write_bytes(
        pictures.items[4].source.read_bytes()
    ),
    "the order of files": lambda pipeline, pictures: pictures.items.reverse(),
    "tokenizer weights": lambda pipeline, pictures: next(pipeline.tokenizer.parameters()).data.view(-1)[0].add_(1e-3),
    "encoder weights": lambda pipeline, pictures: setattr(pipeline, "encoder", changed(pipeline.encoder)),
    "an adapter": lambda pipeline, pictures: pipeline.adapt("lora"),
    "a variant of the encoder": lambda pipeline, pictures: setattr(pipeline, "encoder", variant(pipeline.encoder)),
    "the pooling": lambda pipeline, pictures: setattr(pipeline.head.pool, "pooling", ("mean",)),
    "layers": lambda pipeline, pictures: setattr(pipeline.head.pool, "layers", (0,)),
}


def changed(encoder):
    import copy

    other = copy.deepcopy(encoder)
    other.blocks[0].mlp.fc1.weight.data[0, 0] += 1e-3
    return other


def variant(encoder):
    from polysense.backbone.token_merging import merge_tokens_in

    return merge_tokens_in(encoder, 1)


@pytest.mark.parametrize("what", [*CHANGES, "code"])
def test_whatever_changes_gives_another_key(what, examples, monkeypatch):
    pipeline, pictures = examples()
    before = key_of(pipeline, pictures)
    assert before == key_of(*examples()) is not None
    if what == "code":
        monkeypatch.setattr(feature_cache, "code_hash", lambda: "other")
    else:
        CHANGES[what](pipeline, pictures)
    pictures._contents = []  # as a fit that begins afresh
    assert key_of(pipeline, pictures) != before


@pytest.mark.parametrize("options", [{"size": 48}, {"views": (1.0, 0.5)}, {"mirror": True}])
def test_options_of_a_tokenizer_are_in_the_key(options, examples):
    pipeline, pictures = examples()
    assert key_of(*examples(tokenizer=PATCHES | options)) not in (None, key_of(pipeline, pictures))


def test_adapters_are_told_apart_by_weights_and_options(examples):
    pipeline, _ = examples()
    keys = []
    for method, options in (("lora", {}), ("lora", {"alpha": 8.0}), ("houlsby", {}), ("prompts", {})):
        torch.manual_seed(0)
        keys.append(pipeline_hash(pipeline.adapt(method, **options)))
    torch.manual_seed(0)
    again = pipeline_hash(pipeline.adapt("lora"))
    assert None not in keys and len(set(keys)) == 4 and again == keys[0]
    with torch.no_grad():
        next(iter(pipeline.encoder.adapter_parameters().values())).add_(1e-3)
    assert pipeline_hash(pipeline) != again


def test_what_inputs_hold_is_hashed_and_not_their_names(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"abc")
    shutil.copy(tmp_path / "a.wav", tmp_path / "b.wav")
    shutil.copy(tmp_path / "a.wav", tmp_path / "a.ogg")
    a, b, c = (content_hash(tmp_path / name) for name in ("a.wav", "b.wav", "a.ogg"))
    assert a == b == content_hash(str(tmp_path / "a.wav")) != c
    wave = np.arange(5.0)
    assert content_hash((wave, 16_000)) == content_hash((wave.copy(), 16_000)) != content_hash((wave, 8_000))
    assert content_hash(wave) != content_hash(wave.astype(np.float32)) != content_hash(wave[:4].astype(np.float32))
    assert content_hash(Text("one", "a.csv#0")) == content_hash(Text("one", "b.csv#7")) != content_hash(Text("two", ""))
    for unknown in (tmp_path / "none.wav", "a text", ["a.wav", "b.wav"], object(), np.array([object()])):
        assert content_hash(unknown) is None


def test_a_file_that_changes_meanwhile_is_not_kept(examples, monkeypatch):
    pipeline, pictures = examples()
    read = pipeline.tokenizer.read

    def meddle(source):
        sample = read(source)
        if source == pictures.items[0].source:
            source.write_bytes(source.read_bytes() + b"\0")
        return sample

    monkeypatch.setattr(pipeline.tokenizer, "read", meddle)
    pooled_features(pipeline, pictures, 8)
    assert not feature_store.entries() and not pictures.features.memory


def test_inputs_that_cannot_be_hashed_are_computed(build, make):
    pipeline = build("image-classification")
    pictures = FileExamples([Item(make("image", i), "abc"[i % 3]) for i in range(3)], pipeline.tokenizer, "image")
    pictures.features = FeatureCache({})
    assert pooled_features(pipeline, pictures, 2)[0].shape[0] == 3
    assert not feature_store.entries() and not pictures.features.memory


# The store


def put(name, size=1000, age=0.0, about=None):
    feature_store.put(name, {"x": np.zeros((size, 1), np.float32), "counts": np.ones(size, int)}, about or {})
    if (path := feature_store.find(name)) is not None:
        os.utime(path, (time.time() - age,) * 2)


def test_what_was_used_least_recently_goes_first(monkeypatch):
    for i, name in enumerate("abc"):
        put(name, age=100 - i)
    feature_store.find("a")  # used
    monkeypatch.setenv("POLYSENSE_CACHE_GB", str(2.5 * 12_100 / 1e9))
    put("d", age=0)
    assert {entry.path.stem for entry in feature_store.entries()} == {"a", "d"}
    assert not feature_store.room_for(40_000) and feature_store.room_for(20_000)


def test_a_half_written_entry_is_never_seen(monkeypatch):
    import safetensors.numpy

    def broken(content, path, about):
        Path(path).write_bytes(b"half")
        assert feature_store.find("a") is None and not feature_store.entries()
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", broken)
        with pytest.raises(OSError, match="no space"):
            put("a")
    assert list(feature_store.store_folder().iterdir()) == []
    left = feature_store.store_folder() / "b.1234.partial"
    left.write_bytes(b"half")
    put("c")
    assert left.exists()  # perhaps of a process that is writing it
    os.utime(left, (time.time() - 2 * feature_store.ABANDONED,) * 2)
    put("d")
    assert not left.exists()


def test_a_damaged_entry_is_made_again(examples):
    pipeline, pictures = examples()
    x, _ = pooled_features(pipeline, pictures, 8)
    (entry,) = feature_store.entries()
    entry.path.write_bytes(entry.path.read_bytes()[:-10])
    said = []
    again, same = examples()
    same.features.say = said.append
    assert torch.equal(pooled_features(again, same, 8)[0], x)
    assert "damaged" in said[0] and feature_store.entries()[0].size == entry.size


def test_a_disk_that_cannot_be_written_to_stops_nothing(examples, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYSENSE_CACHE", str(tmp_path / "file" / "below"))
    pipeline, pictures = examples()
    said = []
    pictures.features.say = said.append
    pooled_features(pipeline, pictures, 8)
    assert "POLYSENSE_CACHE" in said[0] and len(said) == 1
    assert pictures.features.passes == 1 and pooled_features(pipeline, pictures, 8) and pictures.features.passes == 1


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size(value, monkeypatch):
    monkeypatch.setenv("POLYSENSE_CACHE_GB", value)
    with pytest.raises(InputError, match=r"POLYSENSE_CACHE_GB .*no size.*give gigabytes"):
        feature_store.limit_bytes()


def test_command_line(capsys):
    put("one", 250_000, 7300, {"task": "audio-classification", "data": "/sounds", "rows": "12"})
    put("two", 250_000, 60 * 60 * 24 * 3, {"task": "image-classification", "data": "/pictures", "rows": "34"})
    for arguments, told in ((["cache"], ("audio-classification", "2 h ago", "3 d ago", "2 entries, 6.0 MB")),
                            (["cache", "--limit", "0.004"], ("removed 1 entries, 3.0 MB", "/sounds")),
                            (["cache", "--clear"], ("removed 1 entries",))):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert not stopped.value.code
        text = capsys.readouterr().out
        assert all(word in text for word in told), text
    assert feature_store.entries() == []


# A probe over a grid


def test_fit_again_computes_nothing(quick, image_folders, monkeypatch, tmp_path):
    caches = []

    class Watched(FeatureCache):
        def __init__(self, *given):
            super().__init__(*given)
            caches.append(self)

    monkeypatch.setattr(fit_data, "FeatureCache", Watched)
    options = {"tokenizer_options": PATCHES, "method": "probe"}
    first, bundle = quick("image-classification", image_folders, **options, out=tmp_path / "one")
    again, same = quick("image-classification", image_folders, **options, out=tmp_path / "two")
    without, plain = quick("image-classification", image_folders, **options, out=tmp_path / "three", cache=False)
    assert [cache.passes for cache in caches] == [2, 0, 2]  # training and validation part
    assert first.metrics == again.metrics == without.metrics
    assert torch.equal(bundle.head.classify[-1].weight, same.head.classify[-1].weight)
    assert torch.equal(bundle.head.classify[-1].weight, plain.head.classify[-1].weight)
    assert len(feature_store.entries()) == 2
    tried = bundle.about["probe_losses"]
    assert list(map(float, tried)) == list(GRID) and len(set(tried.values())) > 5
    assert "probe losses" in (first.path / "README.md").read_text()


def test_the_grid_is_solved_as_each_of_it_alone(build):
    """Along a path, in the coordinates of the rows: the same weights as scikit-learn's from the beginning."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    x = (rng.normal(size=(3, 96))[labels] + rng.normal(size=(60, 96))).astype(np.float32)
    z, axes = _rotated(x)
    assert z.shape[1] <= 60
    np.testing.assert_allclose(z @ axes.T, x, atol=1e-4)
    strengths = GRID[:12]
    found = _solutions(
        torch.from_numpy(x), {"labels": torch.from_numpy(labels)}, build("image-classification"), strengths
    )
    for strength, (weight, _) in zip(strengths, found, strict=True):
        model = LogisticRegression(C=strength / np.sqrt(96), max_iter=500, tol=1e-6).fit(x, labels)
        np.testing.assert_allclose(weight.numpy(), model.coef_, atol=2e-3)


def test_the_best_of_the_grid_is_kept(examples):
    pipeline, pictures = examples(lasting=False)
    probed = probe(pipeline, pictures, pictures, 8, GRID)
    assert set(probed.tried) == set(GRID) and probed.strength == min(probed.tried, key=probed.tried.get)
    table = probed.table()
    assert len(table) == 21 and sum(line.endswith("<") for line in table) == 1


# Tokens


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
def test_tokens_that_are_kept_change_nothing(task, over, build, make):
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
