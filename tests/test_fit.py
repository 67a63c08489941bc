"""`fit` learns every kind of task on generated data, never touches the encoder, and writes nothing when it fails."""

import json
import re
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from polysense.core.errors import InputError, InputWarning
from polysense.core.predictions import Labels
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.training import evaluate as evaluation
from polysense.training import fit as fitting
from polysense.training import fit_phases
from polysense.training.evaluate import evaluate, measure
from polysense.training.sources import open_sources

PATCHES = {"form": "patch", "size": 64}  # learns colours from random weights, fast


def test_class_folders(quick, image_folders, encoder, tmp_path):
    result, bundle = quick("image-classification", image_folders, tokenizer_options=PATCHES, val_share=0.25)
    assert result.metrics["accuracy"] == 1.0 and result.epochs == 2
    assert bundle.encoder_hash == encoder.fingerprint()
    answer = bundle(image_folders / "red" / "0.png")[0]
    assert answer.answer() == "red" and set(answer.names) == {"blue", "green", "red"}
    assert bundle.metrics == result.metrics and bundle.about["measured_on"] == "validation part"
    # The data have no test part: evaluate measures them whole, and says that they taught it.
    with pytest.warns(InputWarning, match=r"learnt from (\d+) of these") as told:
        assert evaluate(result.path, image_folders)["accuracy"] == 1.0
    taught, count = map(int, re.findall(r"(\d+) of these (\d+)", str(told[0].message))[0])
    assert count == len(list(image_folders.rglob("*.png"))) and taught == count - round(0.25 * count)
    with pytest.warns(InputWarning, match="learnt from"):
        assert evaluate(bundle, image_folders, split="val", batch_size=3)["accuracy"] == 1.0
    copied = shutil.copytree(image_folders, tmp_path / "others")  # other files, though they look alike
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(bundle, copied)["accuracy"] == 1.0


@pytest.mark.parametrize("own", [False, True])
def test_validation_rows_teach_at_the_end_unless_the_data_name_them(own, quick, image_folders, tmp_path, monkeypatch):
    solved = []
    monkeypatch.setattr(fit_phases, "solve_again", lambda pipeline, probed: solved.append(probed.val[0].shape[0]))
    data = image_folders
    if own:
        for i, file in enumerate(sorted(image_folders.rglob("*.png"))):
            place = tmp_path / "parts" / ("val" if i % 4 == 0 else "train") / file.parent.name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
        data = tmp_path / "parts"
    quick("image-classification", data, tokenizer_options=PATCHES, val_share=0.25, epochs=0)
    assert len(solved) == (0 if own else 1)


def csv(tmp_path, rows=240, name="rows.csv"):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows), "c": rng.choice(["x", "y"], rows)})
    frame["amount"] = 100 + 20 * frame["a"] - 10 * (frame["c"] == "x")
    frame["kind"] = np.where(frame["a"] + (frame["c"] == "x") > 0.5, "high", "low")
    frame["tags"] = [";".join(t for t, on in (("pos", a > 0), ("x", c == "x")) if on)
                     for a, c in zip(frame["a"], frame["c"], strict=True)]  # fmt: skip
    frame.to_csv(tmp_path / name, index=False)
    return tmp_path / name


def pick(path, *columns):
    """The table with only some of its columns."""
    target = path.with_name("picked.csv")
    pd.read_csv(path)[["a", "b", "c", *columns]].to_csv(target, index=False)
    return target


def test_table_classification(quick, tmp_path):
    data = pick(csv(tmp_path), "kind")
    result, bundle = quick("tabular-classification", data, target="kind", epochs=6, batch_size=32, lr=3e-3)
    assert result.metrics["accuracy"] > 0.93
    inputs = pd.read_csv(data).drop(columns="kind")
    assert isinstance(bundle(inputs)[0], Labels) and len(bundle(inputs)) == 240
    # The target is remembered, so that evaluation need not name it; another one may be named.
    assert evaluate(result.path, data)["accuracy"] > 0.93
    renamed = tmp_path / "renamed.csv"
    pd.read_csv(data).rename(columns={"kind": "sort"}).to_csv(renamed, index=False)
    assert evaluate(result.path, renamed, target="sort") == evaluate(result.path, data)
    with pytest.raises(InputError, match="kind"):
        evaluate(result.path, renamed)


