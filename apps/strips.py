"""Pictures of series: one strip for each variate, on one axis where they are of one series.

Shape legend: t steps of a series.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from polysense.apps.panels import GREY, INK, few_dates, plain, split
from polysense.apps.pictures import SIZE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from polysense.data.time_series import SeriesFrame

STRIPS = 4  # variates drawn


@contextmanager
def strips_of(
    pairs: Sequence[tuple[SeriesFrame, int]], total: int, title: str, words: str, file: str | Path | IO[bytes]
) -> Iterator[Sequence[Axes]]:
    """A picture of one strip for each variate, to be drawn into inside the `with`; it is written in the end.

    Args:
        pairs: Series and number of each variate.
        total: Variates that there are.
        title: First line.
        words: Second line.
        file: Path, or file open for bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = SIZE[1] * (0.75 + 0.25 * len(pairs))
    figure = Figure(figsize=(SIZE[0], height), dpi=100, facecolor="white",
                    layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))  # fmt: skip
    FigureCanvasAgg(figure)
    top, body = split(figure, 2, 1, height_ratios=(1, 1.5 * height))
    title = title if len(title) <= 66 else title[:65] + "…"
    top.text(0.012, 0.60, plain(title), fontsize=17, weight="bold", color=INK, va="center")
    top.text(0.012, 0.02, words, fontsize=11, color=GREY, va="center")
    one_axis = len({frame.source for frame, _ in pairs}) == 1
    strips = list(body.subplots(len(pairs), 1, sharex=one_axis, squeeze=False)[:, 0])
    yield strips
    for number, (axes, (frame, i)) in enumerate(zip(strips, pairs)):
        axes.set_ylabel(plain(variate_name(frame.source, frame.names[i]))[:16], color=INK, fontsize=11)
        if not one_axis or number + 1 == len(pairs):
            few_dates(axes, frame.times is not None)
    _legend(strips[0])
    if total > len(pairs):
        strips[-1].set_xlabel(f"{len(pairs)} of {total} variates", color=GREY)
    figure.savefig(file, format="png")


def _legend(axes: Axes) -> None:
    """Above the strip; inner bands, which lie over outer ones, as dark as there."""
    from matplotlib.patches import Rectangle

    count = len(axes.get_legend_handles_labels()[0])
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=count, frameon=False, fontsize=10,
                         labelcolor=INK, borderaxespad=0.2)  # fmt: skip
    for depth, patch in enumerate(handle for handle in legend.legend_handles if isinstance(handle, Rectangle)):
        patch.set_alpha(0.2 * (depth + 1))


def rows_of(table: pd.DataFrame, frame: SeriesFrame, i: int) -> pd.DataFrame:
    """What a table of results says of a series' variate `i`."""
    return table[(table["source"] == frame.source) & (table["variate"] == frame.names[i])]


def shown_times(times: np.ndarray | None, rows: pd.DataFrame, t: int) -> np.ndarray:
    """The whole series' axis: row numbers, or times as a clock of the forecasts' zone shows them."""
    import pandas as pd

    if times is None:
        return np.arange(t)
    zone = rows["time"].dt.tz
    index = pd.DatetimeIndex(times)
    return (index if zone is None else index.tz_localize("UTC").tz_convert(zone).tz_localize(None)).to_numpy()


def variate_name(source: str, variate: str) -> str:
    """A variate's name, with the series' number or id where a file holds several: "#3 load"."""
    path, sign, series = source.rpartition("#")
    return variate if not sign or not path or series == variate else f"#{series} {variate}"
