"""Opened training data: parts that do not overlap, targets in every form, faults that are named once."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polysense.components import get_tokenizer
from polysense.core.errors import InputError
from polysense.data.dataset import Dataset, Item
from polysense.data.time_series import read_series
from polysense.tasks import TASKS
from polysense.training.data import load_dataset
from polysense.training.examples import FileExamples, Subset
from polysense.training.sources import FileSources, SeriesSources, TableSources, open_sources

PARTS = ("train", "val", "test")


def tokenizer(modality, **options):
    cls = get_tokenizer(modality)
    return cls(cls.Config(width=48, **options))


@pytest.fixture
def series_file(tmp_path):
    """200 rows; the value is the row's number, a second variate stands still."""
    path = tmp_path / "series.csv"
    times = pd.date_range("2024-01-01", periods=200, freq="h")
    pd.DataFrame({"time": times, "row": np.arange(200.0), "still": 5.0}).to_csv(path, index=False)
    return path


def target_rows(sources, split):
    """Row numbers of the targets and of the inputs of every window of a part."""
    front = tokenizer("time_series", context=sources.context)
    examples = sources.examples(front, split)
    futures, pasts = set(), set()
    for i in range(len(examples)):
        samples, target = examples.whole(i)
        assert len(samples) == 2 and target.shape == (sources.horizon, 2)
        history = samples[0].meta["history"][:, 0]
        assert target[0, 0] == history[-1] + 1  # the future begins right after the past
        futures |= set(target[:, 0].astype(int).tolist())
        pasts |= set(history.astype(int).tolist())
    return futures, pasts


@pytest.mark.parametrize(("borders", "edges"), [((0.7, 0.1, 0.2), (140, 160, 200)), ((100, 40, 30), (100, 140, 170)),
                                                ((0.5, 0.25, 0.25), (100, 150, 200))])  # fmt: skip
def test_parts_of_a_series_share_no_target(series_file, borders, edges):
    sources = open_sources(TASKS["forecasting"], series_file, horizon=8, context=24, borders=borders)
    assert set(sources.splits()) == set(PARTS)
    found = {split: target_rows(sources, split) for split in PARTS}
    assert found["train"][0] == set(range(24, edges[0]))  # the first window has a whole context
    assert found["val"][0] == set(range(edges[0], edges[1]))
    assert found["test"][0] == set(range(edges[1], edges[2]))
    assert max(found["train"][1]) < edges[0]
    assert min(found["val"][1]) == edges[0] - 24  # looks back into the part before


def test_training_windows_of_a_short_series(tmp_path):
    path = tmp_path / "short.csv"
    pd.DataFrame({"row": np.arange(40.0), "still": 1.0}).to_csv(path, index=False)
    sources = SeriesSources.open(path, None, None, 4, 100, (0.5, 0.25, 0.25))
    futures, _ = target_rows(sources, "train")
    assert futures and max(futures) < 20


def test_horizon_that_does_not_fit(series_file):
    sources = open_sources(TASKS["forecasting"], series_file, horizon=96, context=96)
    with pytest.raises(InputError, match=r"series\.csv.*96 steps fits into its val part.*shorter horizon.*200 rows"):
        sources.examples(tokenizer("time_series"), "val")


def test_series_options(series_file):
    sources = open_sources(TASKS["forecasting"], series_file, target="row", horizon=8, context=24)
    assert [frame.names for frame in sources.frames] == [["row"]]
    again = open_sources(TASKS["forecasting"], series_file, **sources.data_options())
    assert again.data_options() == sources.data_options() and again.horizon == 8
    with pytest.raises(InputError, match="no column 'humidity'"):
        open_sources(TASKS["forecasting"], series_file, target="humidity")
    both = open_sources(TASKS["forecasting"], series_file, horizon=8, context=24)
    options = both.head_options()
    assert options["horizon"] == 8
    scale = dict(options["variate_scale"])
    assert scale["row"] == pytest.approx(np.arange(140).std()) and scale["still"] == 1.0


def test_a_folder_of_series(tmp_path):
    for number in range(3):
        values = np.arange(60.0) + 100 * number
        pd.DataFrame({"v": values}).to_csv(tmp_path / f"{number}.csv", index=False)
    sources = open_sources(TASKS["forecasting"], tmp_path, horizon=4, context=8)
    assert len(sources.frames) == 3 and sources.head_options()["variate_scale"] == ()
    examples = sources.examples(tokenizer("time_series", context=8), "test")
    assert len(examples) == 3 * (12 - 4 + 1)


