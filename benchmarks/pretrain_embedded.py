"""The short joint pretraining that made the embedded encoder: `python benchmarks/pretrain_embedded.py DATA CACHE OUT`.

DATA is the folder of public data sets named in docs/pretraining.md, CACHE holds what `training.pretrain_cache` wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.data.dataset import class_folders, list_files
from polysense.data.point_cloud import CLOUD_ENDINGS, Cloud
from polysense.data.time_series import SeriesFrame, read_series
from polysense.tokenizers.audio import AudioConfig, AudioTokenizer
from polysense.tokenizers.image import ImageConfig, ImageTokenizer
from polysense.tokenizers.image_grid import cell_centres
from polysense.tokenizers.point_cloud import PointCloudConfig, PointCloudTokenizer
from polysense.tokenizers.tabular import TabularConfig, TabularTokenizer
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.training.pretrain import PretrainConfig, pretrain
from polysense.training.pretrain_streams import CloudStream, FrontStream, SampleStream, SeriesStream, TableStream
from polysense.training.synthetic import synthetic_series, synthetic_table
from polysense.training.teachers import Yamnet, lite0_stem, load_lite0

HORIZON = 64


def images(cache: Path) -> FrontStream:
    tokenizer = ImageTokenizer(ImageConfig())
    tokenizer.stem.load_state_dict(lite0_stem(load_lite0()).state_dict())
    pos = cell_centres(torch.tensor([[4, 4]]), 4, 4)[0]
    caches = {"cifar": (cache / "cifar.safetensors", 0.5, True), "tiny": (cache / "tiny.safetensors", 0.25, True),
              "plain": (cache / "unlabelled.safetensors", 0.25, False)}  # fmt: skip
    return FrontStream("image", tokenizer, 160, caches, pos)


def sounds(cache: Path, yamnet: Path) -> FrontStream:
    tokenizer = AudioTokenizer(AudioConfig())
    tokenizer.stem.load_state_dict(Yamnet(yamnet).stem().state_dict())
    cells = torch.cartesian_prod(torch.arange(6.0), torch.arange(4.0)) + 0.5
    pos = cells * torch.tensor([0.16 / 10, 0.25])  # seconds in units of 10 s, share of the bands
    return FrontStream("audio", tokenizer, 32, {"sounds": (cache / "sounds.safetensors", 1.0, False)}, pos)


def clouds(data: Path) -> CloudStream:
    """BIMNet10 and DALES with classes; furniture (y up, turned to z up) without."""
    import h5py

    tokenizer = PointCloudTokenizer(PointCloudConfig())
    samples, labels = [], []
    with h5py.File(data / "bimnet10/bimnet10_train.h5") as file:
        rows = np.random.default_rng(0).permutation(len(file["data"]))[: int(len(file["data"]) * 0.75)]
        for i in sorted(rows):  # the last quarter measures
            samples.append(tokenizer.cut(Cloud(file["data"][i].astype(np.float64), {}), f"bimnet{i}"))
            labels.append(int(file["label"][i]))
    dales = class_folders(data / "dales_objects/train", CLOUD_ENDINGS)
    for item in dales.items:
        samples.append(tokenizer.read(item.source))
        labels.append(10 + dales.classes.index(item.target))
    for xyz in np.load(data / "sweethome_objects/train.npz")["points"]:
        samples.append(tokenizer.cut(Cloud(xyz[:, [0, 2, 1]].astype(np.float64), {}), "furniture"))
        labels.append(-1)
    return CloudStream("point_cloud", tokenizer, 8, samples, labels)


def series(data: Path) -> SeriesStream:
    tokenizer = TimeSeriesTokenizer(SeriesConfig(context=256, center="last"))
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

    return SeriesStream("time_series", tokenizer, 16, windows, HORIZON)


def tables(count: int = 12) -> TableStream:
    import pandas as pd

    rng, streams = np.random.default_rng(0), []
    for _ in range(count):
        columns, labels = synthetic_table(rng)
        frame = pd.DataFrame(columns, columns=[f"c{i}" for i in range(columns.shape[1])])
        tokenizer = TabularTokenizer(TabularTokenizer.fit_config(TabularConfig(), [frame]))
        streams.append(SampleStream("table", tokenizer, 32, list(tokenizer.read_all(frame)), labels.tolist()))
    return TableStream("tabular", streams)


def main() -> None:
    data, cache, out = (Path(arg) for arg in sys.argv[1:4])
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else 800
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=192, depth=6, heads=3, final_norm=False)).start_as_identity()
    streams = [images(cache), sounds(cache, data / "teachers/yamnet/yamnet.tflite"), clouds(data / "pointcloud"),
               series(data / "timeseries_forecasting"), tables()]  # fmt: skip
    pretrain(encoder, streams, PretrainConfig(steps=steps), out)


if __name__ == "__main__":
    main()
