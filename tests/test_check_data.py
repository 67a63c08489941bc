"""Faults in training data are found before the first step, and what cannot be read is left out of it."""

import json
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from polysense.apps import cli
from polysense.core.errors import InputError
from polysense.data.dataset import BoxTarget, Dataset, Item
from polysense.tasks import TASKS
from polysense.training.check_data import check_classes, check_data, slips
from polysense.training.sources import FileSources, SeriesSources, open_sources

IMAGES = TASKS["image-classification"]


def check(task, path, share=0.05, **options):
    sources = open_sources(TASKS[task], path, **options).with_validation(0.25, 0)
    return check_data(sources, path, share)


def said(report):
    return "\n".join(report.lines())


@pytest.fixture
def parts(tmp_path, image_folders):
    """The pictures in train/, val/ and test/."""
    for file in sorted(image_folders.rglob("*.png")):
        part = {0: "val", 1: "test"}.get(int(file.stem) % 6, "train")
        place = tmp_path / "parts" / part / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return tmp_path / "parts"


def test_good_data_pass(image_folders, parts):
    for path in (image_folders, parts):
        _, report = check("image-classification", path)
        assert report.findings == [] and sum(report.parts.values()) == 36
        assert said(report).endswith("nothing found")


def test_leaks_are_found_and_named(parts):
    shutil.copy(parts / "train/red/2.png", parts / "val/red/again.png")
    rng = np.random.default_rng(1)  # smooth, as photographs are: what is left of noise depends on how it is resized
    picture = Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).resize((64, 72), Image.Resampling.BICUBIC)
    picture.save(parts / "train/blue/3.png")
    picture.resize((96, 104), Image.Resampling.BICUBIC).save(parts / "test/blue/larger.jpg", quality=90)
    _, report = check("image-classification", parts)
    exact, near = report.findings
    assert exact.severity == "warning" and "1 example of val (14.3%)" in exact.sentence
    assert exact.files == (str(parts / "val/red/again.png"),)
    assert "picture of test" in near.sentence
    assert near.files == (f"{parts / 'test/blue/larger.jpg'} = {parts / 'train/blue/3.png'}",)


def test_recordings_saved_again_are_found(tmp_path):
    rng = np.random.default_rng(0)

    def write(name, wave, rate=16000, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, rate, **options)
        return path

    def sound(seed):  # a few tones that come and go
        rng = np.random.default_rng(seed)
        time = np.arange(32000) / 16000
        tones = [np.sin(2 * np.pi * rng.uniform(150, 3500) * time) * (np.sin(rng.uniform(2, 12) * time + seed) > 0)
                 for _ in range(5)]  # fmt: skip
        return 0.1 * sum(tones) + 0.001 * rng.normal(size=len(time))

    for seed in range(6):
        for place in ("train/a", "train/b", "test/a", "test/b"):
            write(f"{place}/{seed}.wav", sound(1000 * len(place) + 10 * ord(place[-1]) + seed))
    first = write("train/a/first.wav", sound(900))
    quieter = write("test/a/quieter.mp3", 0.4 * sound(900), format="MP3")
    write("test/b/longer.wav", np.concatenate([sound(900), sound(901)]))
    noise = rng.normal(size=32000) * 0.1
    write("train/b/noise.wav", noise)
    write("test/b/noise.wav", rng.normal(size=32000) * 0.1)  # stationary, but not the same
    _, report = check("audio-classification", tmp_path)
    (near,) = [finding for finding in report.findings if "sound the same" in finding.sentence]
    assert near.severity == "warning" and near.sentence.startswith("1 recording of test")
    assert near.files == (f"{quieter} = {first}",)


def test_one_content_with_two_labels(parts):
    shutil.copy(parts / "train/red/2.png", parts / "train/blue/two.png")
    _, report = check("image-classification", parts)
    assert "different targets" in said(report) and "copies of others" in said(report)
    assert set(report.warnings[0].files) == {str(parts / "train/red/2.png"), str(parts / "train/blue/two.png")}


