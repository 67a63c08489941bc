"""Where the joint phase of a fit stands: all that moves while it learns, which is what a checkpoint holds."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polysense.pipeline import Pipeline
from polysense.training.best import Average, Best, own_state
from polysense.training.checkpoint import Checkpoint, random_state, set_random_state

BEST = ("metrics", "latest", "waited", "first", "loss")  # what `Best` knows beside its state


class Course:
    """Weights, their average, the optimiser, random numbers, the best state and the place in the epoch.

    Args:
        pipeline: What learns.
        optimiser: As accelerate prepared it.
        average: Of the weights.
        best: The state so far; None before anything was measured.
        batch: What makes a batch. An epoch that was begun with another is begun again.
        accelerator: Knows the other processes.
        rng: Of order, windows and augmentation.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        optimiser: Any,
        average: Average,
        batch: list[int],
        accelerator: Any,
        rng: np.random.Generator,
    ) -> None:
        self.pipeline, self.optimiser, self.average, self.rng = pipeline, optimiser, average, rng
        self.batch, self.accelerator = batch, accelerator
        self.best: Best | None = None
        self.epoch = 0  # that were run
        self.step = 0  # of the epoch that is under way
        self.order: np.ndarray | None = None  # of the examples in it
        self.losses: list[float] = []  # of its steps
        self._before, self._started = 0.0, clock.perf_counter()

    @property
    def seconds(self) -> float:
        """Spent so far, before an interruption too."""
        return self._before + clock.perf_counter() - self._started

    def next_epoch(self) -> None:
        self.epoch, self.step, self.order, self.losses = self.epoch + 1, 0, None, []

    def pack(self) -> Checkpoint:
        """All of it. Every process must call it."""
        assert self.best is not None
        tensors = {f"weights.{name}": value for name, value in own_state(self.pipeline).items()}
        tensors |= {f"best.{name}": value for name, value in self.best.state.items()}
        tensors |= {f"average.{i}": value for i, value in enumerate(self.average.mean)}
        for i, parts in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{name}": value for name, value in parts.items()}
        own = {"random": random_state(self.rng), "order": None if self.order is None else self.order.tolist()}
        facts = {
            "epoch": self.epoch, "step": self.step, "losses": self.losses, "batch": self.batch,
            "seconds": self.seconds, "average_steps": self.average.steps, "settled": sorted(self.pipeline.settled),
            "best": {name: getattr(self.best, name) for name in BEST},
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "processes": self._of_all(own),
        }  # fmt: skip
        return tensors, facts

    def _of_all(self, own: dict[str, Any]) -> list[dict[str, Any]]:
        from accelerate.utils import gather_object

        return [own] if self.accelerator.num_processes == 1 else list(gather_object([own]))

    def unpack(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], metric: str | None = None) -> None:
        """Puts everything back as it was packed."""
        self.pipeline.load_state_dict(part(tensors, "weights."), strict=False)
        groups = self.optimiser.state_dict()["param_groups"]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part(tensors, "optimiser.").items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self.average.steps = facts["average_steps"]
        for i, mean in enumerate(self.average.mean):
            mean.copy_(tensors[f"average.{i}"])
        self.best = Best(self.pipeline, facts["best"]["metrics"], metric)
        self.best.state = {name: value.to(self.pipeline.device) for name, value in part(tensors, "best.").items()}
        for name in BEST:
            setattr(self.best, name, facts["best"][name])
        if self.accelerator.scaler is not None and facts["scaler"]:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.epoch, self._before = facts["epoch"], facts["seconds"]
        if facts["batch"] != self.batch:  # another batch: the epoch begins again, its random numbers go on
            facts = {**facts, "step": 0, "losses": [], "processes": [{**facts["processes"][0], "order": None}]}
        self.step, self.losses = facts["step"], list(facts["losses"])
        if self.accelerator.process_index < len(facts["processes"]):
            own = facts["processes"][self.accelerator.process_index]
            set_random_state(own["random"], self.rng)
            self.order = None if own["order"] is None else np.asarray(own["order"])


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def finite(pipeline: Pipeline) -> bool:
    """Whether everything that learns is still a number."""
    return all(bool(torch.isfinite(p).all()) for p in pipeline.parameters() if p.requires_grad)