def test_partly_known_futures_and_further_series(tmp_path):
    for number in range(2):
        pd.DataFrame({"v": np.arange(60.0)}).to_csv(tmp_path / f"{number}.csv", index=False)
    plain = open_sources(TASKS["forecasting"], tmp_path, horizon=10, context=8, borders=(0.5, 0.25, 0.25))
    further = read_series(1000 + np.arange(40.0))
    sources = replace(plain, least=4, extra=(further,), most=5, most_extra=3)
    front = tokenizer("time_series", context=8)
    found = {split: sources.examples(front, split) for split in PARTS}
    futures = {split: [examples.whole(i)[1][:, 0] for i in range(len(examples))] for split, examples in found.items()}
    assert [len(f) for f in futures.values()] == [2 * 5 + 3, 2 * 4, 2 * 4]
    for split, last in (("train", 30), ("val", 45), ("test", 60)):
        own = [f for f in futures[split] if f[0] < 1000]
        assert {len(f) for f in own} > {10} and min(map(len, own)) >= 4  # cut at the part's end, never beyond it
        assert max(f[-1] for f in own) == last - 1
    assert max(f[-1] for f in futures["train"]) > 1030  # a further series is for learning, all of it
    assert all(f[0] < 1000 for split in ("val", "test") for f in futures[split])


def items(counts):
    return [Item(f"{name}{i}", name) for name, count in counts.items() for i in range(count)]


def test_validation_is_stratified_and_seeded():
    data = FileSources(Dataset(items({"a": 40, "b": 20, "c": 1}), ["a", "b", "c"]), TASKS["image-classification"])
    first, again, other = (data.with_validation(0.25, seed).dataset for seed in (0, 0, 1))
    assert first == again and first != other
    val, train = first.part("val"), first.part("train")
    assert {name: sum(item.target == name for item in val) for name in "abc"} == {"a": 10, "b": 5, "c": 0}
    assert not {item.source for item in val} & {item.source for item in train} and len(val) + len(train) == 61


def test_validation_that_is_there_stays():
    parts = [Item(i, "ab"[i % 2], PARTS[i % 3]) for i in range(12)]
    data = FileSources(Dataset(parts, ["a", "b"]), TASKS["image-classification"])
    assert data.with_validation(0.5, 0).dataset.items == parts and data.splits() == sorted(PARTS)
    no_val = FileSources(Dataset([i for i in parts if i.split != "val"], ["a", "b"]), TASKS["image-classification"])
    assert {item.source for item in no_val.with_validation(0.5, 0).dataset.part("test")} == {2, 5, 8, 11}


@pytest.fixture
def write(tmp_path, table):
    def write(target, name="data.csv", **columns):
        frame = table(len(target)).assign(y=target, **columns)
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write


def test_table_is_stratified_and_without_its_target(write):
    path = write(["rare"] * 4 + ["usual"] * 36)
    sources = open_sources(TASKS["tabular-classification"], path, target="y").with_validation(0.25, 3)
    assert sources.splits() == ["train", "val"] and sources.data_options() == {"target": "y"}
    front = get_tokenizer("tabular")
    config = front.fit_config(front.Config(width=48), sources.tokenizer_sources())
    assert "y" not in [column.name for column in config.columns]
    counts = [sources.examples(front(config), split).targets for split in ("train", "val")]
    assert [targets.count("rare") for targets in counts] == [3, 1]
    answers = {"classes": ("rare", "usual"), "multi_label": False}
    assert sources.head_options().items() >= answers.items()
    same = open_sources(TASKS["tabular-classification"], path, target="y").with_validation(0.25, 3)
    assert (same.parts == sources.parts).all()


def test_table_target_by_number(tmp_path):
    rows = "\n".join(f"{i % 5},{i * 0.5 + 1},{'no' if i % 2 else 'yes'}" for i in range(30))
    (tmp_path / "headless.data").write_text(rows)
    for target in ("-1", "2"):
        sources = open_sources(TASKS["tabular-classification"], tmp_path / "headless.data", target=target)
        assert sources.head_options()["classes"] == ("no", "yes")
        assert sources.data_options() == {"target": "column_2"}
    with pytest.raises(InputError, match="no column number 3"):
        open_sources(TASKS["tabular-classification"], tmp_path / "headless.data", target="3")


