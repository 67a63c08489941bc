"""Point clouds as text: a line of numbers per point, by pandas' C parser (ten million points in seconds).

Shape legend: n points, c columns.
"""

from __future__ import annotations

import io
import math
import re
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polysense.core.errors import InputError
from polysense.data.limits import check
from polysense.data.point_cloud_columns import features_of_columns, features_of_names

NUMBERS = "give one point per line: x y z and up to four further numbers"


class Layout(NamedTuple):
    """What the first lines of a text cloud say."""

    skip: int  # lines before the first point
    points: int | None  # number of points, where a line says it (.pts)
    names: list[str]  # of the columns, where a line says them
    delimiter: str


def read_numbers(
    data: bytes, name: str, *, skip: int = 0, rows: int | None = None, delimiter: str = r"\s+"
) -> Float[np.ndarray, "n c"]:
    """Lines of numbers -> float64 array; text columns after the third (class names) are left out.

    Raises:
        InputError: The lines are ragged, cut short or not numbers, or fewer than `rows`.
    """
    import pandas as pd

    lines = islice(io.BytesIO(data), skip, None)
    first = next((line for line in lines if line.strip() and not line.startswith(b"#")), b"")
    points = min(data.count(b"\n") + (not data.endswith(b"\n")) - skip, rows or math.inf)
    check("points", points, name)
    check("cells", points * len(re.split(delimiter.encode(), first.strip())), name)  # short lines are filled up
    try:
        frame = pd.read_csv(io.BytesIO(data), sep=delimiter, header=None, skiprows=skip, nrows=rows, comment="#",
                            skipinitialspace=True, low_memory=False, encoding="latin-1")  # fmt: skip
    except pd.errors.EmptyDataError:
        raise InputError(name, "the file holds no points", "export the cloud again") from None
    except (pd.errors.ParserError, ValueError, OverflowError) as error:
        detail = str(error).strip().splitlines()[-1].removeprefix("Error tokenizing data. C error: ")
        raise InputError(name, f"the lines are not points ({detail})", NUMBERS) from error
    if rows is not None and len(frame) < rows:
        raise InputError(name, f"the file is truncated: {len(frame)} of {rows} points", "copy or export it again")
    text = [i for i in frame.columns if frame[i].dtype.kind not in "fiu"]
    if frame.shape[1] < 3 or any(i in text for i in range(3)):
        raise InputError(name, "the lines are not three or more numbers each", NUMBERS)
    values = frame.drop(columns=text).to_numpy(np.float64)
    if np.isnan(values[-1, -1]) and not np.isnan(values[:-1, -1]).any() and b"nan" not in data[-200:].lower():
        raise InputError(name, "the last line is cut short", "copy or export the file again")
    return values


def layout_of(data: bytes, name: str) -> Layout:
    """Looks for the first line of numbers, and at what stands above it."""
    lines = data[:65_536].decode("latin-1").splitlines()
    count, names = None, ""
    for i, line in enumerate(lines):
        text = line.strip()
        fields = [f for f in re.split(r"[,;\s]+", text) if f]
        if not text or text.startswith("#"):
            names = names or text.lstrip("# ")
        elif len(fields) == 1 and text.isdigit() and count is None:
            count = int(text)
        elif _is_number(fields[0]):
            delimiter = "," if "," in text else ";" if ";" in text else r"\s+"
            columns = [f for f in re.split(r"[,;\s]+", names.strip()) if f]
            return Layout(i, count, columns if len(columns) == len(fields) else [], delimiter)
        else:
            names = text.lstrip("/ ")
    raise InputError(name, "no line of numbers was found", NUMBERS)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def decode_text(data: bytes, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """xyz, pts, txt, asc, csv: coordinates and features."""
    layout = layout_of(data, name)
    values = read_numbers(data, name, skip=layout.skip, delimiter=layout.delimiter)
    if layout.points is not None and len(values) != layout.points:
        problem = f"the first line promises {layout.points} points, the file holds {len(values)}"
        raise InputError(name, problem, "copy or export it again")
    if len(layout.names) == values.shape[1]:
        named = features_of_names({key: values[:, i] for i, key in enumerate(layout.names)})
        if named is not None:
            return named
    return np.ascontiguousarray(values[:, :3]), features_of_columns(values[:, 3:], name)
