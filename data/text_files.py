"""Bytes of text files -> text: reading, unzipping, and telling the encoding.

Shared by plain texts and by tables of texts (`text.py`).
"""

from __future__ import annotations

import codecs
import re
import zlib
from pathlib import Path

from polysense.core.errors import InputError
from polysense.data.containers import gunzip
from polysense.data.limits import check, check_file

WIDEST = 4  # bytes of a character in any encoding
EVIDENCE = 65_536  # bytes that the encoding is detected from, characters that are looked at for being binary
CONTROLS = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f]")  # not white space, nor the escape of terminals
# utf-32 first: its mark begins with that of utf-16.
MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
# Those that files are still found in.
ENCODINGS = ["cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "koi8_r", "cp874",
             "cp932", "euc_jp", "gb18030", "big5", "cp949"]  # fmt: skip
PLAIN = "give a plain text file, or a jsonl, csv, tsv, parquet or xlsx table"
AS_UTF8 = "save it again as UTF-8"


def load(path: Path, plain: bool = False) -> bytes:
    """A file's content, unzipped.

    Args:
        path: The file.
        plain: It is one text, of which the limit of characters holds.

    Raises:
        InputError: No such file, a folder, no permission, or too large.
    """
    if path.is_dir():
        raise InputError(path, "this is a folder", "give a file")
    check_file(path)
    try:
        if plain:
            check("characters", path.stat().st_size / WIDEST, path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, "there is no such file", "check the path") from None
    except OSError as error:
        raise InputError(path, f"the file cannot be read ({error.strerror})", "check its permissions") from error
    return unzip(data, path, plain)


def unzip(data: bytes, source: object, plain: bool) -> bytes:
    if data[:2] == b"\x1f\x8b":
        try:
            data = gunzip(data, source, *(("characters", WIDEST) if plain else ()))
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(source, "the gzip file is damaged", "compress it again") from error
    return data


def decode(data: bytes, source: object) -> str:
    """Bytes -> text, by its mark, as UTF-8, or as whatever it looks like; lines end with a line feed alone.

    Raises:
        InputError: Binary, damaged, or in no encoding that can be told.
    """
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            problem = f"it is marked as {encoding.removesuffix('-sig').upper()}, but is not"
            raise InputError(source, problem, AS_UTF8) from error
        _refuse_binary(data.decode("latin-1"), source)
        text = data.decode(_detect(data, source))
    _refuse_binary(text, source)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse_binary(text: str, source: object) -> None:
    head = text[:EVIDENCE]
    if "\0" in text or len(CONTROLS.findall(head)) > len(head) / 50:
        raise InputError(source, "the content is binary, no text", PLAIN)


def _detect(data: bytes, source: object) -> str:
    """The encoding of old files, by the lines that are not ASCII.

    Western Europe's goes first: its texts often make sense in its neighbours' encodings too, seldom the reverse.
    """
    from charset_normalizer import from_bytes

    lines, size = [], 0
    for line in data.splitlines(keepends=True):
        if not line.isascii():
            lines.append(line)
            size += len(line)
            if size > EVIDENCE:
                break
    sample = b"".join(lines)
    found = from_bytes(sample, cp_isolation=["cp1252"]).best() or from_bytes(sample, cp_isolation=ENCODINGS).best()
    encoding = found.encoding if found else "cp1252"  # too short to tell
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(source, f"its encoding cannot be told (it looks like {encoding})", AS_UTF8) from error
    return encoding
