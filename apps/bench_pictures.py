"""The pictures of `polysense bench`: speed-ups as bars, and the time of mixers over the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.apps.bench_race import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = "#2a6f97"
THEIRS = "#b8c4cc"
INK = "#222222"
LENGTHS = "lengths"  # the case that is drawn as curves
OWN = (
    "packed",
    "packed, onnx",
    "RMSNorm",
    "CRMSNorm",
    "8 merged",
    "16 merged",
    "blocked",
    "polysense",
    "onnx",
    "onnx-int8",
    "encoder",
    "sigmoid triton",
    "softmax triton",
)


def draw(rows: Sequence[Row], facts: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes `bench.png` and `lengths.png`, as far as there is something to show."""
    bars = [row for row in rows if row.case != LENGTHS]
    curves = [row for row in rows if row.case == LENGTHS and not row.note]
    paths = []
    for name, figure in (("bench.png", _bars(bars, facts) if bars else None),
                         ("lengths.png", _curves(curves, facts) if curves else None)):  # fmt: skip
        if figure is not None:
            figure.savefig(out / name, dpi=110)
            paths.append(out / name)
    return paths


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _bars(rows: Sequence[Row], facts: Mapping[str, Any]) -> Figure:
    """One group of bars a race: each contestant's speed-up over the first, with quartiles and a mark at the aim."""
    races: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        races.setdefault((row.case, row.setting), []).append(row)
    figure = _figure(10, 1.4 + 0.26 * len(rows) + 0.42 * len(races))
    axes = figure.add_subplot()
    axes.axvline(1, color=INK, linewidth=0.8, zorder=1)
    y, names = 0.0, {}
    for (case, setting), group in races.items():
        axes.text(0.01, y, f"{case}  ·  {setting}", transform=axes.get_yaxis_transform(), fontsize=8.5, weight="bold",
                  color=INK, va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        for i, row in enumerate(group, 1):
            _bar(axes, y + i, row)
            names[y + i] = row.contestant
        y += len(group) + 1.6
    _scale(axes, rows)
    axes.set_ylim(y - 0.4, -0.8)
    axes.set_yticks(list(names), list(names.values()), fontsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("speed-up over the first of each group (median; line: quartiles; triangle: what is aimed at)",
                    fontsize=8.5)  # fmt: skip
    _caption(figure, "Side by side on this machine", facts)
    return figure


def _bar(axes: Axes, y: float, row: Row) -> None:
    if not math.isnan(row.wanted):
        axes.plot(row.wanted, y + 0.42, marker="^", color="#c8553d", markersize=5, zorder=4)
    if row.note:
        axes.text(1.06, y, row.note, fontsize=7.5, color="#888888", va="center")
        return
    if not math.isnan(row.speedup):
        axes.barh(y, row.speedup - 1, left=1, height=0.74, color=OURS if row.contestant in OWN else THEIRS, zorder=2)
        axes.plot([row.speedup_q1, row.speedup_q3], [y, y], color=INK, linewidth=1.2, zorder=3)
    alone = row.contestant == row.baseline or math.isnan(row.speedup)
    text = milliseconds(row.ms) if alone else f"{row.speedup:.2f}×   {milliseconds(row.ms)}"
    end = 1.0 if math.isnan(row.speedup) else max(row.speedup, row.speedup_q3, 1)
    axes.text(end * 1.06, y, text, fontsize=7.5, color=INK, va="center")


def _scale(axes: Axes, rows: Sequence[Row]) -> None:
    """From the slowest to the fastest, with room for the words at the bars' ends."""
    measured = [row for row in rows if not math.isnan(row.speedup)]
    low = min([row.speedup_q1 for row in measured] + [row.wanted for row in rows if not math.isnan(row.wanted)] + [0.5])
    high = max([row.speedup_q3 for row in measured] + [4.0])
    axes.set_xscale("log")
    axes.set_xlim(low / 1.2, high * 3)
    ticks = [2.0**i for i in range(math.ceil(math.log2(low / 1.2)), math.floor(math.log2(high)) + 1)]
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks], fontsize=8)
    axes.minorticks_off()


def _curves(rows: Sequence[Row], facts: Mapping[str, Any]) -> Figure:
    """Time over tokens, both logarithmic; the exponent of each mixer's growth stands at its curve's end."""
    from matplotlib import colormaps

    figure = _figure(8.5, 5.6)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(mixer_of(row) for row in rows))
    ends = []
    for i, name in enumerate(names):
        points = [(tokens_of(row), row) for row in rows if mixer_of(row) == name]
        n, ms = [p for p, _ in points], [row.ms for _, row in points]
        colour = colormaps["tab10"](i % 10)
        axes.fill_between(n, [r.ms_q1 for _, r in points], [r.ms_q3 for _, r in points], color=colour, alpha=0.2)
        axes.plot(n, ms, color=colour, marker="o", markersize=3.5, linewidth=1.6)
        late = slice(len(n) // 2 if len(n) > 3 else 0, None)
        power = float(np.polyfit(np.log(n[late]), np.log(ms[late]), 1)[0]) if len(n) > 1 else math.nan
        ends.append((n[-1], ms[-1], f"{name}  n^{power:.2f}", colour))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda ms, _: f"{ms:g}")
    places = sorted({end[0] for end in ends} | {tokens_of(row) for row in rows})
    axes.set_xticks(places, [f"{n:,}" for n in places], fontsize=8)
    axes.set_xlim(places[0] * 0.9, places[-1] * 2.6)
    _labels(axes, ends)
    axes.set_xlabel("tokens of one sequence (width 192)", fontsize=9)
    axes.set_ylabel("ms (median; band: quartiles)", fontsize=9)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)
    _caption(figure, "How the time of token mixers grows", facts)
    return figure


def mixer_of(row: Row) -> str:
    """ "linear, 4096 tokens" -> "linear"."""
    return row.contestant.rpartition(", ")[0]


def tokens_of(row: Row) -> int:
    return int(row.contestant.rpartition(", ")[2].split()[0])


def milliseconds(ms: float) -> str:
    """Three digits, never a power of ten."""
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def _labels(axes: Axes, ends: list[tuple[int, float, str, Any]]) -> None:
    """Names beside the curves' ends, moved apart where they would overlap."""
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    gap = (high - low) * 0.035
    for place in {end[0] for end in ends}:
        last = -math.inf
        for n, ms, text, colour in sorted((end for end in ends if end[0] == place), key=lambda end: end[1]):
            height = max(math.log10(ms), last + gap)
            axes.text(n * 1.12, 10**height, text, fontsize=8, color=colour, va="center")
            last = height


def _caption(figure: Figure, title: str, facts: Mapping[str, Any]) -> None:
    words = (f"{facts['machine']}; GPU {facts['gpu']}; threads {facts['threads']}, load {facts['load']}; "
             f"torch {facts['torch']}; {facts['date']}")  # fmt: skip
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold")
    figure.axes[0].set_title(words, loc="left", fontsize=7.5, color="#666666")
