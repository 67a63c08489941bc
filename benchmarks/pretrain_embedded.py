"""The joint pretraining that made the embedded encoder: `python benchmarks/pretrain_embedded.py DATA CACHE OUT STEPS`.

DATA is the folder of public data sets named in docs/pretraining.md, CACHE holds what `cache_embedded.py` wrote. On
several cores: `OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/pretrain_embedded.py …`; the processes share a
batch. `--senses image` makes the encoder of one sense that `evidence.py` compares with.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.building import load_tokenizer_weights
from polysense.data.dataset import list_files
from polysense.data.time_series import SeriesFrame, read_series
from polysense.tokenizers.audio import AudioConfig, AudioTokenizer
from polysense.tokenizers.image import ImageConfig, ImageTokenizer
from polysense.tokenizers.point_cloud import PointCloudConfig, PointCloudTokenizer
from polysense.tokenizers.tabular import TabularConfig, TabularTokenizer
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.training.pretrain import PretrainConfig, pretrain
from polysense.training.pretrain_clouds import CloudStream, cloud_samples
from polysense.training.pretrain_images import PictureSet, PictureStream
from polysense.training.pretrain_streams import FrontStream, SampleStream, SeriesStream, TableStream
from polysense.training.synthetic import synthetic_series, synthetic_table
from polysense.training.teachers import Yamnet, lite0_stem, load_lite0

HORIZON = 64
SETTLED = 0.5  # share of the tuning that the picture stem keeps, by held-out training rows (docs/pretraining.md)
WHOLE_BATCH = {"image": 120, "audio": 40, "point_cloud": 16, "series": 16, "table": 32}
BATCH = {name: size // int(os.environ.get("WORLD_SIZE", 1)) for name, size in WHOLE_BATCH.items()}  # of one process


def images(cache: Path) -> PictureStream:
    """Late blocks of the stem are tuned, at a third of the rate. Last rows of CIFAR-10 and Tiny-ImageNet validate."""
    tokenizer = ImageTokenizer(ImageConfig())
    tokenizer.stem.load_state_dict(lite0_stem(load_lite0()).state_dict())
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU

    def views(name: str) -> list[Path]:
        return [path for path in (cache / f"{name}.safetensors", cache / f"{name}_b.safetensors") if path.is_file()]

    sets = [PictureSet("cifar", views("cifar"), 0.42, True, held_out=3000),
            PictureSet("tiny", views("tiny"), 0.2, True, held_out=900),
            PictureSet("plain", views("plain"), 0.33, False),
            PictureSet("xray", views("xray"), 0.05, True)]  # fmt: skip
    return PictureStream("image", tokenizer, BATCH["image"], sets, 0.3)


def sounds(cache: Path, yamnet: Path) -> FrontStream:
    tokenizer = AudioTokenizer(AudioConfig())
    tokenizer.stem.load_state_dict(Yamnet(yamnet).stem().state_dict())
    cells = torch.cartesian_prod(torch.arange(6.0), tokenizer.bands()) + 0.5
    pos = cells * torch.tensor([0.16 / 10, 0.25])  # seconds in units of 10 s, share of the bands
    return FrontStream("audio", tokenizer, BATCH["audio"], {"sounds": (cache / "sounds.safetensors", 0.6, False),
                                                "speech": (cache / "speech.safetensors", 0.4, True)}, pos)  # fmt: skip


# Clouds and series begin with what the tokenizers of the encoder before have learnt.
def clouds(data: Path, cache: Path) -> CloudStream:
    tokenizer = PointCloudTokenizer(PointCloudConfig())
    load_tokenizer_weights(tokenizer, "point_cloud")
    samples = cloud_samples(data, cache / "clouds.safetensors")
    return CloudStream("point_cloud", tokenizer, BATCH["point_cloud"], samples)


def series(data: Path) -> SeriesStream:
    tokenizer = TimeSeriesTokenizer(SeriesConfig(context=256, center="last"))
    load_tokenizer_weights(tokenizer, "time_series")
    files = [f for f in list_files(data / "general", (".csv",)) if f.name != "INDEX.csv"]
    frames = [frame for frame in map(read_series, files) if len(frame.values) > HORIZON + 32]

    def windows(rng: np.random.Generator) -> list:
        length = int(rng.integers(64, 257))
        if rng.random() < 0.5:
            values = synthetic_series(rng, length + HORIZON)[:, None]
            frame = SeriesFrame(values, None, ["value"])
        else:
            frame = frames[int(rng.integers(len(frames)))]
            column = int(rng.integers(frame.values.shape[1]))
            start = int(rng.integers(max(1, len(frame.values) - length - HORIZON)))
            part = slice(start, start + length + HORIZON)
            times = None if frame.times is None else frame.times[part]
            frame = SeriesFrame(frame.values[part, column : column + 1], times, ["value"], frame.freq)
        end = len(frame.values) - HORIZON
        if end < 16 or not np.isfinite(frame.values[:end]).any():
            return windows(rng)
        return [(tokenizer.window_sample(frame, end), frame.values[end:, 0])]

    return SeriesStream("time_series", tokenizer, BATCH["series"], windows, HORIZON)


def tables(count: int = 12) -> TableStream:
    import pandas as pd

    rng, streams = np.random.default_rng(0), []
    for _ in range(count):
        columns, labels = synthetic_table(rng)
        frame = pd.DataFrame(columns, columns=[f"c{i}" for i in range(columns.shape[1])])
        tokenizer = TabularTokenizer(TabularTokenizer.fit_config(TabularConfig(), [frame]))
        streams.append(
            SampleStream("table", tokenizer, BATCH["table"], list(tokenizer.read_all(frame)), labels.tolist())
        )
    return TableStream("tabular", streams)


@torch.no_grad()
def settle_stem(stream: PictureStream, share: float) -> None:
    """Sets the tuned blocks between the published (0) and the tuned weights (1), where they stay.

    Between the two a network often knows more than at either end, most of all of what it was not tuned on (WiSE-FT,
    Wortsman et al. 2022).
    """
    for tuned, published in zip(stream.late.parameters(), stream.frozen.parameters(), strict=True):
        tuned.lerp_(published, 1 - share)
    stream.stem_lr = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--senses", nargs="+", default=list(WHOLE_BATCH), choices=WHOLE_BATCH, help="image among them")
    args = parser.parse_args()
    data, cache, out = args.data, args.cache, args.out
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=192, depth=6, heads=3, final_norm=False)).start_as_identity()
    pictures = images(cache)
    others = {"audio": lambda: sounds(cache, data / "teachers/yamnet/yamnet.tflite"),
              "point_cloud": lambda: clouds(data / "pointcloud", cache),
              "series": lambda: series(data / "timeseries_forecasting"), "table": tables}  # fmt: skip
    streams = [pictures, *(build() for name, build in others.items() if name in args.senses)]
    pretrain(encoder, streams, PretrainConfig(steps=args.steps, warmup=100, seed=5), out)
    settle_stem(pictures, SETTLED)
    pretrain(encoder, streams, PretrainConfig(steps=args.steps // 8, lr=3e-4, warmup=20, seed=6), out / "settled")


if __name__ == "__main__":
    main()
