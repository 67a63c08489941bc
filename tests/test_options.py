"""Options by name: which become a configuration, and what is said of the others."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pytest

from polysense.components import HEAD_MODULES, TOKENIZER_MODULES, get_head, get_tokenizer
from polysense.core.errors import InputError
from polysense.core.options import check_options, make_config


@dataclass(frozen=True)
class Config:
    size: int = 8
    rate: float = 0.5
    form: str | None = None
    wide: bool = False
    layers: tuple[int, ...] = ()
    pairs: tuple[tuple[str, float], ...] = ()
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("size must be at least 1")


GOOD = {"size": np.int64(3), "rate": 1, "form": "x", "wide": True, "layers": [1, 2], "pairs": [["a", 1.0]], "kind": "b"}
BAD = {"size": "x", "rate": "fast", "form": 3, "wide": 1, "layers": 2, "pairs": [["a", "b"]]}


@pytest.mark.parametrize("name", GOOD)
def test_good_options(name: str) -> None:
    assert getattr(make_config(Config, {name: GOOD[name]}, "thing"), name) == GOOD[name]


@pytest.mark.parametrize(("name", "value"), [*BAD.items(), ("size", True), ("size", 2.5), ("layers", [1, "x"])])
def test_values_of_another_type(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^thing: its option {name} cannot be .*; give ") as error:
        make_config(Config, {name: value}, "thing")
    assert "None" not in error.value.fix


def test_unknown_and_refused() -> None:
    with pytest.raises(InputError, match="thing: there is no option 'foo'; choose from size, rate, form"):
        make_config(Config, {"foo": 1}, "thing")
    with pytest.raises(InputError, match="thing: size must be at least 1; see Config"):
        make_config(Config, {"size": -5}, "thing")


@pytest.mark.parametrize("name", TOKENIZER_MODULES)
def test_defaults_of_tokenizers_pass(name: str) -> None:
    config = get_tokenizer(name).Config
    check_options(config, asdict(config()), name)


@pytest.mark.parametrize("name", HEAD_MODULES)
def test_defaults_of_heads_pass(name: str) -> None:
    config = get_head(name).Config
    needs = {"classes": ("a", "b")} if "classes" in config.__dataclass_fields__ else {}
    check_options(config, asdict(config(**needs)), name)


SIZES = {"image": "size", "video": "frames", "audio": "window", "point_cloud": "points", "time_series": "context",
         "tabular": "bins"}  # fmt: skip


@pytest.mark.parametrize(("name", "option"), SIZES.items())
def test_sizes_are_positive(name: str, option: str) -> None:
    tokenizer = get_tokenizer(name)
    with pytest.raises(ValueError, match=option):
        tokenizer(tokenizer.Config(**{option: -5}))
