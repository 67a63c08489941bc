"""Joint pretraining of the encoder and the tokenizers: a batch of every sense a step, on any number of devices.

Sampling rule: every step takes one batch of each stream (`batch_size` of it) and minimises the sum of all losses, so a
sense counts by its batch and its losses' weights, never by the size of its data. What is drawn depends on the seed and
the step alone: a run that was killed and resumed equals one that was not.

An encoder that starts as the identity begins with all that the front parts know and adds to it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from polysense.backbone.encoder import Encoder
from polysense.backbone.weights import save_encoder
from polysense.core.errors import InputError
from polysense.training.compute import share_gradients, start
from polysense.training.pretrain_log import TrainingLog
from polysense.training.pretrain_optim import PretrainConfig, clip, make_optimiser, scaled, set_rate
from polysense.training.pretrain_streams import Stream

__all__ = ["PretrainConfig", "export", "pretrain"]
Key = tuple[int, int, int, int]  # seed, step, batch of the step, process: what a draw depends on


def pretrain(
    encoder: Encoder,
    streams: Sequence[Stream],
    config: PretrainConfig,
    out: Path,
    device: str | None = None,
    watch: Callable[[int, Mapping[str, float]], None] | None = None,
) -> None:
    """Trains, writing `out/state.pt` (to resume from), `out/log.csv` and, at the end, `out/weights`.

    An existing `out/state.pt` is resumed at its step. Parameters to which a stream gives a learning-rate factor of 0
    (`Stream.lr_scale`; frozen front parts) stay as they are. Under `accelerate launch` or torchrun every process takes
    batches of its own and gradients are averaged.

    Args:
        encoder: Trained in place; holds the averaged weights afterwards.
        streams: The senses.
        config: How long and how fast.
        out: Folder of the run.
        device: "cpu" keeps a GPU out of it; None takes what accelerate finds.
        watch: Called after each step with its number and losses, in the main process.

    Raises:
        InputError: A loss is no longer a number, or the state in `out` is of other parts than these.
    """
    accelerator = start(config.precision, device)
    torch.manual_seed(config.seed)
    model = nn.ModuleDict({"encoder": encoder, **{stream.name: stream for stream in streams}}).to(accelerator.device)
    chosen = _trained(model, streams)
    parameters = [parameter for parameter, _ in chosen]
    optimiser = accelerator.prepare_optimizer(make_optimiser(chosen, config))
    average = {name: value.clone() for name, value in model.state_dict().items()}
    first = _resume(out / "state.pt", model, optimiser, average, accelerator)
    log = TrainingLog(out, first) if accelerator.is_main_process else None
    for stream in streams:
        begin: Any = getattr(stream, "begin", None)
        if begin is not None:
            begin(_keys(config, first, accelerator.process_index), config.workers)
    started = time.perf_counter()
    encoder.train()
    for step in range(first, config.steps):
        set_rate(optimiser, step, config)
        torch.manual_seed(config.seed + 7919 * step + accelerator.process_index)
        optimiser.zero_grad(set_to_none=True)
        report = _gradients(encoder, streams, config, step, accelerator)
        _check(report, step)
        share_gradients(accelerator, parameters)
        accelerator.unscale_gradients(optimiser)
        clip(parameters, config)
        optimiser.step()
        _update(average, model, min(config.average, (1 + step) / (10 + step)))
        if log is not None:
            log.write(step, time.perf_counter() - started, report)
            if watch is not None:
                watch(step, report)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                scaler = {} if accelerator.scaler is None else accelerator.scaler.state_dict()
                _save(out / "state.pt", {"step": step + 1, "model": model.state_dict(), "average": average,
                                         "optimiser": optimiser.state_dict(), "scaler": scaler})  # fmt: skip
    model.load_state_dict(average)
    if log is not None:
        log.close()
        export(encoder, streams, out / "weights")
    accelerator.wait_for_everyone()


def _gradients(
    encoder: Encoder, streams: Sequence[Stream], config: PretrainConfig, step: int, accelerator: Any
) -> dict[str, float]:
    """Adds up the gradients of all streams over the step's batches; returns the mean losses and the streams' notes."""
    report: dict[str, float] = {}
    for key in _keys(config, step, accelerator.process_index, step + 1):
        rng = np.random.default_rng(key)
        for stream in streams:
            with accelerator.autocast():
                losses = stream.loss(encoder, rng)
            accelerator.backward(scaled(losses, 1 / config.accumulate))
            found = {name: float(value.detach()) for name, value in losses.items()} | getattr(stream, "notes", {})
            for name, value in found.items():
                name = f"{stream.name}/{name}"
                report[name] = report.get(name, 0.0) + value / config.accumulate
    return report


def _keys(config: PretrainConfig, first: int, process: int, end: int | None = None) -> Iterator[Key]:
    """One key for each batch from step `first` on."""
    for step in range(first, config.steps if end is None else end):
        for batch in range(config.accumulate):
            yield (config.seed, step, batch, process)


def _trained(model: nn.ModuleDict, streams: Sequence[Stream]) -> list[tuple[nn.Parameter, float]]:
    """Parameters that learn, each with the factor of its learning rate; the others are frozen."""
    by_name = {stream.name: stream for stream in streams}
    chosen = []
    for name, parameter in model.named_parameters():
        stream, _, own = name.partition(".")
        scale = 1.0 if stream == "encoder" else _scale(by_name[stream], own)
        if scale == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            chosen.append((parameter, scale))
    return chosen


def _scale(stream: Stream, name: str) -> float:
    own: Any = getattr(stream, "lr_scale", None)
    if own is not None:
        return float(own(name))
    return 0.0 if ".stem." in name and "series" not in stream.name else 1.0


def _check(report: dict[str, float], step: int) -> None:
    for name, value in report.items():
        if not math.isfinite(value):
            fix = "lower lr or clip_at, or lengthen warmup; state.pt holds the last good step"
            raise InputError(f"step {step}", f"the loss {name} is {value}", fix)


@torch.no_grad()
def _update(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


def _resume(path: Path, model: nn.Module, optimiser: Any, average: dict[str, torch.Tensor], accelerator: Any) -> int:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        return 0
    device = accelerator.device
    # Several processes on CPUs have devices such as cpu:0, which torch.load does not know.
    state = torch.load(path, weights_only=True, map_location="cpu" if device.type == "cpu" else device)
    try:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, ValueError) as error:
        fix = "choose another folder, or delete it to begin anew"
        raise InputError(path, "it is the state of a training with other parts", fix) from error
    average.update(state["average"])
    if accelerator.scaler is not None and state.get("scaler"):
        accelerator.scaler.load_state_dict(state["scaler"])
    return int(state["step"])


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def export(encoder: Encoder, streams: Sequence[Stream], out: Path) -> None:
    """Writes encoder and tokenizers in half precision, as they ship."""
    from safetensors.torch import save_file

    save_encoder(encoder, out / "encoder.safetensors", torch.float16)
    folder = out / "tokenizers"
    folder.mkdir(parents=True, exist_ok=True)
    for stream in streams:
        tokenizer = getattr(stream, "shipped", None if stream.name == "tabular" else stream.tokenizer)
        if tokenizer is None:  # several tables: each brings its own columns
            continue
        state = {name: value.half().cpu().contiguous() for name, value in tokenizer.state_dict().items()}
        told = {"config": json.dumps(getattr(stream, "saved", {}))}
        save_file(state, folder / f"{stream.name}.safetensors", told)