def test_class_numbers_stay_the_same_beside_gaps(write):
    whole = TableSources.open(write([0, 1, 2] * 4), "y", TASKS["tabular-classification"])
    gaps = TableSources.open(write([0, 1, None] * 4, "gaps.csv"), "y", TASKS["tabular-classification"])
    assert whole.head_options()["classes"] == ("0", "1", "2")
    assert gaps.head_options()["classes"] == ("0", "1") and len(gaps.frame) == 8


def test_regression_of_several_columns(write):
    path = write(np.arange(20.0), z=np.arange(20) * 10)
    sources = open_sources(TASKS["tabular-regression"], path, target="y, z")
    options = sources.head_options()
    assert options["names"] == ("y", "z") and options["mean"] == pytest.approx((9.5, 95.0))
    assert options["std"] == pytest.approx((np.arange(20).std(), 10 * np.arange(20).std()))


def test_several_labels_and_none(write):
    sources = open_sources(TASKS["tabular-multilabel"], write(["a;b", "b", None, " c ; a "]), target="y")
    assert sources.head_options().items() >= {"classes": ("a", "b", "c"), "multi_label": True}.items()
    front = get_tokenizer("tabular")
    config = front.fit_config(front.Config(width=48), sources.tokenizer_sources())
    assert sources.examples(front(config), "").targets == [["a", "b"], ["b"], [], ["c", "a"]]


def test_a_split_column_says_the_parts(write):
    said = ["Train", "test", "validation", None, "train", "test"] * 4
    sources = open_sources(TASKS["tabular-classification"], write(["a", "b", "a", "b"] * 6, split=said), target="y")
    assert sources.splits() == ["", "test", "train", "val"] and "split" not in sources.frame.columns
    whole = sources.with_validation(0.5, 0)
    assert [(whole.parts == part).sum() for part in ("train", "val", "test")] == [12, 4, 8]
    front = get_tokenizer("tabular")
    tokenizer = front(front.fit_config(front.Config(width=48), whole.tokenizer_sources()))
    assert len(whole.examples(tokenizer, "test")) == 8
    gaps = open_sources(TASKS["tabular-classification"], write(["a", "b", None] * 8, split=said), target="y")
    assert len(gaps.parts) == len(gaps.frame) == 16 and (gaps.parts == "test").sum() == 4


def test_other_columns_called_split_are_inputs(write):
    for words in (["banana", "train"] * 6, [None] * 12, list(range(12))):
        sources = open_sources(TASKS["tabular-classification"], write(["a", "b"] * 6, split=words), target="y")
        assert sources.splits() == [""] and "split" in sources.frame.columns


def test_large_tables_take_two_tokens_a_row(write, monkeypatch):
    task, path = TASKS["tabular-regression"], write(np.arange(30.0))
    small = open_sources(task, path, target="y")
    assert small.tokenizer_options() == {"boost": True, "tokens": "columns"}
    assert small.head_options()["pooling"] == ("mean", "last") and small.head_options()["hidden"] == 0
    monkeypatch.setattr("polysense.training.sources.MOST_CELLS", 20)
    assert small.tokenizer_options()["tokens"] == "row" and small.head_options()["pooling"] == ("last",)


TABLE_FAULTS = {
    "unnamed": ("tabular-classification", ["a", "b"], None, "column to learn is not named"),
    "absent": ("tabular-classification", ["a", "b"], "colour", "no column 'colour'"),
    "empty": ("tabular-classification", [None, None], "y", "target column y is empty"),
    "no number": ("tabular-regression", ["low", "high"], "y", "y.*(number|low)"),
    "infinite": ("tabular-regression", [np.inf, -np.inf], "y", "target column y is empty"),
}


@pytest.mark.parametrize("name", TABLE_FAULTS)
def test_faults_of_a_table(write, name):
    task, target, column, message = TABLE_FAULTS[name]
    with pytest.raises(InputError, match=message):
        open_sources(TASKS[task], write(target), target=column)


