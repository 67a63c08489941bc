"""Calibration at the end of a fit: the score from which a segment is answered is chosen on validation data."""

import numpy as np
from PIL import Image

from polysense.core.predictions import Segments
from polysense.training import calibrate as calibration
from polysense.training.calibrate import THRESHOLDS, choose_threshold

PATCHES = {"form": "patch", "size": 64}
SMALL = {"channels": 16, "queries": 5, "reads": 3, "heads": 2}


def test_the_threshold_is_the_best_on_validation_data(build, monkeypatch):
    pipeline = build("instance-segmentation")
    seen = []

    def fake(pipeline, examples, batch_size):
        seen.append((pipeline.task.kind, pipeline.head.answer, pipeline.head.threshold))
        return {"pq": 0.4 if pipeline.head.threshold == 0.2 else 0.1}

    monkeypatch.setattr(calibration, "measure", fake)
    choose_threshold(pipeline, pipeline.head, [], 4)
    assert [row[2] for row in seen] == list(THRESHOLDS)
    assert {row[:2] for row in seen} == {("panoptic", "panoptic")}
    assert pipeline.head.threshold == pipeline.head.config.threshold == 0.2
    assert (pipeline.task.kind, pipeline.head.answer) == ("instances", "instance")


def test_polygons_are_fitted_and_the_threshold_is_saved(quick, tmp_path, monkeypatch):
    rng, data = np.random.default_rng(0), tmp_path / "polygons"
    for part in ("images", "labels"):
        (data / part).mkdir(parents=True)
    (data / "classes.txt").write_text("box\n")
    for i in range(8):
        pixels = rng.integers(0, 90, (64, 64, 3))
        pixels[16 + i : 48, 8:40, 0] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(data / "images" / f"{i}.png")
        top = (16 + i) / 64
        (data / "labels" / f"{i}.txt").write_text(f"0 0.125 {top} 0.625 {top} 0.625 0.75 0.125 0.75\n")
    monkeypatch.setattr(calibration, "measure", lambda pipeline, *_: {"pq": float(pipeline.head.threshold == 0.1)})
    result, bundle = quick("instance-segmentation", data, epochs=1, tokenizer_options=PATCHES, head_options=SMALL)
    assert np.isfinite(result.metrics["map"]) and bundle.head.threshold == 0.1
    assert isinstance(bundle(data / "images" / "0.png")[0], Segments)
