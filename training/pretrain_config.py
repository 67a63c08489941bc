"""A pretraining as a TOML file: what the encoder is, how it trains, and which data each sense reads.

Every key is a field of one of the dataclasses here; docs/pretrain_your_own.md shows whole files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError
from polysense.core.options import make_config
from polysense.tasks import MODALITIES
from polysense.training.pretrain_optim import PretrainConfig

LOSSES = {  # of each sense, with the weight that it has where none is given
    "rebuild": 1.0,  # hidden tokens
    "classes": 0.3,  # labels, where the data have them
    "contrast": 0.5,  # two views of one input are alike, others differ
    "teacher": 1.0,  # features of a trained network
    "answers": 0.3,  # that network's own classes
    "forecast": 1.0,  # the steps after a window of a series
}
STARTS = ("auto", "embedded", "stem", "random")
STEMS = ("image", "video", "audio")  # senses whose tokenizer may begin with a trained stem
SYNTHETIC = "synthetic"  # in place of a path: generated series or tables


@dataclass(frozen=True, slots=True)
class EncoderPlan:
    """[encoder]"""

    start: str = "identity"  # identity, random, or a spec of `load_encoder`: embedded, timm:NAME, file:PATH …
    width: int | None = None  # of a token; 192
    depth: int | None = None  # blocks; 6
    heads: int | None = None  # width / 64
    options: dict[str, Any] = field(default_factory=dict)  # further fields of `EncoderConfig`


@dataclass(frozen=True, slots=True)
class DataPlan:
    """One entry of a stream's `data`."""

    path: str  # folder, file, .tar shards (also "shard-{000..099}.tar" and patterns), .parquet, or "synthetic"
    labels: bool = False  # whether its classes may teach the encoder
    label: str | None = None  # column of the classes (tables, parquet, lists); usual names are found
    share: float | None = None  # of the stream's draws; None: by size, see `StreamPlan.balance`
    tables: int = 12  # how many, where tables are generated
    licence: str = "not stated"  # for the card


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """[[stream]]: one sense."""

    modality: str
    data: tuple[DataPlan, ...]
    batch: int = 32  # inputs a step and process
    weight: float = 1.0  # factor of all its losses
    losses: dict[str, float] = field(default_factory=dict)  # name -> weight; filled in where not given
    balance: float = 0.5  # sets without a share are drawn by size to this power: 1 by size, 0 all alike
    masked: float = 0.4  # share of tokens that are hidden
    augment: bool = True  # vary inputs at random, where `training.augment` knows how
    tokenizer: dict[str, Any] = field(default_factory=dict)  # fields of the tokenizer's configuration
    start: str = "auto"  # weights of the tokenizer: as the encoder's, "embedded", "stem" alone, or "random"
    frozen_stem: bool | None = None  # keep the stem as it is; None: where it is a trained one
    stem_lr: float = 1.0  # factor of the learning rate of a stem that is not frozen
    teacher: str | None = None  # lite0, yamnet:FILE, timm:NAME
    horizon: int = 64  # steps to forecast


