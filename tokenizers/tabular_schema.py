"""What a table's columns are, learned once from training data: kinds, scales, bins and categories.

Shape legend: n rows, c columns of one kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from polysense.core.errors import InputError
from polysense.data.table import parse_dates

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "category", "date", "boolean", "ignored"]
KINDS = ("number", "category", "date", "boolean", "ignored")
MAX_CATEGORIES = 64
DAY = 86_400.0  # seconds
TRUE, FALSE = ("true", "1", "yes", "t", "y"), ("false", "0", "no", "f", "n")


@dataclass(frozen=True)
class Column:
    """One column as training saw it; plain values, for JSON."""

    name: str
    kind: Kind
    mean: float = 0.0  # of numbers, and of dates in days since 1970
    std: float = 1.0
    edges: tuple[float, ...] = ()  # ascending quantiles between which numbers and dates are encoded
    categories: tuple[str, ...] = ()  # most frequent first; every other value is "unseen"

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(self.edges))  # lists after JSON
        object.__setattr__(self, "categories", tuple(self.categories))
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r} of column {self.name!r}; choose one of: {', '.join(KINDS)}")


def as_column(value: Column | Mapping[str, Any]) -> Column:
    return value if isinstance(value, Column) else Column(**value)


def infer_columns(frame: pd.DataFrame, targets: Iterable[str], bins: int) -> tuple[Column, ...]:
    """The schema of a training table, without its targets.

    Raises:
        InputError: No column says anything.
    """
    excluded = set(targets)
    columns = tuple(infer_column(str(c), frame[c], bins) for c in frame.columns if c not in excluded)
    if all(column.kind == "ignored" for column in columns):
        fix = "give a table with numbers, dates or categories beside the target"
        raise InputError("<training table>", "no column can be used as an input", fix)
    return columns


def infer_column(name: str, values: pd.Series, bins: int) -> Column:
    """Kind and statistics of one column.

    Ignored are columns without any value, texts that hardly ever repeat (names, identifiers) and row numbers.
    """
    import pandas as pd

    present = values.dropna()
    if present.empty:
        return Column(name, "ignored")
    if pd.api.types.is_bool_dtype(values.dtype):
        return Column(name, "boolean", categories=("false", "true"))
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return _scaled(name, "date", to_days(values), bins)
    if pd.api.types.is_numeric_dtype(values.dtype):
        numbers = to_numbers(values, name, name)
        counts_rows = len(numbers) > 20 and np.array_equal(numbers, numbers[0] + np.arange(len(numbers)))
        return Column(name, "ignored") if counts_rows else _scaled(name, "number", numbers, bins)
    counts = as_text(values).value_counts()  # most frequent first
    if len(counts) > max(20, len(present) // 2):
        return Column(name, "ignored")
    # Ties in the order of appearance would make the numbering depend on the rows' order.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
    return Column(name, "category", categories=tuple(str(value) for value, _ in ranked[:MAX_CATEGORIES]))


def _scaled(name: str, kind: Kind, numbers: Float[np.ndarray, " n"], bins: int) -> Column:
    finite = numbers[np.isfinite(numbers)]
    if len(finite) == 0:
        return Column(name, "ignored")
    edges = bin_edges(finite, bins)
    std = float(finite.std())
    std = std if std > 1e-12 * max(1.0, float(np.abs(finite).max())) else 1.0
    return Column(name, kind, float(finite.mean()), std, tuple(edges.tolist()) if len(edges) > 1 else ())


def bin_edges(numbers: Float[np.ndarray, " n"], bins: int) -> Float[np.ndarray, " t"]:
    """At most bins + 1 ascending quantiles. Where most values are one (mostly 0, say), quantiles fall together: the
    places that this leaves free go to quantiles of the distinct values, so that the rare ones are told apart.
    """
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, bins + 1)))
    free = bins + 1 - len(edges)
    return np.union1d(edges, np.quantile(np.unique(numbers), np.linspace(0, 1, free + 2)[1:-1])) if free else edges


def as_text(values: pd.Series) -> pd.Series:
    """Category names as they are compared: 1, 1.0 and "1" are one, missing stays missing."""
    import pandas as pd

    if pd.api.types.is_float_dtype(values.dtype):
        whole = values.dropna()
        values = values.astype("Int64") if (whole == whole.round()).all() and (whole.abs() < 2**53).all() else values
    return values.astype("str").str.strip().mask(values.isna())


def to_numbers(values: pd.Series, name: str, source: object) -> Float[np.ndarray, " n"]:
    """float64, NaN where missing or infinite.

    Raises:
        InputError: A value that is there is no number.
    """
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce").astype("Float64")
    _require_all(values, numbers, name, "number", source)
    result = numbers.to_numpy(np.float64, na_value=np.nan)
    return np.where(np.isfinite(result), result, np.nan)


def to_dates(values: pd.Series, name: str, source: object) -> pd.Series:
    """datetime64, NaT where missing.

    Raises:
        InputError: A value that is there is no date.
    """
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return values
    text = values.where(values.isna(), values.astype("str"))
    dates = parse_dates(text)
    if dates is None:
        dates = pd.to_datetime(text, errors="coerce", format="ISO8601", utc=True).dt.tz_localize(None)
        _require_all(values, dates, name, "date", source)
    return dates


def to_days(dates: pd.Series) -> Float[np.ndarray, " n"]:
    """Days since 1970, NaN where missing."""
    epoch = np.datetime64("1970-01-01")
    return (dates.to_numpy("datetime64[ns]") - epoch) / np.timedelta64(1, "D")


def date_cycles(dates: pd.Series) -> Float[np.ndarray, "n 6"]:
    """Sine and cosine of the place in the year (by months), the week and the day; zero where missing."""
    hours = dates.dt.hour + dates.dt.minute / 60
    turns = np.stack([(dates.dt.month - 1) / 12, dates.dt.weekday / 7, hours / 24], 1).astype(np.float64) * 2 * np.pi
    return np.nan_to_num(np.stack([np.sin(turns), np.cos(turns)], -1).reshape(len(dates), 6))


def to_codes(values: pd.Series, column: Column, source: object) -> Int[np.ndarray, " n"]:
    """0 missing, 1 unseen, 2 … the categories in order."""
    text = as_text(values)
    if column.kind == "boolean":
        low = text.astype("str").str.lower()
        text = low.mask(low.isin(TRUE), "true").mask(low.isin(FALSE), "false").where(values.notna())
    known = {category: i + 2 for i, category in enumerate(column.categories)}
    codes = text.map(known).to_numpy(np.float64, na_value=np.nan)
    return np.where(values.isna(), 0, np.where(np.isnan(codes), 1, codes)).astype(np.int64)


def _require_all(values: pd.Series, parsed: pd.Series, name: str, what: str, source: object) -> None:
    wrong = (parsed.isna() & values.notna()).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        problem = f"column {name!r} holds {values.iloc[row]!r} in row {row}, which is no {what}"
        raise InputError(source, problem, f"write {what}s there, or leave the cell empty")


def match_columns(frame: pd.DataFrame, names: Sequence[str], targets: Iterable[str]) -> pd.DataFrame:
    """Names the columns of a file without header by their place in the training table, targets there or not."""
    inputs = [name for name in names if name not in set(targets)]
    for known in (names, inputs):
        if frame.shape[1] == len(known):
            return frame.set_axis(list(known), axis=1)
    return frame
