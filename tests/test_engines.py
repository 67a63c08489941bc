"""Engines: onnxruntime answers as torch does, caches whole files only, and 8-bit weights must earn their place."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import polysense
from polysense.apps import cli
from polysense.backbone import onnx_files
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.engines import ENGINES, OnnxEncoder, with_engine
from polysense.core.errors import InputError
from polysense.core.folders import cache_folder
from polysense.core.types import Tokens
from polysense.engine_checks import find_check, pipeline_hash
from polysense.tasks import MODALITIES, TASKS
from polysense.training.check_engine import check_engine

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

ONE_OF_EACH = ["image-segmentation", "video-classification", "audio-multilabel", "point-cloud-regression",
               "forecasting", "tabular-classification", "text-naming"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of the module's own; files are made once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "polysense"


def tokens(b: int = 3, n: int = 9, width: int = 48, masked: bool = True) -> Tokens:
    generator = torch.Generator().manual_seed(b * n)
    mask = torch.rand(b, n, generator=generator) < 0.7
    mask[:, 0] = True
    return Tokens(torch.randn(b, n, width, generator=generator), mask if masked else None, torch.zeros(b, n, 1))


def assert_close(one: Tokens, other: Tokens, at_most: float = 1e-4) -> None:
    assert one.mask is other.mask and one.grid == other.grid
    assert (one.x - other.x)[one.dense_mask()].abs().max() < at_most


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (2, 70)])
def test_onnx_equals_torch_at_any_batch_and_length(shape, masked, encoder):
    given = tokens(*shape, masked=masked)
    want = encoder(given, layers=(0, -1, 1))
    got = with_engine(encoder, "onnx")(given, layers=(0, -1, 1))
    assert_close(want.last, got.last)
    assert list(got.hidden) == [0, -1, 1] and got.cls is None
    for layer in want.hidden:
        assert_close(want.hidden[layer], got.hidden[layer])


VARIANTS = {
    "published": {"qk_norm": True, "layer_scale": True, "activation": "quick_gelu", "class_token": True, "registers": 2,
                  "pre_norm": True, "final_norm": False, "qkv_bias": False},
    "windows": {"windows": (2, None)},
    "sigmoid": {"attention_kind": "sigmoid"},
}  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 9), (3, 120)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_of_an_encoder_is_exported(variant, shape):
    torch.manual_seed(3)
    encoder = Encoder(EncoderConfig(width=32, depth=2, heads=2, **VARIANTS[variant]))
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, 0, 0.15)
    for masked in (True, False):
        given = tokens(*shape, width=32, masked=masked)
        want, got = encoder.freeze()(given), with_engine(encoder, "onnx")(given)
        assert_close(want.last, got.last)
        if want.cls is not None:
            assert (want.cls - got.cls).abs().max() < 1e-4


def test_padding_is_left_out_where_it_pays(encoder, monkeypatch):
    """Sequences of one length in one call; lengths are in the masks' order; short ones stay together."""
    from polysense.backbone import engines

    shapes = []
    honest = engines.run_session
    monkeypatch.setattr(engines, "run_session", lambda s, x: shapes.append(tuple(x[0].shape[:2])) or honest(s, x))
    given = tokens(5, 120)
    for i, length in enumerate((40, 0, 120, 40, 100)):
        given.mask[i] = torch.arange(120).flip(0) < length  # real tokens stand at the end
    want = encoder(given, layers=(1,))
    got = with_engine(encoder, "onnx")(given, layers=(1,))
    assert shapes == [(1, 120), (1, 100), (2, 40)]
    assert_close(want.last, got.last)
    assert_close(want.hidden[1], got.hidden[1])
    shapes.clear()
    with_engine(encoder, "onnx")(tokens(3, 9))
    assert shapes == [(3, 9)]


def test_a_sequence_without_a_real_token_stays_finite(encoder):
    given = tokens()
    given.mask[1] = False
    want, got = encoder(given).last.x, with_engine(encoder, "onnx")(given).last.x
    assert (want[[0, 2]] - got[[0, 2]])[given.mask[[0, 2]]].abs().max() < 1e-4
    assert got.isfinite().all()


