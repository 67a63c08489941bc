"""Cases of `polysense bench` that run whole encoders: padding, engines, other libraries' ViTs, GPUs.

Shape legend: b batch, n tokens, d width, h heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polysense.apps.bench_race import Race, Run
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.engines import with_engine
from polysense.backbone.weights import create_timm, load_encoder
from polysense.core.errors import InputError
from polysense.core.types import Tokens

SMALL = EncoderConfig(width=48, depth=2, heads=3)  # for --quick
BASE = EncoderConfig(width=768, depth=12, heads=12)
NO_GPU = "no CUDA device"


def encoders(quick: bool) -> Iterator[tuple[str, Encoder]]:
    """What is measured, by name: the embedded encoder and one of ViT-B's size with random weights."""
    if quick:
        yield "48 × 2", random_encoder(SMALL)
        return
    yield "embedded", load_encoder("embedded")
    yield "768 × 12", random_encoder(BASE)


def random_encoder(config: EncoderConfig) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(config).freeze()


def random_tokens(b: int, n: int, d: int, share: float | None = None, device: str = "cpu") -> Tokens:
    """Tokens (b, n, d); with `share`, lengths are spread evenly so that mean / longest is this."""
    x = torch.randn(b, n, d, generator=torch.Generator().manual_seed(0)).to(device)
    mask = None
    if share is not None:
        lengths = torch.linspace(2 * share - 1, 1, b).mul(n).round().clamp(min=1)
        mask = (torch.arange(n) < lengths[:, None]).to(device)
    return Tokens(x, mask, x.new_zeros(b, n, 1))


def padded(quick: bool) -> Iterator[Race]:
    """Batches with padding, mean / longest length .53: packed tokens against a mask over padded ones."""
    for name, encoder in encoders(quick):
        sizes = [(4, 32)] if quick else [(32, 256), (16, 512)] if name == "embedded" else [(8, 197), (4, 512)]
        for b, n in sizes:
            tokens = random_tokens(b, n, encoder.config.width, 0.53)
            runs = {
                "padded SDPA": partial(real, encoder, tokens, False),
                "packed": partial(real, encoder, tokens, True),
                "packed, onnx": _onnx(encoder, tokens),
            }
            yield Race("padded", f"{name}, {b} × {n} tokens", runs, {"packed": 2.1})


def _onnx(encoder: Encoder, tokens: Tokens) -> Run | str:
    try:
        return partial(real, with_engine(encoder, "onnx"), tokens, True)
    except InputError as error:
        return error.problem


def real(encoder: Encoder, tokens: Tokens, packing: bool) -> Tensor:
    """The encoder's real tokens, with or without packing."""
    encoder.packing = packing
    return encoder(tokens).last.x[tokens.dense_mask()]


def engines(quick: bool) -> Iterator[Race]:
    """onnxruntime, with 32-bit and with 8-bit weights, against torch."""
    for name, encoder in encoders(quick):
        sizes = [(2, 16)] if quick else [(1, 197), (16, 64)] if name == "embedded" else [(1, 197), (4, 197)]
        for b, n in sizes:
            tokens = random_tokens(b, n, encoder.config.width)
            runs: dict[str, Any] = {"torch": lambda e=encoder, t=tokens: e(t).last.x}
            for engine in ("onnx", "onnx-int8"):
                try:
                    fast = with_engine(encoder, engine)
                    runs[engine] = lambda e=fast, t=tokens: e(t).last.x
                except InputError as error:
                    runs[engine] = error.problem
            yield Race("engines", f"{name}, {b} × {n} tokens", runs, {"onnx-int8": 1.5})


def variants(quick: bool) -> Iterator[Race]:
    """Encoders with RMSNorm in place of LayerNorm (the same answers), and with 8 and 16 tokens merged in each block."""
    from polysense.backbone.convert import to_crms_norm, to_rms_norm
    from polysense.backbone.token_merging import merge_tokens_in

    for name, encoder in encoders(quick):
        b, n = (2, 40) if quick else (8, 197)
        tokens = random_tokens(b, n, encoder.config.width)
        others = {"plain": encoder, "RMSNorm": to_rms_norm(encoder), "CRMSNorm": to_crms_norm(encoder)}
        merging = {"plain": encoder, "8 merged": merge_tokens_in(encoder, 8), "16 merged": merge_tokens_in(encoder, 16)}
        for what, ways in (("norms", others), ("merging", merging)):
            runs = {way: partial(_last, changed, tokens) for way, changed in ways.items()}
            yield Race("variants", f"{what}, {name}, {b} × {n} tokens", runs, same=what == "norms")


