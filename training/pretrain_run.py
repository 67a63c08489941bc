"""From a configuration to a finished pretraining: encoder and streams are built, trained, written with their card."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.weights import load_encoder, tokenizer_weights
from polysense.building import load_tokenizer_weights
from polysense.components import get_tokenizer
from polysense.core.errors import InputError
from polysense.core.options import make_config
from polysense.data.dataset import SPLITS
from polysense.tokenizers.base import Tokenizer
from polysense.training.pretrain import pretrain
from polysense.training.pretrain_card import SetUsed, write_card
from polysense.training.pretrain_config import STEMS, SYNTHETIC, EncoderPlan, RunPlan, StreamPlan
from polysense.training.pretrain_draws import SenseDraws, SeriesDraws, shares
from polysense.training.pretrain_generic import DrawnStream, SenseStream, reading_copy
from polysense.training.pretrain_optim import Suggestion, step_law
from polysense.training.pretrain_sources import expand, open_series, open_source
from polysense.training.pretrain_tables import Table, TableDraws, TablesStream
from polysense.training.pretrain_teachers import PictureTeacher, SoundTeacher


@dataclass
class Run:
    """What trains."""

    plan: RunPlan
    encoder: Encoder
    streams: list[DrawnStream]
    sets: list[SetUsed] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)  # trained parts that it began with or learnt from: licence

    def tokens(self) -> dict[str, int]:
        """Tokens of one batch of each stream, as measured on one."""
        counts = {}
        for stream in self.streams:
            draw = stream.draws[(0, 0, 0, 0)]
            parts: Any = stream
            tokenizer = parts.tables[int(draw.source[0])].tokenizer if stream.name == "tabular" else stream.tokenizer
            with torch.no_grad():
                counts[stream.name] = int(tokenizer(draw.batch).dense_mask().sum())
        return counts


def build_run(plan: RunPlan) -> Run:
    """Builds all parts from seeded weights, or those that the configuration names.

    Raises:
        InputError: Data, weights or a teacher are not to be had, or parts do not fit each other.
    """
    torch.manual_seed(plan.training.seed)
    run = Run(plan, build_encoder(plan.encoder), [])
    for stream in plan.streams:
        build = {"tabular": _tables, "time_series": _series}.get(stream.modality, _sense)
        run.streams.append(build(stream, run))
    return run


def build_encoder(plan: EncoderPlan) -> Encoder:
    """The encoder that training begins with."""
    if plan.start not in ("identity", "random"):
        encoder = load_encoder(plan.start).requires_grad_(True)
        for name in ("width", "depth", "heads"):
            wanted, has = getattr(plan, name), getattr(encoder.config, name)
            if wanted not in (None, has):
                raise InputError(f"encoder {plan.start}", f"its {name} is {has}, not {wanted}", "leave it out")
        return encoder
    width = plan.width or 192
    shape = {"width": width, "depth": plan.depth or 6, "heads": plan.heads or max(1, width // 64)}
    identity = plan.start == "identity"
    # A final norm would change what the identity passes on.
    config = make_config(EncoderConfig, {"final_norm": not identity, **shape, **plan.options}, "encoder")
    return Encoder(config).start_as_identity() if identity else Encoder(config)


def run_plan(run: Run, out: Path, device: str | None = None, watch: Any = None) -> None:
    """Trains what `build_run` built and writes `out/weights` (encoder, tokenizers, card).

    Raises:
        InputError: See `pretrain`; or `out` holds the run of another configuration.
    """
    main = os.environ.get("RANK", "0") == "0"  # of several processes one writes
    if main:
        _claim(out, run.plan)
    pretrain(run.encoder, run.streams, run.plan.training, out, device, watch)
    if main:
        write_card(out / "weights", run.plan, run.encoder, run.sets, run.origins)


def _claim(out: Path, plan: RunPlan) -> None:
    """Refuses a folder in which another configuration is under way; how long and where to save may change."""
    told = {"encoder": asdict(plan.encoder), "streams": [asdict(stream) for stream in plan.streams],
            "training": {k: v for k, v in asdict(plan.training).items() if k not in ("steps", "save_every", "workers")},
            }  # fmt: skip
    path, text = out / "run.json", json.dumps(told, indent=1, sort_keys=True)
    if (out / "state.pt").is_file() and path.is_file() and path.read_text() != text:
        raise InputError(out, "it holds a training of another configuration", "choose another --out, or delete it")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def suggest(run: Run) -> tuple[Suggestion, int, int]:
    """The step law for this run: its suggestion, the tokens of a step now, and the encoder's parameters."""
    training = run.plan.training
    step = sum(run.tokens().values()) * training.accumulate
    size = sum(parameter.numel() for parameter in run.encoder.parameters())
    return step_law(size, step * training.steps), step, size