def test_int8_is_near(encoder):
    given = tokens(masked=False)
    want, got = encoder(given).last.x, with_engine(encoder, "onnx-int8")(given).last.x
    assert not torch.equal(want, got)
    assert torch.cosine_similarity(want, got, dim=-1).min() > 0.98


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_answers_are_those_of_torch(task, build, make, numbers):
    pipeline = build(task)
    other = pipeline.with_engine("onnx")
    assert (pipeline.engine, other.engine) == ("torch", "onnx")
    assert other.encoder_hash == pipeline.encoder_hash and other.head is pipeline.head
    sources = [make(pipeline.modality, number) for number in (1, 2, 3)]
    for one, two in zip(pipeline(sources), other(sources), strict=True):
        np.testing.assert_allclose(numbers(one), numbers(two), atol=1e-4, rtol=1e-4)


def test_each_modality_is_tried():
    assert {TASKS[task].modality for task in ONE_OF_EACH} == set(MODALITIES)


@pytest.mark.parametrize("name", ["cifar10", "clips101", "digits", "furniture", "any-series", "adult"])
def test_shipped_bundles_answer_as_with_torch(name, make, numbers):
    pipeline = polysense.load(name)
    source = make(pipeline.modality, 2)
    if pipeline.modality == "tabular":
        columns = pipeline.tokenizer.config.columns
        source = {column.name: 30.0 if column.kind == "number" else column.categories[0] for column in columns}
    for one, two in zip(pipeline([source]), pipeline.with_engine("onnx")([source]), strict=True):
        np.testing.assert_allclose(numbers(one), numbers(two), atol=1e-4, rtol=1e-3)


def test_the_cache_is_read_again(encoder, cache, monkeypatch):
    with_engine(encoder, "onnx")(tokens(), layers=(1,))
    before = {path: path.stat().st_mtime_ns for path in (cache / "onnx").iterdir()}
    monkeypatch.setattr(onnx_files, "_export", lambda *_: pytest.fail("exported again"))
    with_engine(copy.deepcopy(encoder), "onnx")(tokens(), layers=(1,))
    assert before == {path: path.stat().st_mtime_ns for path in (cache / "onnx").iterdir()}
    assert not any(path.name.startswith(".") for path in before)


def test_other_weights_layers_and_modules_are_other_files(encoder):
    files = {onnx_files.graph_key(encoder, layers) for layers in ((), (0,), (0, 1))}
    nudged = copy.deepcopy(encoder)
    nudged.blocks[0].mlp.fc1.bias.data[0] += 1e-3
    other_eps = copy.deepcopy(encoder)
    other_eps.blocks[0].norm1.eps = 1e-3
    files |= {onnx_files.graph_key(one, ()) for one in (nudged, other_eps)}
    assert len(files) == 5


def test_a_killed_export_leaves_no_file(encoder, cache, monkeypatch):
    def half(encoder, layers, masked, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_files, "_export", half)
    before = sorted((cache / "onnx").iterdir()) if (cache / "onnx").exists() else []
    with pytest.raises(KeyboardInterrupt):
        with_engine(encoder, "onnx")(tokens(), layers=(0, 2))
    assert sorted((cache / "onnx").iterdir()) == before


