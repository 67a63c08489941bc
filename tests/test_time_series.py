"""Time series readers: tables, arrays, `.ts` files, time axes."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from polysense.core.errors import InputError
from polysense.data.time_series import SERIES_ENDINGS, SeriesFrame, read_series, read_series_all


def table(rows: int = 30, freq: str = "h") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"date": pd.date_range("2024-01-30", periods=rows, freq=freq),
                         "load": rng.normal(size=rows).round(4), "price": rng.normal(size=rows).round(4)})  # fmt: skip


def written(form: str, path: Path) -> Path:
    data, file = table(), path / f"series.{form}"
    if form in ("csv", "csv.gz", "txt"):
        data.to_csv(file, index=False)
    elif form == "tsv":
        data.to_csv(file, index=False, sep="\t")
    elif form == "semicolon.csv":
        data.to_csv(file, index=False, sep=";", decimal=",")
    elif form == "parquet":
        data.to_parquet(file)
    elif form == "index.parquet":
        data.set_index("date").to_parquet(file)
    elif form == "xlsx":
        data.to_excel(file, index=False)
    elif form == "npz":
        np.savez(file, values=data[["load", "price"]].to_numpy(), times=data["date"].to_numpy("datetime64[s]"),
                 names=np.array(["load", "price"]))  # fmt: skip
    return file


FORMS = ["csv", "csv.gz", "txt", "tsv", "semicolon.csv", "parquet", "index.parquet", "xlsx", "npz"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_table_back(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path)
    assert path.suffix in SERIES_ENDINGS
    for source in (path, str(path), path.read_bytes()):
        frame = read_series(source)
        assert frame.names == ["load", "price"] and frame.freq == "h"
        assert np.allclose(frame.values, table()[["load", "price"]])
        assert frame.times is not None and frame.times.dtype == "datetime64[ns]"
        assert (frame.times == table()["date"].to_numpy("datetime64[ns]")).all()
    with path.open("rb") as file:
        assert np.allclose(read_series(file).values, frame.values)


def test_in_memory_forms() -> None:
    values = np.arange(12.0).reshape(6, 2)
    index = pd.date_range("2024", periods=6, freq="D")
    data = pd.DataFrame(values, index=index, columns=["a", "b"])
    for source in (values, values.astype(int), values.tolist(), torch.from_numpy(values), data, data.to_dict("list")):
        assert np.array_equal(read_series(source).values, values)
    assert read_series(data).freq == "D" and read_series(values).times is None
    assert read_series(values).names == ["x1", "x2"]
    assert read_series(pd.Series(range(6), index=index, name="n")).names == ["n"]
    assert read_series(data.set_index(index.astype(str))).freq == "D"
    assert read_series(data.to_period("M").groupby(level=0).mean()).times[0] == np.datetime64("2024-01-01")
    assert read_series(np.arange(5.0)).values.shape == (5, 1)
    frame = read_series(data)
    assert read_series(frame, columns=["b"]).values[:, 0].tolist() == values[:, 1].tolist()


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
def test_headerless_tables(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(separator.join(map(str, row)) for row in [(1.5, 2, 3), (4, 5.25, 6), (7, 8, 9)]))
    frame = read_series(path)
    assert frame.values.tolist() == [[1.5, 2, 3], [4, 5.25, 6], [7, 8, 9]] and frame.names == ["x1", "x2", "x3"]
    one = read_series(b"3\n4\n5\n")
    assert one.values[:, 0].tolist() == [3, 4, 5] and one.names == ["value"]
    dated = read_series(b"2024-01-01,3\n2024-01-02,4\n2024-01-03,5\n")
    assert dated.freq == "D" and dated.values[:, 0].tolist() == [3, 4, 5]


def test_columns_are_found_named_and_left_out() -> None:
    data = table().assign(place="north", flag=True, code="7", empty=np.nan)
    assert read_series(data).names == ["load", "price", "flag", "code"]  # of an empty column nothing can be told
    with pytest.raises(InputError, match="no value in column 'empty' is a number"):
        read_series(data, columns=["load", "empty"])
    assert read_series(data, columns=["price", "load"]).names == ["price", "load"]
    assert np.allclose(read_series(data, columns=["price"]).values[:, 0], data["price"])
    other = data.rename(columns={"date": "whenever"})
    assert read_series(other, time="whenever").freq == "h" and read_series(other).freq == "h"
    text = other.assign(whenever=other["whenever"].astype(str))
    assert read_series(text).freq == "h"


AXES = {
    "hours": (["2016-07-01 00:00:00", "2016-07-01 01:00:00", "2016-07-01 02:00:00"], "h", "2016-07-01T00"),
    "zone": (["2020-01-01T00:00+02:00", "2020-01-01T01:00+02:00", "2020-01-01T02:00+02:00"], "h", "2019-12-31T22"),
    "day first": (["30/01/2020", "31/01/2020", "01/02/2020"], "D", "2020-01-30"),
    "month first": (["1/30/2020", "1/31/2020", "2/1/2020"], "D", "2020-01-30"),
    "day first, told by even steps": ([f"01/{m:02}/2020" for m in range(1, 13)] + ["01/01/2021"], "MS", "2020-01-01"),
    "dots": (["13.01.2020", "14.01.2020", "15.01.2020"], "D", "2020-01-13"),
    "month names": (["1960 Jan", "1960 Feb", "1960 Mar"], "MS", "1960-01-01"),
    "quarters": (["1960 Q1", "1960 Q2", "1960 Q3"], "QS-JAN", "1960-01-01"),
    "weeks": (["1991 W06", "1991 W07", "1991 W08"], "W-MON", "1991-02-04"),
    "years": ([1871, 1872, 1873], "YS-JAN", "1871-01-01"),
    "decimal years": ([1949.0, 1949.0833333, 1949.1666667], "MS", "1949-01-01"),
    "digits": ([20240130, 20240131, 20240201], "D", "2024-01-30"),
    "seconds": ([1_500_000_000, 1_500_003_600, 1_500_007_200], "h", "2017-07-14T02:40"),
    "milliseconds": ([1_500_000_000_000, 1_500_000_060_000, 1_500_000_120_000], "min", "2017-07-14T02:40"),
    "month ends": (["2020-01-31", "2020-02-29", "2020-03-31"], "ME", "2020-01-31"),
    "mid months": (["2020-01-15", "2020-02-15", "2020-03-15"], "MS", "2020-01-01"),
    "numbers only": ([0, 1, 2], None, None),
}


@pytest.mark.parametrize("case", AXES)
def test_time_columns(case: str) -> None:
    cells, freq, first = AXES[case]
    frame = read_series(pd.DataFrame({"time": cells, "v": np.arange(len(cells))}))
    assert frame.names == ["v"] and frame.freq == freq
    assert frame.values[:, 0].tolist() == list(range(len(cells)))
    assert (frame.times is None) if first is None else (frame.times[0] == np.datetime64(first))


@pytest.mark.parametrize("freq", ["15min", "h", "D", "W-SUN", "MS", "ME", "QE-MAR", "YS-JAN", "2MS", "B"])
def test_missing_rows_short_gaps_are_filled_long_ones_stay(freq: str) -> None:
    data = pd.DataFrame({"v": np.arange(40.0)}, index=pd.date_range("2021-01-01", periods=40, freq=freq))
    frame = read_series(data.drop(data.index[[10, *range(20, 25)]]))
    assert frame.freq == freq and (frame.times == data.index.to_numpy("datetime64[ns]")).all()
    expected = np.arange(40.0)
    expected[20:25] = np.nan
    assert np.allclose(frame.values[:, 0], expected, equal_nan=True)


def test_uneven_steps_become_the_median_one() -> None:
    rng = np.random.default_rng(0)
    seconds = np.cumsum(rng.uniform(0.6, 1.4, 300))
    seconds[150:] += 30
    times = np.datetime64("2024-01-01", "ns") + (seconds * 1e9).astype("timedelta64[ns]")
    frame = read_series(pd.DataFrame({"time": times, "v": np.sin(seconds / 10)}))
    assert len(np.unique(np.diff(frame.times))) == 1
    at = (frame.times - times[0]) / np.timedelta64(1, "s") + seconds[0]
    close = np.isfinite(frame.values[:, 0])
    assert np.abs(frame.values[close, 0] - np.sin(at[close] / 10)).max() < 0.08
    assert 25 < (~close).sum() < 33  # the gap, and nothing else


def test_unsorted_and_repeated_times_and_missing_values() -> None:
    data = table(10)
    data.loc[3, "load"] = np.nan
    mixed = pd.concat([data, data.assign(load=data["load"] + 1)]).sample(frac=1, random_state=0)
    frame = read_series(mixed)
    assert frame.freq == "h" and np.allclose(frame.values[:, 0], data["load"] + 0.5, equal_nan=True)
    assert np.isnan(frame.values[3, 0]) and np.isnan(frame.values).sum() == 1
    holes = read_series(b"t;v\n1;?\n2;3\n3;\n4;-\n")
    assert np.isnan(holes.values[:, 1]).tolist() == [True, False, True, True]
    assert np.isnan(read_series(np.array([1.0, np.inf])).values[1, 0])


TS = """#about
@problemName Test
@timeStamps false
@univariate false
@dimensions 2
@classLabel true up down
@data
1,2,?:4,5,6:up
1,2:3,4:down
"""


def test_ts_files(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_text(TS)
    first, second = read_series_all(path)
    assert first.label == "up" and second.label == "down" and second.source.endswith("a.ts#1")
    assert np.allclose(first.values, [[1, 4], [2, 5], [np.nan, 6]], equal_nan=True)
    assert second.values.tolist() == [[1, 3], [2, 4]]
    with pytest.raises(InputError, match="2 series"):
        read_series(path)
    assert read_series(TS.rpartition("1,2:")[0].encode()).label == "up"


def test_arrays_of_many_series(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(4, 3, 2)
    path = tmp_path / "many.npz"
    np.savez(path, values=values, labels=np.array(list("abab")))
    frames = read_series_all(path)
    assert [frame.label for frame in frames] == list("abab")
    assert all(np.array_equal(frame.values, v) for frame, v in zip(frames, values, strict=True))
    assert len(read_series_all(values)) == 4 and len(read_series_all(values[0])) == 1
    np.savez(path, anything=values[0])
    assert np.array_equal(read_series(path).values, values[0])


def zipped(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


BAD = {
    "empty": (b"", {}, "empty"),
    "header only": (b"date,v\n", {}, "empty"),
    "no rows": (np.empty((0, 3)), {}, "empty"),
    "only nan": (np.full((5, 2), np.nan), {}, "no value in it is a number"),
    "words": (b"a,b\nx,y\nz,w\n", {}, "a, b hold text"),
    "prose": (b"this is no table\nat all", {}, "no series of numbers"),
    "binary": (bytes(range(256)) * 20, {}, "neither a table nor arrays"),
    "cut gzip": (gzip.compress(b"a,b\n" + b"1,2\n" * 99)[:-12], {}, "gzip"),
    "cut parquet": (b"PAR1" + b"\x15\x04" * 50, {}, "parquet"),
    "cut npz": (zipped(values=np.arange(999.0))[:500], {}, "NumPy"),
    "two arrays": (zipped(a=np.zeros(3), b=np.zeros(3)), {}, "the arrays a, b"),
    "pickle": (pickled(), {}, "NumPy arrays cannot be read"),
    "uneven times": (zipped(values=np.zeros(3), times=np.arange(4)), {}, "3 rows of values"),
    "ragged": (b"a,b\n1,2\n3,4,5,6\n", {}, "cannot be read as a table"),
    "absent column": (table(), {"columns": ["lod"]}, "no column 'lod'; name one of: load, price"),
    "absent time": (table(), {"time": "when"}, "no column 'when'; name one of: date, load, price"),
    "no dates": (table().assign(w="x"), {"time": "w"}, "'w' holds no dates"),
    "text asked for": (table().assign(w="x"), {"columns": ["w"]}, "w holds text"),
    "doubled names": (pd.DataFrame(np.zeros((3, 2)), columns=["a", "a"]), {}, "two columns are called 'a'"),
    "uneven dict": ({"a": [1, 2], "b": [1]}, {}, "no table"),
    "four axes": (np.zeros((2, 2, 2, 2)), {}, r"shape \(2, 2, 2, 2\)"),
    "text array": (np.array(["a"]), {}, "not a time series"),
    "an object": (object(), {}, "not a time series"),
    "ts without data": (b"@problemName x\n1,2\n", {}, "no @data"),
    "ts without series": (b"@problemName x\n@data\n", {}, "no series follows"),
    "ts channels": (TS.replace("@dimensions 2", "@dimensions 3").encode(), {}, "line 8.*2 channels.*3"),
    "ts words": (TS.replace("4,5", "four,5").encode(), {}, "line 8.*no number"),
    "ts timestamps": (TS.replace("timeStamps false", "timeStamps true").encode(), {}, "timestamps"),
    "far apart": (pd.DataFrame({"time": np.array([0, 1, 2, 10**7], "datetime64[s]"), "v": 1.0}), {}, "too uneven"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_are_refused(case: str, tmp_path: Path) -> None:
    source, options, message = BAD[case]
    with pytest.raises(InputError, match=message):
        read_series_all(source, **options)
    if isinstance(source, bytes):
        path = tmp_path / "bad.csv"
        path.write_bytes(source)
        with pytest.raises(InputError, match=rf"bad\.csv.*{message}"):
            read_series_all(path)


def test_paths_that_hold_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_series(tmp_path / "none.csv")
    with pytest.raises(InputError, match="folder"):
        read_series(tmp_path)


def test_a_frame_reads_as_itself() -> None:
    frame = SeriesFrame(np.ones((4, 2)), None, ["a", "b"], source="mine")
    assert read_series(frame) is frame
    with pytest.raises(InputError, match="mine: it has no column 'c'"):
        read_series(frame, columns=["c"])


LINES = {
    "ragged": "H1,605,586,559,511,443\nH2,31.5,29,28,27,26,25,,24\nH3,1,2,3\n",
    "headed": 'id,V1,V2,V3,V4,V5,V6,V7,V8\n"H1",605,586,559,511,443\nH2,31.5,29,28,27,26,25,,24\nH3,1,2,3\n',
    "counted from two": '"V1","V2","V3","V4","V5","V6","V7","V8","V9"\n"H1",605,586,559,511,443,,,\n'
                        '"H2",31.5,29,28,27,26,25,,24\n"H3",1,2,3,,,,,\n',
    "numbers as names": "name,1,2,3,4,5,6,7,8\nH1,605,586,559,511,443,,,\nH2,31.5,29,28,27,26,25,NA,24\n"
                        "H3,1,2,3,,,,,\n",
    "tabs": "H1\t605\t586\t559\t511\t443\t\t\t\nH2\t31.5\t29\t28\t27\t26\t25\t\t24\nH3\t1\t2\t3\t\t\t\t\t\n",
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_one_series_a_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "m4.csv"
    path.write_text(LINES[case])
    frames = read_series_all(path)
    assert [frame.names for frame in frames] == [["H1"], ["H2"], ["H3"]]
    assert [frame.source for frame in frames] == [f"{path}#{key}" for key in ("H1", "H2", "H3")]
    expected = [[605, 586, 559, 511, 443], [31.5, 29, 28, 27, 26, 25, np.nan, 24], [1, 2, 3]]
    for frame, values in zip(frames, expected, strict=True):
        assert frame.times is None
        np.testing.assert_array_equal(frame.values[:, 0], values)
    assert read_series(path, columns=["H3"]).values[:, 0].tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="no column 'H9'; name one of: H1, H2, H3"):
        read_series_all(path, columns=["H9"])
    with pytest.raises(InputError, match="it holds 3 series"):
        read_series(path)


def test_lines_without_a_header_need_not_differ_in_length() -> None:
    frames = read_series_all(b"a,1,2,3,4,5\nb,2,3,4,5,6\n")
    assert [frame.values[:, 0].tolist() for frame in frames] == [[1, 2, 3, 4, 5], [2, 3, 4, 5, 6]]
    table = pd.DataFrame({"key": ["a", "b"], **{f"V{i}": [i, 2.0] for i in range(1, 7)}})
    assert [frame.names for frame in read_series_all(table)] == [["a"], ["b"]]


def test_dated_lines_keep_their_times() -> None:
    first, second = read_series_all(b"country,2019,2020,2021,2022\nA,1,2,3,4\nB,,5,6,\n")
    assert first.freq == "YS-JAN" and first.values[:, 0].tolist() == [1, 2, 3, 4]
    assert second.values[:, 0].tolist() == [5, 6] and second.times[0] == np.datetime64("2020-01-01")


COLUMNS = {
    "places": b"place,load,price,wind,rain,sun\nnorth,1,2,3,4,5\nsouth,2,3,4,5,6\n",
    "repeated ids": b"id,x1,x2,x3,x4,x5\na,1,2,3,4,5\na,2,3,4,5,6\n",
    "dates": b"date,x1,x2,x3,x4,x5\n2024-01-01,1,2,3,4,5\n2024-01-02,2,3,4,5,6\n",
    "numbers": b"row,x1,x2,x3,x4,x5\n7,1,2,3,4,5\n8,2,3,4,5,6\n",
    "few": b"id,x1,x2\na,1,2\nb,2,3\n",
}


@pytest.mark.parametrize("case", COLUMNS)
def test_tables_of_columns_stay_tables_of_columns(case: str) -> None:
    frame = read_series(COLUMNS[case])
    assert len(frame.names) == (2 if case == "few" else 5) + (case == "numbers") and len(frame.values) == 2
