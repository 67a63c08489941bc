"""Merging: the mean is exact where it can be, classes find their places, and a soup takes what helps."""

import copy
import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

import polysense
from polysense.apps import cli
from polysense.backbone.adapters import METHODS
from polysense.backbone.weights import load_encoder, save_encoder
from polysense.components import get_head
from polysense.core.errors import InputError
from polysense.core.predictions import Labels
from polysense.merging import class_axes, into_encoder, merge
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.training.soup import greedy_soup

MERGEABLE = ("lora", "dora", "vera", "ia3", "scale", "bitfit", "full")
CLASSES = ("a", "b", "c")
ORDER = ("c", "a", "b")
WITH_CLASSES = [task for task in TASKS if "classes" in {one.name for one in fields(get_head(TASKS[task].head).Config)}]


@torch.no_grad()
def shaken(pipeline, seed, size=0.05):
    """The pipeline with all that could have learnt moved at random."""
    own = torch.Generator().manual_seed(seed)
    learns = {name: p for name, p in pipeline.named_parameters() if p.requires_grad}
    for name in sorted(learns):
        parameter = learns[name]
        parameter.add_(size * torch.randn(parameter.shape, generator=own))
    return pipeline.eval()


def weights_of(pipeline):
    """The encoder's linear weights with the adapter in them."""
    return pipeline.encoder.merged().state_dict()


def test_the_mean_of_weights_is_what_answers(build):
    one, two = (shaken(build("image-classification"), seed) for seed in (1, 2))
    made = merge([one, two], [1, 3])
    for name, value in made.state_dict().items():
        wanted = 0.25 * one.state_dict()[name].double() + 0.75 * two.state_dict()[name].double()
        torch.testing.assert_close(value.double(), wanted, atol=1e-6, rtol=1e-6)
    assert made.encoder is one.encoder and not made.metrics and "(0.75)" in made.about["merged"]


@pytest.mark.parametrize("task", TASKS)
def test_a_pipeline_merged_with_itself_is_itself(build, make, numbers, task):
    pipeline = shaken(build(task), 1, 0.01)
    source = make(pipeline.modality, 1)
    made = merge([pipeline, copy.deepcopy(pipeline), copy.deepcopy(pipeline)])
    np.testing.assert_allclose(numbers(made(source)[0]), numbers(pipeline(source)[0]), atol=1e-6, rtol=1e-6)
    assert made.tokenizer is not pipeline.tokenizer and made.head is not pipeline.head


@pytest.mark.parametrize("task", WITH_CLASSES)
def test_classes_in_another_order_find_their_places(build, make, numbers, task):
    """The same head with its classes renamed in another order: put back, it answers with the names changed alike."""
    one = shaken(build(task), 1)
    if TASKS[task].head == "naming":
        with pytest.raises(InputError, match="another order"):
            merge([one, build(task, head={"classes": ORDER})])
        return
    axes, two = class_axes(one.head), build(task, head={"classes": ORDER})
    places = [CLASSES.index(name) for name in ORDER]
    state = one.head.state_dict()
    for name, axis in axes.items():
        index = [*places, *range(len(CLASSES), state[name].shape[axis])]
        state[name] = state[name].index_select(axis, torch.tensor(index))
    two.head.load_state_dict(state)
    two.tokenizer.load_state_dict(one.tokenizer.state_dict())
    assert axes and not torch.equal(two.head.state_dict()[next(iter(axes))], one.head.state_dict()[next(iter(axes))])
    source = make(one.modality, 1)
    made = merge([one, two])
    assert made.head.config.classes == CLASSES
    for name, value in made.head.state_dict().items():
        torch.testing.assert_close(value, one.head.state_dict()[name], atol=0, rtol=0)
    if isinstance(answer := two(source)[0], Labels):  # and that other order was one in which it answers the same
        np.testing.assert_allclose(numbers(answer), numbers(made(source)[0]), atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "ia3", "scale", "bitfit", "full"])
