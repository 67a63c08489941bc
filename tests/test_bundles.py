"""Bundles: what was saved answers the same after loading, bit for bit; what is damaged is refused."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import polysense
from polysense import bundle, saving
from polysense.backbone.weights import save_encoder
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline
from polysense.tasks import MODALITIES, TASKS

KINDS = ["image-classification", "video-multilabel", "audio-regression", "point-cloud-classification", "forecasting",
         "time-series-classification", "tabular-regression", "image-segmentation", "object-detection",
         "point-cloud-segmentation", "image-embedding", "text-classification", "audio-meaning",
         "video-naming", "panoptic-segmentation", "object-detection-set"]  # fmt: skip


@pytest.fixture
def saved(build, encoder_spec, tmp_path) -> tuple[Pipeline, Path]:
    pipeline = build("image-classification", encoder=encoder_spec)
    return pipeline, pipeline.save_pretrained(tmp_path / "bundle")


def test_the_list_covers_every_modality_and_head():
    assert {TASKS[name].modality for name in KINDS} == set(MODALITIES)
    assert {TASKS[name].head for name in KINDS} == {TASKS[name].head for name in TASKS}


@pytest.mark.parametrize("task", KINDS)
def test_round_trip_is_bit_equal(task, build, make, numbers, encoder_spec, tmp_path):
    pipeline = build(task, encoder=encoder_spec)
    with torch.no_grad():  # buffers that are stored, and parameters that begin at zero
        for value in pipeline.head.state_dict().values():
            value.add_(0.01)
    pipeline.metrics, pipeline.about = {"accuracy": 0.5}, {"seed": 1, "data_options": {"borders": [0.5, 0.5]}}
    loaded = polysense.load(pipeline.save_pretrained(tmp_path / "bundle"))
    assert not loaded.training and loaded.task is pipeline.task and loaded.name == "bundle"
    assert (loaded.metrics, loaded.about) == (pipeline.metrics, pipeline.about)
    assert loaded.tokenizer.config == pipeline.tokenizer.config and loaded.head.config == pipeline.head.config
    before, after = pipeline.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    sources = [make(pipeline.modality, number) for number in (1, 2)]
    for one, other in zip(pipeline(sources), loaded(sources), strict=True):
        np.testing.assert_array_equal(numbers(one), numbers(other))


def test_a_bundle_is_three_plain_files(saved):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert not any(path.name.startswith(".") for path in folder.parent.iterdir())
    for path in folder.iterdir():
        assert not zipfile.is_zipfile(path) and not path.read_bytes().startswith(b"\x80")  # torch and plain pickles
    names = load_file(folder / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"tokenizer", "head"}  # no encoder
    assert 'load("bundle")' in (folder / "README.md").read_text()


def test_bundle_is_replaced_by_a_bundle_only(saved, build, encoder_spec, tmp_path):
    pipeline, folder = saved
    pipeline.metrics = {"accuracy": 0.75}
    pipeline.save_pretrained(folder)
    assert bundle.read_info(folder).metrics == {"accuracy": 0.75}
    (tmp_path / "empty").mkdir()
    assert pipeline.save_pretrained(tmp_path / "empty").joinpath("config.json").is_file()
    model = tmp_path / "other_model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["BertModel"]}')
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "diary.txt").write_text("dear diary")
    file = tmp_path / "file"
    file.write_text("x")
    for place in (model, notes, file):
        with pytest.raises(InputError, match="no bundle stands there"):
            pipeline.save_pretrained(place)
    assert (notes / "diary.txt").read_text() == "dear diary" and file.read_text() == "x"
    assert [path.name for path in model.iterdir()] == ["config.json"]


@pytest.mark.parametrize("where", ["write", "rename"])
def test_failing_to_write_leaves_the_old_bundle(saved, monkeypatch, where):
    pipeline, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    pipeline.metrics = {"accuracy": 1.0}

    def fail(*args: object) -> str:
        raise OSError("the disk is full")

    if where == "write":
        monkeypatch.setattr(saving, "card", fail)
    else:
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda self, to: fail() if to == folder and not self.name.endswith(".old")
                            else rename(self, to))  # fmt: skip
    with pytest.raises(InputError, match=r"cannot be written \(the disk is full\); make room"):
        pipeline.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_another_encoder_is_refused(saved, encoder, tmp_path, build):
    from polysense.pipeline import shared_encoder

    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, path)
    folder = build("image-embedding", encoder=f"file:{path}").save_pretrained(tmp_path / "embed")
    polysense.load(folder)
    state = {name: value + 1e-3 for name, value in load_file(path).items()}
    save_file(state, path, {"config": json.dumps(encoder.config_dict())})
    shared_encoder.cache_clear()
    with pytest.raises(InputError, match="another encoder"):
        polysense.load(folder)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def tensors(file: Path) -> dict[str, torch.Tensor]:
    """Copies: what `load_file` gives are views of the file, which these tests write anew."""
    return {name: value.clone() for name, value in load_file(file).items()}


FAULTS = {
    "newer": ({"format": 99}, "newer than this version.*upgrade"),
    "newer, of another layout": ({"format": 99, "head": None}, "newer than this version.*upgrade"),
    "no task": ({"task": None}, "lacks task"),
    "no metrics": ({"metrics": None}, "lacks metrics"),
    "no encoder hash": ({"encoder": {"spec": "embedded"}}, r"lacks encoder\.sha256"),
    "encoder is text": ({"encoder": "embedded"}, r"lacks encoder\.spec"),
    "unknown task": ({"task": "image-smell"}, "image-smell.*unknown to this version"),
    "unknown head": ({"head": {"name": "nose", "config": {}}}, "unknown head 'nose'"),
    "unknown option": ({"head": {"name": "classification", "config": {"classes": ["a", "b"], "nose": 1}}}, "nose"),
    "impossible option": ({"head": {"name": "classification", "config": {"classes": ["a"]}}}, "at least two"),
    "other shapes": ({"head": {"name": "classification", "config": {"classes": ["a", "b"]}}}, "of another shape"),
    "no such encoder": ({"encoder": {"spec": "file:/nowhere.safetensors", "sha256": "0"}}, "no such file"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_configurations_are_refused(saved, name):
    _, folder = saved
    changes, message = FAULTS[name]
    edit(folder, **changes)
    with pytest.raises(InputError, match=message):
        polysense.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", b"\xff\xfe\x00"])
def test_damaged_json_is_refused(saved, text):
    _, folder = saved
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"config\.json"):
        polysense.load(folder)


def test_wrong_tensors_are_refused(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    whole = tensors(file)
    missing = next(name for name in whole if name.startswith("head."))
    save_file({name: value for name, value in whole.items() if name != missing}, file)
    with pytest.raises(InputError, match=f"missing: {missing.removeprefix('head.')}"):
        polysense.load(folder)
    save_file({**whole, "head.extra": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="unexpected: extra"):
        polysense.load(folder)
    save_file({**whole, "spine.extra": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"spine\.extra"):
        polysense.load(folder)
    save_file(whole, file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match="safetensors"):
        polysense.load(folder)
    file.unlink()
    with pytest.raises(InputError, match="safetensors"):
        polysense.load(folder)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("write", [lambda state, path: torch.save(state, path),
                                   lambda state, path: path.write_bytes(pickle.dumps(Bomb()))])  # fmt: skip
def test_pickles_are_never_loaded(saved, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, folder = saved
    file = folder / "model.safetensors"
    write(tensors(file), file)
    with pytest.raises(InputError, match="safetensors"):
        polysense.load(folder)
    assert not Path("exploded").exists()


def test_embedded_tensors_are_not_stored_again(tmp_path, make, numbers):
    pipeline = Pipeline.build("image-classification", head={"classes": ("a", "b")}).eval()
    embedded = {name.removeprefix("tokenizer.") for name in pipeline.settled}
    assert embedded
    changed = sorted(embedded)[0]
    with torch.no_grad():
        pipeline.tokenizer.state_dict()[changed].add_(0.25)
    folder = pipeline.save_pretrained(tmp_path / "bundle")
    stored = {name for name in load_file(folder / "model.safetensors") if name.startswith("tokenizer.")}
    own = set(pipeline.tokenizer.state_dict()) - embedded
    assert stored == {f"tokenizer.{name}" for name in {changed} | own}
    loaded = polysense.load(folder)
    for name, value in pipeline.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    np.testing.assert_array_equal(numbers(loaded(make("image"))[0]), numbers(pipeline(make("image"))[0]))


def test_other_embedded_tokenizer_is_refused(tmp_path, monkeypatch):
    folder = Pipeline.build("image-embedding").save_pretrained(tmp_path / "bundle")
    stored = saving.embedded_tokenizer_state
    monkeypatch.setattr(saving, "embedded_tokenizer_state", lambda name: {k: v + 0.1 for k, v in stored(name).items()})
    with pytest.raises(InputError, match="another embedded image tokenizer"):
        polysense.load(folder)


def test_encoder_must_be_found_again(build, encoder, encoder_spec, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no spec.*file:PATH"):
        build("image-embedding", encoder=encoder).save_pretrained(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    path = Path(encoder_spec.removeprefix("file:"))
    monkeypatch.chdir(path.parent)
    folder = build("image-embedding", encoder=f"file:{path.name}").save_pretrained(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    assert polysense.load(folder).encoder_hash == encoder.fingerprint()


def test_loading_changes_no_shared_tensor(tmp_path):
    from polysense.backbone.weights import embedded_tokenizer_state

    before = {name: value.clone() for name, value in embedded_tokenizer_state("image").items()}
    pipeline = Pipeline.build("image-embedding")
    with torch.no_grad():
        for parameter in pipeline.tokenizer.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in embedded_tokenizer_state("image").items())


def test_embeddings_need_no_bundle():
    pipeline = polysense.load("image-embedding")
    assert pipeline.task.name == "image-embedding" and pipeline.encoder.spec == "embedded"


def test_hub_bundle_keeps_its_name(saved, monkeypatch):
    monkeypatch.setattr(bundle, "download_bundle", lambda repo: saved[1])
    assert polysense.load("owner/name").name == "owner/name"


@pytest.fixture
def shipped(saved, tmp_path, monkeypatch) -> Path:
    """A weights folder with two bundles of one task, the second of which is the default."""
    _, folder = saved
    bundles = tmp_path / "weights" / "bundles"
    for name, default in (("a_first", False), ("b_second", True)):
        shutil.copytree(folder, bundles / name)
        edit(bundles / name, about={"default": default, "licence": "Apache-2.0", "measured_on": "pets, test"})
    monkeypatch.setattr(bundle, "files", lambda package: tmp_path / "weights")
    return bundles


def test_shipped_bundles_by_name_and_by_task(shipped):
    infos = polysense.bundles()
    assert [(info.name, info.task, info.modality, info.licence) for info in infos] == [
        (name, "image-classification", "image", "Apache-2.0") for name in ("a_first", "b_second")
    ]
    assert bundle.find_bundle("a_first") == shipped / "a_first"
    assert bundle.find_bundle("image-classification") == shipped / "b_second"
    assert polysense.load("image-classification").name == "b_second"


def test_names_that_are_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundle, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match="polysense fit object-detection"):
        polysense.load("object-detection")
    for name in ("no-such-thing", tmp_path / "absent", "./absent/bundle"):
        with pytest.raises(InputError, match="no bundle of this name"):
            polysense.load(name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        polysense.load(tmp_path / "folder")


def test_hub_without_a_connection(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read when the library was imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"nobody/nothing: the Hub does not give this bundle.*connection"):
        polysense.load("nobody/nothing")
