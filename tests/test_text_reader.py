"""Text reader: what a source is, encodings, every ending, rows, the column that holds the text, errors."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from polysense.core.errors import InputError
from polysense.data import text_files
from polysense.data.limits import limited
from polysense.data.table import read_table
from polysense.data.text import FILL, NAME_IT, TEXT_ENDINGS, Text, read_text_table, read_texts, text_column, texts_of

WESTERN = "C’était une soirée très réussie, même si le café était déjà fermé à l’arrivée.\nNaïve – «où» ça ?\n"
RUSSIAN = "Фильм оказался очень хорошим, хотя сначала я сомневался. Рекомендую посмотреть всем.\n"
JAPANESE = "この映画はとても面白かったです。最初は少し退屈でしたが、最後まで見て本当に良かったと思います。\n"
CHINESE = "这部电影非常好看,虽然开头有点慢,但是结尾让人感动。我推荐大家都去看一看,真的不错。\n"
SENTENCES = ["a fine, quiet film", "dull; and far too long", "I left before the end"]


def frame() -> pd.DataFrame:
    return pd.DataFrame({"id": [7, 8, 9], "label": ["pos", "neg", "neg"], "tweet": SENTENCES})


def words(source, column=None) -> list[str]:
    return [text.text for text in read_texts(source, column)]


def fault(source, column=None) -> str:
    with pytest.raises(InputError) as caught:
        list(read_texts(source, column))
    return str(caught.value)


# What a source is


def test_any_other_string_is_the_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("from the file")
    (tmp_path / "two words.txt").write_text("named with a blank")
    (tmp_path / "folder").mkdir()
    for given in ("good", "see a.txt", "Mr.X", "folder", "x" * 5000, "nul\0in it", "half a pair \ud83d"):
        [found] = read_texts(given)
        assert found.source == "<memory>" and found.text == given.replace("\ud83d", "\ufffd")
    assert list(read_texts("notes")) == [Text("from the file", "notes")]
    assert list(read_texts("two words.txt")) == [Text("named with a blank", "two words.txt")]
    assert fault("absent.TXT") == "absent.TXT: there is no such file; check the path."
    assert fault(tmp_path / "absent") == f"{tmp_path / 'absent'}: there is no such file; check the path."
    assert fault(tmp_path / "folder") == f"{tmp_path / 'folder'}: this is a folder; give a file."


@pytest.mark.parametrize("ending", TEXT_ENDINGS)
def test_a_name_with_a_known_ending_must_exist(ending):
    assert "there is no such file" in fault(f"no/such{ending}") and "there is no such file" in fault(
        f"x{ending.upper()}"
    )


@pytest.mark.parametrize("source", [b"a\r\nb\rc\n", "a\r\nb\rc\n", gzip.compress(b"a\nb\nc\n")])
def test_memory(source):
    assert list(read_texts(source)) == [Text("a\nb\nc\n", "<memory>")]


def test_texts_come_back_as_they_are():
    given = Text("x", "a.csv#3")
    assert list(read_texts(given)) == [given]


@pytest.mark.parametrize("source", [frame(), frame().to_dict("list"), frame().to_dict("records")])
def test_tables_in_memory(source):
    assert list(read_texts(source)) == [Text(text, f"<memory>#{i}") for i, text in enumerate(SENTENCES)]
    assert words(source, "label") == ["pos", "neg", "neg"] and words(source, "id") == ["7", "8", "9"]


def test_one_row_and_series():
    assert list(read_texts({"text": "fine", "n": 1})) == [Text("fine", "<memory>#0")]
    series = pd.Series(["none", "42", "true"], index=[5, 6, 7], name="n")
    for column in (None, "tweet"):
        assert list(read_texts(series, column)) == [Text(t, f"<memory>#{i}") for i, t in enumerate(series)]


def test_surrogate_pairs_are_joined(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00 \\ud83d"}\n"\\ude00"\n')
    assert words(tmp_path / "a.jsonl") == ["😀 \ufffd", "\ufffd"]


# Encodings


@pytest.mark.parametrize(
    ("text", "encoding", "mark"),
    [
        (WESTERN + JAPANESE, "utf-8", b""),
        (WESTERN + JAPANESE, "utf-8-sig", b""),
        (WESTERN + JAPANESE, "utf-16", b""),
        (WESTERN + JAPANESE, "utf-16-le", b"\xff\xfe"),
        (WESTERN + JAPANESE, "utf-16-be", b"\xfe\xff"),
        (WESTERN + JAPANESE, "utf-32-le", b"\xff\xfe\0\0"),
        (WESTERN + JAPANESE, "utf-32-be", b"\0\0\xfe\xff"),
        (WESTERN, "cp1252", b""),
        ("Der Film war überraschend gut, trotz Länge und Größe.\n", "latin-1", b""),
        ("Jag tyckte om filmen väldigt mycket, även om den var något för lång.\n", "latin-1", b""),
        ("café", "latin-1", b""),
        ("plain\n" * 50_000 + "Größe\n", "latin-1", b""),
        ("Zażółć gęślą jaźń. Film był świetny, ale trochę za długi i niezbyt śmieszny.\n", "cp1250", b""),
        (RUSSIAN, "cp1251", b""),
        (RUSSIAN, "koi8-r", b""),
        (JAPANESE, "shift-jis", b""),
        (JAPANESE * 3, "euc-jp", b""),
        (CHINESE, "gb18030", b""),
        (CHINESE.replace("\n", "") * 2000, "gb18030", b""),  # longer than the evidence, in one line
    ],
)
def test_encodings(tmp_path, text, encoding, mark):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + text.replace("\n", "\r\n").encode(encoding))
    assert list(read_texts(path)) == [Text(text, str(path))]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the text is empty; give a text"),
        (b" \r\n\t\xc2\xa0", "the text is empty; give a text"),
        (b"\xef\xbb\xbf", "the text is empty; give a text"),
        (b"abc\0def", "the content is binary, no text; give a plain text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "the content is binary, no text"),
        (bytes(range(1, 256)) * 8, "the content is binary, no text"),
        (b"\xff\xfea\0\0\xd8", "it is marked as UTF-16, but is not; save it again as UTF-8"),
        (b"\xef\xbb\xbfGr\xfc\xdfe", "it is marked as UTF-8, but is not; save it again as UTF-8"),
        (b"\x1f\x8b\x08 damaged", "the gzip file is damaged; compress it again"),
        (gzip.compress(b"some text" * 100)[:-20], "the gzip file is damaged; compress it again"),
    ],
)
def test_faulty_files(tmp_path, data, problem):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert fault(path).startswith(f"{path}: {problem}")
    assert fault(data).startswith(f"<memory>: {problem}")


def test_an_encoding_that_cannot_be_told(monkeypatch):
    monkeypatch.setattr(text_files, "ENCODINGS", ["cp1253"])
    assert "its encoding cannot be told (it looks like cp1252); save it again as UTF-8" in fault(b"\x81\x8d\x8f")


def test_size_limit(tmp_path):
    path, zipped = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    path.write_text("x" * 2000)
    with limited(characters=2000):
        assert words(path) == ["x" * 2000]
    path.write_text("x" * 2001)
    zipped.write_bytes(gzip.compress(b"x" * 2001))
    with limited(characters=2000):
        for source in (path, zipped, b"x" * 2001):
            assert "it has 2,001 characters, more than the limit of 2,000; if it is to be trusted" in fault(source)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 3000}))  # a table is no plain text
    with limited(characters=2000):
        assert words(tmp_path / "a.jsonl") == ["x" * 3000]


# Endings


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet", ".xlsx", ".CSV"])
def test_tables(tmp_path, ending, zipped):
    path = tmp_path / f"a{ending}"
    if ending == ".jsonl":
        frame().to_json(path, orient="records", lines=True)
    elif ending == ".parquet":
        frame().to_parquet(path)
    elif ending == ".xlsx":
        frame().to_excel(path, index=False)
    else:
        frame().to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    if zipped:
        data, path = path.read_bytes(), path.with_name(path.name + ".gz")
        path.write_bytes(gzip.compress(data))
    for source in (path, str(path)):
        assert list(read_texts(source)) == [Text(text, f"{path}#{i}") for i, text in enumerate(SENTENCES)]
        assert words(source, "label") == ["pos", "neg", "neg"]
    assert f"{path}: there is no column 'x'; the table has: id, label, tweet." == fault(path, "x")
    pd.testing.assert_frame_equal(read_text_table(path), read_table(frame()), check_dtype=False)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.log", "README", "a.txt.gz"])
def test_every_other_file_is_one_text(tmp_path, name):
    path, text = tmp_path / name, 'text,n\n"fine",1\n'
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert list(read_texts(path)) == [Text(text, str(path))]


# Rows


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"Title": "t", "REVIEW": "one", "n": 1}\n{"REVIEW": "two"}', encoding="utf-8-sig")
    assert words(path) == ["one", "two"] and words(path, "REVIEW") == ["one", "two"]
    path.write_text('\n{"body": "one", "n": 1}\n  \n{"n": 2, "body": "two\\u2028\u2028\\r\\n"}\n', encoding="utf-8-sig")
    assert list(read_texts(path)) == [Text("one", f"{path}#0"), Text("two\u2028\u2028".strip(), f"{path}#1")]
    path.write_text('"one"\n"two"\n{"text": "three", "title": "t"}\n')
    assert words(path) == ["one", "two", "three"]
    path.write_text('{"said": "x", "n": 1}\n{"said": "y", "n": 2}\n')
    assert words(path) == ["x", "y"] and words(path, "n") == ["1", "2"]
    path.write_text('{"said": "x", "tags": [{"a": "a long, long list"}]}\n')
    assert words(path) == ["x"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "x"', "line 3 is no JSON (Expecting ',' delimiter); write one object a line."),
        ("text", "line 3 is no JSON (Expecting value); write one object a line."),
        ("17", 'line 3 holds neither an object nor a string; write one object a line, such as {"text": "…"}.'),
        ('["x"]', 'line 3 holds neither an object nor a string; write one object a line, such as {"text": "…"}.'),
        ("[" * 200_000, "line 3 is nested too deeply; write one flat object a line."),
        ('{"text": null}', f"row 1 has no text in the column 'text'; {FILL}."),
        ('{"title": "x"}', f"row 1 has no text in the column 'text'; {FILL}."),
        ('{"text": [1]}', f"row 1 has no text in the column 'text'; {FILL}."),
        ('" "', f"row 1 has no text in the column 'text'; {FILL}."),
    ],
)
def test_bad_lines(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_text(f'\n{{"text": "fine"}}\n{line}\n"last"\n')
    assert fault(path) == f"{path}: {problem}"


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv", "a.csv"])
def test_nothing_in_a_table(tmp_path, name):
    (tmp_path / name).write_text("\n \n")
    assert fault(tmp_path / name).startswith(f"{tmp_path / name}: the file is empty; give ")


@pytest.mark.parametrize("blank", ["", "   ", "NA"])
def test_blank_rows_are_named(tmp_path, blank):
    table = frame().assign(tweet=[SENTENCES[0], SENTENCES[1], blank])
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    for source, name in ((table, "<memory>"), *[(tmp_path / n, tmp_path / n) for n in ("a.csv", "a.tsv")]):
        assert fault(source, "tweet") == f"{name}: row 2 has no text in the column 'tweet'; {FILL}."


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, "", " \n"])
def test_blank_values_of_a_series(missing):
    problem = f"<memory>: row 1 has no text in the column 'text'; {FILL}."
    assert fault(pd.Series(["x", missing], dtype=object)) == problem


def test_a_part_keeps_the_tables_numbers():
    table = read_text_table(frame())
    found = texts_of(table[table["label"] == "neg"], "tweet", "a.csv")
    assert found == [Text(SENTENCES[1], "a.csv#1"), Text(SENTENCES[2], "a.csv#2")]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (7, "<memory>: a int is no text; give a string"),
        (None, "<memory>: a NoneType is no text; give a string"),
        (["a", "b"], "<memory>: a list is no table; give a path"),
        (pd.Series([], dtype=object), "<memory>: the series is empty; give a string"),
        ("  \n", "<memory>: the text is empty; give a text with at least one word."),
    ],
)
def test_no_texts(source, problem):
    assert fault(source).startswith(problem)


# Tabs


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_quotation_marks_that_nothing_closes(tmp_path):
    sentences = ['a "great movie', '"great movie', 'nice "', '"the end', 'he said "no" twice', '"so" said I', '""', '"']
    path = write(tmp_path / "a.tsv", [f"{text}\t{i % 2}" for i, text in enumerate(sentences)])
    assert list(read_texts(path)) == [Text(text, f"{path}#{i}") for i, text in enumerate(sentences)]
    assert read_text_table(path)["column_1"].tolist() == [0, 1] * 4


def test_commas_cut_no_tab_rows(tmp_path):
    path = write(tmp_path / "a.tsv", ["one, two, three\t0", "a, b, c\t1"])
    assert words(path) == ["one, two, three", "a, b, c"]
    assert words(write(path, ["one two", "a b", "one two"])) == ["one two", "a b", "one two"]


def test_quotes_that_are_meant(tmp_path):
    path = write(tmp_path / "a.tsv", ["text\tn", '"one ""1"""\t1', '"two"\t2', "three\t3"])
    assert words(path) == ['one "1"', "two", "three"]
    path = write(path, ["text\tn", '"one\ttab"\t1', '"two', 'lines"\t2'])
    assert words(path) == ["one\ttab", "two\nlines"]