def test_table_regression(quick, tmp_path):
    result, bundle = quick("tabular-regression", pick(csv(tmp_path), "amount"), target="amount", epochs=8,
                           batch_size=32, lr=3e-3)  # fmt: skip
    assert result.metrics["r2"] > 0.9
    low, high = (bundle({"a": a, "b": 0.0, "c": "y"})[0].values["amount"] for a in (-1.0, 1.0))
    assert 70 < low < 90 and 110 < high < 130  # in the table's own units


def test_table_multilabel(quick, tmp_path):
    data = pick(csv(tmp_path), "tags")
    result, bundle = quick("tabular-multilabel", data, target="tags", epochs=6, batch_size=32, lr=3e-3)
    assert result.metrics["f1"] > 0.93
    assert set(bundle({"a": 2.0, "b": 0.0, "c": "x"})[0].chosen) == {"pos", "x"}
    assert bundle({"a": -2.0, "b": 0.0, "c": "y"})[0].answer() == "none"


def test_image_list_of_several_labels(quick, image_folders):
    files = sorted(image_folders.rglob("*.png"))
    labels = {"red": "red;warm", "green": "", "blue": "cold"}
    rows = [{"path": file.relative_to(image_folders), "labels": labels[file.parent.name]} for file in files]
    pd.DataFrame(rows).to_csv(image_folders / "list.csv", index=False)
    result, bundle = quick("image-multilabel", image_folders / "list.csv", target="labels", val_share=0.3,
                           tokenizer_options=PATCHES)  # fmt: skip
    assert result.metrics["f1"] == 1.0
    assert set(bundle(files[-1])[0].chosen) == {"red", "warm"} and bundle(files[0])[0].chosen == ["cold"]


def test_ts_files(quick, tmp_path):
    rng = np.random.default_rng(0)
    for part in ("TRAIN", "TEST"):
        lines = ["@problemName Waves", "@timeStamps false", "@univariate true", "@classLabel true slow fast", "@data"]
        for i in range(40):
            wave = np.sin(np.arange(50) * (0.3 if i % 2 else 1.2) + rng.uniform(0, 6)) + rng.normal(0, 0.1, 50)
            lines.append(",".join(f"{v:.3f}" for v in wave) + (":slow" if i % 2 else ":fast"))
        (tmp_path / f"Waves_{part}.ts").write_text("\n".join(lines) + "\n")
    result, bundle = quick("time-series-classification", tmp_path, epochs=6, lr=3e-3)
    assert result.metrics["accuracy"] > 0.8
    assert evaluate(result.path, tmp_path, split="test")["accuracy"] > 0.8
    assert len(bundle(tmp_path / "Waves_TEST.ts")) == 40


def test_forecast_of_a_sine_beats_repeating_the_last_value(quick, tmp_path):
    rng = np.random.default_rng(0)
    t = np.arange(500)
    times = pd.date_range("2024-01-01", periods=500, freq="h")
    frame = pd.DataFrame({"time": times, "sine": 50 + 9 * np.sin(t / 4) + rng.normal(0, 0.2, 500), "flat": 3.0})
    frame.to_csv(tmp_path / "sine.csv", index=False)
    options = {"horizon": 12, "context": 48, "borders": (0.6, 0.2, 0.2)}
    result, bundle = quick("forecasting", tmp_path / "sine.csv", epochs=3, **options)
    last = frame["sine"].to_numpy()
    naive = np.mean([(last[e : e + 12] - last[e - 1]) ** 2 for e in range(400, 489)]) / last[:300].var()
    metrics = evaluate(result.path, tmp_path / "sine.csv")  # context, horizon and borders are the bundle's own
    assert metrics["mse"] * 2 < 0.2 * naive  # the mean over two variates, one of them flat and easy
    assert evaluate(result.path, tmp_path / "sine.csv", split="val") == pytest.approx(result.metrics)
    forecast = bundle(tmp_path / "sine.csv")[0]
    assert forecast.names == ["sine", "flat"] and forecast.mean.shape == (12, 2)
    assert forecast.times[0].startswith("2024-01-21T20") and abs(forecast.mean[:, 1] - 3).max() < 0.5
    one = pd.read_csv(tmp_path / "sine.csv")[["time", "sine"]]  # other variates than in training
    one.to_csv(tmp_path / "one.csv", index=False)
    assert evaluate(result.path, tmp_path / "one.csv")["mse"] == pytest.approx(2 * metrics["mse"], rel=0.05)


