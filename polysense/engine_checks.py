"""Which pipelines may run with 8-bit weights: those whose own metric was measured with them, on this machine.

A bundle carries no validation data, so its user checks it once (`polysense engine check BUNDLE DATA`); what was found
stands in the cache beside the quantised encoder, under a hash of everything the answers depend on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polysense.backbone.onnx_files import graph_key
from polysense.core.errors import InputError
from polysense.core.folders import cache_folder
from polysense.saving import fingerprint

if TYPE_CHECKING:
    from polysense.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What a check of the engine onnx-int8 found."""

    task: str
    metric: str  # the task's ("accuracy")
    torch: float  # its value with the engine torch
    int8: float  # and with onnx-int8
    drop: float  # what that costs: points of a score, a share of an error (`training.gates.drop_of`)
    most_drop: float  # what it may cost
    passed: bool
    examples: int  # how many were measured
    data: str  # where they came from

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "failed"
        return (f"{verdict}: {self.metric} {self.torch:.4f} with torch, {self.int8:.4f} with onnx-int8 on "
                f"{self.examples} examples; a drop of {self.drop:.4f}, {self.most_drop:.4f} is allowed")  # fmt: skip


def save_check(pipeline: Pipeline, check: EngineCheck) -> Path:
    """Keeps what was found; a later check of the same pipeline replaces it."""
    path = _path(pipeline)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(check), indent=1) + "\n")
    partial.replace(path)
    return path


def find_check(pipeline: Pipeline) -> EngineCheck | None:
    """What the last check of this very pipeline found; None where there was none."""
    try:
        return EngineCheck(**json.loads(_path(pipeline).read_text()))
    except (OSError, ValueError, TypeError):  # absent, or of another version
        return None


def require_check(pipeline: Pipeline) -> None:
    """Makes sure that 8-bit weights were found good enough for this pipeline.

    Raises:
        InputError: They were not checked, or cost too much.
    """
    check = find_check(pipeline)
    if check is None:
        fix = "run once: polysense engine check BUNDLE VALIDATION_DATA"
        raise InputError("engine onnx-int8", f"what it costs was not measured for {pipeline.name} on this machine", fix)
    if not check.passed:
        raise InputError("engine onnx-int8", f"the check of {pipeline.name} {check}", "use the engine onnx")


def pipeline_hash(pipeline: Pipeline) -> str:
    """SHA-256 over everything the answers of the engine onnx-int8 depend on: graph, tokenizer and head."""
    tokenizer, head = pipeline.tokenizer, pipeline.head
    tensors = {f"tokenizer.{name}": value for name, value in tokenizer.state_dict().items()}
    tensors |= {f"head.{name}": value for name, value in head.state_dict().items()}
    configs = [json.dumps(part, sort_keys=True, default=str) for part in (tokenizer.config_dict(), head.config_dict())]
    facts = [pipeline.task.name, graph_key(pipeline.encoder, head.layers), fingerprint(tensors), *configs]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _path(pipeline: Pipeline) -> Path:
    return cache_folder() / "onnx" / f"check-{pipeline_hash(pipeline)[:32]}.json"
