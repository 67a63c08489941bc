"""The pipeline: sources in, predictions out; build, call, stream, save, load.

Shape legend: b sequences of a batch, s samples.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from polysense.backbone.encoder import Encoder
from polysense.backbone.engines import engine_of, with_engine
from polysense.backbone.weights import load_encoder
from polysense.building import new_head, new_tokenizer
from polysense.bundle import fetch_bundle, find_bundle, needs_no_bundle
from polysense.card import Card
from polysense.components import get_head
from polysense.core.errors import InputError
from polysense.core.options import make_config
from polysense.core.predictions import Embedding, Prediction
from polysense.core.types import Features, Known, Sample
from polysense.heads.base import Head, Out, cat_padded
from polysense.roll_out import check_horizon, check_known, roll_out
from polysense.tasks import TASKS, Task
from polysense.tokenizers.base import Batch, Tokenizer

shared_encoder = lru_cache(maxsize=2)(load_encoder)  # pipelines of one spec share one frozen encoder


class Pipeline(nn.Module):
    """A tokenizer, the frozen encoder and a head.

    Args:
        task: What it does.
        tokenizer: source -> tokens.
        encoder: Frozen here, whatever it was.
        head: features -> predictions.
        name: For tables and cards.
        metrics: Measured quality by usual names.
        about: Further facts for the card (data, licence …), JSON-able.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        encoder: Encoder,
        head: Head,
        *,
        name: str = "",
        metrics: Mapping[str, float] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if tokenizer.width != encoder.config.width:
            raise ValueError(
                f"a tokenizer of width {tokenizer.width} does not fit an encoder of {encoder.config.width}"
            )
        self.task, self.tokenizer, self.encoder, self.head = task, tokenizer, encoder.freeze(), head
        self.name, self.metrics, self.about = name or task.name, dict(metrics or {}), dict(about or {})
        self.card = Card()  # tables and pictures of what was measured
        self.settled: set[str] = set()  # tensors that training should change little: pretrained, or solved for

    @classmethod
    def build(
        cls,
        task: str,
        *,
        encoder: str | Encoder = "embedded",
        tokenizer: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        sources: Sequence[Any] = (),
        seed: int = 0,
        adapter: Mapping[str, Any] | None = None,
    ) -> Pipeline:
        """Makes an untrained pipeline: embedded tokenizer weights where there are any, seeded ones elsewhere.

        Args:
            task: A name in `TASKS`.
            encoder: A spec of `load_encoder`, or an encoder.
            tokenizer: Fields of the tokenizer's configuration that differ from the default.
            head: Fields of the head's configuration that differ from the default.
            sources: Training sources from which a tokenizer reads what it must know (columns of a table …).
            seed: Of the new weights.
            adapter: Fields of an `AdapterConfig`: learn within the encoder too, beside its frozen weights.
        """
        what = TASKS[task]
        trunk = shared_encoder(encoder) if isinstance(encoder, str) else encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            front, pretrained = new_tokenizer(what.modality, trunk, {**what.tokenizer, **(tokenizer or {})}, sources)
            pipeline = cls(what, front, trunk, new_head(what, head or {}, front, trunk.config.width))
            if adapter is not None:
                pipeline.adapt(**adapter)
            pipeline.settled = {f"tokenizer.{name}" for name in pretrained}
            return pipeline

    def adapt(self, method: str = "lora", **options: Any) -> Pipeline:
        """Puts a new adapter beside the frozen encoder, in place of an older one; other pipelines are not touched.

        Args:
            method: A name in `backbone.adapters.METHODS`.
            options: Further fields of an `AdapterConfig`.

        Raises:
            InputError: There is no such method or option, or it does not suit the encoder.
        """
        from polysense.backbone.adapters import AdapterConfig, adapt

        config = make_config(AdapterConfig, {"method": method, **options}, "adapter")
        try:
            self.encoder = adapt(self.encoder, config).to(self.device)
        except ValueError as error:
            raise InputError(f"adapter {method}", str(error), "choose another adapter or encoder") from error
        return self

    def with_adapter(self, folder: str | Path) -> Pipeline:
        """The same pipeline with the adapter of a folder (a bundle's, or one that PEFT wrote) beside its encoder.

        All weights but the adapter's are shared.
        """
        from polysense.backbone.adapters import AdaptedEncoder, load_adapter

        plain = self.encoder.plain if isinstance(self.encoder, AdaptedEncoder) else self.encoder
        return self._with_encoder(load_adapter(plain, folder).to(self.device))

    @property
    def modality(self) -> str:
        return self.task.modality

    @property
    def encoder_hash(self) -> str:
        return self.encoder.fingerprint()

    @property
    def engine(self) -> str:
        """What runs the encoder: "torch", "onnx" or "onnx-int8"."""
        return engine_of(self.encoder)

    def with_engine(self, engine: str) -> Pipeline:
        """The same pipeline, its encoder run by another engine; tokenizer, head and weights are shared.

        Args:
            engine: "torch"; or, to infer on the CPU, "onnx" (equal to 1e-4) or "onnx-int8" (8-bit weights; only for
                what `polysense engine check` has passed).

        Raises:
            InputError: There is no such engine, it cannot run this encoder, or 8-bit weights cost too much.
        """
        if engine == self.engine:
            return self
        encoder = with_engine(self.encoder, engine)
        if engine == "onnx-int8":
            from polysense.engine_checks import require_check

            require_check(self)
        return self._with_encoder(encoder)

    def _with_encoder(self, encoder: Encoder) -> Pipeline:
        other = copy.copy(self)  # shares everything but the table of its parts
        other._modules = {**self._modules, "encoder": encoder}
        return other.eval()

    def with_views(self, views: Sequence[float] = (1.0,), mirror: bool = False) -> Pipeline:
        """The same pipeline reading each image several times and averaging the answers; weights are shared.

        Args:
            views: Sizes to read it at, as shares of the usual one.
            mirror: Read each of them mirrored as well.

        Raises:
            InputError: This pipeline does not read images, or these are no sizes.
        """
        if self.modality != "image":
            raise InputError(self.task.name, "only images are read in views", "leave out views and mirror")
        tokenizer = copy.copy(self.tokenizer)
        options = {**tokenizer.config_dict(), "views": tuple(views), "mirror": mirror}
        tokenizer.config = make_config(tokenizer.Config, options, "image tokenizer")
        return self.with_tokenizer(tokenizer)

    def with_tokenizer(self, tokenizer: Tokenizer) -> Pipeline:
        """The same pipeline, its inputs read by another tokenizer of its width; weights are shared."""
        other = copy.copy(self)
        other._modules = {**self._modules, "tokenizer": tokenizer}
        return other

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Pipeline:
        """Moves to a device or another precision; an encoder that other pipelines share stays where it is."""
        first = next(self.encoder.parameters())
        if fn(first) is not first:
            self.encoder = copy.deepcopy(self.encoder)
        super()._apply(fn, recurse)
        return self

    def train(self, mode: bool = True) -> Pipeline:
        """Training mode for tokenizer, head and adapter; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and self.encoder.learns)
        return self

    def forward(self, batch: Batch) -> Out:
        """A collated batch (on any device) -> the head's raw output for each of its b sequences."""
        return self.head(self.features(batch))

    def features(self, batch: Batch) -> Features:
        """A collated batch -> what the head reads of the encoder."""
        return self.encoder(self.tokenizer(to_device(batch, self.device)), layers=self.head.layers)

    def __call__(self, sources: Any, batch_size: int = 16, *, horizon: int | None = None) -> Any:
        """Predicts; or, given a collated batch (a dict), runs `forward`.

        Args:
            sources: One source (path, bytes, image, array …), or a list or iterator of them; as `polysense.Known` with
                what was measured beside it.
            batch_size: Sequences that run together.
            horizon: Of a forecaster: steps to answer, any number; None: as many as it was trained for.

        Returns:
            Predictions in the order of the sources; a source that holds several inputs (a table) gives several.

        Raises:
            InputError: A source cannot be used.
        """
        if is_batch(sources):
            return super().__call__(sources)
        return list(self.stream(sources, batch_size, horizon=horizon))

    def stream(
        self, sources: Any, batch_size: int = 16, on_error: str = "raise", *, horizon: int | None = None
    ) -> Iterator[Any]:
        """Predicts lazily, for any number of sources.

        Args:
            sources: As for a call.
            batch_size: Sequences that run together.
            on_error: "raise", or "skip": an unusable source yields its InputError in its place.
            horizon: As for a call.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, not {batch_size}")
        if horizon is not None:
            check_horizon(self, horizon)
        waiting: list[Sample | InputError] = []
        sequences: list[list[Sample]] = []
        for sample in self._read(sources, on_error, horizon):
            waiting.append(sample)
            sequences.append([] if isinstance(sample, InputError) else self.tokenizer.split(sample))
            if sum(map(len, sequences)) >= batch_size or len(waiting) >= 4 * batch_size:
                yield from self._answer(waiting, sequences, batch_size, horizon)
                waiting, sequences = [], []
        yield from self._answer(waiting, sequences, batch_size, horizon)

    def embed(self, sources: Any, space: str = "encoder", batch_size: int = 16) -> list[Embedding]:
        """One vector for each input, whatever this pipeline's own task is.

        Args:
            sources: As for a call.
            space: "encoder": the mean of the encoder's tokens, as this pipeline's tokenizer gives them; "meaning": the
                space in which all kinds of inputs lie near the words for what they show.
            batch_size: Sequences that run together.

        Returns:
            Unit vectors, whose products are cosines.

        Raises:
            InputError: A source cannot be used, there is no such space, or nothing leads there from this modality.
        """
        if space not in ("encoder", "meaning"):
            raise InputError(f"space {space!r}", "there is none of this name", "choose encoder or meaning")
        task = f"{self.modality.replace('_', '-')}-{'embedding' if space == 'encoder' else 'meaning'}"
        if task not in TASKS:
            raise InputError(self.modality, "nothing leads from it to the space of meaning", "embed it in encoder")
        if space == "meaning":
            return type(self).from_pretrained(task, str(self.device))(sources, batch_size)
        head = get_head("embedding")
        bare = Pipeline(TASKS[task], self.tokenizer, self.encoder, head(head.Config(), self.encoder.config.width))
        return bare(sources, batch_size)

    def _read(self, sources: Any, on_error: str, horizon: int | None) -> Iterator[Sample | InputError]:
        for source in sources if is_many(sources) else [sources]:
            try:
                for sample in self._read_one(source):
                    if horizon is not None:
                        check_known(self, sample, horizon)
                    yield sample
            except InputError as error:
                if on_error == "raise":
                    raise
                yield error

    def _read_one(self, source: Any) -> Iterator[Sample]:
        if not isinstance(source, Known):
            yield from self.tokenizer.read_all(source)
            return
        known = self.head.check_known(source.values)
        for sample in self.tokenizer.read_all(source.source):
            yield replace(sample, meta={**sample.meta, "known": {**sample.meta.get("known", {}), **known}})

    def _answer(
        self,
        samples: list[Sample | InputError],
        sequences: list[list[Sample]],
        batch_size: int,
        horizon: int | None,
    ) -> Iterator[Prediction | InputError]:
        predictions = iter(self.answer([parts for parts in sequences if parts], batch_size, horizon))
        for sample in samples:
            yield sample if isinstance(sample, InputError) else next(predictions)

    def answer(
        self, sequences: Sequence[Sequence[Sample]], batch_size: int = 16, horizon: int | None = None
    ) -> Sequence[Prediction]:
        """Predictions for inputs that are already read and split, of `horizon` steps where one is given."""
        if not sequences:
            return []
        if horizon is not None:
            return roll_out(self, sequences, horizon, batch_size)
        return self.predict_sequences(sequences, batch_size)

    @torch.inference_mode()
    def predict_sequences(self, samples: Sequence[Sequence[Sample]], batch_size: int = 16) -> list[Prediction]:
        """Predictions for samples that are already read and split; one per sample."""
        training = self.training
        self.eval()
        try:
            flat = [part for parts in samples for part in parts]
            owner = torch.tensor([s for s, parts in enumerate(samples) for _ in parts], dtype=torch.int64)
            if len(flat) == len(samples):  # outputs may differ in shape from batch to batch (masks)
                answers: list[Prediction] = []
                for start in range(0, len(flat), batch_size):
                    out, meta = self._run(flat[start : start + batch_size])
                    answers += self._decode(out, meta, torch.arange(len(meta)))
                return answers
            runs = [self._run(flat[start : start + batch_size]) for start in range(0, len(flat), batch_size)]
            joined = {name: cat_padded([out[name] for out, _ in runs]) for name in runs[0][0]}
            return self._decode(joined, [about for _, meta in runs for about in meta], owner)
        finally:
            self.train(training)

    def _run(self, samples: Sequence[Sample]) -> tuple[Out, list[dict[str, Any]]]:
        batch = self.tokenizer.collate(samples)
        return self.forward(batch), batch["meta"]

    def _decode(self, out: Out, meta: Sequence[Mapping[str, Any]], owner: Int[Tensor, " b"]) -> list[Prediction]:
        # On the head's device: some heads decode with learned parts.
        merged = self.head.merge(out, owner.to(self.device), meta)
        return self.head.decode(merged, self.head.merge_meta(meta, owner))

    def save_pretrained(self, path: str | Path) -> Path:
        """Writes the bundle folder, whole or not at all. See `polysense.saving`."""
        from polysense.saving import save

        return save(self, Path(path))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: str = "cpu", engine: str = "torch") -> Pipeline:
        """Loads an embedded bundle (by its name or task), a folder, or a Hub repository `owner/name`.

        Raises:
            InputError: There is no such bundle, or it is damaged or made for another encoder; or see `with_engine`.
        """
        from polysense.saving import load

        name, folder = str(name_or_path), find_bundle(name_or_path)
        if folder is not None:
            pipeline = load(cls, folder)
        elif needs_no_bundle(name):
            pipeline = cls.build(name)
        else:
            pipeline = load(cls, fetch_bundle(name))
            pipeline.name = name  # the folder is called after a commit
        return pipeline.to(device).with_engine(engine)


def is_batch(sources: Any) -> bool:
    """Whether this is what a tokenizer's `collate` makes, and not a row of a table with a column called meta."""
    made = isinstance(sources, dict) and isinstance(sources.get("meta"), list)
    return made and any(isinstance(value, Tensor) for value in sources.values())


def is_many(sources: Any) -> bool:
    """Whether this is a list or an iterator of sources. Open files are iterators too, and a tuple is one source:
    (array, rate)."""
    return isinstance(sources, list | Iterator) and not isinstance(sources, io.IOBase) and not hasattr(sources, "read")


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