def _tokenizer(
    plan: StreamPlan, encoder: Encoder, origins: dict[str, str], **usual: Any
) -> tuple[Tokenizer, float, dict[str, Any]]:
    """A sense's tokenizer with the weights that it starts from, the factor of its stem's learning rate, and the options
    that whoever uses it later must know."""
    name = f"{plan.modality} tokenizer"
    known: list[str] = []
    if plan.modality == "image" and encoder.spec.startswith("timm:") and plan.start == "auto":
        from polysense.backbone.weights import create_timm
        from polysense.tokenizers.image import from_timm

        tokenizer: Tokenizer = from_timm(create_timm(encoder.spec), **plan.tokenizer)
        return tokenizer, plan.stem_lr, tokenizer.config_dict()
    _, saved = tokenizer_weights(encoder.spec, plan.modality) if plan.start == "auto" else ({}, {})
    cls = get_tokenizer(plan.modality)
    saved |= plan.tokenizer
    tokenizer = cls(make_config(cls.Config, {"width": encoder.config.width, **usual, **saved}, name))
    known = _start(plan, tokenizer, encoder.spec)
    if tokenizer.width != encoder.config.width:
        raise InputError(name, f"its width is {tokenizer.width}, the encoder's {encoder.config.width}", "leave it out")
    stem = {name for name, _ in tokenizer.named_parameters() if name.startswith("stem.")}
    trained = bool(stem) and stem <= set(known) and plan.modality in STEMS
    if plan.frozen_stem and not trained:
        raise InputError(name, "it has no trained stem to freeze", 'use the default form, and start = "stem"')
    if trained:
        origins["front part EfficientNet-lite0" if plan.modality != "audio" else "front part YAMNet"] = "Apache-2.0"
    frozen = trained if plan.frozen_stem is None else plan.frozen_stem
    return tokenizer, 0.0 if frozen else plan.stem_lr, saved


def _start(plan: StreamPlan, tokenizer: Tokenizer, spec: str) -> list[str]:
    """Copies the weights that a tokenizer starts from; returns the names of those that are not random."""
    if plan.start == "random":
        return []
    if plan.start == "embedded":
        return load_tokenizer_weights(tokenizer, plan.modality)
    if plan.start == "auto" and (known := load_tokenizer_weights(tokenizer, plan.modality, spec)):
        return known
    fresh = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    stem = [name for name in load_tokenizer_weights(tokenizer, plan.modality)
            if name.startswith("stem.") and plan.modality in STEMS]  # fmt: skip
    tokenizer.load_state_dict({name: value for name, value in fresh.items() if name not in stem}, strict=False)
    return stem


def _sense(plan: StreamPlan, run: Run) -> DrawnStream:
    folder, weights = run.plan.folder, _weights(plan)
    sources = [open_source(one, plan.modality, folder) for one in plan.data]
    for one, source in zip(plan.data, sources, strict=True):
        run.sets.append(SetUsed(plan.modality, one, len(source), len(source.classes)))
    # One size a batch runs a stem once; what is written keeps the tokenizer's own way.
    tokenizer, stem_scale, saved = _tokenizer(plan, run.encoder, run.origins)
    over: dict[str, Any] = {}
    if plan.modality in ("image", "video") and "resize" not in plan.tokenizer:
        over = {"resize": "squash"}
    picture = PictureTeacher(plan.teacher) if plan.teacher and plan.modality == "image" else None
    sound = SoundTeacher(plan.teacher, folder) if plan.teacher and plan.modality == "audio" else None
    draws = SenseDraws(
        plan.modality, reading_copy(tokenizer, **over), sources,
        shares([len(source) for source in sources], [one.share for one in plan.data], plan.balance), plan.batch,
        vary=plan.augment, views=2 if "contrast" in weights else 1, side=picture.side if picture else 0, teacher=sound,
    )  # fmt: skip
    if teacher := picture or sound:
        run.origins[f"teacher {teacher.name}"] = teacher.licence
    lesson = (sound.features, sound.answers) if sound else None
    stream = SenseStream(plan.modality, tokenizer, draws, weights, classes=[len(source.classes) for source in sources],
                         masked=plan.masked, stem_scale=stem_scale, teacher=picture, lesson=lesson)  # fmt: skip
    stream.saved = saved
    return stream


