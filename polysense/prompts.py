"""Prompt tuning: a few learned vectors in front of every class's name, learnt from a few examples of the classes.

Nothing but these vectors learns: the sentence encoder, the encoder and the way into the space of meaning stay frozen
(CoOp, Zhou et al. 2022). `teach` may follow: its correction then begins at what the tuned names say.

Shape legend: r sequences of examples, f pooled width, m names of classes, n word pieces, k context vectors, d width of
the space.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polysense.backbone.anchor import LONGEST_TEXT, load_anchor
from polysense.core.errors import InputError
from polysense.heads.base import Out
from polysense.heads.meaning import NamingHead
from polysense.pipeline import Pipeline
from polysense.tokenizers.sentence import (
    FIRST,
    LAST,
    PADDING,
    WIDTH,
    load_sentence_encoder,
    pad_pieces,
    sentence_vectors,
    word_pieces,
)
from polysense.words import word_vectors
from polysense.zero_shot import pool_examples

LR, DECAY = 2e-3, 0.1  # the squared way from the start costs DECAY, beside the mean loss of an example
NOISE = 0.02  # standard deviation of context vectors that no word begins
SHARES = (0.0, 0.5, 1.0)  # of the tuned names' vectors in what is kept, beside the untuned ones
LONGEST_CONTEXT = 64


@torch.inference_mode(False)
def tune_prompt(
    pipeline: Pipeline,
    names: Mapping[str, Sequence[str]],
    examples: Mapping[str, Sequence[Any]],
    *,
    context: int = 4,
    steps: int = 100,
    lr: float = LR,
    seed: int = 0,
) -> None:
    """Sets the names' vectors anew: those of a tuned prompt, as far as it is better on examples that it has not seen.

    How far is chosen by two folds; where a class has a single example, it is half of the way.

    Args:
        pipeline: Of `zero_shot`, before `teach`.
        names: {answer: its names} of its classes, as `words.as_labels` gives them.
        examples: {class: inputs}. Classes without examples get the same prompt.
        context: How many vectors stand in front of a name.
        steps: Of gradient descent, on all examples at once.
        lr: Step size, about what a number of a context vector may move in one step.
        seed: Of the context vectors that no word of the template begins.

    Raises:
        InputError: The names are not those of the pipeline, or another model read them; an example cannot be read or is
            of no class; the pipeline was taught already; a number is out of range; or the extra `text` is missing.
    """
    head = pipeline.head
    if not isinstance(head, NamingHead):
        raise InputError(pipeline.name, "it does not compare inputs with names", "give what zero_shot makes")
    if head.config.dim != WIDTH or pipeline.about.get("anchor", "minilm") != "minilm":
        raise InputError(pipeline.name, "another model than MiniLM read its names", "use a shipped way into the space")
    if bool(head.more.weight.any()):
        raise InputError(pipeline.name, "its examples taught it already", "tune the prompt first, then teach")
    owner = tuple(i for i, group in enumerate(names.values()) for _ in group)
    if tuple(names) != head.config.classes or owner != head.config.owner:
        raise InputError("names", "they are not those of the pipeline's classes", "give the labels it was made with")
    if not 1 <= context <= LONGEST_CONTEXT:
        raise InputError(f"context {context}", "so many vectors cannot be learnt", f"choose 1 to {LONGEST_CONTEXT}")
    if steps < 1 or not lr > 0:
        raise InputError(f"steps {steps}, lr {lr}", "nothing can be learnt so", "choose numbers over 0")

    x, y, number = pool_examples(pipeline, examples)
    with torch.no_grad():
        out = head.from_pooled(x)
    flat, templates = [name for group in names.values() for name in group], pipeline.about.get("templates", ["{}"])
    untuned = word_vectors(load_anchor(), [[name] for name in flat], templates).to(x.device)
    prompt = Prompt(flat, templates, context, seed, str(x.device))
    share, fold = SHARES[1], number % 2
    if all(bool((fold[y == label] == 1).any()) for label in y.unique()):
        losses = torch.zeros(len(SHARES))
        for i in (0, 1):
            tuned = prompt.tuned(head, _rows(out, fold != i), y[fold != i], steps, lr)
            held = _rows(out, fold == i)
            for j, choice in enumerate(SHARES):
                losses[j] += prompt_loss(head, _mixed(untuned, tuned, choice), held, y[fold == i]) * len(held["vector"])
        share = SHARES[int(losses.argmin())]  # the first of equals: the least change
    kept = _mixed(untuned, prompt.tuned(head, out, y, steps, lr), share) if share else untuned
    head.names.copy_(kept)
    count = sum(len(number[y == label].unique()) for label in y.unique())
    said = f"a tuned prompt and {count} examples" if share else f"words; no prompt tuned on {count} examples was better"
    pipeline.about |= {"named_by": said, "prompt_share": share}


class Prompt:
    """Names of classes with room for context vectors in front of them, as the frozen sentence encoder reads them.

    Args:
        names: One text each.
        templates: The words before "{}" of the first that has any are where the context starts; noise fills up.
        context: Number of vectors k.
        seed: Of the noise.
        device: Where to compute.
    """

    def __init__(self, names: Sequence[str], templates: Sequence[str], context: int, seed: int, device: str) -> None:
        self.model, splitter = load_sentence_encoder(device), word_pieces()
        rows = [splitter.encode(name, add_special_tokens=False).ids[:LONGEST_TEXT] for name in names]
        ids, mask = pad_pieces([torch.tensor([FIRST, *[PADDING] * context, *row, LAST]) for row in rows])
        self.ids, self.mask = ids.to(device), mask.to(device)
        leads = [splitter.encode(text.partition("{}")[0], add_special_tokens=False).ids for text in templates]
        lead = next((row for row in leads if row), [])[-context:]
        noise = NOISE * torch.randn(context - len(lead), WIDTH, generator=torch.Generator().manual_seed(seed))
        words = self.model.words(torch.tensor(lead, dtype=torch.int64, device=device))
        self.start: Float[Tensor, "k d"] = torch.cat([noise.to(device), words.detach()])

    def vectors(self, context: Float[Tensor, "k d"]) -> Float[Tensor, "m d"]:
        """A unit vector for each name behind this context."""
        words = self.model.words(self.ids)
        front = context.expand(len(words), -1, -1)
        embedded = torch.cat([words[:, :1], front, words[:, 1 + len(context) :]], 1)
        return sentence_vectors(self.model(self.ids, self.mask, embedded), self.mask)

    def tuned(self, head: NamingHead, out: Out, y: Int[Tensor, " r"], steps: int, lr: float) -> Float[Tensor, "m d"]:
        """The names' vectors behind a context that these examples taught; no parameter of a model changes."""
        context = self.start.clone().requires_grad_()
        optimiser = torch.optim.Adam([context], lr)
        with torch.enable_grad():
            for _ in range(steps):
                away = (context - self.start).square().sum()
                loss = prompt_loss(head, self.vectors(context), out, y) + DECAY * away
                (context.grad,) = torch.autograd.grad(loss, [context])
                optimiser.step()
        with torch.no_grad():
            return self.vectors(context)


def prompt_loss(head: NamingHead, names: Float[Tensor, "m d"], out: Out, y: Int[Tensor, " r"]) -> Tensor:
    """The head's loss as if these were its names."""
    other = copy.copy(head)  # shares everything but the table of its buffers
    other._buffers = {**head._buffers, "names": names}
    return other.loss(out, {"labels": y})["loss"]


def _rows(out: Out, keep: Tensor) -> Out:
    return {name: value[keep] for name, value in out.items()}


def _mixed(untuned: Float[Tensor, "m d"], tuned: Float[Tensor, "m d"], share: float) -> Float[Tensor, "m d"]:
    return F.normalize(untuned.lerp(tuned, share), dim=-1)
