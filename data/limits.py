"""How large an input may be. Readers ask before they allocate: a header can promise what no memory holds.

The limits are the process's own: a worker process is told them by `set_limits`. What is in memory already (arrays,
frames) was allocated by its owner and is not asked about.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from polysense.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one input may have; generous, so that what meets them is a mistake or an attack.

    Attributes:
        bytes: Of a file. Slides, which are read by regions, are exempt.
        unpacked: Bytes that a compressed file (gz, npz, xlsx, parquet) becomes in memory.
        pixels: Of a picture, a frame, or a piece of a slide.
        frames: Of a film; few of them are decoded.
        seconds: Of a recording.
        points: Of a cloud.
        rows, cells: Of a table, or steps and values of a series.
        characters: Of a text file.
    """

    bytes: int = 20_000_000_000
    unpacked: int = 4_000_000_000
    pixels: int = 250_000_000
    frames: int = 10_000_000
    seconds: int = 6 * 3600
    points: int = 100_000_000
    rows: int = 50_000_000
    cells: int = 1_000_000_000
    characters: int = 256_000_000


KINDS = tuple(field.name for field in fields(Limits))
_limits = Limits()


def limits() -> Limits:
    """Those in force in this process."""
    return _limits


def set_limits(new: Limits) -> None:
    """Puts limits in force in this process, for all its threads."""
    global _limits
    _limits = new


@contextmanager
def limited(**changes: int) -> Iterator[Limits]:
    """Other limits for a while: `with limited(pixels=1_000_000)`."""
    before = _limits
    set_limits(replace(before, **changes))
    try:
        yield _limits
    finally:
        set_limits(before)


def parse_limits(options: Sequence[str]) -> Limits:
    """["pixels=5e8", "rows=1000"] -> the limits in force with these changed; "inf" lifts one.

    Raises:
        InputError: There is no such limit, or it is no positive number.
    """
    changes: dict[str, int] = {}
    for option in options:
        kind, equals, text = option.partition("=")
        if not equals or kind not in KINDS:
            problem = f"there is no limit {kind!r}" if equals else "this is no limit"
            raise InputError(f"limit {option}", problem, f"write pixels=5e8, or one of: {', '.join(KINDS)}")
        try:
            amount = float(text)
        except ValueError:
            amount = math.nan
        if not amount >= 1:
            raise InputError(f"limit {option}", f"{text or 'nothing'} is no number of {kind}", f"write {kind}=5e8")
        changes[kind] = int(min(amount, 2.0**62))
    return replace(_limits, **changes)


def check(kind: str, amount: float, source: object, said: str = "") -> None:
    """Refuses more than the limit.

    Args:
        kind: A field of `Limits`.
        amount: What the source has of it.
        source: For the message.
        said: The amount in other words ("50000 × 50000 pixels").

    Raises:
        InputError: It is more.
    """
    limit = getattr(_limits, kind)
    if amount > limit:
        unit = "bytes once unpacked" if kind == "unpacked" else kind
        problem = f"it has {said or f'{in_words(amount)} {unit}'}, more than the limit of {in_words(limit)}"
        raise InputError(source, problem, f"if it is to be trusted, raise the limit: --limit {kind}={_above(amount)}")


def check_file(source: object) -> None:
    """Refuses a path whose file has too many bytes; what is no file, its reader says."""
    if isinstance(source, str | os.PathLike) and os.path.isfile(source):
        check("bytes", os.path.getsize(source), source)


def in_words(amount: float) -> str:
    """400000000 -> "400 million"."""
    scale, unit = (1e6, " million") if amount >= 1e6 else (1, "")
    return f"{amount / scale:,.6f}".rstrip("0").rstrip(".") + unit


def _above(amount: float) -> str:
    """A short number that is not below: 401234567 -> "4.1e8"."""
    power = math.floor(math.log10(amount)) - 1
    return f"{math.ceil(amount / 10.0**power) / 10:g}e{power + 1}"
