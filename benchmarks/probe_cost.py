"""What kept features and tokens save: `python benchmarks/probe_cost.py [CLIPS [EPOCHS]]`; some minutes.

Ten classes of generated sounds of five seconds, as in ESC-10: tones in noise, each class at its own pitch and rhythm.
Ratios are of one run, on one thread: a probe over twenty strengths against one pass through tokenizer and encoder; the
same fit again, with features from disk; and a LoRA fit whose tokenizer stays, with kept tokens and without.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.training import fit_phases
from polysense.training.fit import fit
from polysense.training.probe import GRID, pooled_features, probe
from polysense.training.sources import open_sources

CLASSES, SECONDS, RATE = 10, 5.0, 16_000
TASK = "audio-classification"


def make_sounds(folder: Path, clips: int) -> None:
    """Class folders of wav files."""
    rng, t = np.random.default_rng(0), np.arange(int(SECONDS * RATE)) / RATE
    for i in range(clips):
        number = i % CLASSES
        (folder / f"class_{number}").mkdir(parents=True, exist_ok=True)
        beat = np.sin(2 * np.pi * (1 + number % 3) * (t + rng.random())) > 0
        tone = np.sin(2 * np.pi * 200 * 1.4**number * rng.uniform(0.9, 1.1) * t) * beat
        wave = 0.1 * tone + 0.1 * rng.normal(size=len(t))
        soundfile.write(folder / f"class_{number}" / f"{i}.wav", wave, RATE)


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def time_probe(sounds: Path) -> tuple[float, float]:
    """One pass over both parts alone, and a probe over the grid, each from files that nobody has read."""
    sources = open_sources(TASKS[TASK], sounds).with_validation(0.15, 0)

    def parts() -> tuple[Pipeline, Any, Any]:
        pipeline = Pipeline.build(TASK, head=sources.head_options())
        return pipeline, *(sources.examples(pipeline.tokenizer, part) for part in ("train", "val"))

    pipeline, learning, validation = parts()
    once = seconds(lambda: [pooled_features(pipeline, part, 32) for part in (learning, validation)])
    pipeline, learning, validation = parts()
    return once, seconds(lambda: probe(pipeline, learning, validation, 32, GRID))


def time_fits(sounds: Path, folder: Path) -> tuple[float, float]:
    """A probe as people start it, the first time and again."""
    run = lambda: fit(TASK, sounds, folder / "probe", method="probe", progress=False)  # noqa: E731
    return seconds(run), seconds(run)


def time_adapter(sounds: Path, folder: Path, epochs: int, keep: bool) -> tuple[float, dict[str, float]]:
    """LoRA and head, with kept tokens or as it was without them."""
    usual = fit_phases.keep_tokens
    if not keep:
        fit_phases.keep_tokens = lambda pipeline, learning, watched, recipe: (pipeline, learning, watched)
    started = time.perf_counter()
    result = fit(TASK, sounds, folder / "lora", method="lora", train="head", epochs=epochs, patience=epochs,
                 progress=False)  # fmt: skip
    fit_phases.keep_tokens = usual
    return time.perf_counter() - started, result.metrics


def main(clips: int = 400, epochs: int = 10) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["POLYSENSE_CACHE"] = str(folder / "cache")
        make_sounds(folder / "sounds", clips)
        time_probe(folder / "sounds")  # warms what is loaded and allocated once
        once, grid = time_probe(folder / "sounds")
        print(f"{clips} clips: one pass {once:.1f} s; probe of {len(GRID)} settings {grid:.1f} s, x{grid / once:.2f}")
        first, again = time_fits(folder / "sounds", folder)
        print(f"fit --method probe {first:.1f} s; again {again:.1f} s, x{again / first:.2f}", flush=True)
        without, plain = time_adapter(folder / "sounds", folder, epochs, keep=False)
        kept, same = time_adapter(folder / "sounds", folder, epochs, keep=True)
        print(f"lora, {epochs} epochs: {without:.1f} s; with kept tokens {kept:.1f} s, x{kept / without:.2f}")
        print(f"validation log loss {plain['log_loss']:.4f} and {same['log_loss']:.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