def _series(plan: StreamPlan, run: Run) -> DrawnStream:
    tokenizer, _, saved = _tokenizer(plan, run.encoder, run.origins, context=256, center="last")
    config: Any = tokenizer.config
    if config.form not in ("patch", "conv"):
        raise InputError("time_series tokenizer", f"the form {config.form} hides no tokens", "use patch or conv")
    if config.channels is not None:
        raise InputError("time_series tokenizer", "pretraining reads one variate a sequence", "leave channels out")
    sets: list[list[Any] | None] = []
    sizes: list[int] = []
    for one in plan.data:
        if one.path == SYNTHETIC:
            sets.append(None)
            sizes.append(0)
            run.sets.append(SetUsed(plan.modality, one, 0, 0))
            continue
        long, left_out = open_series(one, run.plan.folder, config.time, config.columns, 8 + plan.horizon)
        sets.append(long)
        sizes.append(sum(frame.values.size for frame in long))
        run.sets.append(SetUsed(plan.modality, one, len(long), 0, left_out))
    sizes = [size or max([*sizes, 1]) for size in sizes]  # generated series count as the largest set does
    draws = SeriesDraws(reading_copy(tokenizer), sets, shares(sizes, [one.share for one in plan.data], plan.balance),
                        plan.batch, plan.horizon, plan.augment)  # fmt: skip
    stream = SenseStream(plan.modality, tokenizer, draws, _weights(plan), masked=plan.masked, horizon=plan.horizon)
    stream.saved = saved
    return stream


def _tables(plan: StreamPlan, run: Run) -> DrawnStream:
    import pandas as pd

    from polysense.training.synthetic import synthetic_table

    weights, tables, encoded, labels, given = _weights(plan), [], [], [], []
    for one in plan.data:
        if one.path == SYNTHETIC:
            rng = np.random.default_rng(run.plan.training.seed)
            found = [synthetic_table(rng) for _ in range(one.tables)]
            frames = [(pd.DataFrame(columns, columns=[f"c{i}" for i in range(columns.shape[1])]), numbers)
                      for columns, numbers in found]  # fmt: skip
        else:
            frames = [_table(path, one) for path in expand(one.path, run.plan.folder)]
        for frame, numbers in frames:
            tokenizer = _table_tokenizer(plan, run.encoder, frame)
            tables.append(Table(tokenizer, int(numbers.max()) + 1, weights))
            encoded.append(tokenizer.encode(frame))
            labels.append(numbers)
            given.append(None if one.share is None else one.share / len(frames))
        rows = sum(len(frame) for frame, _ in frames)
        run.sets.append(SetUsed(plan.modality, one, rows, max(int(numbers.max()) + 1 for _, numbers in frames)))
    draws = TableDraws(encoded, labels, shares([len(one) for one in labels], given, plan.balance), plan.batch)
    stream = TablesStream(tables, draws, weights, plan.masked)
    stream.saved |= plan.tokenizer if len(tables) == 1 else {}
    return stream


def _table(path: Path, plan: Any) -> tuple[Any, np.ndarray]:
    """A table without its column of classes, and class numbers (-1: none)."""
    from polysense.data.table import read_table, require_columns

    frame = read_table(path)
    if "split" in frame and set(frame["split"].dropna().astype(str).str.lower()) <= set(SPLITS):
        known = frame["split"].astype(str).str.lower().map(SPLITS)
        frame = frame[known == "train"].drop(columns=["split"]).reset_index(drop=True)
    if not len(frame):
        raise InputError(path, "it has no row of a training part", "give rows whose split is train, or no such column")
    if plan.label is None:
        if plan.labels:
            raise InputError(path, "the column of the classes is not named", 'name it: label = "COLUMN"')
        return frame, np.full(len(frame), -1)
    require_columns(frame, [plan.label], path)
    numbers = class_numbers(frame[plan.label]) if plan.labels else np.full(len(frame), -1)
    return frame.drop(columns=[plan.label]), numbers


def class_numbers(column: Any) -> np.ndarray:
    """Class numbers of a column in the order of their names; -1 where it is empty."""
    import pandas as pd

    codes, _ = pd.factorize(column.astype(str).where(column.notna()), sort=True)
    return np.asarray(codes, np.int64)


def _table_tokenizer(plan: StreamPlan, encoder: Encoder, frame: Any) -> Any:
    cls = get_tokenizer("tabular")
    options = {"width": encoder.config.width, **plan.tokenizer}
    config: Any = make_config(cls.Config, options, "tabular tokenizer")
    if config.tokens != "columns":
        raise InputError("tabular tokenizer", "pretraining hides columns one by one", 'leave tokens = "row" out')
    return cls(cls.fit_config(config, [frame]))


def _weights(plan: StreamPlan) -> dict[str, float]:
    return {name: plan.weight * weight for name, weight in plan.losses.items()}


def describe(run: Run) -> Sequence[str]:
    """What will be read, one line a set."""
    return [one.line() for one in run.sets]