def scene(rng):
    """A dark picture with one bright square: picture, box, mask."""
    pixels, mask = rng.integers(0, 60, (64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8)
    x, y, side = rng.integers(4, 60), rng.integers(4, 28), rng.integers(20, 32)
    pixels[y : y + side, x : x + side] = 230
    mask[y : y + side, x : x + side] = 1
    return Image.fromarray(pixels), (x, y, side), mask


def test_detection(quick, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "labels").mkdir()
    (tmp_path / "data" / "classes.txt").write_text("square\n")
    for i in range(8):
        picture, (x, y, side), _ = scene(rng)
        picture.save(tmp_path / "data" / "images" / f"{i}.png")
        line = f"0 {(x + side / 2) / 96} {(y + side / 2) / 64} {side / 96} {side / 64}"
        (tmp_path / "data" / "labels" / f"{i}.txt").write_text(line)
    thresholds = []
    predict = Pipeline.predict_sequences

    def noting(self, *args, **kwargs):
        thresholds.append(self.head.threshold)
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "predict_sequences", noting)
    result, bundle = quick("object-detection", tmp_path / "data", epochs=1, val_share=0.25, augment=True,
                           tokenizer_options=PATCHES, head_options={"channels": 16, "depth": 1})  # fmt: skip
    assert set(result.metrics) == {"map", "map50", "map75"}
    assert set(thresholds) == {0.01} and bundle.head.threshold == 0.3  # faint boxes count, but are not answered
    assert bundle(tmp_path / "data" / "images" / "0.png")[0].size == (64, 96)
    assert bundle.head.config.fine == bundle.tokenizer.fine_channels == (192, 48)  # pixels inside the patches


def test_threshold_comes_back_after_a_failure(build, monkeypatch):
    pipeline = build("object-detection")
    with pytest.raises(KeyError), evaluation.every_box(pipeline.head):
        assert pipeline.head.threshold == 0.01
        raise KeyError
    assert pipeline.head.threshold == 0.3
    pipeline.head.threshold = 0.005  # lower still: stays
    with evaluation.every_box(pipeline.head):
        assert pipeline.head.threshold == 0.005