@dataclass(frozen=True, slots=True)
class CardPlan:
    """[card]"""

    name: str = "encoder"
    licence: str = "not stated"  # of the weights
    notes: str = ""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The whole file."""

    encoder: EncoderPlan
    training: PretrainConfig
    streams: tuple[StreamPlan, ...]
    card: CardPlan
    text: str  # as written, for the card
    folder: Path  # where relative paths begin


def read_plan(path: Path) -> RunPlan:
    """Reads and checks a configuration.

    Raises:
        InputError: It is not TOML, a key is unknown or of the wrong type, or two parts contradict each other.
    """
    if not path.is_file():
        raise InputError(path, "there is no such file", "give a TOML file; docs/pretrain_your_own.md shows some")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(path, f"it is not TOML: {error}", "correct the line") from error
    known = {"encoder", "training", "stream", "card"}
    if unknown := sorted(content.keys() - known):
        raise InputError(path, f"there is no part {unknown[0]!r}", f"choose from {', '.join(sorted(known))}")
    entries = content.get("stream", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(path, "it has no stream", "add a part [[stream]] with modality and data")
    streams = tuple(_stream(entry, f"{path}, stream {i + 1}") for i, entry in enumerate(entries))
    senses = [stream.modality for stream in streams]
    if twice := next((sense for sense in senses if senses.count(sense) > 1), None):
        raise InputError(path, f"two streams read {twice}", "put their data into one stream: data = [{path = …}, …]")
    training = make_config(PretrainConfig, _table(content, "training", path), f"{path}, training")
    return RunPlan(_encoder(_table(content, "encoder", path), path), training, streams,
                   make_config(CardPlan, _table(content, "card", path), f"{path}, card"),
                   text, path.absolute().parent)  # fmt: skip


def _table(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{path}, {name}", "it is not a table", f"write it as [{name}]")
    return table


def _encoder(table: dict[str, Any], path: Path) -> EncoderPlan:
    from polysense.backbone.encoder import EncoderConfig

    own = {one.name for one in fields(EncoderPlan)} - {"options"}
    further = {name: value for name, value in table.items() if name not in own}
    names = {one.name for one in fields(EncoderConfig)}
    if unknown := sorted(further.keys() - names):
        raise InputError(f"{path}, encoder", f"there is no option {unknown[0]!r}",
                         f"choose from {', '.join(sorted(own | names))}")  # fmt: skip
    mine = {name: value for name, value in table.items() if name in own}
    plan = make_config(EncoderPlan, {**mine, "options": further}, f"{path}, encoder")
    if further and plan.start not in ("identity", "random"):
        raise InputError(f"{path}, encoder", f"{next(iter(further))} is given by {plan.start} itself", "leave it out")
    kind, _, file = plan.start.partition(":")
    if kind == "file":  # like all paths, relative to the configuration
        plan = replace(plan, start=f"file:{path.absolute().parent / Path(file).expanduser()}")
    return plan


def _stream(entry: dict[str, Any], where: str) -> StreamPlan:
    entry = dict(entry)
    modality = entry.get("modality")
    if modality not in MODALITIES:
        raise InputError(where, f"its modality is {modality!r}", f"choose from {', '.join(MODALITIES)}")
    where = f"{where} ({modality})"
    shared: dict[str, Any] = {name: entry.pop(name) for name in ("labels", "label", "licence") if name in entry}
    data = tuple(_data(one, shared, where) for one in _listed(entry.pop("data", None), where))
    losses = _losses(entry.pop("losses", None), modality, data, entry.get("teacher"), where)
    plan = make_config(StreamPlan, {**entry, "data": data, "losses": losses}, where)
    _check(plan, where)
    return plan


def _listed(data: Any, where: str) -> list[Any]:
    found = data if isinstance(data, list) else [data]
    if not found or not all(isinstance(one, str | dict) for one in found):
        raise InputError(where, "it names no data", 'give data = "FOLDER", or data = [{path = "FOLDER", …}, …]')
    return found


def _data(one: str | dict[str, Any], shared: dict[str, Any], where: str) -> DataPlan:
    given = {"path": one} if isinstance(one, str) else one
    if "path" not in given:
        raise InputError(where, "an entry of data has no path", 'give {path = "FOLDER"}')
    plan = make_config(DataPlan, {**shared, **given}, f"{where}, data")
    if plan.share is not None and not plan.share > 0:
        raise InputError(where, f"the share of {plan.path} is {plan.share}", "give a number above 0, or leave it out")
    return plan


def _losses(given: Any, modality: str, data: tuple[DataPlan, ...], teacher: Any, where: str) -> dict[str, float]:
    """Names and weights: all that the data allow where none are named (contrast costs a second pass: on demand)."""
    possible = ["rebuild"]
    possible += ["classes"] if modality != "time_series" else ["forecast"]
    possible += ["contrast"] if modality not in ("time_series", "tabular") else []
    possible += ["teacher", "answers"] if modality in ("image", "audio") else []
    labelled = any(one.labels or one.path == SYNTHETIC for one in data)
    able = {"classes": labelled, "teacher": bool(teacher), "answers": bool(teacher), "contrast": given is not None}
    if given is None:
        return {name: LOSSES[name] for name in possible if able.get(name, True)}
    named = given if isinstance(given, dict) else {name: None for name in given} if isinstance(given, list) else None
    if named is None or not named:
        raise InputError(where, f"losses cannot be {given!r}", 'give names, ["rebuild"], or weights, {rebuild = 1.0}')
    for name, weight in named.items():
        if name not in possible:
            raise InputError(where, f"there is no loss {name!r} for {modality}", f"choose from {', '.join(possible)}")
        if not able.get(name, True):
            fix = "set labels = true" if name == "classes" else 'name one: teacher = "lite0"'
            raise InputError(where, f"the loss {name} has nothing to learn from", fix)
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0):
            raise InputError(where, f"the weight of {name} is {weight!r}", "give a number of at least 0")
    return {name: LOSSES[name] if weight is None else float(weight) for name, weight in named.items()}


def _check(plan: StreamPlan, where: str) -> None:
    if plan.start not in STARTS:
        raise InputError(where, f"its start is {plan.start!r}", f"choose from {', '.join(STARTS)}")
    if plan.batch < 1 or not 0 < plan.masked < 1 or plan.horizon < 1:
        raise InputError(where, "batch and horizon are at least 1, masked lies between 0 and 1", "correct them")
    if min(plan.weight, plan.stem_lr, plan.balance) < 0:
        raise InputError(where, "weight, stem_lr and balance are at least 0", "correct them")
    if (plan.frozen_stem or plan.stem_lr != 1) and plan.modality not in STEMS:
        raise InputError(where, f"{plan.modality} has no stem", "leave frozen_stem and stem_lr out")
    shares = [one.share is None for one in plan.data]
    if any(shares) and not all(shares):
        raise InputError(where, "some of its data have a share and some have none", "give all a share, or none")
    generated = [one.path for one in plan.data if one.path == SYNTHETIC]
    if generated and plan.modality not in ("time_series", "tabular"):
        raise InputError(where, f"{plan.modality} cannot be generated", "give a path")
    kind = (plan.teacher or "").partition(":")[0]
    wanted = {"image": ("lite0", "timm", "random"), "audio": ("yamnet",)}.get(plan.modality, ())
    if plan.teacher is not None and kind not in wanted:
        fix = f"choose from {', '.join(wanted)}" if wanted else "leave it out"
        raise InputError(where, f"{plan.teacher!r} is no teacher of {plan.modality}", fix)
