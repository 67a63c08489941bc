"""Features on disk: what is kept and goes, what is damaged or cannot be written, and `polysense cache`."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from polysense.apps import cli
from polysense.core.errors import InputError
from polysense.training import feature_store
from polysense.training.feature_cache import pooled_features

pytestmark = pytest.mark.usefixtures("own_cache")


def put(name, size=1000, age=0.0, about=None):
    feature_store.put(name, {"x": np.zeros((size, 1), np.float32), "counts": np.ones(size, int)}, about or {})
    if (path := feature_store.find(name)) is not None:
        os.utime(path, (time.time() - age,) * 2)


def test_what_was_used_least_recently_goes_first(monkeypatch):
    for i, name in enumerate("abc"):
        put(name, age=100 - i)
    feature_store.find("a")  # used
    monkeypatch.setenv("POLYSENSE_CACHE_GB", str(2.5 * 12_100 / 1e9))
    put("d", age=0)
    assert {entry.path.stem for entry in feature_store.entries()} == {"a", "d"}
    assert not feature_store.room_for(40_000) and feature_store.room_for(20_000)


def test_a_half_written_entry_is_never_seen(monkeypatch):
    import safetensors.numpy

    def broken(content, path, about):
        Path(path).write_bytes(b"half")
        assert feature_store.find("a") is None and not feature_store.entries()
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", broken)
        with pytest.raises(OSError, match="no space"):
            put("a")
    assert list(feature_store.store_folder().iterdir()) == []
    left = feature_store.store_folder() / "b.1234.partial"
    left.write_bytes(b"half")
    put("c")
    assert left.exists()  # perhaps of a process that is writing it
    os.utime(left, (time.time() - 2 * feature_store.ABANDONED,) * 2)
    put("d")
    assert not left.exists()


def test_a_damaged_entry_is_made_again(pictures_of):
    pipeline, pictures = pictures_of()
    x, _ = pooled_features(pipeline, pictures, 8)
    (entry,) = feature_store.entries()
    entry.path.write_bytes(entry.path.read_bytes()[:-10])
    said = []
    again, same = pictures_of()
    same.features.say = said.append
    assert torch.equal(pooled_features(again, same, 8)[0], x)
    assert "damaged" in said[0] and feature_store.entries()[0].size == entry.size


def test_a_disk_that_cannot_be_written_to_stops_nothing(pictures_of, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYSENSE_CACHE", str(tmp_path / "file" / "below"))
    pipeline, pictures = pictures_of()
    said = []
    pictures.features.say = said.append
    pooled_features(pipeline, pictures, 8)
    assert "POLYSENSE_CACHE" in said[0] and len(said) == 1
    assert pictures.features.passes == 1 and pooled_features(pipeline, pictures, 8) and pictures.features.passes == 1


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size(value, monkeypatch):
    monkeypatch.setenv("POLYSENSE_CACHE_GB", value)
    with pytest.raises(InputError, match=r"POLYSENSE_CACHE_GB .*no size.*give gigabytes"):
        feature_store.limit_bytes()


def test_command_line(capsys):
    put("one", 250_000, 7300, {"task": "audio-classification", "data": "/sounds", "rows": "12"})
    put("two", 250_000, 60 * 60 * 24 * 3, {"task": "image-classification", "data": "/pictures", "rows": "34"})
    for arguments, told in ((["cache"], ("audio-classification", "2 h ago", "3 d ago", "2 entries, 6.0 MB")),
                            (["cache", "--limit", "0.004"], ("removed 1 entries, 3.0 MB", "/sounds")),
                            (["cache", "--clear"], ("removed 1 entries",))):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert not stopped.value.code
        text = capsys.readouterr().out
        assert all(word in text for word in told), text
    assert feature_store.entries() == []