def test_tab_rows_are_counted_as_in_other_tables(tmp_path):
    lines = ["", "text\tlabel", "one\tpos", "", "two\tneg", "  ", "three\tpos", ""]
    path = write(tmp_path / "a.tsv", lines)
    pd.testing.assert_frame_equal(read_text_table(path), read_table(path))
    assert [text.source for text in read_texts(path)] == [f"{path}#{i}" for i in range(3)]


def test_faulty_tab_rows(tmp_path):
    path = write(tmp_path / "a.tsv", ["", "text\tn", "one\t1", '"two', "three\t3"])
    assert fault(path) == f"{path}: line 4 has 1 cell, not 2; give every row the same number of cells."
    write(path, ['"one', 'two" said\t1', "three\t3"])  # no quoting: a cell goes on after its end
    assert fault(path) == f"{path}: line 1 has 1 cell, not 2; give every row the same number of cells."
    assert fault(write(path, ["text\tlabel"])).startswith(f"{path}: the table has a header, but no rows; add rows")
    path.write_bytes(b"text\tn\none\0\t1\n")
    assert fault(path).startswith(f"{path}: the content is binary")


def test_a_training_table_of_any_ending_may_be_cut_by_tabs(tmp_path):
    path = write(tmp_path / "labelled.txt", ['"fine, I say\t1', "dull, long\t0", "so, so\t1"])
    assert read_text_table(path)["column_0"].tolist() == ['"fine, I say', "dull, long", "so, so"]
    path = write(tmp_path / "table.txt", ["text,n", "fine,1", "dull,0"])
    assert read_text_table(path)["text"].tolist() == ["fine", "dull"]


