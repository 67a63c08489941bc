"""An answer as a line of JSON from which the same answer comes back, arrays included: what a job keeps until its output
is written. (`Prediction.to_record` is for readers of the output, and leaves arrays out.)"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import fields
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, get_args
from zoneinfo import ZoneInfo

import numpy as np

from polysense.core.predictions import Prediction

KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Prediction)}

PLAIN = frozenset({str, float, int, bool, type(None)})


def dumps(prediction: Prediction) -> str:
    """One line, without a line break."""
    content = {field.name: _plain(getattr(prediction, field.name)) for field in fields(prediction)}
    return json.dumps([type(prediction).__name__, content], ensure_ascii=False, separators=(",", ":"))


def loads(line: str) -> Prediction:
    """The answer again, equal to the bit.

    Raises:
        ValueError: The line is none of `dumps`.
    """
    kind, content = json.loads(line)
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of answer")
    return KINDS[kind](**{name: _rich(value) for name, value in content.items()})  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple) and PLAIN.issuperset(map(type, value)):  # long lists of names and scores
        return list(value)
    if isinstance(value, np.ndarray):
        packed = zlib.compress(np.ascontiguousarray(value).tobytes(), 1)
        return {"array": base64.b64encode(packed).decode(), "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):  # keys may be numbers (the levels of quantiles)
        return {"pairs": [[key, _plain(one)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, ZoneInfo):
        return {"zone": value.key}
    if isinstance(value, tzinfo):
        offset = value.utcoffset(datetime(2000, 1, 1))
        if offset is None or (not isinstance(value, timezone) and str(value) != "UTC"):
            return {"zone": str(value)}
        return {"offset": offset.total_seconds()}
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return value if PLAIN.issuperset(map(type, value)) else [_rich(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        raw = zlib.decompress(base64.b64decode(value["array"]))
        return np.frombuffer(raw, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    if "pairs" in value:
        return {key: _rich(one) for key, one in value["pairs"]}
    if "zone" in value:
        return ZoneInfo(value["zone"])
    return timezone(timedelta(seconds=value["offset"]))
