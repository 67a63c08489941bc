"""Several adapters on one encoder: memory is that of one, and every request gets its own bundle's answer."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

import polysense
from polysense.adapter_set import AdapterSet, nbytes, share_tensors
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline

CLASSES = ("a", "b", "c")
PICTURES = {"tokenizer": {"size": 64}, "head": {"classes": CLASSES}}


@pytest.fixture
def several(tmp_path):
    """Five bundles with adapters of three methods on the embedded encoder."""
    methods = ("lora", "houlsby", "guided", "lora", "scale")
    paths = []
    for i, method in enumerate(methods):
        pipeline = Pipeline.build("image-classification", adapter={"method": method, "rank": 2}, **PICTURES)
        torch.manual_seed(i)
        with torch.no_grad():
            for parameter in (*pipeline.encoder.adapter_parameters().values(), *pipeline.head.parameters()):
                parameter.add_(0.05 * torch.randn_like(parameter))
        paths.append(pipeline.save_pretrained(tmp_path / f"{method}{i}"))
    return paths


def test_memory_is_that_of_one_and_little_for_each_more(several):
    loaded = [AdapterSet(several[:count]) for count in (1, 5)]
    alone = [nbytes([polysense.load(path)]) for path in several]
    own = max(sum((path / name).stat().st_size for name in ("model.safetensors", "adapter_model.safetensors"))
              for path in several)  # fmt: skip
    first, all_five = (one.nbytes() for one in loaded)
    assert first == alone[0] and own < 0.05 * first
    assert first < all_five < first + 4 * own
    assert sum(alone) > 4.5 * first  # nothing was counted away: each alone is as large
    for path in several:  # and the answers are those of each alone
        picture = np.zeros((64, 64, 3), np.uint8)
        wanted = polysense.load(path)(picture)[0].scores
        assert loaded[1](path.name, picture)[0].scores == pytest.approx(wanted, abs=1e-5)


def test_copies_of_the_encoder_become_one_again(several):
    """As on a GPU, to which every pipeline takes its encoder by itself."""
    pipelines = [copy.deepcopy(polysense.load(path)) for path in several]
    picture = np.zeros((64, 64, 3), np.uint8)
    wanted = [pipeline(picture)[0].scores for pipeline in pipelines]
    alone = nbytes(pipelines[:1])
    assert nbytes(pipelines) > 4.5 * alone
    share_tensors(pipelines)
    assert nbytes(pipelines) < 1.2 * alone
    for pipeline, scores in zip(pipelines, wanted, strict=True):
        assert pipeline(picture)[0].scores == pytest.approx(scores, abs=1e-5)


def test_threads_with_different_adapters_get_their_own_answers(several, make):
    adapters = AdapterSet(several)
    pictures = [make("image", i) for i in range(3)]
    wanted = {name: [answer.scores for answer in adapters(name, pictures)] for name in adapters}
    first = np.array([scores[0][0] for scores in wanted.values()])
    assert np.abs(first[:, None] - first + np.eye(len(several))).min() > 1e-4  # no two adapters answer alike
    requests = [name for _ in range(4) for name in adapters]
    together = Barrier(4)

    def answer(name):
        together.wait(60)
        return name, [one.scores for one in adapters(name, pictures)]

    with ThreadPoolExecutor(4) as pool:
        for name, scores in pool.map(answer, requests):
            assert scores == [pytest.approx(one, abs=1e-5) for one in wanted[name]]


def test_a_set_of_adapters_refuses_what_does_not_belong(several, encoder_spec, tmp_path):
    adapters = AdapterSet({"first": several[0]})
    assert list(adapters) == ["first"] and len(adapters) == 1
    assert not any(parameter.requires_grad for parameter in adapters["first"].parameters())
    with pytest.raises(InputError, match=r"no bundle of this name is loaded; choose from: first\."):
        adapters("second", [])
    with pytest.raises(InputError, match="there is none"):
        AdapterSet([])
    with pytest.raises(InputError, match="two of one name"):
        AdapterSet([several[0], several[0]])
    other = Pipeline.build("image-classification", encoder=encoder_spec, **PICTURES).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="another encoder"):
        AdapterSet([several[0], other])