# The column that holds the text


@pytest.mark.parametrize(
    ("table", "without", "column"),
    [
        ({"title": ["a long title"], "Text": ["x"]}, (), "Text"),
        ({"title": ["a"], "body": ["b"], "essay": ["much longer than others"]}, (), "body"),
        ({"title": ["a"], "body": ["b"]}, ("body",), "title"),
        ({"text": [1, 2], "said": ["a", "b"]}, (), "said"),
        ({"text": [None], "said": ["a"]}, (), "said"),
        ({"n": [1, 2], "day": ["2020-01-01", "2020-01-02"], "ok": ["true", "false"], "c": ["x", "y"]}, (), "c"),
        ({"c": ["abcdef", None], "d": ["abcd", "abcd"]}, (), "c"),  # exactly 1.5 times
        ({"c": ["abcdef"], "d": ["abcde"]}, ("d",), "c"),
    ],
)
def test_text_column(table, without, column):
    assert text_column(read_text_table(table), without=without) == column


@pytest.mark.parametrize(
    ("table", "without", "problem"),
    [
        ({"c": ["abcde"], "d": ["abcd"]}, (), "several columns might hold the text: 'c', 'd'"),
        ({"text": ["abcd"], "c": ["abcd"], "d": ["abcde"]}, ["text"], "several columns might hold the text: 'd', 'c'"),
        ({"n": [1], "c": ["x"]}, ["c"], "no column holds texts (there are: n, c)"),
        ({"n": [1], "text": ["12"]}, (), "no column holds texts (there are: n, text)"),
    ],
)
def test_no_clear_text_column(table, without, problem):
    with pytest.raises(InputError) as caught:
        text_column(read_text_table(table), "a.csv", without=without)
    assert str(caught.value) == f"a.csv: {problem}; {NAME_IT}."
    if not without:
        assert fault(table) == f"<memory>: {problem}; {NAME_IT}."


def test_several_columns_are_lines_of_one_text(tmp_path):
    file = tmp_path / "news.csv"
    pd.DataFrame({"title": ["Rain", "Sun"], "body": ["It rained, a lot.", None], "n": [1, 2]}).to_csv(file, index=False)
    texts = list(read_texts(file, "title, body"))
    assert [text.text for text in texts] == ["Rain\nIt rained, a lot.", "Sun"]
    assert [text.column for text in texts] == ["title, body"] * 2