def test_segmentation(quick, tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(8):
        picture, _, mask = scene(rng)
        picture.save(tmp_path / "data" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{i}.png")
    result, bundle = quick("image-segmentation", tmp_path / "data", epochs=2, val_share=0.25, augment=True, lr=3e-3,
                           tokenizer_options=PATCHES, head_options={"channels": 16})  # fmt: skip
    assert 0 < result.metrics["miou"] <= 1
    answer = bundle(tmp_path / "data" / "images" / "0.png")[0]
    assert answer.index.shape == (64, 96) and len(answer.names) == 2


def test_segmentation_of_clouds(quick, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        xyz = rng.normal(size=(200, 3))
        np.savez(tmp_path / f"{i}.npz", xyz=xyz, labels=(xyz[:, 2] > 0).astype(int))
    result, bundle = quick("point-cloud-segmentation", tmp_path, epochs=4, val_share=0.3, lr=3e-3,
                           tokenizer_options={"points": 200, "groups": 16, "neighbours": 8},
                           head_options={"channels": 24})  # fmt: skip
    assert result.metrics["pixel_accuracy"] > 0.8
    assert bundle(tmp_path / "0.npz")[0].index.shape == (200,)


def test_audio_and_video_and_clouds_from_class_folders(quick, tmp_path):
    import soundfile

    rng = np.random.default_rng(0)
    for name, pitch in (("high", 3000), ("low", 200)):
        for kind in ("sounds", "clips", "clouds"):
            (tmp_path / kind / name).mkdir(parents=True)
        for i in range(6):
            sound = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16_000 + i) + rng.normal(0, 0.01, 8000)
            soundfile.write(tmp_path / "sounds" / name / f"{i}.wav", sound, 16_000)
            level = 200 if name == "high" else 40
            frames = [Image.fromarray(rng.integers(level - 30, level + 30, (48, 48), np.uint8)) for _ in range(3)]
            frames[0].save(tmp_path / "clips" / name / f"{i}.gif", save_all=True, append_images=frames[1:])
            np.save(
                tmp_path / "clouds" / name / f"{i}.npy", rng.normal(size=(60, 3)) * [1, 1, 5 if name == "high" else 0]
            )
    runs = {"audio": ("sounds", {"form": "ast"}), "video": ("clips", {"form": "tubelet", "frames": 2, "size": 48}),
            "point-cloud": ("clouds", {"groups": 8, "neighbours": 8})}  # fmt: skip
    for modality, (folder, options) in runs.items():
        result, bundle = quick(f"{modality}-classification", tmp_path / folder, epochs=1, val_share=0.34,
                               tokenizer_options=options, augment=True, out=tmp_path / modality)  # fmt: skip
        assert result.metrics["accuracy"] == 1.0, modality
        file = next((tmp_path / folder / "low").iterdir())
        assert bundle(file)[0].answer() == "low"


@pytest.mark.parametrize("task", ["image-classification", "image-segmentation"])
def test_same_seed_same_result(task, quick, image_folders, tmp_path):
    options = {"tokenizer_options": PATCHES, "augment": True, "epochs": 1, "lr": 0.01}
    data = image_folders
    if task == "image-segmentation":  # has dropout
        options["head_options"] = {"channels": 8}
        data = tmp_path / "scenes"
        for i in range(6):
            picture, _, mask = scene(np.random.default_rng(i))
            for folder, image in (("images", picture), ("masks", Image.fromarray(mask))):
                (data / folder).mkdir(parents=True, exist_ok=True)
                image.save(data / folder / f"{i}.png")
    runs = []
    for i, seed in enumerate((1, 1, 2)):
        torch.manual_seed(i)  # whatever ran before
        result, _ = quick(task, data, out=tmp_path / f"run{i}", seed=seed, **options)
        runs.append((result.metrics, (result.path / "model.safetensors").read_bytes()))
    assert runs[0] == runs[1] and runs[0][1] != runs[2][1]


def one_class(folder):
    for name in ("green", "red"):
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    return folder


def damaged(folder):
    (folder / "red" / "7.png").write_bytes(b"no picture")
    return folder


def one_class_to_learn(folder):
    for i, file in enumerate(sorted(folder.rglob("*.png"))):
        part = folder / ("train" if file.parent.name == "red" else "val") / file.parent.name
        part.mkdir(parents=True, exist_ok=True)
        file.rename(part / f"{i}.png")
    return folder


def no_training_part(folder):
    for name in ("blue", "green", "red"):
        (folder / "val").mkdir(exist_ok=True)
        (folder / name).rename(folder / "val" / name)
    return folder


def few(folder):
    for file in folder.rglob("*.png"):
        if int(file.stem) > 1:
            file.unlink()
    return folder


FOLDER_FAULTS = {
    "one class": (one_class, r"head of image-classification: .*at least two; got \['blue'\]"),
    "unreadable": (damaged, r"7\.png"),
    "one class to learn": (one_class_to_learn, "all its examples are of one class, red"),
    "no training part": (no_training_part, "training part is empty"),
    "too few": (few, "validation part is empty; give more data"),
    "no such folder": (lambda folder: folder / "absent", "absent: there is no such"),
}


@pytest.mark.parametrize("name", FOLDER_FAULTS)
@pytest.mark.parametrize("augment", [False, True])
def test_faulty_folders_are_one_error(name, augment, quick, image_folders, tmp_path):
    change, message = FOLDER_FAULTS[name]
    with pytest.raises(InputError, match=message):
        quick("image-classification", change(image_folders), tokenizer_options=PATCHES, augment=augment,
              check=name != "unreadable")  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


OPTION_FAULTS = {
    "target": ({"target": "nothing"}, "tabular-classification", "no column 'nothing'"),
    "no target": ({}, "tabular-classification", "--target"),
    "text to regress": ({"target": "kind"}, "tabular-regression", "kind"),
    "train": ({"target": "kind", "train": "encoder"}, "tabular-classification", "tokenizer.head or head"),
    "embedding": ({}, "tabular-embedding", "learns nothing from labels"),
    "head option": ({"target": "kind", "head_options": {"depth": 3}}, "tabular-classification", "depth"),
    "encoder": ({"target": "kind", "encoder": "nonsense"}, "tabular-classification", "unknown encoder"),
    "value of an option": ({"target": "kind", "head_options": {"hidden": "x"}}, "tabular-classification", "give int"),
    "option of series": ({"tokenizer_options": {"foo": 1}}, "forecasting", "no option 'foo'"),
    "negative borders": ({"borders": (-1, 2, 3)}, "forecasting", "no parts of a series"),
    "borders above one": ({"borders": (0.7, 0.7, 0.1)}, "forecasting", "no parts of a series"),
    "horizon": ({"horizon": 300}, "forecasting", "300 steps"),
}


@pytest.mark.parametrize("name", OPTION_FAULTS)
def test_faulty_options_are_one_error(name, quick, tmp_path):
    options, task, message = OPTION_FAULTS[name]
    data = csv(tmp_path)
    with pytest.raises(InputError, match=message):
        quick(task, data, **options)
    assert not (tmp_path / "bundle").exists()


def test_folder_without_series(quick, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="no series was found"):
        quick("forecasting", tmp_path / "data")


def test_place_that_cannot_be_written_to_is_refused_before_training(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "train_pipeline", lambda *args: pytest.fail("trained in vain"))
    data = csv(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot be written to"):
        quick("tabular-classification", data, target="kind", out=data / "bundle")  # a file is no folder
    assert sorted(tmp_path.iterdir()) == before


def test_place_that_is_taken_is_refused_before_training(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "train_pipeline", lambda *args: pytest.fail("trained in vain"))
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "diary.txt").write_text("dear diary")
    with pytest.raises(InputError, match="no bundle stands there"):
        quick("tabular-classification", csv(tmp_path), target="kind")


def test_validation_without_labels(quick, tmp_path):
    for part in ("train", "val"):
        for folder in ("images", "masks"):
            (tmp_path / "data" / part / folder).mkdir(parents=True)
        for i in range(3):
            picture, _, mask = scene(np.random.default_rng(i))
            picture.save(tmp_path / "data" / part / "images" / f"{i}.png")
            mask = mask if part == "train" else np.full_like(mask, 255)
            Image.fromarray(mask).save(tmp_path / "data" / part / "masks" / f"{i}.png")
    with pytest.raises(InputError, match="miou is undefined"):
        quick("image-segmentation", tmp_path / "data", tokenizer_options=PATCHES, head_options={"channels": 8})


def test_evaluate_chooses_a_part(quick, image_folders, tmp_path):
    data = tmp_path / "parts"
    for i, file in enumerate(sorted(image_folders.rglob("*.png"))):
        place = data / ("train", "train", "train", "val")[i % 4] / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / f"{i}.png")
    result, bundle = quick("image-classification", data, tokenizer_options=PATCHES, epochs=0)
    assert evaluate(bundle, data, split="val")["accuracy"] == result.metrics["accuracy"]
    with pytest.raises(InputError, match="it has no test part; choose one with --split: train, val"):
        evaluate(bundle, data)
    with pytest.raises(InputError, match="no such"):
        evaluate(bundle, tmp_path / "absent")


def test_evaluate_on_unknown_classes(quick, image_folders):
    _, bundle = quick("image-classification", image_folders, tokenizer_options=PATCHES, epochs=0)
    (image_folders / "red").rename(image_folders / "violet")
    with pytest.raises(InputError, match="'violet' is no class of the model; choose from: blue, green, red"):
        evaluate(bundle, image_folders)


def test_measuring_does_not_depend_on_the_batch(build, image_folders):
    sources = open_sources(TASKS["image-classification"], image_folders)
    pipeline = build("image-classification", tokenizer=PATCHES, head=sources.head_options())
    examples = sources.examples(pipeline.tokenizer, "")
    assert measure(pipeline, examples, 1) == pytest.approx(measure(pipeline, examples, 50), abs=1e-5)


def test_card_tells_what_was_measured(quick, tmp_path):
    result, _ = quick("tabular-classification", csv(tmp_path), target="kind", epochs=0, about={"licence": "MIT"})
    text = (result.path / "README.md").read_text()
    assert f"| accuracy | {result.metrics['accuracy']:.4f} |" in text and "**licence**: MIT" in text
    config = json.loads((result.path / "config.json").read_text())
    assert config["about"]["data_options"] == {"target": "kind"} and config["metrics"] == result.metrics
