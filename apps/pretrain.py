"""`polysense pretrain`: what will be read, the training, and what it wrote, on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from polysense.apps.inputs import choose_device
from polysense.core.errors import InputError


def pretrain(
    config: Path,
    out: Path | None,
    *,
    suggest: bool = False,
    device: str = "auto",
    threads: int | None = None,
    quiet: bool = False,
) -> None:
    """Trains an encoder and tokenizers as a configuration says, or prints what the step law suggests for it."""
    if out is None and not suggest:
        raise InputError("--out", "the folder of the run is not named", "give --out DIR")
    from polysense.training.pretrain_config import read_plan
    from polysense.training.pretrain_run import build_run, describe, run_plan
    from polysense.training.progress import Progress

    where = choose_device(device, threads)
    if ":" in where:
        raise InputError(f"device {where}", "one of several GPUs cannot be named here", "set CUDA_VISIBLE_DEVICES")
    plan = read_plan(config)
    run = build_run(plan)
    progress = Progress(not quiet)
    for line in describe(run):
        progress.say(line)
    if suggest:
        print_suggestion(run)
        return
    assert out is not None
    steps = plan.training.steps

    def watch(step: int, losses: Mapping[str, float]) -> None:
        progress.step(0, step, steps, sum(losses.values()))
        if (step + 1) % plan.training.save_every == 0:
            shown = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
            progress.say(f"step {step + 1}/{steps}: {shown}")

    run_plan(run, out, "cpu" if where == "cpu" else None, watch)
    console = Console()
    console.print(f"Weights and card: {out / 'weights'}; losses: {out / 'log.csv'}", highlight=False)
    use = f"polysense fit TASK DATA --out BUNDLE --encoder file:{out / 'weights' / 'encoder.safetensors'}"
    console.print(f"Use it: {use}", style="bold", highlight=False, soft_wrap=True)


def print_suggestion(run: Any) -> None:
    """The step law beside what the configuration says."""
    from polysense.training.pretrain_optim import steps_for
    from polysense.training.pretrain_run import suggest

    law, batch, size = suggest(run)
    training, say = run.plan.training, Console().print
    tokens = batch * training.steps
    say(f"{size / 1e6:.2f}M parameters, {batch:,} tokens a step, {tokens:,} tokens in all.", highlight=False,
        soft_wrap=True)  # fmt: skip
    say(f"Step law: learning rate {law.lr:.2e} (now {training.lr:.2e}); batch {law.batch_tokens:,.0f} tokens, "
        f"{law.batch_tokens / batch:.2f} of the present one, so {steps_for(batch, law, training.steps):,} steps.",
        highlight=False, soft_wrap=True)  # fmt: skip
    say("It was fitted on language models of up to a billion parameters (Li et al. 2025): a place to begin, to be "
        "checked by a few short runs.", highlight=False, soft_wrap=True)  # fmt: skip
