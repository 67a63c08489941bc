"""Learning the way into the space of meaning: a linear map from pooled features to where the anchor puts words.

What an input means is said by words with weights: tags of an openly licensed teacher by their probability, or names
of what was generated. Two losses: the cosine to the weighted mean of the words' vectors (ConSE, Norouzi et al. 2014),
and the cross-entropy between the weights and a softmax over the cosines to all words of the vocabulary, each of which
that does not hold is a negative (the likelihood between input and target of Uni-Perceiver, Zhu et al. 2022).

Shape legend: r rows, f pooled width, k words of a row, m words of a vocabulary, d width of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polysense.heads.meaning import MeaningHead

BATCH, STEPS, LR, DECAY = 512, 800, 2e-3, 0.1
TEMPERATURE = 0.05  # of the softmax over cosines


@dataclass(frozen=True, slots=True)
class Lesson:
    """Inputs of one kind, and what words say of them."""

    x: Float[Tensor, "r f"]  # pooled features, as the head pools them
    words: Int[Tensor, "r k"]  # numbers in the vocabulary
    weights: Float[Tensor, "r k"]  # at least 0; a row's sum is how much it counts
    vocabulary: Float[Tensor, "m d"]  # unit vectors
    share: float = 1.0  # of a batch, relative to the other lessons'


def top_words(scores: Float[Tensor, "r m"], count: int = 10) -> tuple[Int[Tensor, "r k"], Float[Tensor, "r k"]]:
    """A teacher's most probable tags and their weights, which sum to 1."""
    weights, words = scores.float().topk(min(count, scores.shape[1]), dim=1)
    return words, weights / weights.sum(1, keepdim=True).clamp_min(1e-9)


def consensus(
    words: Int[Tensor, "r k"], weights: Float[Tensor, "r k"], vocabulary: Float[Tensor, "m d"]
) -> Float[Tensor, "r d"]:
    """The unit vector of the weighted mean of a row's words."""
    return F.normalize((vocabulary[words] * weights.unsqueeze(-1)).sum(1), dim=-1)


def learn_meaning(
    head: MeaningHead,
    lessons: Mapping[str, Lesson],
    *,
    temperature: float = TEMPERATURE,
    steps: int = STEPS,
    seed: int = 0,
) -> dict[str, float]:
    """Fits `head.project` by gradient descent on features computed once.

    Args:
        head: Its projection is set anew.
        lessons: By name; a batch takes of each by its share.
        temperature: Of the softmax over cosines.
        steps: Of `BATCH` rows.
        seed: Of the draws.

    Returns:
        The mean losses of the last tenth of the steps, by lesson.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.cat([lesson.x[:: max(1, len(lesson.x) // 4000)].float() for lesson in lessons.values()])
    mean, std = sample.mean(0), sample.std(0).clamp_min(1e-3)
    optimiser = torch.optim.AdamW(head.project.parameters(), LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps, pct_start=0.1)
    total = sum(lesson.share for lesson in lessons.values())
    late: dict[str, list[float]] = {name: [] for name in lessons}
    head.train()
    with torch.enable_grad():
        for step in range(steps):
            loss = torch.zeros(())
            for name, lesson in lessons.items():
                count = max(1, round(BATCH * lesson.share / total))
                rows = torch.randint(len(lesson.x), (count,), generator=generator)
                one = _loss(head, lesson, rows, (mean, std), temperature)
                loss = loss + one * lesson.share / total
                if step >= steps * 0.9:
                    late[name].append(float(one.detach()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    _fold(head, mean, std)
    head.eval()
    return {name: sum(values) / len(values) for name, values in late.items()}


def _loss(
    head: MeaningHead, lesson: Lesson, rows: Int[Tensor, " b"], scale: Sequence[Tensor], temperature: float
) -> Tensor:
    x = (lesson.x[rows].float() - scale[0]) / scale[1]
    words, weights = lesson.words[rows], lesson.weights[rows]
    vector = F.normalize(head.project(x), dim=-1)
    away = 1 - (vector * consensus(words, weights, lesson.vocabulary)).sum(-1)
    likelihood = (vector @ lesson.vocabulary.T / temperature).log_softmax(-1).gather(1, words)
    return (away - (likelihood * weights).sum(-1)).mean()


@torch.no_grad()
def _fold(head: MeaningHead, mean: Float[Tensor, " f"], std: Float[Tensor, " f"]) -> None:
    """Moves the standardisation of the features into the first linear map."""
    first = next(module for module in head.project.modules() if isinstance(module, torch.nn.Linear))
    first.bias.sub_(first.weight @ (mean / std))
    first.weight.div_(std)
