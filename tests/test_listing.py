"""What is named -> items: folders, patterns, URLs, tars, lists, shares; and a local path to each."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import random
import tarfile
import tempfile
import tracemalloc
from itertools import chain
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from fsspec.registry import known_implementations

from polysense.core.errors import InputError
from polysense.data import listing_tars
from polysense.data.listing import Item, list_items, parse_shard, read_list, shard

ENDINGS = (".png", ".jpg")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and a folder for temporary files beside it that must be empty again at the end."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield tmp_path / "here"
    assert not list((tmp_path / "temporary").iterdir())
    assert {p.name for p in tmp_path.iterdir()} == {"here", "temporary"}


@pytest.fixture
def store():
    """fsspec's store in memory, emptied afterwards."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def fill(*names: str, folder: str | Path = ".") -> None:
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(*given: str, **options) -> list[str]:
    return [item.name for item in list_items(given, ENDINGS, **options)]


def pack(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def read(item: Item) -> bytes:
    with item.open_local() as path:
        return path.read_bytes()


def test_a_folder_gives_its_files_in_order(here):
    fill("f/b.png", "f/a/2.JPG", "f/a/10.jpg", "f/a.png", "f/.hidden.png", "f/.git/x.png", "f/notes.txt", "f/t.tar")
    Path("f/link.png").symlink_to("b.png")
    Path("f/broken.png").symlink_to("nothing.png")
    Path("f/loop").symlink_to(".", target_is_directory=True)
    os.mkfifo("f/pipe.png")
    assert names("f") == ["f/a/10.jpg", "f/a/2.JPG", "f/a.png", "f/b.png", "f/link.png"]
    assert names("./f/a/", "f/a/2.JPG") == ["f/a/10.jpg", "f/a/2.JPG"]
    assert names(".")[0] == "f/a/10.jpg"


def test_patterns_and_files_named_outright(here):
    fill("f/x/1.png", "f/2.png", "f/x[1].jpg", "f/odd.data")
    assert names("f/**/*.png") == ["f/2.png", "f/x/1.png"]
    assert names("f/*") == ["f/2.png", "f/odd.data", "f/x/1.png", "f/x[1].jpg"]
    assert names("f/x[1].jpg", "f/odd.data", "f/../f/2.png") == ["f/x[1].jpg", "f/odd.data", "f/../f/2.png"]


def test_what_stands_for_nothing_is_an_error_before_anything_is_given(here):
    fill("a.png", "empty/notes.txt")
    for name, problem in {"b.png": "no such file or folder", "*.jpg": "no such file or folder", "empty": "no readable",
                          "nope://x/y.png": "no protocol nope", "memory://gone": "no such file"}.items():  # fmt: skip
        with pytest.raises(InputError, match=problem):
            list_items(["a.png", name], ENDINGS)
    given = list(list_items(["b.png", "a.png"], ENDINGS, strict=False))
    assert [item.name for item in given] == ["b.png", "a.png"]
    with pytest.raises(InputError, match="there is no such file or folder"), given[0].open_local():
        pass


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(known_implementations, "nowhere",
                        {"class": "no_such_module.System", "err": "Install nowherefs to access it"})  # fmt: skip
    with pytest.raises(InputError, match="Install nowherefs to access it"):
        list_items(["nowhere://bucket/a.png"], ENDINGS)


def test_a_local_item_is_read_where_it_lies(here):
    fill("a.png")
    for name in ("a.png", f"file://{here}/a.png"):
        (item,) = list_items([name], ENDINGS)
        assert item.is_local
        with item.open_local() as path:
            assert path.samefile("a.png")
    assert Path("a.png").exists()
    assert names(f"file://{here}", f"{here}/a.png") == [f"{here}/a.png"]


def test_urls(here, store):
    for name in ("b/1.png", "b/c/2.jpg", "b/c.png", "b/.x/3.png", "b/n.txt", "b/x[1].png"):
        store.pipe_file(f"/{name}", name.encode())
    root = "memory:///b"
    assert names("memory://b") == [f"{root}/1.png", f"{root}/c/2.jpg", f"{root}/c.png", f"{root}/x[1].png"]
    assert names("memory://b/*.png") == [f"{root}/1.png", f"{root}/c.png", f"{root}/x[1].png"]
    assert names("memory://b/**/*.jpg") == [f"{root}/c/2.jpg"]
    items = list(list_items(["memory://b/x[1].png", "memory://b/n.txt"], ENDINGS))
    assert [read(item) for item in items] == [b"b/x[1].png", b"b/n.txt"]
    with items[1].open_local() as path:
        assert path.suffix == ".txt" and not items[1].is_local
    late = list(list_items(["memory://b/gone.png", "memory://gone"], ENDINGS, strict=False))
    for item in late:
        with pytest.raises(InputError, match=r"memory://.*: there is no such file"):
            read(item)


@pytest.mark.parametrize("pack_up", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("where", ["disk", "store"])
@pytest.mark.parametrize("carried", [0, 64_000_000])
def test_tars_of_pairs(here, store, monkeypatch, pack_up, where, carried):
    monkeypatch.setattr(listing_tars, "CARRIED", max(carried, 4096))
    size = 5000 if not carried else 512  # larger than what is carried, or just at the end of a block
    members = {f"train/{i}.{kind}": bytes([i]) * size for i in (2, 1, 3) for kind in ("cls", "png", "json")}
    data = pack_up(pack(members))
    name = {bytes: "s.tar", gzip.compress: "s.tar.gz", bz2.compress: "s.tbz2", lzma.compress: "s.tar.xz"}[pack_up]
    if where == "disk":
        Path(name).write_bytes(data)
    else:
        store.pipe_file(f"/b/{name}", data)
        name = f"memory://b/{name}"
    items = list(list_items([name], ENDINGS))
    assert [item.name for item in items] == [f"{name}#train/{i}.png" for i in (2, 1, 3)]
    assert all((item.content is None) == (pack_up is bytes or not carried) for item in items)
    for item in reversed(pickle.loads(pickle.dumps(items))):
        assert read(item) == members[item.name.partition("#")[2]]
        with item.open_local() as path:
            assert path.suffix == ".png"


def test_hostile_members_are_read_from_a_folder_of_their_own(here):
    bad = ["../../up.png", "/root.png", "a/../../up.png", "\x1b[2J\n.png", "c:\\x.png", "n" * 300 + ".png"]
    links = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo(f"link{kind.decode()}.png")
        info.type, info.linkname = kind, "/etc/passwd"
        links.append(info)
    Path("s.tar").write_bytes(pack({name: name.encode() for name in bad} | {info.name: info for info in links}))
    items = list(list_items(["s.tar"], ENDINGS))
    assert [read(item) for item in items] == [name.encode() for name in bad]
    assert all(item.name.isprintable() for item in items)
    with items[0].open_local() as path:
        assert path.name == "input.png" and path.parent.parent == Path(tempfile.gettempdir())
    assert os.listdir() == ["s.tar"]


def test_what_comes_before_a_fault_in_a_tar_is_given(here):
    members = {f"{i}.png": random.Random(i).randbytes(20_000) for i in range(3)}
    whole = pack(members)
    damaged = bytearray(whole)
    damaged[2 * 20_992 : 2 * 20_992 + 200] = b"x" * 200  # the third header
    lying = tarfile.TarInfo("x")
    lying.type, lying.size = tarfile.XHDTYPE, 1 << 32
    cases = {"cut.tar": (whole[: 2 * 20_992 + 512 + 8000], 2), "damaged.tar": (damaged, 2),
             "cut.tgz": (gzip.compress(whole)[:-10_000], 2),
             "mad.tar": (pack({"1.png": b""})[:512] + lying.tobuf(tarfile.USTAR_FORMAT), 1),
             "no.tar": (b"no tar at all" * 100, 0), "none.tar": (pack({"a.txt": b""}), 0)}  # fmt: skip
    fill("good.png")
    for name, (data, good) in cases.items():
        Path(name).write_bytes(data)
        *items, last, after = list_items([name, "good.png"], ENDINGS)
        assert after.name == "good.png" and read(after) == b"good.png"
        with pytest.raises(InputError, match=f"{name}: the tar (is damaged|holds no)") as fault:
            read(last)
        assert "\n" not in str(fault.value)
        assert [read(item) for item in items[:good]] == list(members.values())[:good] or name == "mad.tar"
        assert len(items) == good + (name == "cut.tar")
        for item in items[good:]:
            with pytest.raises(InputError, match="cut short: 12000 of its 20000 bytes"):
                read(item)


def test_the_same_member_twice_is_given_once(here):
    first, second = pack({"1.png": b"old"}), pack({"1.png": b"new"})
    Path("s.tar").write_bytes(first[:1024] + second)
    assert [read(item) for item in list_items(["s.tar", "s.tar"], ENDINGS)] == [b"old"]


def test_lists(here):
    fill("a.png", "lists/b.png", "lists/c.png", "c.png")
    Path("lists/l.txt").write_bytes("\ufeffa.png\r\n\r\n# no.png\nb.png\nc.png\nlists/*.png\ns3://x/y.png\n".encode())
    found = ["a.png", "# no.png", "lists/b.png", "c.png", "lists/*.png", "s3://x/y.png"]
    assert list(read_list("lists/l.txt")) == found
    Path("lists/l.csv").write_text("id;File\n1;a.png\n\n2;b.png\n", encoding="utf-8-sig")
    assert list(read_list("lists/l.csv")) == ["a.png", "lists/b.png"]
    assert list(read_list("lists/l.csv", "id")) == ["1", "2"]
    pd.DataFrame({"x": [1, 2], "url": ["a.png", "b.png"]}).to_parquet("lists/l.parquet")
    assert list(read_list("lists/l.parquet")) == ["a.png", "lists/b.png"]


def test_a_list_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\ufeffä.png\n\n b c.png\n".encode()), "utf-8"))
    assert list(read_list("-")) == ["ä.png", " b c.png"]


def test_faults_of_lists(here):
    pd.DataFrame({"path": ["a", None]}).to_parquet("holes.parquet")
    Path("broken.parquet").write_bytes(b"PAR1 but no more")
    for name, text in {"none.csv": "a,b\n1,2\n", "holes.csv": "path,b\nx,1\n,2\n", "empty.txt": "\n"}.items():
        Path(name).write_text(text)
    Path("old.txt").write_bytes(b"\xe4.png\n")
    faults = [("gone.txt", None, "no such list"), ("none.csv", None, "no column is called path, file"),
              ("none.csv", "c", "no column 'c'; the list has: a, b"), ("holes.csv", None, "line 3 has no name"),
              ("holes.parquet", None, "holds None"), ("broken.parquet", None, "truncated or damaged"),
              ("empty.txt", None, "no names"), ("empty.txt", "path", "no column"),
              ("old.txt", None, "not UTF-8")]  # fmt: skip
    for name, column, problem in faults:
        with pytest.raises(InputError, match=problem):
            list(read_list(name, column))


def test_shares_are_disjoint_and_together_all():
    for total in (0, 1, 7, 20):
        for count in range(1, 9):
            parts = [list(shard(range(total), f"{i}/{count}")) for i in range(1, count + 1)]
            assert sorted(chain(*parts)) == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert list(shard(iter(range(20)), "3/8")) == [2, 10, 18]


def test_shares_that_are_none(monkeypatch):
    for text in ("0/8", "9/8", "x", "3", "-1/8", "1/0", "1.5/2", "/", ""):
        with pytest.raises(InputError, match="shard"):
            parse_shard(text)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="RANK is not set"):
        parse_shard("auto")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert parse_shard("auto") == (3, 8)
    assert parse_shard("3/8") == (3, 8)


def test_a_long_list_needs_little_memory(here):
    count = 50_000
    many = (f"memory://bucket/a/rather/long/folder/{i:09}.png" for i in range(count))
    tracemalloc.start()
    given = sum(1 for _ in list_items(many, ENDINGS, strict=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert given == count and peak < 200 * count
