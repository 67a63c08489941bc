"""Columns of a table that are no variates: known ahead, constant in a series, or naming the series of a long table.

Shape legend: t steps of a series, u steps that covariates are given for (u ≥ t), c variates, k covariates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polysense.core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from polysense.data.time_series import SeriesFrame

CALENDAR = "calendar"  # among `known`: hour, weekday and season of the steps themselves, which no column must hold


@dataclass(frozen=True, slots=True)
class Roles:
    """Which columns are what.

    Attributes:
        known: Columns whose future is known: they are given for the steps to forecast too.
        static: Columns that are constant in a series.
        series: The column of a long table that says which series a row belongs to.
    """

    known: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    series: str | None = None

    @property
    def plain(self) -> bool:
        """Whether every column is a variate (or the time)."""
        return not self.columns and self.series is None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a table must hold; "calendar" is one only where a table has it."""
        return tuple(name for name in (*self.known, *self.static) if name != CALENDAR)

    def beside(self, present: Sequence[str]) -> list[str]:
        """All of the columns present that are no variates."""
        named = {*self.known, *self.static, self.series}
        return [name for name in present if name in named]

    def covariates(self, present: Sequence[str]) -> list[str]:
        """The columns of `known`, "calendar" among them where there is a column of that name."""
        return [name for name in self.known if name != CALENDAR or name in present]


PLAIN = Roles()


def tables_of(name: str, table: pd.DataFrame, series: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """The series of a long table with their names ("sales.csv#store 7"), in order of appearance; or the table itself.

    Raises:
        InputError: There is no column `series`, or it is empty.
    """
    if series is None:
        yield name, table
        return
    if series not in table.columns:
        present = ", ".join(map(str, table.columns[:20]))
        raise InputError(name, f"it has no column {series!r}", f"name one of: {present}")
    groups = list(table.groupby(series, sort=False, observed=True))
    if not groups:
        raise InputError(name, f"its column {series!r} is empty", "name the series of each row")
    for key, part in groups:
        yield f"{name}#{key}", part.drop(columns=series)


def statics_of(name: str, table: pd.DataFrame, columns: Sequence[str]) -> dict[str, float | str]:
    """The one value of each column that is constant in a series: a number, or a word; nothing where it is missing.

    Raises:
        InputError: A column holds several values.
    """
    import pandas as pd

    found: dict[str, float | str] = {}
    for column in columns:
        values = table[column].dropna().unique()
        if len(values) > 1:
            raise InputError(name, f"its column {column!r} changes, so it is no static feature",
                             "give it as known, where its future is known too, or leave it out")  # fmt: skip
        if len(values):
            found[column] = float(values[0]) if pd.api.types.is_numeric_dtype(table[column]) else str(values[0])
    return found


def apart(frame: SeriesFrame, covariates: Sequence[str], static: dict[str, float | str]) -> SeriesFrame:
    """A frame of variates and covariates -> its variates up to their last known value, the covariates beside them.

    Rows after the last known value of all variates are the future.
    """
    is_known = np.isin(frame.names, list(covariates))
    values, known = frame.values[:, ~is_known], frame.values[:, is_known]
    seen = np.isfinite(values).any(1)
    last = len(seen) - int(seen[::-1].argmax()) if seen.any() else 0
    order = [name for name in frame.names if name in covariates]
    return replace(
        frame, values=values[:last], names=[name for name in frame.names if name not in covariates],
        times=None if frame.times is None else frame.times[:last],
        known=np.where(np.isfinite(known), known, np.nan) if order else None, known_names=tuple(order), static=static,
    )  # fmt: skip


def roles_of(config: Any) -> Roles:
    """The roles that a configuration or options with these fields give."""
    return Roles(tuple(config.known), tuple(config.static), config.series)
