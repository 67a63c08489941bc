"""The rows of the results table: what is fitted, on what, what measures, and what stands beside it.

Options are those of `polysense fit`; a row's figures change with them alone. Baselines were measured on the same parts
unless their name says otherwise; `beside` measures further ones in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sets
from sets import Run, Runs, plain
from table_baselines import gradient_boosting, naive, repeat_last
from table_measures import images_per_second, m4_series, three_answers, unfitted_windows

from polysense.pipeline import Pipeline

Measure = Callable[[Pipeline, Run, Mapping[str, Any]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    task: str
    runs: Runs
    protocol: str
    options: dict[str, Any] = field(default_factory=dict)  # of `fit`
    metrics: tuple[str, ...] = ("accuracy",)  # the first of them that a run has is reported
    baseline: dict[str, float] = field(default_factory=dict)
    reach: float | None = None
    beside: Callable[[Run, Mapping[str, Any]], dict[str, float]] | None = None  # baselines of a run
    ready: Callable[[], Pipeline] | None = None  # a pipeline that is measured without a fit
    measure: Measure | None = None  # in place of `evaluate`
    larger_is_better: bool = True


PROBE = {"epochs": 0}
SERIES = {"epochs": 0, "val_share": 0.1}
CLOUDS = {"epochs": 0, "tokenizer_options": {"views": 2}, "head_options": {"layers": (0, 3)}}
TUNED = {"tokenizer_options": {"tuned": 2}, "epochs": 1}
AS_SET = {"batch_size": 4, "tokenizer_options": {"size": 416}, "head_options": {"levels": 2}}
FORECAST = {"horizon": 96, "context": 96, "epochs": 2, "settled_lr": 0.0}
LONG = {"context": 512, "epochs": 1, "settled_lr": 0.0, "borders": (8640, 2880, 2880), "time": "date"}
ETTH1 = {"horizon": 96, "context": 96, "borders": (8640, 2880, 2880), "time": "date"}


def any_series() -> Pipeline:
    return Pipeline.from_pretrained("any-series")


def small_images() -> Pipeline:
    return Pipeline.build("image-embedding", tokenizer={"size": 64})


ROWS: dict[str, Row] = {
    "cifar_5k": Row(
        "image-classification", sets.cifar(few=True), "CIFAR-10, linear probe on 5,000 labels, 8,500 test images",
        {**PROBE, "batch_size": 64, "head_options": {"layers": (0,)}},
        baseline={"random forest": 0.42, "EfficientNet-lite0 probe": 0.75}, reach=0.90),
    "cifar": Row(
        "image-classification", sets.cifar(few=False), "CIFAR-10, head on full train, 8,500 test images",
        {**PROBE, "batch_size": 64, "head_options": {"layers": (0,)}},
        baseline={"ResNet-20, published": 0.92}, reach=0.94),
    "caltech101": Row(
        "image-classification", plain("image/caltech101"), "Caltech-101, 2,914 train, 807 test",
        {**PROBE, "batch_size": 64, "tokenizer_options": {"size": 192}, "head_options": {"layers": (0,)}},
        baseline={"EfficientNet-lite0": 0.876, "its front part": 0.872}, reach=0.91),
    "tiny200": Row(
        "image-classification", sets.tiny_imagenet, "Tiny-ImageNet part, 200 classes, 9,000 train, 2,400 test",
        {**PROBE, "batch_size": 64, "head_options": {"layers": (0,)}}, baseline={"front part": 0.42}, reach=0.56),
    "esc10": Row(
        "audio-classification", sets.esc10, "ESC-10, folds 1-3, test fold 4", PROBE,
        baseline={"random forest": 0.81, "YAMNet": 0.938, "its front part": 0.963}, reach=0.97),
    "urbansound": Row(
        "audio-classification", plain("audio/urbansound8k"), "UrbanSound8K part, 420 train, 115 test", PROBE,
        baseline={"extra trees": 0.478, "YAMNet": 0.852}, reach=0.80),
    "digits": Row(
        "audio-classification", sets.unheard_speakers, "FSDD, one speaker left out (mean of 4), 450 train, 200 test",
        {**PROBE, "head_options": {"pooling": ("cells",), "layers": ()}},
        baseline={"logistic regression": 0.393}, reach=0.92),
    "fight": Row(
        "video-classification", plain("video/fight_surv"), "fight / noFight, 80 train, 30 test clips",
        {**PROBE, "tokenizer_options": {"frames": 16}}, baseline={"random forest": 0.633}, reach=0.80),
    "miracl": Row(
        "video-classification", plain("video/miracl_words"), "MIRACL words, 10 speakers train, 3 others test",
        {**PROBE, "tokenizer_options": {"form": "motion"}, "head_options": {"pooling": ("course",)}},
        baseline={"extra trees": 0.527}, reach=0.70),
    "bimnet": Row(
        "point-cloud-classification", sets.bimnet, "BIMNet10, 123 train, 42 test (own split)", CLOUDS,
        baseline={"random forest": 0.706}, reach=0.90),
    "dales": Row(
        "point-cloud-classification", plain("pointcloud/dales_objects"), "DALES objects, 300 train, 100 test",
        CLOUDS, baseline={"random forest": 0.980}, reach=0.99),
    "furniture": Row(
        "point-cloud-classification", sets.furniture, "Sweet Home furniture, 16 classes, 397 train, 67 test", CLOUDS,
        baseline={"extra trees": 0.638}, reach=0.80),
    "wharf": Row(
        "time-series-classification", plain("imu/wharf"), "WHARF, 560 train, 114 test by other volunteers", SERIES,
        baseline={"random forest": 0.930}, reach=0.95),
    "xray": Row(
        "image-classification", plain("xray/covid_cxr"), "chest X-rays, 3 classes, 510 train, 140 test",
        {**PROBE, "tokenizer_options": {"size": 192}},
        baseline={"random forest": 0.721}, reach=0.88),
    "gunpoint": Row(
        "time-series-classification", plain("timeseries_classification/GunPoint"), "GunPoint, official split", SERIES,
        baseline={"1-NN": 0.913}, reach=0.98),
    "italypower": Row(
        "time-series-classification", plain("timeseries_classification/ItalyPowerDemand"),
        "ItalyPowerDemand, official split", SERIES, baseline={"1-NN": 0.955}, reach=0.97),
    "osuleaf": Row(
        "time-series-classification", plain("timeseries_classification/OSULeaf"), "OSULeaf, official split", SERIES,
        baseline={"1-NN": 0.521}, reach=0.85),
    "etth1": Row(
        "forecasting", plain("timeseries_forecasting/ETTh1/ETTh1.csv"), "ETTh1 96 → 96, 12/4/4 months, MSE",
        {**FORECAST, **ETTH1}, ("mse",), {"ridge": 0.383, "iTransformer, published": 0.386}, 0.370, repeat_last,
        larger_is_better=False),
    **{f"etth1_{horizon}": Row(
        "forecasting", plain("timeseries_forecasting/ETTh1/ETTh1.csv"), f"ETTh1 512 → {horizon}, 12/4/4 months, MSE",
        {"horizon": horizon, **LONG}, ("mse",), {"linear, about": linear, "iTransformer": transformer}, reach,
        repeat_last, larger_is_better=False)
       for horizon, linear, transformer, reach in ((96, 0.37, 0.386, 0.368), (192, 0.40, 0.441, 0.402),
                                                   (336, 0.43, 0.487, 0.425), (720, 0.45, 0.503, 0.440))},
    "etth1_unfitted": Row(
        "forecasting", sets.unfitted("ETTh1/ETTh1.csv"), "ETTh1 → 96, unfitted, MSE", ETTH1,
        ("mse",), {"ridge, fitted": 0.383}, 0.39, repeat_last, any_series, unfitted_windows, larger_is_better=False),
    "exchange": Row(
        "forecasting", plain("timeseries_forecasting/exchange_rate/exchange_rate.txt.gz"),
        "exchange rates 96 → 96, 70/10/20%, MSE", FORECAST, ("mse",),
        {"ridge": 0.083, "iTransformer, published": 0.086}, 0.080, repeat_last, larger_is_better=False),
    "m4_hourly": Row(
        "forecasting", sets.unfitted("m4_hourly"), "M4 hourly, 373 series, 48 steps, unfitted, sMAPE", {}, ("smape",),
        {"Theta, published": 18.1, "winner, published": 9.3}, 11.0, naive(24, "seasonal naive"), any_series, m4_series,
        larger_is_better=False),
    "m4_weekly": Row(
        "forecasting", sets.unfitted("m4_weekly"), "M4 weekly, 322 series, 13 steps, unfitted, sMAPE", {}, ("smape",),
        {"Theta, published": 9.09, "winner, published": 7.82}, 8.2, naive(1, "naive"), any_series, m4_series,
        larger_is_better=False),
    "adult": Row(
        "tabular-classification", sets.adult, "Adult, 5-fold on the train file",
        {"target": "-1"}, reach=0.875, beside=gradient_boosting),
    # Scores of one scale: accuracy of the two that OpenML-CC18 and its forerunner classify, R² of the three that
    # OpenML-CTR23 regresses (abalone's rings, the wines' grades: ordered numbers).
    "small_tables": Row(
        "tabular-classification", sets.small_tables, "five small tables, 75/25 split, mean of accuracy or R²",
        {"target": "-1"}, ("accuracy", "r2"), beside=gradient_boosting),
    "sst2": Row(
        "text-classification", sets.sst2, "SST-2, 6,920 train, 872 dev sentences", {"target": "-1", **TUNED},
        baseline={"tf-idf": 0.794}, reach=0.85),
    "ag_news": Row(
        "text-classification", sets.ag_news, "AG News, 4,480 train, 1,120 test (own split)",
        {"target": "column_0", **TUNED,
         "tokenizer_options": {"column": "column_1,column_2", **TUNED["tokenizer_options"]}},
        baseline={"tf-idf": 0.884}, reach=0.90),
    "speed": Row(
        "image-embedding", plain("image"), "images of 64 × 64 a second, tokenizer and encoder", {},
        ("images_per_second",), ready=small_images, measure=images_per_second),
    "bccd": Row(
        "object-detection", sets.blood, "BCCD, 205 train, 87 official val images, mAP50",
        {"epochs": 14, "patience": 14, "tokenizer_options": {"size": 416}}, ("map50",), {"small YOLO, about": 0.90},
        0.88),
    "raccoon": Row(
        "object-detection", sets.raccoon, "raccoons, 60 train, 20 test images, mAP50",
        {"epochs": 20, "patience": 20, "tokenizer_options": {"size": 416}}, ("map50",), reach=0.75),
    "raccoon_set": Row(
        "object-detection-set", sets.raccoon, "raccoons, 60 train, 20 test images, as a set, mAP50",
        {"epochs": 16, "patience": 16, **AS_SET}, ("map50",), {"dense head": 0.890}, 0.75),
    "bccd_set": Row(
        "object-detection-set", sets.blood, "BCCD, 205 train, 87 official val images, as a set, mAP50",
        {"epochs": 10, "patience": 10, **AS_SET}, ("map50",), {"dense head": 0.883}, 0.88),
    "hit_uav": Row(
        "object-detection", sets.hit_uav, "HIT-UAV infrared, 120 train, 40 test images, 4 classes, mAP50",
        {"epochs": 12, "patience": 12, "batch_size": 4, "tokenizer_options": {"size": 640},
         "head_options": {"channels": 96}},
        ("map50",), {"YOLOv4, full set": 0.848}, 0.70),
    "coco_panoptic": Row(
        "panoptic-segmentation", sets.coco_segments, "COCO part, 100 train, 30 val images, 133 classes, PQ",
        {"epochs": 40, "patience": 40, "batch_size": 4, "tokenizer_options": {"size": 256}}, ("pq",),
        measure=three_answers),
    "camvid": Row(
        "image-segmentation", plain("segmentation/camvid"), "CamVid, 200 train, 60 test, 11 classes, mIoU",
        {"epochs": 15, "patience": 15, "ignore": 11, "tokenizer_options": {"size": 416}}, ("miou",),
        {"SegNet-Basic, 367 train": 0.464, "ENet, 367 train": 0.513}, 0.55),
}  # fmt: skip