def test_a_damaged_file_is_named(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with_engine(encoder, "onnx")(tokens(masked=False))
    (path,) = (tmp_path / "polysense" / "onnx").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cannot open it .*delete it: it is made anew") as raised:
        onnx_files.open_session(path, 1)
    assert path.name in str(raised.value)


def test_a_cache_that_cannot_be_written_is_named(encoder, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.raises(InputError, match=r"cannot be written there .*set XDG_CACHE_HOME"):
        with_engine(encoder, "onnx")(tokens())


def test_onnxruntime_reports_to_nobody(tmp_path):
    """It would leave the id that it reports with in the cache folder."""
    silent = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "GITHUB_ACTIONS", "TF_BUILD")
    env = {name: value for name, value in os.environ.items() if name not in silent}
    code = "from polysense.backbone.onnx_files import require_onnx; require_onnx()"
    subprocess.run([sys.executable, "-c", code], env=env | {"XDG_CACHE_HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["onnx", "onnx-int8"])
@pytest.mark.parametrize(("b", "n"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("masked", [True, False])
def test_nothing_in_nothing_out(b, n, masked, engine, encoder):
    nothing = Tokens(
        torch.zeros(b, n, 48), torch.ones(b, n, dtype=torch.bool) if masked else None, torch.zeros(b, n, 1)
    )
    features = with_engine(encoder, engine)(nothing, layers=(1,))
    assert features.last.x.shape == features.hidden[1].x.shape == (b, n, 48)


def test_a_wrong_graph_is_not_kept(encoder, monkeypatch):
    """What the trace got wrong must not reach a user."""
    honest = onnx_files._Graph.forward

    def frozen_length(self, x, mask=None):
        return tuple(y + x.shape[1] * 0.01 for y in honest(self, x, mask))

    def traced(*arguments, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                onnx_files._Graph, "forward", lambda self, x, m=None: tuple(y + 0.05 for y in honest(self, x, m))
            )
            return export(*arguments, **options)

    export = torch.onnx.export
    monkeypatch.setattr(onnx_files._Graph, "forward", frozen_length)
    monkeypatch.setattr(torch.onnx, "export", traced)
    with pytest.raises(InputError, match=r"differs from torch by .*use the engine torch"):
        with_engine(encoder, "onnx")(tokens(), layers=(2, 1, 0))


@pytest.mark.parametrize("platform, env, folder", [
    ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/polysense"),
    ("darwin", {"XDG_CACHE_HOME": "/x", "POLYSENSE_CACHE": "~/kept"}, "~/kept"),
    ("linux", {}, "~/.cache/polysense"),
    ("darwin", {}, "~/Library/Caches/polysense"),
    ("win32", {"LOCALAPPDATA": "/local"}, "/local/polysense/Cache"),
])  # fmt: skip
def test_the_cache_is_where_the_platform_keeps_caches(platform, env, folder, monkeypatch):
    for name in ("POLYSENSE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_folder() == Path(folder).expanduser()


def test_threads_follow_torch(encoder):
    from polysense.backbone import engines

    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engines, "_shared_session", lambda path, threads: asked.append(threads) or open_one(path, threads)
        )
        fast = with_engine(encoder, "onnx")
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fast(tokens())
    torch.set_num_threads(1)
    assert asked == [1, 2]


def open_one(path, threads):
    return onnx_files.open_session(path, threads)


def test_it_refuses_to_learn(build, make):
    pipeline = build("image-classification").with_engine("onnx")
    with pytest.raises(ValueError, match="only infers; to learn, load with engine='torch'"):
        pipeline.train()
    given = tokens()
    given.x.requires_grad_()
    with pytest.raises(ValueError, match="only infers"):
        pipeline.encoder(given)
    with torch.no_grad():
        pipeline.encoder(given)
    assert pipeline.with_engine("torch").train().training


def test_what_it_cannot_run_is_said(encoder):
    fast = with_engine(encoder, "onnx")
    with pytest.raises(ValueError, match=r"runs float32 on the CPU, not torch\.float64"):
        fast(tokens().replace(tokens().x.double()))
    with pytest.raises(ValueError, match="width 32 do not fit"):
        fast(tokens(width=32))
    with pytest.raises(ValueError, match="layer 7 does not exist"):
        fast(tokens(), layers=(7,))
    with pytest.raises(InputError, match="choose one of: torch, onnx, onnx-int8"):
        with_engine(encoder, "tensorrt")

    class Merging(Encoder):
        pass

    with pytest.raises(InputError, match="plain encoders only, not a Merging"):
        with_engine(Merging(encoder.config), "onnx")
    assert with_engine(fast, "torch") is encoder


def test_moving_a_pipeline_leaves_the_shared_encoder(build):
    pipeline = build("image-embedding").with_engine("onnx")
    plain = pipeline.encoder.plain
    moved = copy.copy(pipeline).to(torch.float64)
    assert next(plain.parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match="runs float32"):
        moved.encoder(tokens())


def test_a_missing_extra_is_named(encoder, monkeypatch):
    def without(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(onnx_files, "import_module", without)
    with pytest.raises(InputError, match=r"install them with: pip install 'polysense\[onnx\]'"):
        with_engine(encoder, "onnx")


@pytest.fixture
def bundle(build, encoder_spec, image_folders, tmp_path, monkeypatch):
    """A bundle of the classes in the folders, untrained, and a cache without checks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pipeline = build("image-classification", encoder=encoder_spec, head={"classes": ("blue", "green", "red")})
    return pipeline.save_pretrained(tmp_path / "bundle")


def test_int8_needs_a_check_that_passed(bundle, image_folders):
    with pytest.raises(InputError, match=r"was not measured for bundle.*polysense engine check BUNDLE VALIDATION_DATA"):
        polysense.load(bundle, engine="onnx-int8")
    found = check_engine(bundle, image_folders, most_drop=1.0)
    assert found.passed and found.metric == "accuracy" and found.examples == 6  # .15 of 12, three times
    assert polysense.load(bundle, engine="onnx-int8").engine == "onnx-int8"
    check_engine(bundle, image_folders, split="all", most_drop=1.0)
    assert find_check(polysense.load(bundle)).examples == 36


def test_int8_that_costs_too_much_is_refused(bundle, image_folders, monkeypatch):
    from polysense.training import gates

    values = iter([{"accuracy": 0.9}, {"accuracy": 0.89}])
    monkeypatch.setattr(gates, "measure", lambda *_: next(values))
    found = check_engine(bundle, image_folders)
    assert not found.passed and found.drop == pytest.approx(0.01)
    with pytest.raises(InputError, match=r"failed: accuracy 0.9000 with torch, 0.8900 .*use the engine onnx"):
        polysense.load(bundle, engine="onnx-int8")
    assert polysense.load(bundle, engine="onnx").engine == "onnx"


def test_a_check_is_of_one_head(bundle, image_folders):
    check_engine(bundle, image_folders, most_drop=1.0)
    pipeline = polysense.load(bundle)
    before = pipeline_hash(pipeline)
    next(pipeline.head.parameters()).data[0] += 1e-3
    assert pipeline_hash(pipeline) != before and find_check(pipeline) is None


def test_an_embedding_cannot_be_judged(build, image_folders):
    with pytest.raises(InputError, match="no metric"):
        check_engine(build("image-embedding"), image_folders)


def test_data_with_parts_are_not_all_validation(bundle, image_folders, tmp_path):
    (tmp_path / "parted").mkdir()
    for part in ("train", "test"):
        (tmp_path / "parted" / part).symlink_to(image_folders)
    with pytest.raises(InputError, match="choose one of"):
        check_engine(bundle, tmp_path / "parted", split="all")


def test_the_command_line(bundle, image_folders, capsys, monkeypatch):
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        return end.value.code or 0

    picture = str(next(image_folders.rglob("*.png")))
    assert run("predict", str(bundle), picture, "--engine", "onnx-int8") == 1
    assert "polysense engine check" in capsys.readouterr().err
    from polysense.training import gates

    monkeypatch.setattr(gates, "measure", lambda *_: {"accuracy": 0.9})
    assert run("engine", "check", str(bundle), str(image_folders)) == 0
    said = capsys.readouterr().out
    assert "passed: accuracy" in said and "--engine onnx-int8" in said
    for engine in ENGINES:
        assert run("predict", str(bundle), picture, "--engine", engine) == 0
        assert run("eval", str(bundle), str(image_folders), "--engine", engine) == 0
    assert run("predict", str(bundle), picture, "--engine", "rust") == 2


def test_type_and_config_are_those_of_the_encoder(encoder):
    fast = with_engine(encoder, "onnx")
    assert isinstance(fast, OnnxEncoder) and isinstance(fast, Encoder)
    assert fast.config == replace(encoder.config) and fast.fingerprint() == encoder.fingerprint()
    assert sum(p.numel() for p in fast.parameters()) == sum(p.numel() for p in encoder.parameters())
