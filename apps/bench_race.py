"""Side by side: contestants take turns, round after round, so that a busy machine disturbs all alike.

A ratio is formed within each round and only then summed up; two medians of different minutes are never compared.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

LIBRARIES = ("polysense", "torch", "timm", "transformers", "onnxruntime", "open3d", "scipy", "fpsample")
LEAST_SECONDS = 2e-3  # a shorter run is repeated within its turn: the clock and the call would be measured with it
SLOW_ROUNDS = 3  # are enough of a race that takes more than five times its share
Run = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Race:
    """Ways to do one thing.

    Attributes:
        case: Name of the case that it belongs to.
        setting: Sizes ("768 × 12, 8 sequences").
        runs: Each contestant by name; the first is what the others are compared with. A string in place of a function
            says why it was not measured.
        wanted: What is aimed at: speed-up by contestant.
        same: Whether all give the same answer, so that a difference tells of rounding, or of a fault.
    """

    case: str
    setting: str
    runs: Mapping[str, Run | str]
    wanted: Mapping[str, float] | None = None
    same: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant of one race; NaN where it was not measured."""

    case: str
    setting: str
    contestant: str
    baseline: str  # the contestant that `speedup` compares with
    ms: float = math.nan  # median of a run
    ms_q1: float = math.nan
    ms_q3: float = math.nan
    speedup: float = math.nan  # median over rounds of baseline time / own time; above 1 is faster
    speedup_q1: float = math.nan
    speedup_q3: float = math.nan
    wanted: float = math.nan  # what is aimed at
    difference: float = math.nan  # largest, from the baseline's answer, as a share of its largest value
    rounds: int = 0
    note: str = ""  # "unmeasured: …"


@torch.inference_mode()
def run_race(race: Race, seconds: float, least: int = 5, most: int = 40) -> list[Row]:
    """Runs a race.

    Args:
        race: Who runs.
        seconds: Time that all rounds together take, about.
        least: Rounds at least.
        most: Rounds at most.
    """
    baseline = next(iter(race.runs))
    runs = {name: run for name, run in race.runs.items() if not isinstance(run, str)}
    answers = {name: run() for name, run in runs.items()}  # the first call plans, compiles and fills caches
    inner = {name: max(1, math.ceil(LEAST_SECONDS / _time(run, 1))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    start, order = time.perf_counter(), list(runs)
    for turn in range(most if runs else 0):
        for name in order:
            times[name].append(_time(runs[name], inner[name]))
        order = order[1:] + order[:1]  # who runs first finds other caches
        spent = time.perf_counter() - start
        if spent > seconds and (turn + 1 >= least or (turn + 1 >= SLOW_ROUNDS and spent > 5 * seconds)):
            break
    rows = []
    for name, run in race.runs.items():
        wanted = (race.wanted or {}).get(name, math.nan)
        if isinstance(run, str):
            rows.append(Row(race.case, race.setting, name, baseline, wanted=wanted, note=f"unmeasured: {run}"))
            continue
        own = 1000 * np.array(times[name])
        ratio = 1000 * np.array(times[baseline]) / own if baseline in times else np.full(3, math.nan)
        far = _difference(answers.get(baseline), answers[name]) if race.same else math.nan
        rows.append(Row(race.case, race.setting, name, baseline, *_middle(own), *_middle(ratio), wanted, far, len(own)))
    return rows


def _time(run: Run, repeats: int) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _middle(values: np.ndarray) -> tuple[float, float, float]:
    """Median and quartiles."""
    return float(np.median(values)), float(np.quantile(values, 0.25)), float(np.quantile(values, 0.75))


def _difference(one: Any, other: Any) -> float:
    """How far two answers are from one another; NaN for answers that are no tensors of one shape."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)) or one.shape != other.shape:
        return math.nan
    one, other = one.float().cpu(), other.float().cpu()
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))


def machine_facts() -> dict[str, str | int | float]:
    """What a figure is worthless without: the machine, how busy it was, when, and with which versions."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    facts: dict[str, str | int | float] = {
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cores": cores,  # that this process may use
        "threads": torch.get_num_threads(),
        "load": round(load, 2),  # processes that wanted a core in the last minute, as it began
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
    }
    return facts | {name: _version(name) for name in LIBRARIES}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"


def columns(facts: Iterable[str]) -> list[str]:
    """The CSV's header."""
    return [field.name for field in fields(Row)] + list(facts)
