"""Gives the audio tokenizer the last layers of its front part, the encoder staying as it is.

    python benchmarks/widen_sounds.py DATA CACHE OLD OUT STEPS

OLD is the tokenizer that was pretrained with the encoder, when its front part ended with layer 9 of YAMNet. What it
learnt stays; the projection of the late tokens, which begins as their principal axes, learns what
`pretrain_embedded.py` teaches sounds, through the frozen encoder. CACHE holds "sounds" and "speech" of
`cache_embedded.py`. The result is OUT/weights/tokenizers/audio.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from pretrain_embedded import sounds
from safetensors.torch import load_file

from polysense.backbone.weights import load_encoder
from polysense.training.pretrain import PretrainConfig, pretrain


def main() -> None:
    data, cache, old, out = map(Path, sys.argv[1:5])
    torch.manual_seed(0)
    encoder = load_encoder("embedded").requires_grad_(False)
    stream = sounds(cache, data / "teachers/yamnet/yamnet.tflite")
    tokenizer = stream.tokenizer
    parts = {"project": tokenizer.project.early, "position": tokenizer.position}
    known = load_file(old)
    for name, part in parts.items():
        state = {key.removeprefix(f"{name}."): value for key, value in known.items() if key.startswith(f"{name}.")}
        part.load_state_dict({key: value.float() for key, value in state.items()})
        part.requires_grad_(False)
    pretrain(encoder, [stream], PretrainConfig(steps=int(sys.argv[5]), warmup=100, seed=5), out)


if __name__ == "__main__":
    main()
