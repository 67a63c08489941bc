"""The configuration of the time series tokenizer: plain values, for JSON."""

from __future__ import annotations

from dataclasses import dataclass

from polysense.tokenizers.series_covariates import Effect
from polysense.tokenizers.series_statics import Statics


@dataclass(frozen=True)
class SeriesConfig:
    """Configuration of `TimeSeriesTokenizer`."""

    width: int = 192  # token width
    form: str = "patch"  # "patch", "conv", "kernels" or "variates"
    channels: int | None = None  # None: each variate is a sequence; C: all C in one; -1: C from the training data
    patch: int = 16  # steps of a patch (other forms: always 1)
    stride: int = 8  # steps between patches (other forms: always 1)
    context: int = 512  # the last steps that are used
    fixed_context: bool = False  # always as many tokens as `context` needs, the missing ones masked
    center: str = "mean"  # what is subtracted: the "mean" of the context, its "last" value, or "data": see `spread`
    calendar: bool = True  # tell hour, weekday, day and month
    levels: bool = False  # one more token a variate, from [asinh(loc), log(scale)]
    time: str | None = None  # time column; None finds it
    columns: list[str] | None = None  # variates to read; None reads all numeric columns
    known: tuple[str, ...] = ()  # covariates whose future is known; "calendar": hour, weekday and season of the steps
    static: tuple[str, ...] = ()  # columns that are constant in a series
    series: str | None = None  # column that names the series of a long table
    ahead: int = 96  # steps of the future whose covariates are read
    effect: Effect | None = None  # of `known`, learnt from the training data
    statics: Statics | None = None  # of `static`, as the training data have them
    mean: tuple[float, ...] = ()  # center "data": each variate's mean over the training data, which is subtracted
    spread: tuple[float, ...] = ()  # and its deviation, by which is divided instead of the context's own
    segments: int = 12  # "kernels": tokens of a series
    features: int = 2000  # "kernels": shares of steps above a bias, about
    dilations: int = 10  # "kernels": distances between a kernel's taps, at most
    span: int | None = None  # "kernels": steps of the longest kernel; None: of the median training series

    def __post_init__(self) -> None:
        for name in ("mean", "spread", "known", "static"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, cls in (("effect", Effect), ("statics", Statics)):  # and dicts
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, cls(**value))


USUAL = SeriesConfig()


def check_config(config: SeriesConfig) -> None:
    """Raises ValueError where options do not go together; `channels` -1 is to be filled in before."""
    if config.form not in ("patch", "conv", "kernels", "variates"):
        raise ValueError(f"unknown time series form {config.form!r}; choose patch, conv, kernels or variates")
    if config.form == "variates" and (config.channels is not None or config.levels):
        raise ValueError("form 'variates' takes any number of variates and has no level tokens")
    if config.center not in ("mean", "last", "data"):
        raise ValueError(f"unknown center {config.center!r}; choose mean, last or data")
    if config.center == "data" and len(config.spread) not in (0, config.channels):
        raise ValueError(f"center 'data' needs the spread of all {config.channels} channels")
    if min(config.segments, config.features, config.dilations, config.span or 1) < 1:
        raise ValueError("segments, features, dilations and span must be positive")
    if config.channels is not None and config.channels < 1:
        raise ValueError(f"channels must be None or positive, not {config.channels}; -1 needs fit_config first")
    if min(config.patch, config.stride, config.context, config.ahead) < 1 or config.stride > config.patch:
        raise ValueError("patch, stride, context and ahead must be positive, and the stride no longer than the patch")