def _last(encoder: Encoder, tokens: Tokens) -> Tensor:
    return encoder(tokens).last.x


def dense(quick: bool) -> Iterator[Race]:
    """A ViT at 224 pixels, patches and all, eager: timm's, Hugging Face's and ours, random weights."""
    from transformers import ViTConfig, ViTModel

    from polysense.tokenizers.image import from_timm

    spec = "random:vit_tiny_patch16_224" if quick else "random:vit_base_patch16_224"
    model: Any = create_timm(spec)
    encoder, tokenizer = load_encoder(spec), from_timm(model).eval()
    width, depth, heads = encoder.config.width, encoder.config.depth, encoder.config.heads
    config = ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width
    )
    hugging: Any = ViTModel(config, add_pooling_layer=False).eval()
    rng = torch.Generator().manual_seed(0)

    def whole(batch: dict[str, Any]) -> Tensor:
        return encoder(tokenizer(batch)).last.x

    for b in (1,) if quick else (1, 8):
        pixels = (torch.rand(b, 224, 224, 3, generator=rng) * 255).byte()
        batch = tokenizer.collate([tokenizer.read(picture.numpy()) for picture in pixels])
        images = torch.randn(b, 3, 224, 224, generator=rng)
        runs = {"timm": partial(model.forward_features, images), "Hugging Face": partial(hugging, images),
                "polysense": partial(whole, batch)}  # fmt: skip
        yield Race("dense", f"ViT {width} × {depth}, {b} × 224 px", runs, {"polysense": 0.98}, same=False)


def gpu_padded(quick: bool) -> Iterator[Race]:
    """On a GPU, bfloat16: packed tokens against a mask over padded ones."""
    setting, names = "768 × 12, 64 × 256 tokens, bfloat16", ("padded SDPA", "packed")
    if not torch.cuda.is_available():
        yield Race("gpu-padded", setting, dict.fromkeys(names, NO_GPU), {"packed": 1.8})
        return
    encoder = random_encoder(SMALL if quick else BASE).to("cuda", torch.bfloat16)
    tokens = random_tokens(64, 256, encoder.config.width, 0.53, "cuda")
    tokens = tokens.replace(tokens.x.bfloat16())
    yield Race("gpu-padded", setting, {names[0]: partial(real, encoder, tokens, False),
                                       names[1]: partial(real, encoder, tokens, True)}, {"packed": 1.8})  # fmt: skip


def gpu_sigmoid(quick: bool) -> Iterator[Race]:
    """On a GPU: sigmoid attention (Triton) against softmax (torch's flash kernels); the answers differ by design."""
    from polysense.kernels.attention import attention

    setting, names = "8 × 16 heads × 4096 tokens × 64, bfloat16", ("softmax SDPA", "softmax triton", "sigmoid triton")
    if not torch.cuda.is_available():
        yield Race("gpu-sigmoid", setting, dict.fromkeys(names, NO_GPU), {names[2]: 1.17})
        return
    b, n = (1, 256) if quick else (8, 4096)
    q, k, v = (torch.randn(b, 16, n, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))

    def attend(name: str) -> Tensor:
        kind, backend = name.lower().split()
        return attention(q, k, v, kind=kind, backend=backend)

    runs = {name: partial(attend, name) for name in names}
    yield Race("gpu-sigmoid", setting, runs, {names[2]: 1.17}, same=False)


def gpu_rate(quick: bool) -> Iterator[Race]:
    """On a GPU, bfloat16: an encoder against bare matrix products of as many operations; above .5 is aimed at."""
    setting, names = "768 × 12, 256 × 197 tokens, bfloat16", ("matrix products", "encoder")
    if not torch.cuda.is_available():
        yield Race("gpu-rate", setting, dict.fromkeys(names, NO_GPU), {"encoder": 0.5})
        return
    config = SMALL if quick else BASE
    b, n, d = (4 if quick else 256), 197, config.width
    encoder = random_encoder(config).to("cuda", torch.bfloat16)
    tokens = random_tokens(b, n, d, device="cuda")
    tokens = tokens.replace(tokens.x.bfloat16())
    # A block multiplies each token by 12 d² weights and by 2 n d keys and values.
    side = 8192
    x, y = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = config.depth * b * n * (12 * d * d + 2 * n * d) / side**3

    def products() -> None:
        for _ in range(max(1, round(times))):
            x @ y

    yield Race("gpu-rate", setting, {names[0]: products, names[1]: lambda: encoder(tokens)}, {"encoder": 0.5})
