"""Naming by words alone, or by words and a few examples: `zero_shot("image", "dog, cat, bird")` is a pipeline.

Where a sense's meaning head puts an input, and where the anchor puts the classes' names, is compared by cosine. A few
examples of each class add a linear correction, found with what words already say as its starting point (the
likelihood between input and target, words and examples alike, of Uni-Perceiver, Zhu et al. 2022).

Shape legend: r examples, f pooled width, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polysense.backbone.anchor import load_anchor
from polysense.core.errors import InputError
from polysense.heads.meaning import MeaningHead, NamingConfig, NamingHead
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.words import as_labels, word_vectors

Names = str | Sequence[str] | Mapping[str, Sequence[str]]
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)  # of the squared weights that examples teach
SCALES = (0.2, 0.5, 1.0)  # of what words say: examples may know better, but not of classes that have none
FOLDS, STEPS = 5, 60


def meaning_task(modality: str) -> str:
    """The task that leads a modality into the space of meaning.

    Raises:
        InputError: None does.
    """
    task = f"{modality.replace('_', '-')}-meaning"
    if task not in TASKS:
        known = ", ".join(TASKS[name].modality for name in TASKS if TASKS[name].kind == "meaning")
        raise InputError(
            f"modality {modality}", "nothing leads from it to the space of meaning", f"choose from {known}"
        )
    return task


def zero_shot(
    modality: str,
    labels: Names,
    *,
    templates: str | Sequence[str] | None = None,
    none: str | None = None,
    examples: Mapping[str, Sequence[Any]] | None = None,
    meaning: str | Path | Pipeline | None = None,
    device: str = "cpu",
) -> Pipeline:
    """A classifier for classes that nobody trained.

    Args:
        modality: "image", "video", "audio", "point_cloud" or "text".
        labels: "dog, cat | kitten, bird": classes parted by commas, further names of a class by bars; a list of them;
            {answer: names}; or a text file with a class a line.
        templates: Sentences in which "{}" stands for a name; None: those that the meaning head was trained with.
        none: The answer where none of the names fits, such as "none of these"; None: always one of the classes.
        examples: {class: inputs}, a few of each, which are learnt from beside the words.
        meaning: Bundle of the head that leads into the space; None: the one that ships.
        device: Where to compute.

    Raises:
        InputError: A label is given twice, a template lacks "{}", an example cannot be read or is of no class; or the
            extra `text`, which reads the names, is not installed.
    """
    space = meaning if isinstance(meaning, Pipeline) else Pipeline.from_pretrained(meaning or meaning_task(modality))
    if not isinstance(space.head, MeaningHead):
        raise InputError(space.name, "it does not lead into the space of meaning", "give a bundle of a -meaning task")
    names = as_labels(labels)
    given = [templates] if isinstance(templates, str) else templates
    sentences = list(given or space.about.get("templates", ["{}"]))
    for sentence in sentences:
        if "{}" not in sentence:
            raise InputError(
                f"template {sentence!r}", "it has no place for the name", "write {} where the name belongs"
            )
    groups = [[name] for group in names.values() for name in group]
    owner = tuple(i for i, group in enumerate(names.values()) for _ in group)
    shape = {name: value for name, value in space.head.config_dict().items() if name != "classes"}
    try:
        config = NamingConfig(tuple(names), owner, none, **shape)
    except ValueError as error:
        raise InputError("labels", str(error), "change the labels, or the word for none of them") from error
    head = NamingHead(config, space.encoder.config.width)
    head.project.load_state_dict(space.head.project.state_dict())
    head.names.copy_(word_vectors(load_anchor(space.about.get("anchor", "minilm")), groups, sentences))
    head.of_words.fill_(float(space.about.get("temperature", 0.07)))
    head.temperature.copy_(head.of_words)
    head.fit.copy_(torch.tensor(space.about.get("fit", [20.0, -8.0])))
    task = TASKS[f"{space.modality.replace('_', '-')}-naming"]
    about = {"named_by": "words", "anchor": space.about.get("anchor", "minilm"), "templates": sentences,
             "licence": space.about.get("licence", "")}  # fmt: skip
    pipeline = Pipeline(task, space.tokenizer, space.encoder, head, about=about).to(device).eval()
    if examples:
        teach(pipeline, examples)
    return pipeline


@torch.inference_mode()
def teach(pipeline: Pipeline, examples: Mapping[str, Sequence[Any]], batch_size: int = 16) -> None:
    """Learns from a few examples of the classes, beside what their names say.

    Args:
        pipeline: Of `zero_shot`; its correction is set anew.
        examples: {class: inputs}. Classes without examples are known by their names alone.
        batch_size: Sequences that run together.

    Raises:
        InputError: A class is none of the pipeline's, or an input cannot be read.
    """
    head = pipeline.head
    if not isinstance(head, NamingHead):
        raise InputError(pipeline.name, "it does not compare inputs with names", "give what zero_shot makes")
    x, y, _ = pool_examples(pipeline, examples, batch_size)
    head.more.weight.zero_()
    head.more.bias.zero_()
    head.temperature.copy_(head.of_words)
    said = head.logits(head.from_pooled(x))
    found = correct(x, said, y)
    head.more.weight.copy_(found.weight)
    head.more.bias.copy_(found.bias)
    head.temperature.copy_(head.of_words / found.scale)
    pipeline.about |= {"named_by": f"words and {len(y)} examples", "penalty": found.penalty}


@torch.no_grad()
def pool_examples(
    pipeline: Pipeline, examples: Mapping[str, Sequence[Any]], batch_size: int = 16
) -> tuple[Float[Tensor, "r f"], Int[Tensor, " r"], Int[Tensor, " r"]]:
    """What the head reads of examples: pooled features, the class, and which input of its class, for each sequence.

    Raises:
        InputError: A class is none of the pipeline's, an input cannot be read, or there are none.
    """
    head = pipeline.head
    assert isinstance(head, NamingHead)
    classes, pooled, rows = list(head.config.classes), [], []
    for name, sources in examples.items():
        if name not in classes:
            raise InputError(f"class {name!r}", "it is none of the labels", f"choose from {', '.join(classes[:20])}")
        if isinstance(sources, str | Path):
            raise InputError(f"examples of {name!r}", "a list of inputs is wanted", "write [one, two]")
        samples = (sample for source in sources for sample in pipeline.tokenizer.read_all(source))
        for i, sample in enumerate(samples):
            parts = pipeline.tokenizer.split(sample)
            for start in range(0, len(parts), batch_size):
                batch = pipeline.tokenizer.collate(parts[start : start + batch_size])
                pooled.append(head.pool(pipeline.features(batch)).float())
                rows += [(classes.index(name), i)] * len(pooled[-1])
    if not rows:
        raise InputError("examples", "there are none", "give at least one input of a class")
    y, number = torch.tensor(rows, device=pipeline.device).T
    return torch.cat(pooled), y, number


@dataclass(frozen=True, slots=True)
class Correction:
    """What examples add to what words say."""

    weight: Float[Tensor, "c f"]
    bias: Float[Tensor, " c"]
    scale: float  # of the words' logits
    penalty: float


def correct(x: Float[Tensor, "r f"], said: Float[Tensor, "r c"], y: Int[Tensor, " r"]) -> Correction:
    """Learns a linear map on top of logits that are there already; folds choose how much either counts.

    Args:
        x: Pooled features of the examples.
        said: What words say of them.
        y: Their classes.
    """
    center, spread = x.mean(0), x.std(0, correction=0).clamp_min(0.1) * x.shape[1] ** 0.5
    standard = (x - center) / spread
    scale, penalty = _chosen(standard, said, y)
    weight, bias = _correction(standard, scale * said, y, penalty)
    weight = weight / spread
    return Correction(weight, bias - weight @ center, scale, penalty)


def _chosen(x: Float[Tensor, "r f"], said: Float[Tensor, "r c"], y: Int[Tensor, " r"]) -> tuple[float, float]:
    """Scale and penalty of least loss on held-out folds in which every class takes turns; the middle ones where there
    are too few examples for folds."""
    counts = y.bincount()
    if int(counts[counts > 0].min()) < 2:
        return 1.0, 0.1
    fold = torch.zeros_like(y)
    for label in y.unique():
        rows = (y == label).nonzero()[:, 0]
        fold[rows] = torch.arange(len(rows), device=y.device) % FOLDS
    choices = [(scale, penalty) for scale in (SCALES if bool(said.any()) else (1.0,)) for penalty in PENALTIES]
    losses = []
    for scale, penalty in choices:
        loss, words = 0.0, scale * said
        for i in fold.unique().tolist():
            out, rest = fold == i, fold != i
            weight, bias = _correction(x[rest], words[rest], y[rest], penalty)
            loss += float(F.cross_entropy(words[out] + x[out] @ weight.T + bias, y[out], reduction="sum"))
        losses.append(loss)
    return choices[int(torch.tensor(losses).argmin())]


def _correction(
    x: Float[Tensor, "r f"], said: Float[Tensor, "r c"], y: Int[Tensor, " r"], penalty: float
) -> tuple[Float[Tensor, "c f"], Float[Tensor, " c"]]:
    """Logistic regression on top of the words' logits; without a push from examples it stays zero."""
    with torch.inference_mode(False), torch.enable_grad():
        x, said, y = x.clone(), said.clone(), y.clone()
        weight = x.new_zeros(said.shape[1], x.shape[1], requires_grad=True)
        bias = x.new_zeros(said.shape[1], requires_grad=True)
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(said + x @ weight.T + bias, y, reduction="sum")
            loss = loss + penalty * (weight.square().sum() + bias.square().sum()) / 2
            loss.backward()
            return loss

        optimiser.step(closure)
    return weight.detach(), bias.detach()
