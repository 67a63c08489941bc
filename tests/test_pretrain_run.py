"""`polysense pretrain`: every sense from generated files to an encoder that `fit` takes; stopped and resumed runs."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from polysense.apps.cli import main
from polysense.backbone.weights import load_encoder
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline
from polysense.training.pretrain_config import read_plan
from polysense.training.pretrain_draws import shares
from polysense.training.pretrain_generic import contrast
from polysense.training.pretrain_log import TrainingLog
from polysense.training.pretrain_optim import PretrainConfig, clip, make_optimiser, step_law
from polysense.training.pretrain_run import build_run, run_plan

HEAD = """
[encoder]
width = 48
depth = 2
heads = 3
[training]
steps = 3
warmup = 1
save_every = 1
lr = 1e-2
"""
STREAMS = {
    "image": 'data = "pictures"\nlabels = true\nbatch = 4\ntokenizer = {size = 64}\n'
    'losses = ["rebuild", "classes", "contrast"]\n',
    "video": 'data = "clips"\nbatch = 2\nlosses = ["rebuild", "contrast"]\ntokenizer = {size = 32, frames = 2}\n',
    "audio": 'data = "sounds"\nbatch = 3\ntokenizer = {window = 0.5}\n',
    "point_cloud": 'data = [{path = "clouds", labels = true, licence = "CC0"}]\nbatch = 3\n'
    "tokenizer = {points = 64, groups = 8, neighbours = 8}\n",
    "time_series": 'data = ["series.csv", "synthetic"]\nbatch = 4\nhorizon = 8\n',
    "tabular": 'data = [{path = "table.csv", label = "y", labels = true}]\nbatch = 8\n',
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a little of everything; one picture is damaged."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        for kind in ("pictures", "sounds", "clouds"):
            (root / kind / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 120, (40 + i, 60, 3))
            pixels[..., channel] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(root / "pictures" / name / f"{i}.png")
            soundfile.write(root / "sounds" / name / f"{i}.wav", rng.normal(0, 0.1, 4000 + 4000 * i), 16_000)
            np.savetxt(root / "clouds" / name / f"{i}.xyz", rng.normal(size=(90 + i, 3)))
    (root / "pictures" / "red" / "broken.png").write_bytes(b"\x89PNG no more")
    (root / "clips").mkdir()
    for i in range(2):
        frames = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(4)]
        frames[0].save(root / "clips" / f"{i}.gif", save_all=True, append_images=frames[1:], duration=100)
    pd.DataFrame({"a": rng.normal(size=200).cumsum()}).to_csv(root / "series.csv", index=False)
    pd.DataFrame({"x": rng.normal(size=60), "z": rng.normal(size=60), "k": rng.choice(["u", "v"], 60),
                  "y": rng.choice(["p", "q"], 60)}).to_csv(root / "table.csv", index=False)  # fmt: skip
    return root


def config(data: Path, *senses: str, head: str = HEAD, name: str = "config") -> Path:
    path = data / f"{name}.toml"
    path.write_text(head + "".join(f'[[stream]]\nmodality = "{s}"\n{STREAMS[s]}' for s in senses or STREAMS))
    return path


def losses(out: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with (out / "log.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["loss"], []).append(float(row["value"]))
    return found


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = sorted((out / "weights").rglob("*.safetensors"))
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def train(path: Path, out: Path) -> dict[str, torch.Tensor]:
    run_plan(build_run(read_plan(path)), out, "cpu")
    return weights(out)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of every sense."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config(data), out)
    return out


def test_every_sense_learns_by_its_losses(whole: Path) -> None:
    found = losses(whole)
    assert set(found) - {"image/unreadable"} == {
        "image/rebuild", "image/classes", "image/contrast", "video/rebuild", "video/contrast", "audio/rebuild",
        "point_cloud/rebuild", "point_cloud/classes", "time_series/rebuild", "time_series/forecast",
        "tabular/rebuild", "tabular/classes"}  # fmt: skip
    assert all(np.isfinite(values).all() for values in found.values())
    assert list((whole / "tensorboard").glob("events*"))


def test_what_is_written_is_usable(whole: Path, data: Path) -> None:
    spec = f"file:{whole / 'weights' / 'encoder.safetensors'}"
    encoder = load_encoder(spec)
    assert (encoder.config.width, encoder.config.depth) == (48, 2)
    written = {path.stem for path in (whole / "weights" / "tokenizers").iterdir()}
    assert written == set(STREAMS)
    image = Pipeline.build("image-embedding", encoder=spec)
    state = load_file(whole / "weights" / "tokenizers" / "image.safetensors")
    assert image.tokenizer.config.size == 64 and image.tokenizer.config.resize == "area"
    for name, value in image.tokenizer.state_dict().items():
        assert torch.equal(value, state[name].float()), name
    assert f"tokenizer.{next(iter(state))}" in image.settled
    table = pd.read_csv(data / "table.csv").drop(columns="y")
    rows = Pipeline.build("tabular-embedding", encoder=spec, sources=[table[:40]])  # a part with the same columns
    state = load_file(whole / "weights" / "tokenizers" / "tabular.safetensors")
    assert torch.equal(rows.tokenizer.bias, state["bias"].float())
    other = Pipeline.build("tabular-embedding", encoder=spec, sources=[table.rename(columns={"x": "w"})])
    assert not torch.equal(other.tokenizer.bias, state["bias"].float()) and not other.settled


def test_the_card_says_what_entered(whole: Path) -> None:
    card = (whole / "weights" / "README.md").read_text()
    spec = f"file:{whole / 'weights' / 'encoder.safetensors'}"
    assert load_encoder(spec).fingerprint() in card and "[[stream]]" in card
    assert "Labels that entered: pictures, clouds, table.csv" in card and "| CC0 |" in card
    assert "| image | pictures | 9 | 2 |" in card and "| time_series | synthetic | generated |" in card


@pytest.mark.parametrize("at", [0, 1])
def test_killed_and_resumed_equals_whole(at: int, whole: Path, data: Path, tmp_path: Path, monkeypatch) -> None:
    write = TrainingLog.write

    def power_cut(self, step, *rest):
        write(self, step, *rest)
        if step == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingLog, "write", power_cut)
        train(config(data), tmp_path)
    assert not (tmp_path / "weights").exists()
    torch.rand(5)  # another process has another past
    resumed, uncut = train(config(data), tmp_path), weights(whole)
    assert resumed.keys() == uncut.keys()
    assert all(torch.equal(value, uncut[name]) for name, value in resumed.items())
    assert losses(tmp_path) == losses(whole)


def test_workers_change_nothing(data: Path, tmp_path: Path) -> None:
    alone = train(config(data, "image", "time_series", name="alone"), tmp_path / "alone")
    helped = train(config(data, "image", "time_series", head=HEAD + "workers = 1\n", name="helped"), tmp_path / "w")
    assert all(torch.equal(value, helped[name]) for name, value in alone.items())


def test_stems_that_know_something_stay(data: Path, tmp_path: Path) -> None:
    from polysense.backbone.weights import embedded_tokenizer_state

    frozen = train(config(data, "image", name="frozen"), tmp_path / "frozen")
    embedded = embedded_tokenizer_state("image")
    stem = [name for name in embedded if name.startswith("stem.")]
    assert stem and all(torch.equal(frozen[f"image.safetensors/{name}"].float(), embedded[name]) for name in stem)
    path = config(data, "image", name="tuned")
    path.write_text(path.read_text() + "frozen_stem = false\n")
    tuned = train(path, tmp_path / "tuned")
    assert not all(torch.equal(tuned[f"image.safetensors/{name}"].float(), embedded[name]) for name in stem)
    path.write_text(path.read_text().replace("frozen_stem = false", 'frozen_stem = true\nstart = "random"'))
    with pytest.raises(InputError, match="no trained stem to freeze"):
        build_run(read_plan(path))


def test_it_goes_on_from_its_own_weights(whole: Path, data: Path) -> None:
    spec = f"file:{whole / 'weights' / 'encoder.safetensors'}"
    path = config(data, "image", "tabular", head=f'[encoder]\nstart = "{spec}"\n', name="further")
    run = build_run(read_plan(path))
    before = weights(whole)
    assert torch.equal(
        run.encoder.blocks[0].attn.qkv.weight, before["encoder.safetensors/blocks.0.attn.qkv.weight"].float()
    )
    image = run.streams[0]
    assert torch.equal(image.tokenizer.project.weight, before["image.safetensors/project.weight"].float())
    assert all(parameter.requires_grad for parameter in run.encoder.parameters())
    with pytest.raises(InputError, match="its width is 48, not 96"):
        build_run(read_plan(config(data, "image", head=f'[encoder]\nstart = "{spec}"\nwidth = 96\n', name="wide")))


def test_other_forms_rebuild_raw_values(data: Path) -> None:
    forms = {
        "image": '{form = "patch", patch = 16, size = 32}',
        "video": '{form = "tubelet", frames = 2, size = 32}',
        "audio": '{form = "ast", window = 0.5}',
        "point_cloud": '{form = "meta", points = 32, neighbours = 8}',
        "time_series": '{form = "conv", context = 64}',
    }
    text = HEAD.replace("width", 'start = "random"\nwidth')  # at the identity nothing that is seen explains the hidden
    for sense, name in zip(forms, ("pictures", "clips", "sounds", "clouds", "series.csv"), strict=True):
        text += f'[[stream]]\nmodality = "{sense}"\ndata = "{name}"\nbatch = 2\ntokenizer = {forms[sense]}\n'
    path = data / "forms.toml"
    path.write_text(text)
    run = build_run(read_plan(path))
    for stream in run.streams:
        found = stream.loss(run.encoder, np.random.default_rng(0))["rebuild"]
        found.backward()
        assert found.isfinite() and found > 0, stream.name
        assert any(p.grad is not None and p.grad.any() for p in stream.tokenizer.parameters()), stream.name


def test_a_teacher_is_learnt_from_and_not_kept(data: Path, tmp_path: Path) -> None:
    path = data / "teacher.toml"
    path.write_text(HEAD + '[[stream]]\nmodality = "image"\ndata = "pictures"\nbatch = 2\ntokenizer = {size = 64}\n'
                    'teacher = "random:test_vit"\n')  # fmt: skip
    run = build_run(read_plan(path))
    run_plan(run, tmp_path, "cpu")
    assert set(losses(tmp_path)) - {"image/unreadable"} == {"image/rebuild", "image/teacher", "image/answers"}
    assert not any(p.requires_grad for p in run.streams[0].teachers[0].model.parameters())
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "front part EfficientNet-lite0 (Apache-2.0), teacher random:test_vit (" in card
    names = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert not any("teachers" in name for name in names)


def test_unreadable_inputs_are_passed_over_and_counted(data: Path, tmp_path: Path) -> None:
    stream = build_run(read_plan(config(data, "image", name="count"))).streams[0]
    draws = [stream.draws[(0, step, 0, 0)] for step in range(20)]
    assert sum(draw.unreadable for draw in draws) > 0 and all(len(draw.label) == 8 for draw in draws)
    (data / "bad").mkdir(exist_ok=True)
    (data / "bad" / "1.png").write_bytes(b"nothing")
    path = tmp_path / "bad.toml"
    path.write_text(f'[[stream]]\nmodality = "image"\ndata = "{data / "bad"}"\n')
    bad = build_run(read_plan(path)).streams[0]
    with pytest.raises(InputError, match=r"20 inputs in a row cannot be read .*1\.png"):
        bad.loss(build_run(read_plan(path)).encoder, np.random.default_rng(0))
    bad.begin(iter([(0, 0, 0, 0)]), 1)  # out of a worker it comes as the same error
    with pytest.raises(InputError, match="20 inputs in a row"):
        bad.next(np.random.default_rng(0))


@pytest.mark.parametrize("more", ['optimiser = "sgd"\nclip = "coordinate"\nclip_at = 0.01', 'precision = "bf16"'])
def test_ways_to_train(more: str, data: Path, tmp_path: Path) -> None:
    found = train(config(data, "time_series", head=HEAD + more + "\n", name="ways"), tmp_path)
    assert all(value.isfinite().all() for value in found.values())
    with pytest.raises(InputError, match="of another configuration"):
        run_plan(build_run(read_plan(config(data, "time_series", name="ways"))), tmp_path, "cpu")


def test_accumulated_batches_add_up(data: Path) -> None:
    """Two batches a step give the mean of their gradients."""
    from polysense.training.compute import start
    from polysense.training.pretrain import _gradients

    def gradient(accumulate: int, batches: list[int]) -> torch.Tensor:
        run = build_run(read_plan(config(data, "time_series", name="sum")))
        plan = PretrainConfig(accumulate=accumulate)
        stream = run.streams[0]
        stream.begin(iter([(0, 0, batch, 0) for batch in batches]), 0)
        stream.masked = 0.0  # what is hidden would differ
        stream.weights.pop("rebuild")
        _gradients(run.encoder, run.streams, plan, 0, start(plan.precision, "cpu"))
        return run.encoder.blocks[0].mlp.fc2.weight.grad

    both = gradient(2, [0, 1])
    torch.testing.assert_close(both, (gradient(1, [0]) + gradient(1, [1])) / 2, atol=1e-6, rtol=1e-4)


def test_clipping() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    for how, expected in (("coordinate", [1.0, -0.5]), ("norm", [0.9864, -0.1644]), ("none", [3.0, -0.5])):
        parameter.grad = torch.tensor([3.0, -0.5])
        clip([parameter], PretrainConfig(clip=how))
        torch.testing.assert_close(parameter.grad, torch.tensor(expected), atol=1e-4, rtol=0)


def test_groups_have_their_rates_and_decay() -> None:
    matrix, vector, slow = (torch.nn.Parameter(torch.zeros(*shape)) for shape in ((2, 2), (2,), (2, 2)))
    groups = make_optimiser([(matrix, 1.0), (vector, 1.0), (slow, 0.1)], PretrainConfig()).param_groups
    assert [(g["scale"], g["weight_decay"], g["params"]) for g in groups] == [
        (1.0, 0.05, [matrix]), (1.0, 0.0, [vector]), (0.1, 0.05, [slow])]  # fmt: skip


def test_step_law() -> None:
    law = step_law(1e9, 1e11)  # what the paper's formula gives for a billion parameters and 100 billion tokens
    assert law.lr == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307) == pytest.approx(1.63e-3, rel=0.01)
    assert law.batch_tokens == pytest.approx(1.11e6, rel=0.01)
    assert step_law(2e9, 1e11).lr < law.lr < step_law(1e9, 2e11).lr


def test_sets_are_drawn_by_share_or_size() -> None:
    np.testing.assert_allclose(shares([100, 400], [None, None], 0.5), [1 / 3, 2 / 3])
    np.testing.assert_allclose(shares([100, 400], [None, None], 0.0), [0.5, 0.5])
    np.testing.assert_allclose(shares([100, 400], [3.0, 1.0], 0.5), [0.75, 0.25])


def test_contrast_is_small_where_views_agree() -> None:
    views = torch.eye(4)
    assert contrast(torch.cat([views, views])) < 0.01 < contrast(torch.cat([views, views.flip(0)]))


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(data, "tabular", name="command")
    main_code(["pretrain", str(path), "--out", str(tmp_path / "run"), "--device", "cpu"], 0)
    said = capsys.readouterr()
    assert "tabular: table.csv, 60 inputs, 2 classes" in said.err and "step 3/3" in said.err
    assert "--encoder file:" in said.out.replace("\n", " ")
    main_code(["pretrain", str(path), "--suggest", "-q"], 0)
    said = capsys.readouterr().out
    assert "Step law: learning rate" in said and "language models" in said
    main_code(["pretrain", str(path)], 1)
    assert "give --out DIR" in capsys.readouterr().err


def main_code(arguments: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == code


@pytest.mark.slow
def test_two_processes_train_one_model(data: Path, tmp_path: Path) -> None:
    """Both hold the same weights in the end, other ones than a single process: its batch is twice as large."""
    path = config(data, "time_series", "tabular", name="two")
    script, out = "import sys; from polysense.apps.cli import main; main(sys.argv[1:])", str(tmp_path / "run")

    def run_both() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
                  "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        started = [
            subprocess.Popen([sys.executable, "-c", script, "pretrain", str(path), "--out", out, "-q"],
                             env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
            for rank in range(2)
        ]  # fmt: skip
        ends = [process.communicate(timeout=200) for process in started]
        assert [process.returncode for process in started] == [0, 0], [error.decode()[-2000:] for _, error in ends]

    run_both()
    both = weights(tmp_path / "run")
    run_both()  # a finished run is taken up again, and there is nothing left to do
    assert all(torch.equal(value, both[name]) for name, value in weights(tmp_path / "run").items())
    alone = train(path, tmp_path / "alone")
    assert json.loads((tmp_path / "run" / "run.json").read_text()) and both.keys() == alone.keys()
    differ = [name for name in both if not torch.equal(both[name], alone[name])]
    assert differ and all(value.isfinite().all() for value in both.values())
