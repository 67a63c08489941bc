"""Files a second, end to end, side by side: `python benchmarks/throughput.py DATA OUT [--count 1000] [--threads 2]`.

From files on disk to a file of answers, models loaded before: polysense's jobs (torch and onnx), a plain loop over the
pipeline, Hugging Face's `pipeline(...)` and timm's way (its transform, a DataLoader, batches of 16) with transformers
of about the same number of parameters, whose weights are random: nothing is said of their answers. Every way runs
twice, in turn; the better one counts.

`--ray` compares one with two Ray actors on files that are costly to decode instead: large JPEGs, made for it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

IMAGES, SOUNDS = ("image/imagenet_sample", "image/caltech101"), ("audio/esc10", "audio/urbansound8k")
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="files of each kind")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", default=["image", "audio"])
    parser.add_argument("--ray", action="store_true")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.ray:
        return compare_actors(args.out, args.count)
    for kind in args.only:
        files = collect(args.data, IMAGES if kind == "image" else SOUNDS, args.count)
        ways = image_ways(args.threads) if kind == "image" else audio_ways()
        compare(kind, files, ways, args.out)


def collect(data: Path, folders: Sequence[str], count: int) -> list[str]:
    endings = {".jpg", ".jpeg", ".wav", ".ogg", ".flac"}
    found = [
        str(path) for folder in folders for path in sorted((data / folder).rglob("*")) if path.suffix.lower() in endings
    ]
    return found[:: max(1, len(found) // count)][:count]


def compare(kind: str, files: list[str], ways: dict[str, Callable[[list[str], Path], None]], out: Path) -> None:
    """Prints files a second of each way, and by how much it is faster than Hugging Face's."""
    best: dict[str, float] = {}
    for _ in range(2):
        for name, run in ways.items():
            path = out / f"{name.replace(' ', '-')}.jsonl"
            started = time.perf_counter()
            run(files, path)
            rate = len(files) / (time.perf_counter() - started)
            assert len(path.read_text().splitlines()) == len(files), f"{name} left out some"
            best[name] = max(rate, best.get(name, 0.0))
    print(f"\n| {kind}: {len(files)} files | files a second | of Hugging Face's |\n|---|---|---|")
    for name, rate in best.items():
        print(f"| {name} | {rate:.1f} | {rate / best['hugging face pipeline']:.2f} |", flush=True)


def job(pipeline: Any, files: list[str], out: Path, **options: Any) -> None:
    """What `polysense predict --out` does once the pipeline is loaded."""
    from polysense.apps.flow import Flow, Reading
    from polysense.apps.job import Job
    from polysense.data.items import Item

    flow = Flow(Reading(workers=options.pop("workers", None)), **options)
    group = flow.group(pipeline, lambda: [Item(name, name) for name in files])
    Job({pipeline.modality: group}, {}, progress={"quiet": True}).run(out, resume=False)


def loop(pipeline: Any, files: list[str], out: Path) -> None:
    with out.open("w") as lines:
        for name in files:
            lines.write(json.dumps(pipeline(name)[0].to_record()) + "\n")


def hugging_face(pipe: Any, files: list[str], out: Path) -> None:
    with out.open("w") as lines:
        for name, answer in zip(files, pipe(files, batch_size=BATCH, top_k=None), strict=True):
            lines.write(json.dumps({"source": name, "scores": answer}) + "\n")


def image_ways(threads: int) -> dict[str, Callable[[list[str], Path], None]]:
    import polysense

    ours = {engine: polysense.load("image-classification", engine=engine) for engine in ("torch", "onnx")}
    classes = len(ours["torch"].head.config.classes)
    return {
        "polysense torch": partial(job, ours["torch"]),
        "polysense onnx": partial(job, ours["onnx"]),
        "polysense loop": partial(loop, ours["torch"]),
        "hugging face pipeline": partial(hugging_face, make_vit(classes)),
        "timm with a loader": partial(timm_loader, threads, classes),
    }


def make_vit(classes: int) -> Any:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768,
                       num_labels=classes)  # fmt: skip
    model = ViTForImageClassification(config).eval()
    return pipeline("image-classification", model=model, image_processor=ViTImageProcessor(), device="cpu")


def timm_loader(threads: int, classes: int, files: list[str], out: Path) -> None:
    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=classes).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)

    class Files(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> Any:
            with Image.open(files[i]) as image:
                return transform(image.convert("RGB"))

    loader = torch.utils.data.DataLoader(Files(), batch_size=BATCH, num_workers=threads)
    with out.open("w") as lines, torch.inference_mode():
        names = iter(files)
        for batch in loader:
            for row in model(batch).softmax(-1).tolist():
                lines.write(json.dumps({"source": next(names), "scores": row}) + "\n")


def audio_ways() -> dict[str, Callable[[list[str], Path], None]]:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, pipeline

    import polysense

    ours = {engine: polysense.load("audio-classification", engine=engine) for engine in ("torch", "onnx")}
    config = ASTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=10
    )
    pipe = pipeline("audio-classification", model=ASTForAudioClassification(config).eval(),
                    feature_extractor=ASTFeatureExtractor(), device="cpu")  # fmt: skip

    def sounds(files: list[str], out: Path) -> None:
        import soundfile
        import torchaudio

        def read(name: str) -> dict[str, Any]:  # its own reader wants ffmpeg on the machine
            import torch

            wave, rate = soundfile.read(name, dtype="float32", always_2d=True)
            mono = torchaudio.functional.resample(torch.from_numpy(wave.mean(1)), rate, 16000)
            return {"raw": mono.numpy(), "sampling_rate": 16000}

        with out.open("w") as lines:
            for name, answer in zip(
                files, pipe((read(name) for name in files), batch_size=BATCH, top_k=None), strict=True
            ):
                lines.write(json.dumps({"source": name, "scores": answer}) + "\n")

    return {
        "polysense torch": partial(job, ours["torch"]),
        "polysense onnx": partial(job, ours["onnx"]),
        "polysense loop": partial(loop, ours["torch"]),
        "hugging face pipeline": sounds,
    }


def compare_actors(out: Path, count: int) -> None:
    """One and two Ray actors on JPEGs of 24 megapixels, twenty of them under many names."""
    import numpy as np
    from PIL import Image

    import polysense

    folder = out / "large"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if i >= 20 and not path.exists():
            os.link(folder / f"{i % 20:05d}.jpg", path)
        elif not path.exists():
            small = Image.fromarray(rng.integers(0, 255, (400, 600, 3), dtype=np.uint8))
            small.resize((6000, 4000)).save(path, quality=90)
    files = [str(path) for path in sorted(folder.iterdir())][:count]
    pipeline = polysense.load("image-classification")
    rates = {}
    for actors in (1, 2, 1, 2):
        started = time.perf_counter()
        job(pipeline, files, out / f"ray-{actors}.jsonl", ray=True, actors=actors)
        rates[actors] = max(rates.get(actors, 0.0), count / (time.perf_counter() - started))
    print(f"| Ray actors | files a second |\n|---|---|\n| 1 | {rates[1]:.2f} |\n| 2 | {rates[2]:.2f} |")
    print(f"ratio {rates[2] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
