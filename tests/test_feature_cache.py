"""Features kept from one fit for the next: the same answers, sooner, and never stale."""

import shutil

import numpy as np
import pytest
import torch

from polysense.data.dataset import Item
from polysense.data.text import Text
from polysense.training import feature_cache, feature_store
from polysense.training.evaluate import measure
from polysense.training.examples import FileExamples, Subset
from polysense.training.feature_cache import FeatureCache, content_hash, key_of, pipeline_hash, pooled_features

PATCHES = {"form": "patch", "size": 64}
pytestmark = pytest.mark.usefixtures("own_cache")


def encoder_calls(pipeline, monkeypatch):
    """The sizes of the batches that pass through the encoder from now on."""
    seen, forward = [], type(pipeline.encoder).forward

    def counting(self, tokens, **rest):
        seen.append(len(tokens.x))
        return forward(self, tokens, **rest)

    monkeypatch.setattr(type(pipeline.encoder), "forward", counting)
    return seen


def test_features_pass_through_the_encoder_once(pictures_of, monkeypatch, sure):
    pipeline, pictures = pictures_of()
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


def test_another_process_finds_them_on_disk(pictures_of, monkeypatch):
    pipeline, pictures = pictures_of()
    x, _ = pooled_features(pipeline, pictures, 8)
    again, same = pictures_of()
    seen = encoder_calls(again, monkeypatch)
    found, _ = pooled_features(again, same, 8)
    assert torch.equal(found, x) and not seen
    assert same.features.passes == 0


def test_recordings_of_several_windows(build, make, monkeypatch, sure):
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
def test_whatever_changes_gives_another_key(what, pictures_of, monkeypatch):
    pipeline, pictures = pictures_of()
    before = key_of(pipeline, pictures)
    assert before == key_of(*pictures_of()) is not None
    if what == "code":
        monkeypatch.setattr(feature_cache, "code_hash", lambda: "other")
    else:
        CHANGES[what](pipeline, pictures)
    pictures._contents = []  # as a fit that begins afresh
    assert key_of(pipeline, pictures) != before


@pytest.mark.parametrize("options", [{"size": 48}, {"views": (1.0, 0.5)}, {"mirror": True}])
def test_options_of_a_tokenizer_are_in_the_key(options, pictures_of):
    pipeline, pictures = pictures_of()
    assert key_of(*pictures_of(tokenizer=PATCHES | options)) not in (None, key_of(pipeline, pictures))


def test_adapters_are_told_apart_by_weights_and_options(pictures_of):
    pipeline, _ = pictures_of()
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


def test_a_file_that_changes_meanwhile_is_not_kept(pictures_of, monkeypatch):
    pipeline, pictures = pictures_of()
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
