"""Options that users write by name (`--tokenizer patch=8`) become configurations, or one clear sentence."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from polysense.core.errors import InputError

C = TypeVar("C")


def make_config(cls: type[C], options: Mapping[str, Any], what: str) -> C:
    """The configuration with these fields.

    Args:
        cls: A dataclass.
        options: Its fields by name; JSON's lists may stand for tuples.
        what: What it configures, for messages ("image tokenizer").

    Raises:
        InputError: See `check_options`; or the configuration itself refuses the values.
    """
    check_options(cls, options, what)
    try:
        return cls(**options)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(what, str(error), f"see {cls.__name__} for the options") from error


def check_options(cls: type, options: Mapping[str, Any], what: str) -> None:
    """Makes sure that every option is a field and has its type: dataclasses take anything, and fail much later.

    Raises:
        InputError: It is not so; the message lists the fields, or names the type that is wanted.
    """
    names = [field.name for field in fields(cls)]
    hints = get_type_hints(cls)
    for name, value in options.items():
        if name not in names:
            raise InputError(what, f"there is no option {name!r}", f"choose from {', '.join(names)}")
        if not fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", "") if isinstance(hints[name], type) else ""
            raise InputError(what, f"its option {name} cannot be {value!r}",
                             f"give {wanted or str(hints[name]).replace(' | None', '')}")  # fmt: skip


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field; classes that JSON does not know are taken as they come."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin in (tuple, list):
        if not isinstance(value, tuple | list):
            return False
        if origin is list or inner[-1] is Ellipsis:
            return all(fits(one, inner[0]) for one in value)
        return len(value) == len(inner) and all(fits(one, kind) for one, kind in zip(value, inner))
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return True