def test_adapters_average_to_the_mean_of_merged_weights(build, method):
    options = ({"rank": 2, "alpha": 4.0}, {"rank": 3}) if method == "lora" else ({}, {})
    one, two = (shaken(build("image-classification", adapter={"method": method, **more}), seed)
                for seed, more in enumerate(options))  # fmt: skip
    made = merge([one, two], [0.3, 0.7])
    for name, value in weights_of(made).items():
        torch.testing.assert_close(
            value, 0.3 * weights_of(one)[name] + 0.7 * weights_of(two)[name], atol=1e-5, rtol=1e-5
        )
    if method == "lora":
        a = next(p for n, p in made.encoder.adapter_parameters().items() if "lora_A" in n)
        assert len(a) == 2 + 3


def test_dora_averages_directions_and_sizes(build):
    one, two = (shaken(build("image-classification", adapter={"method": "dora", "rank": 2}), seed) for seed in (1, 2))
    made = merge([one, two], [0.4, 0.6])
    layers = [
        next(m for m in p.encoder.model.modules() if hasattr(m, "lora_magnitude_vector")) for p in (one, two, made)
    ]
    first, second, mean = [(layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight,
                            layer.lora_magnitude_vector["default"].weight) for layer in layers]  # fmt: skip
    for i in range(2):
        torch.testing.assert_close(mean[i], 0.4 * first[i] + 0.6 * second[i], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_adapter_merges_saves_and_loads(build, encoder_spec, make, method, tmp_path):
    build = build_on(encoder_spec)
    one, two = (shaken(build({"method": method, "rank": 2}), seed) for seed in (1, 2))
    before = one.encoder_hash
    made = merge([one, two])
    source = make("image", 1)
    again = polysense.load(made.save_pretrained(tmp_path / "made"))
    assert again(source)[0].scores == made(source)[0].scores and again.encoder.method == method
    assert again(source)[0].scores != one(source)[0].scores
    assert made.encoder_hash == before == made.encoder.plain.fingerprint()
    # A second time, now with PEFT's files as they were read, and with the mean itself:
    twice = merge([again, made], [0.5, 0.5])
    expected = dict(zip(made(source)[0].names, made(source)[0].scores, strict=True))
    for name, score in zip(twice(source)[0].names, twice(source)[0].scores, strict=True):
        assert abs(expected[name] - score) < 1e-5
    learns = [p for p in made.encoder.parameters() if p.requires_grad]
    made(made.tokenizer.collate(made.tokenizer.split(made.tokenizer.read(source))))["logits"].square().sum().backward()
    assert learns and any(p.grad is not None and p.grad.any() for p in learns)
    assert not any(p.requires_grad for p in made.encoder.plain.parameters())


def build_on(encoder_spec):
    """build(adapter) -> an image classifier on an encoder that bundles find again."""

    def build(adapter=None, **more):
        options = {"encoder": encoder_spec, "tokenizer": {"size": 64}, "head": {"classes": CLASSES}, **more}
        return Pipeline.build("image-classification", adapter=adapter, **options).eval()

    return build


@pytest.mark.parametrize("method", MERGEABLE)
def test_an_adapter_merged_into_its_encoder_answers_the_same(make, method, tmp_path):
    """On the embedded encoder, through a file and a bundle."""
    pipeline = Pipeline.build("image-classification", head={"classes": CLASSES}, adapter={"method": method, "rank": 2})
    shaken(pipeline, 1, 0.01)
    pictures = [make("image", i) for i in range(2)]
    before = pipeline.encoder_hash
    plain = into_encoder(pipeline, tmp_path / "encoder.safetensors")
    again = polysense.load(plain.save_pretrained(tmp_path / "plain"))
    untouched = Pipeline.build("image-classification", head={"classes": CLASSES})
    untouched.tokenizer, untouched.head = pipeline.tokenizer, pipeline.head
    wanted = torch.tensor([sorted_scores(answer) for answer in pipeline(pictures)])
    for other in (plain, again):
        found = torch.tensor([sorted_scores(answer) for answer in other(pictures)])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    without = torch.tensor([sorted_scores(answer) for answer in untouched(pictures)])
    assert (without - wanted).abs().max() > 1e-4  # the adapter mattered
    assert type(again.encoder).__name__ == "Encoder" and pipeline.encoder_hash == before != again.encoder_hash


def sorted_scores(answer):
    return [score for _, score in sorted(zip(answer.names, answer.scores, strict=True))]


def test_what_does_not_fit_is_one_clear_sentence(build, encoder_spec, tmp_path):
    def refused(one, two, match, weights=None):
        with pytest.raises(InputError, match=match) as found:
            merge([one, two], weights)
        assert str(found.value).count(". ") == 0

    lora = {"method": "lora", "rank": 2}
    one = build("image-classification", adapter=lora)
    refused(one, build("image-multilabel"), "it does image-multilabel")
    refused(one, build("image-classification", adapter={"method": "dora"}), "one adapter is lora, the other dora")
    refused(one, build("image-classification"), "it has no adapter")
    refused(build("image-classification"), one, "it has no adapter")
    refused(one, build("image-classification", adapter={**lora, "targets": ("mlp.fc1",)}), "different layers")
    refused(one, build("image-classification", head={"classes": ("a", "b", "z")}), "which differ in c, z")
    refused(one, build("image-classification", head={"pooling": ("mean",)}), "in the option pooling")
    refused(one, build("image-classification", tokenizer={"size": 32}), "tokenizer differs .* in the option size")
    refused(build("image-regression"), build("image-regression", head={"mean": (0.0, 1.0)}), "in the option mean")
    other = copy.deepcopy(load_encoder(encoder_spec))
    with torch.no_grad():
        other.norm.weight.add_(1)
    refused(one, build("image-classification", encoder=other), "another encoder")
    for method in ("houlsby", "scale"):
        first = build("image-classification", adapter={"method": method})
        more = {"rank": 3} if method == "houlsby" else {"targets": ("mlp.fc1",)}
        refused(first, build("image-classification", adapter={"method": method, **more}), "differ|different options")
    segmenter = build("image-segmentation", head={"ignore": 0})
    refused(segmenter, build("image-segmentation", head={"ignore": 0, "classes": ORDER}), "another order")
    refused(one, one, "no shares", [-1, 2])
    refused(one, one, "no shares", [0, 0])
    refused(one, one, "no shares", [float("nan"), 1])
    refused(one, one, "3 for 2", [1, 1, 1])
    with pytest.raises(InputError, match="at least two"):
        merge([one])
    with pytest.raises(InputError, match="no adapter"):
        into_encoder(build("image-classification"), tmp_path / "e.safetensors")
    with pytest.raises(InputError, match="cannot be merged"):
        into_encoder(build("image-classification", adapter={"method": "houlsby"}), tmp_path / "e.safetensors")
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        into_encoder(one, tmp_path / "e")
    save_encoder(other, tmp_path / "there.safetensors")
    with pytest.raises(InputError, match="something stands there"):
        into_encoder(one, tmp_path / "there.safetensors")


def test_what_matters_in_training_alone_may_differ(build):
    one = build("image-classification", adapter={"method": "lora", "dropout": 0.1})
    two = build("image-classification", head={"label_smoothing": 0.1, "dropout": 0.2}, adapter={"method": "lora"})
    assert merge([one, two]).head.config == one.head.config


def test_trees_that_differ_have_no_mean(build):
    pipelines = [build("tabular-classification", head={"classes": CLASSES}) for _ in range(2)]
    pipelines[1].tokenizer.register_buffer("order_of_cuts", torch.tensor([2, 1]))
    pipelines[0].tokenizer.register_buffer("order_of_cuts", torch.tensor([1, 2]))
    with pytest.raises(InputError, match="whole numbers that differ"):
        merge(pipelines)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven noisy pictures of each of three colours."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir()
        for k in range(7):
            pixels = rng.integers(0, 120, (32, 32, 3), np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(pictures, tmp_path_factory):
    """A bundle that learnt, with an adapter that says little; one like it; and one whose head was turned around."""
    folder = tmp_path_factory.mktemp("bundles")
    probed = polysense.fit("image-classification", pictures, method="probe", tokenizer_options={"size": 32},
                           progress=False, check=False, card=False)  # fmt: skip
    probed.tokenizer.requires_grad_(False)
    paths = []
    for i, name in enumerate(("one", "two", "bad")):
        pipeline = copy.deepcopy(probed).adapt("lora", rank=2)
        shaken(pipeline, i, 0.003)
        if name == "bad":
            pipeline.head.load_state_dict({name: -3 * value for name, value in probed.head.state_dict().items()})
            pipeline.head.temperature.fill_(1)
        paths.append(pipeline.save_pretrained(folder / name))
    return paths


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def test_a_greedy_soup_leaves_out_what_harms(fitted, pictures, tmp_path, capsys):
    pipelines = [polysense.load(path) for path in fitted]
    metrics = [dict(pipeline.metrics) for pipeline in pipelines]
    soup = greedy_soup([pipelines[2], pipelines[0], pipelines[1]], pictures)
    assert 0 not in soup.chosen and soup.metrics["accuracy"] >= max(soup.alone) > min(soup.alone) == soup.alone[0]
    assert soup.pipeline.metrics == soup.metrics and "chose" in soup.pipeline.about["measured_on"]
    assert [dict(pipeline.metrics) for pipeline in pipelines] == metrics
    assert run("merge", fitted[2], fitted[0], fitted[1], "--greedy", pictures, "--out", tmp_path / "soup") == 0
    told = capsys.readouterr().out
    assert f"{fitted[2]}: accuracy" in told and "left out" in told and "taken" in told
    picture = next(pictures.rglob("*.png"))
    answer = polysense.load(tmp_path / "soup")(picture)[0]
    assert answer.scores == pytest.approx(soup.pipeline(picture)[0].scores, abs=1e-6)


def test_the_command_line(fitted, pictures, tmp_path, capsys):
    one, two, bad = fitted
    picture = next(pictures.rglob("*.png"))
    assert run("merge", one, two, "--weight", 0.25, "--out", tmp_path / "mean") == 0
    assert "(0.75)" in capsys.readouterr().out
    found = polysense.load(tmp_path / "mean")
    wanted = merge([polysense.load(one), polysense.load(two)], [0.75, 0.25])
    assert sorted_scores(found(picture)[0]) == pytest.approx(sorted_scores(wanted(picture)[0]), abs=1e-6)
    assert json.loads((tmp_path / "mean" / "config.json").read_text())["metrics"] == {}
    assert run("merge", one, two, bad, "--weights", "1,1,0", "--out", tmp_path / "three") == 0
    file = tmp_path / "encoder.safetensors"
    assert run("merge", one, "--into-encoder", file, "--out", tmp_path / "plain") == 0
    plain = polysense.load(tmp_path / "plain")
    assert plain.encoder.spec == f"file:{file}" and not (tmp_path / "plain" / "adapter_config.json").exists()
    wanted = sorted_scores(polysense.load(one)(picture)[0])
    assert sorted_scores(plain(picture)[0]) == pytest.approx(wanted, abs=1e-5)
    new = tmp_path / "x"
    capsys.readouterr()
    for arguments, code, problem in (((one, "--out", new), 1, "at least two"),
                                     ((one, two, "--into-encoder", file, "--out", new), 1, "something stands"),
                                     ((one, two, "--out", pictures), 1, "no bundle stands there"),
                                     ((one, two, "--weights", "1,2,3", "--out", new), 1, "3 for 2"),
                                     ((one, two, bad, "--weight", 0.5, "--out", new), 2, "--weights"),
                                     ((one, "esc10", "--out", new), 1, "merge bundles of one task"),
                                     ((one, two, "--weights", "1,2", "--greedy", pictures, "--out", new),
                                      1, "leave one of them out")):  # fmt: skip
        assert run("merge", *arguments) == code
        assert problem in capsys.readouterr().err
    assert not new.exists()