def test_broken_files_are_skipped_up_to_a_share(image_folders, quick, tmp_path):
    whole = (image_folders / "red" / "0.png").read_bytes()
    (image_folders / "red" / "0.png").write_bytes(whole[: len(whole) // 2])
    sources, report = check("image-classification", image_folders)
    assert image_folders / "red" / "0.png" not in [item.source for item in sources.dataset.items]
    assert len(sources.dataset.items) == 35 and report.warnings[0].files == (str(image_folders / "red" / "0.png"),)
    with pytest.raises(InputError, match=r"1 of its 36 examples cannot be read .*0\.png.*up to 1% would be skipped"):
        check("image-classification", image_folders, share=0.01)
    # A fit goes on without the file, says so in its report, and fails where it may not leave it out.
    options = {"tokenizer_options": {"form": "patch", "size": 64}, "epochs": 1, "val_share": 0.25}
    result, _ = quick("image-classification", image_folders, report=tmp_path / "report.json", **options)
    assert result.metrics["accuracy"] > 0.5
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["findings"][0]["severity"] == "warning" and sum(found["parts"].values()) == 35
    with pytest.raises(InputError, match=r"0\.png"):
        quick("image-classification", image_folders, check=False, **options)


def test_masks_of_another_size_are_broken_and_empty_ones_found(tmp_path):
    items = []
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
        mask = np.full((20, 30 if i else 31), 255 if i == 1 else i % 2, np.uint8)
        items.append(Item(tmp_path / f"{i}.png", mask, "val" if i == 3 else "train"))
    sources = FileSources(Dataset(items, ["a", "b"]), TASKS["image-segmentation"])
    kept, report = check_data(sources, tmp_path, 0.5)
    assert len(kept.dataset.items) == 3
    assert "the mask is 31x20, its image 30x20" in said(report) and "name no class at all" in said(report)


def test_boxes_without_area(tmp_path):
    items = []
    for i, box in enumerate(([2, 2, 9, 9], [5, 5, 5, 9], [40, 2, 50, 9])):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
        items.append(Item(tmp_path / f"{i}.png", BoxTarget([box], ["cat"]), "train" if i else "val"))
    _, report = check_data(FileSources(Dataset(items, ["cat"]), TASKS["object-detection"]), tmp_path)
    assert "2 boxes have no area" in said(report)
    assert report.warnings[0].files == (str(tmp_path / "1.png"), str(tmp_path / "2.png"))


def test_class_findings():
    rows = [("train", ["cat"])] * 30 + [("train", ["dog"])] * 2 + [("val", ["cat"])] * 5 + [("test", ["horse"])]
    sentences = [one.sentence for one in check_classes(rows, single=True)]
    assert "train has no example of 'horse'" in sentences
    assert "val has no example of 'dog', 'horse'" in sentences
    assert "all examples of val are of the class 'cat'" in sentences
    assert any("15 to 1" in sentence for sentence in sentences)
    even = [(part, [name]) for part in ("train", "val") for name in ("cat", "dog")]
    assert check_classes(even, single=True) == []


def test_slips_in_names():
    found = slips(Counter({"zebra": 50, "zebr": 2, "Zebra ": 9, "sebra": 3, "zebras": 40, "grade 1": 50, "grade 2": 2}))
    assert set(found) == {("zebr", "zebra"), ("Zebra ", "zebra"), ("sebra", "zebra")}
    assert slips(Counter({"a": 50, "b": 1})) == []


def table(tmp_path, **columns):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=80), "b": rng.normal(size=80), "y": rng.normal(size=80),
                          "split": ["train"] * 60 + ["val"] * 20} | columns)  # fmt: skip
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_tables(tmp_path):
    path = table(tmp_path)
    assert check("tabular-regression", path, target="y")[1].findings == []
    frame = pd.read_csv(path)
    frame.loc[60:63, ["a", "b"]] = frame.loc[:3, ["a", "b"]].to_numpy()
    frame.loc[5:6, "y"] = [np.nan, np.inf]
    frame.to_csv(path, index=False)
    _, report = check("tabular-regression", path, target="y")
    assert "4 rows of val (20.0%) stand in train too" in said(report) and "2 rows without a finite target" in said(
        report
    )
    assert "'y' is the same in all of train" in said(check("tabular-regression", table(tmp_path, y=3.0), target="y")[1])


def test_texts_in_a_table(tmp_path):
    words = [f"the text number {i} speaks of {'rain' if i % 2 else 'sun'}" for i in range(12)]
    frame = pd.DataFrame({"text": words, "label": ["wet", "dry"] * 6, "split": ["train"] * 8 + ["val"] * 4})
    frame.loc[9, "text"] = frame.loc[1, "text"]
    frame.to_csv(tmp_path / "t.csv", index=False)
    _, report = check("text-classification", tmp_path / "t.csv", target="label")
    assert "1 example of val (25.0%) are in train too" in said(report)


def test_series_to_forecast():
    from polysense.data.time_series import read_series

    rng = np.random.default_rng(0)
    values = pd.DataFrame({"moves": rng.normal(size=300), "still": 1.0, "holes": rng.normal(size=300)})
    values.loc[:99, "holes"] = np.nan
    frames = [read_series(values), read_series(values)]
    sources = SeriesSources(frames, 8, 16, (0.7, 0.1, 0.2), {})
    _, report = check_data(sources, "series")
    assert "2 of 6 variates stand still" in said(report) and "1 series are copies" in said(report)
    assert "2 of 6 variates lack more than 20%" in said(report)


def test_the_command(parts, tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["check", "image-classification", str(parts), *arguments])
        return end.value.code, capsys.readouterr()

    assert run() == (0, ("checked: test 6, train 24, val 6; nothing found\n", ""))
    shutil.copy(parts / "train/red/2.png", parts / "val/red/again.png")
    code, shown = run("--report", str(tmp_path / "report.json"))
    assert code == 3 and "warning: 1 example of val" in shown.out
    assert json.loads((tmp_path / "report.json").read_text())["parts"]["val"] == 7
    code, shown = run("--report", str(tmp_path / "no" / "report.json"))
    assert code == 1 and "create" in shown.err