@pytest.fixture
def listed(tmp_path):
    for number in range(6):
        Image.new("RGB", (40, 40), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")

    def write(**columns):
        pd.DataFrame({"path": [f"{i}.png" for i in range(6)], **columns}).to_csv(tmp_path / "list.csv", index=False)
        return tmp_path / "list.csv"

    return write


def test_list_of_files(listed, tmp_path):
    split = ["training", "Train", "valid", "val", "test", None]
    data = load_dataset(TASKS["image-classification"], listed(y=[1, 0, 1, 0, 1, 1], split=split), target="y")
    assert data.classes == ["0", "1"] and [item.split for item in data.items] == ["train"] * 2 + ["val"] * 2 + [
        "test", ""]  # fmt: skip
    assert data.items[3] == Item(tmp_path / "3.png", "0", "val")


def test_list_of_files_with_several_labels(listed):
    data = load_dataset(TASKS["image-multilabel"], listed(y=["a;b", "b", None, "c", "a", "a"]), target="y")
    assert data.classes == ["a", "b", "c"] and [item.target for item in data.items[:3]] == [["a", "b"], ["b"], []]


def test_list_of_files_with_numbers(listed):
    path = listed(y=[1, 2, 3, None, 5, 6], z=[0.5] * 6)
    data = load_dataset(TASKS["image-regression"], path, target="y,z")
    assert len(data.items) == 5 and data.items[0].target == {"y": 1.0, "z": 0.5}
    assert FileSources(data, TASKS["image-regression"]).head_options()["std"] == pytest.approx(
        (np.std([1, 2, 3, 5, 6]), 1)
    )


LIST_FAULTS = {
    "unnamed": ("image-classification", {"y": list("ababab")}, None, "column to learn is not named"),
    "absent": ("image-classification", {"y": list("ababab")}, "z", "no column 'z'"),
    "empty": ("image-classification", {"y": [None] * 6}, "y", "target column y is empty"),
    "no number": ("image-regression", {"y": list("ababab")}, "y", "y"),
}


@pytest.mark.parametrize("name", LIST_FAULTS)
def test_faults_of_a_list(listed, name):
    task, columns, target, message = LIST_FAULTS[name]
    with pytest.raises(InputError, match=message):
        load_dataset(TASKS[task], listed(**columns), target=target)


def test_what_is_not_there(tmp_path):
    for task in ("image-classification", "object-detection", "image-segmentation", "audio-classification"):
        with pytest.raises(InputError, match=r"absent.*no such"):
            load_dataset(TASKS[task], tmp_path / "absent")
        with pytest.raises(InputError):
            load_dataset(TASKS[task], tmp_path)
    with pytest.raises(InputError, match=r"cannot be learnt from folders.*csv"):
        load_dataset(TASKS["image-regression"], tmp_path)


def test_ucr_parts_by_name(tmp_path):
    head = "@problemName P\n@timeStamps false\n@univariate true\n@classLabel true a b\n@data\n"
    (tmp_path / "P_TRAIN.ts").write_text(head + "1,2,3,4:a\n2,3,4,5:b\n")
    (tmp_path / "P_TEST.ts").write_text(head + "1,2,3,9:b\n")
    sources = open_sources(TASKS["time-series-classification"], tmp_path)
    assert sources.splits() == ["test", "train"] and sources.head_options()["classes"] == ("a", "b")
    assert sources.tokenizer_options()["channels"] == -1 and len(sources.tokenizer_sources()) == 2
    (tmp_path / "P_TEST.ts").write_text(
        "@problemName P\n@timeStamps false\n@univariate true\n@classLabel false\n@data\n1,2\n"
    )
    with pytest.raises(InputError, match=r"P_TEST\.ts: its series have no class labels"):
        load_dataset(TASKS["time-series-classification"], tmp_path)


def test_labelled_clouds(tmp_path):
    task = TASKS["point-cloud-segmentation"]
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        np.savez(tmp_path / split / "one.npz", xyz=np.zeros((5, 3)), labels=np.array([0, 1, 2, 255, -1]))
    data = load_dataset(task, tmp_path)
    assert data.classes == ["class_0", "class_1", "class_2"] and [item.split for item in data.items] == ["train", "val"]
    np.savez(tmp_path / "val" / "one.npz", xyz=np.zeros((5, 3)))
    with pytest.raises(InputError, match="no array `labels`"):
        load_dataset(task, tmp_path)
    np.savez(tmp_path / "val" / "one.npz", labels=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="no array `labels`"):  # an array that would have to be unpickled
        load_dataset(task, tmp_path)


def test_unlabelled_clouds(tmp_path):
    np.savez(tmp_path / "one.npz", xyz=np.zeros((2, 3)), labels=np.array([255, -1]))
    with pytest.raises(InputError, match="no point is labelled"):
        load_dataset(TASKS["point-cloud-segmentation"], tmp_path)


class Counting:
    """A tokenizer that counts what it reads."""

    def __init__(self, inner):
        self.inner, self.count = inner, 0

    def read(self, source):
        self.count += 1
        return self.inner.read(source)

    def split(self, sample):
        return self.inner.split(sample)


def test_files_are_decoded_once_while_they_fit(image_folders, monkeypatch):
    data = load_dataset(TASKS["image-classification"], image_folders)
    front = Counting(tokenizer("image", size=64))
    examples = FileExamples(data.items, front, "image")
    first = [examples.whole(i) for i in range(3)]
    assert [examples.whole(i) for i in range(3)] == first and front.count == 3
    monkeypatch.setattr("polysense.training.examples.CACHE_BYTES", 0)
    tight = FileExamples(data.items, front, "image")
    tight.whole(0), tight.whole(0)
    assert front.count == 5


@pytest.mark.parametrize("modality", ["image", "video", "audio", "point_cloud", "time_series"])
def test_augmented_examples_follow_the_generator(modality, make, tmp_path):
    source = make(modality, 3)
    front = tokenizer(modality, **({"size": 64} if modality in ("image", "video") else {}))
    examples = FileExamples([Item(source, "a")], front, modality, augment=True)

    def draw(seed):
        (sample, target), = examples.train(0, np.random.default_rng(seed))  # fmt: skip
        assert target == "a"
        return next(iter(sample.data.values()))

    assert (draw(0).shape != draw(1).shape or (draw(0) != draw(1)).any()) == (modality != "video")
    assert draw(0).equal(draw(0))


def test_augmented_series_keep_their_calendar(make):
    source = make("time_series", 1)
    front = tokenizer("time_series")
    (sample, _), *_ = FileExamples([Item(source, "a")], front, "time_series", True).train(0, np.random.default_rng(0))
    assert sample.data["calendar"].equal(front.read(source).data["calendar"]) and sample.data["calendar"].any()
    assert sample.meta["names"] == front.split(front.read(source))[int(sample.meta["variate"])].meta["names"]


def test_augmented_clouds_keep_their_colours():
    rng = np.random.default_rng(0)
    from polysense.data.point_cloud import Cloud

    cloud = Cloud(rng.normal(size=(50, 3)), {"rgb": rng.random((50, 3))})
    front = tokenizer("point_cloud", features=("rgb",), groups=4, neighbours=4)
    (sample, _), = FileExamples([Item(cloud, "a")], front, "point_cloud", True).train(0, rng)  # fmt: skip
    assert sample.data["groups"].shape == (4, 4, 6)


def test_one_window_of_a_recording_a_step(make):
    front = tokenizer("audio", window=1.0)
    recording = np.random.default_rng(0).normal(0, 0.1, 64_000).astype(np.float32), 16_000
    examples = FileExamples([Item(recording, "a")], front, "audio")
    rng = np.random.default_rng(0)
    assert len(examples.whole(0)[0]) == 4
    windows = {examples.train(0, rng)[0][0].meta["window"] for _ in range(40)}
    assert len(windows) == 4 and all(len(examples.train(0, rng)) == 1 for _ in range(3))


def test_subset_is_even(series_file):
    sources = open_sources(TASKS["forecasting"], series_file, horizon=8, context=24)
    examples = sources.examples(tokenizer("time_series", context=24), "train")
    assert Subset.even(examples, len(examples)) is examples
    some = Subset.even(examples, 5)
    assert len(some) == 5 and some.indices[0] == 0 and some.indices[-1] == len(examples) - 1
    np.testing.assert_array_equal(some.whole(4)[1], examples.whole(len(examples) - 1)[1])
    assert len(some.train(0, np.random.default_rng(0))) == 2  # one pair a variate


def test_windows_equal_what_reading_the_past_gives(series_file):
    sources = open_sources(TASKS["forecasting"], series_file, horizon=8, context=24)
    front = tokenizer("time_series", context=24)
    samples, target = sources.examples(front, "val").whole(3)
    frame = read_series(series_file)
    past = pd.DataFrame(frame.values[:143], frame.times[:143], frame.names)
    expected = front.split(front.read(past))
    for one, other in zip(samples, expected, strict=True):
        assert all(one.data[name].equal(other.data[name]) for name in one.data)
    np.testing.assert_array_equal(target, frame.values[143:151])
