"""The `.ts` format of the UCR and UEA archives: a header of @tags, then one labelled series a line.

Shape legend: t steps, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polysense.core.errors import InputError
from polysense.data.limits import check


def parse_ts(name: str, text: str) -> Iterator[tuple[np.ndarray, str | None]]:
    """Yields (values (t, c), label) for each line after @data.

    Channels stand between colons, values between commas, "?" is missing, the label comes last where the header
    promises one. Channels of different lengths are filled up with NaN.

    Raises:
        InputError: No @data, timestamps, or a line that does not fit the header.
    """
    lines = iter(enumerate(text.splitlines(), 1))
    tags = _header(name, lines)
    if tags.get("timestamps", "false").startswith("true"):
        raise _timestamps(name)
    labelled = any(tags.get(tag, "false").startswith("true") for tag in ("classlabel", "targetlabel"))
    channels = int(tags["dimensions"]) if tags.get("dimensions", "").isdigit() else None
    count = 0
    for number, line in lines:
        line = line.strip()
        if not line or line.startswith(("#", "%")):
            continue
        yield _series(f"{name}, line {number}", line, labelled, channels)
        count += 1
    if not count:
        raise InputError(name, "no series follows @data", "give a complete .ts file")


def _timestamps(name: str) -> InputError:
    return InputError(name, ".ts files with timestamps are not supported", "save values at even steps, or one csv each")


def _header(name: str, lines: Iterator[tuple[int, str]]) -> dict[str, str]:
    """Tags up to @data, in lower case."""
    tags: dict[str, str] = {}
    for _, line in lines:
        line = line.strip()
        if line.lower() == "@data":
            return tags
        if line.startswith("@"):
            tag, _, value = line[1:].replace("\t", " ").partition(" ")
            tags[tag.lower()] = value.strip().lower()
        elif line and not line.startswith(("#", "%")):
            break
    raise InputError(name, "it is no .ts file: there is no @data line", "give a UCR/UEA .ts file")


def _series(where: str, line: str, labelled: bool, channels: int | None) -> tuple[np.ndarray, str | None]:
    parts = line.split(":")
    label = parts.pop().strip() if labelled else None
    if line.startswith("("):
        raise _timestamps(where)
    if not parts or (channels is not None and len(parts) != channels):
        problem = f"it has {len(parts)} channels where the header says {channels or 'at least 1'}"
        raise InputError(where, problem, "correct the line or @dimensions")
    try:
        rows = [np.array(part.replace("?", "nan").split(","), np.float64) for part in parts]
    except ValueError as error:
        raise InputError(
            where, f"it holds something that is no number ({error})", "write missing values as ?"
        ) from error
    check("cells", max(map(len, rows)) * len(rows), where)
    values = np.full((max(map(len, rows)), len(rows)), np.nan)
    for i, row in enumerate(rows):
        values[: len(row), i] = row
    return values, label
