"""Table reader: formats, headers, types, errors."""

import gzip
import os

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from polysense.core.errors import InputError
from polysense.data.table import is_headerless, read_table, require_columns


def frame() -> pd.DataFrame:
    times = pd.to_datetime(["2024-01-31", "2024-02-01", "2024-03-05"])
    numbers = {"n": [1, 2, 3], "x": [0.5, np.nan, 2.5]}
    return pd.DataFrame(numbers | {"c": ["a", "b c", None], "t": times, "f": [True, False, True]})


def check(found: pd.DataFrame) -> None:
    assert list(found.columns) == ["n", "x", "c", "t", "f"]
    assert found["n"].tolist() == [1, 2, 3] and found["f"].astype(bool).tolist() == [True, False, True]
    assert found["x"].isna().tolist() == [False, True, False] and found["x"][2] == 2.5
    assert found["c"].isna().tolist() == [False, False, True] and found["c"][1] == "b c"
    assert found["t"].dt.month.tolist() == [1, 2, 3]


@pytest.mark.parametrize("form", ["csv", "tsv", "semicolon", "pipe", "gz", "parquet", "xlsx"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_formats(tmp_path, form, as_bytes):
    path = tmp_path / f"table.{form}"
    if form == "parquet":
        frame().to_parquet(path)
    elif form == "xlsx":
        frame().to_excel(path, index=False)
    else:
        separator = {"tsv": "\t", "semicolon": ";", "pipe": "|"}.get(form, ",")
        text = frame().to_csv(index=False, sep=separator).encode()
        path.write_bytes(gzip.compress(text) if form == "gz" else text)
    check(read_table(path.read_bytes() if as_bytes else path))


@pytest.mark.parametrize(
    "source", [frame(), frame().to_dict("list"), frame().to_dict("records"), frame().astype(object)]
)
def test_memory(source):
    check(read_table(source))


def test_frames_are_not_changed():
    given = pd.DataFrame({"a": [" x ", "?"]}, index=[5, 7])
    assert read_table(given)["a"].isna().tolist() == [False, True]
    assert given["a"].tolist() == [" x ", "?"] and list(given.index) == [5, 7]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("name,größe\nJürgen,1\nZoë,2\n".encode(encoding))
    found = read_table(tmp_path / "a.csv")
    assert list(found.columns) == ["name", "größe"] and found["name"][0] == "Jürgen"


@pytest.mark.parametrize(
    ("text", "headerless"),
    [
        ("a,b\n1,2\n3,4\n", False),
        ("1,2\n3,4\n", True),
        ("39, State-gov, 77516\n50, Private, 83311\n38, Private, 215646\n", True),
        ("F,0.54\nM,0.5\nF,0.3\n", True),
        ("sex,length\nM,0.5\nF,0.3\n", False),
        ("colour,size\nred,big\nblue,small\nred,small\n", False),
        ("red,big\nblue,small\nred,small\n", True),
        ("date,x\n2020-01-01,a\n2020-01-02,b\n", False),
        ("2020-01-01,a\n2020-01-02,b\n", True),
        (",a,b\n0,1,2\n1,3,4\n", False),
        ("x\n1\n2\n", False),
        ("1.5\n2.5\n", True),
        ("5,6\n", True),
    ],
)
def test_header_is_recognised(text, headerless):
    found = read_table(text.encode())
    assert is_headerless(found) == headerless
    assert len(found) == len(text.splitlines()) - (not headerless)


def test_header_can_be_forced():
    assert list(read_table(b"1,2\n3,4\n", header=True).columns) == ["1", "2"]
    assert len(read_table(b"a,b\n3,4\n", header=False)) == 2


def test_quotes_blanks_and_missing_markers():
    text = b'id , name, amount\n1, "Smith, J." , "1,234"\n\n2, ?, NA \n3,null,"5,678"\n'
    found = read_table(text)
    assert list(found.columns) == ["id", "name", "amount"]
    assert found["name"].isna().tolist() == [False, True, True] and found["name"][0] == "Smith, J."
    assert found["amount"][0] == "1,234" and found["amount"].isna().tolist() == [False, True, False]


def test_an_empty_last_cell_is_no_short_row():
    assert read_table(b"a,b\n1,\n2,x\n")["b"].isna().tolist() == [True, False]
    assert read_table(b"a,b\r1,\r2,x\r")["b"].isna().tolist() == [True, False]  # lines as on old Macs
    assert read_table(b"a,b\n1,\n" + b"2" * 200_000 + b",x\n")["b"].isna().tolist() == [True, False]


def test_blanks_as_delimiter():
    assert read_table(b"a  b c\n1  2 3\n4 5   6\n")["c"].tolist() == [3, 6]


@pytest.mark.parametrize(
    ("cells", "month"),
    [
        (["2024-03-05", "2024-03-25"], 3),
        (["2024-03-05 10:00:00", "2024-03-25 11:30:00"], 3),
        (["2024-03-05T10:00:00+02:00", "2024-03-25T11:30:00+01:00"], 3),
        (["05.03.2024", "25.03.2024"], 3),
        (["03/05/2024", "03/25/2024"], 3),
        (["05/03/2024", "25/03/2024"], 3),
    ],
)
def test_dates(cells, month):
    dates = read_table({"t": [*cells, None]})["t"]
    assert dates.dt.month.tolist()[:2] == [month, month] and dates.isna()[2]


def test_what_is_no_date_stays_text():
    assert read_table({"t": ["2024-03-05", "later"], "v": ["1.2.3", "1.2.4"]}).dtypes.eq("str").all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"a,b,c\n", "no rows"),
        (b"a,b\n1,2\n3,4,5\n", "ragged"),
        (b"a,b,c\n1,2,3\n4,5\n", "line 3 has 2 cells, not 3"),
        (b"a,b,c\n1,2,3\n4,5\r6,7,8\n", "line 3 has 2 cells, not 3"),
        (b'a,b\n1,"open\n2,3\n', "ragged"),
        (bytes(range(256)) * 8, "binary"),
        (b"PAR1 not really", "parquet"),
        (b"PK\x03\x04 not really", "Excel"),
        (b"\x1f\x8b not really", "gzip"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(path)
    assert "bad.csv" in str(caught.value)


def test_truncated_parquet(tmp_path):
    frame().to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="parquet"):
        read_table((tmp_path / "a.parquet").read_bytes()[:-100])


def test_damaged_notes_of_pandas(tmp_path):
    """It leaves them in the footer of a parquet file, and looks for them there."""
    table = pyarrow.Table.from_pandas(frame())
    notes = table.schema.metadata[b"pandas"].replace(b'"numpy_type"', b'"numpy_tyqe"')
    pyarrow.parquet.write_table(table.replace_schema_metadata({b"pandas": notes}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="parquet"):
        read_table(tmp_path / "a.parquet")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="folder"):
        read_table(tmp_path)
    if os.geteuid() != 0:
        (tmp_path / "secret.csv").touch(0)
        with pytest.raises(InputError, match="cannot be read"):
            read_table(tmp_path / "secret.csv")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (pd.DataFrame(), "no columns"),
        (pd.DataFrame({"a": []}), "no rows"),
        ({"a": [1, 2], "b": [1]}, "differ in length"),
        ([], "no table"),
        (3.5, "no table"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns 'a'"),
    ],
)
def test_bad_memory(source, message):
    with pytest.raises(InputError, match=message):
        read_table(source)


def test_required_columns():
    require_columns(frame(), ["n", "x"], "t.csv")
    with pytest.raises(InputError, match=r"t\.csv: there is no column 'price'; the table has: n, x"):
        require_columns(frame(), ["price"], "t.csv")
