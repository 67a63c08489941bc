"""Joint pretraining of the encoder and the default tokenizers: one batch of every sense a step.

The encoder starts as the identity, so that it begins with all that the front parts know and adds to it.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from polysense.backbone.encoder import Encoder
from polysense.backbone.weights import save_encoder
from polysense.training.pretrain_streams import Stream


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """How long and how fast."""

    steps: int = 800
    lr: float = 1e-3  # peak; warmed up, then a cosine
    warmup: int = 50  # steps
    weight_decay: float = 0.05
    average: float = 0.995  # decay of the exponential moving average of weights, which is what ships
    save_every: int = 50  # steps between checkpoints
    seed: int = 0


def pretrain(encoder: Encoder, streams: Sequence[Stream], config: PretrainConfig, out: Path) -> None:
    """Trains, writing `out/state.pt` (to resume from), `out/log.csv` and, at the end, the shipped files.

    An existing `out/state.pt` is resumed at its step. Frozen front parts (`stem`) stay as they are.
    """
    torch.manual_seed(config.seed)
    model = nn.ModuleDict({"encoder": encoder, **{stream.name: stream for stream in streams}})
    for name, parameter in model.named_parameters():
        if ".stem." in name and "series" not in name:
            parameter.requires_grad_(False)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        [{"params": [p for _, p in named if p.ndim > 1], "weight_decay": config.weight_decay},
         {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0}], lr=config.lr, betas=(0.9, 0.98),
    )  # fmt: skip
    average = {name: value.clone() for name, value in model.state_dict().items()}
    first = _resume(out / "state.pt", model, optimiser, average)
    started = time.perf_counter()
    encoder.train()
    for step in range(first, config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.lr * _schedule(step, config)
        rng = np.random.default_rng((config.seed, step))  # by step: a resumed run draws what the whole one would
        optimiser.zero_grad(set_to_none=True)
        report: dict[str, float] = {}
        for stream in streams:
            losses = stream.loss(encoder, rng)
            torch.stack(list(losses.values())).sum().backward()
            report |= {f"{stream.name}/{key}": float(value.detach()) for key, value in losses.items()}
        nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimiser.step()
        _update(average, model, min(config.average, (1 + step) / (10 + step)))
        _log(out / "log.csv", step, time.perf_counter() - started, report)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            _save(out / "state.pt", {"step": step + 1, "model": model.state_dict(), "average": average,
                                     "optimiser": optimiser.state_dict()})  # fmt: skip
    model.load_state_dict(average)
    export(encoder, streams, out / "weights")


def _schedule(step: int, config: PretrainConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def _update(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


def _resume(path: Path, model: nn.Module, optimiser: Any, average: dict[str, torch.Tensor]) -> int:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    average.update(state["average"])
    return int(state["step"])


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _log(path: Path, step: int, seconds: float, report: dict[str, float]) -> None:
    """One row a step and loss: long form, so that streams may have losses that come and go."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "seconds", "loss", "value"])
        writer.writerows([step, f"{seconds:.1f}", name, f"{value:.5f}"] for name, value in sorted(report.items()))


def export(encoder: Encoder, streams: Sequence[Stream], out: Path) -> None:
    """Writes encoder and tokenizers in half precision, as they ship."""
    from safetensors.torch import save_file

    save_encoder(encoder, out / "encoder.safetensors", torch.float16)
    folder = out / "tokenizers"
    folder.mkdir(parents=True, exist_ok=True)
    for stream in streams:
        if stream.name == "tabular":  # every table brings its own columns
            continue
        state = {name: value.half().contiguous() for name, value in stream.tokenizer.state_dict().items()}
        save_file(state, folder / f"{stream.name}.safetensors")
        if stream.name == "image":  # clips begin with what pictures taught: the same stem and projection
            shared = {name: value for name, value in state.items() if name.startswith(("stem.", "project."))}
            save_file(shared, folder / "video.safetensors")
