"""Caches for `pretrain_embedded.py`: `python benchmarks/cache_embedded.py DATA CACHE [NAME …]`.

Each NAME is one file of CACHE, made once; forty minutes on two cores for all, if two processes share the names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from polysense.training.pretrain_cache import cache_pictures, cache_sounds
from polysense.training.pretrain_clouds import cloud_samples
from polysense.training.synthetic_speech import cache_speech

YAMNET = "teachers/yamnet/yamnet.tflite"


def sounds(data: Path, out: Path) -> None:
    """Debian's sounds, ESC-10 folds 1 to 3, spoken digits (train)."""
    audio, view = data / "audio", out.parent / "esc10"
    for file in sorted((audio / "esc10").rglob("[123]-*.ogg")):
        view.mkdir(exist_ok=True)
        link = view / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    cache_sounds([audio / "debian_sounds", view, audio / "fsdd/train"], data / YAMNET, out)


def plain(data: Path, out: Path) -> None:
    """Pictures without labels, whole and in two crops, at 192 pixels; the teacher sees 224."""
    image = data / "image"
    sources = [image / "caltech101/train", image / "imagenet_sample/images"]
    cache_pictures(sources, out, side=192, teacher_side=224, crops=2)


def pictures(path: str, side: int = 128, teacher_side: int | None = None) -> Callable[[Path, Path], None]:
    return lambda data, out: cache_pictures([data / path], out, side=side, teacher_side=teacher_side or side)


CACHES: dict[str, Callable[[Path, Path], object]] = {
    "cifar": pictures("image/cifar10_full/train.parquet"),
    "tiny": pictures("image/tiny_imagenet/train.parquet"),
    "plain": plain,
    "tiny_words": pictures("image/tiny_imagenet/train.parquet", 128, 224),  # for make_meaning.py alone
    "xray": pictures("xray/covid_cxr/train", 192),
    "sounds": sounds,
    "clouds": lambda data, out: cloud_samples(data / "pointcloud", out),
    "speech": lambda data, out: cache_speech(out, data / YAMNET, data / "audio/debian_sounds"),
}


def main() -> None:
    data, cache = Path(sys.argv[1]), Path(sys.argv[2])
    cache.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[3:] or CACHES:
        out = cache / f"{name}.safetensors"
        if not out.is_file():
            CACHES[name](data, out)
            print(name, flush=True)


if __name__ == "__main__":
    main()
