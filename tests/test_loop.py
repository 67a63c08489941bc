"""What practitioners ask of a training loop: steps of several batches, precision, processes, class weights, schedules,
logs, and further ways to vary inputs."""

import csv
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from polysense.core.errors import InputError
from polysense.data.dataset import Item
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS
from polysense.training import compute, pretrain_log
from polysense.training.augment import augment
from polysense.training.class_weights import balance
from polysense.training.compute import only_deterministic, start
from polysense.training.examples import FileExamples
from polysense.training.joint import Recipe, batches, make_optimiser, set_lr, train_step
from polysense.training.scenes import check_extras
from polysense.training.sources import open_sources
from polysense.training.variations import VARIATIONS

PATCHES = {"form": "patch", "size": 64}


@pytest.fixture
def parts(image_folders, encoder):
    sources = open_sources(TASKS["image-classification"], image_folders)
    pipeline = Pipeline.build("image-classification", encoder=encoder, tokenizer=PATCHES, head=sources.head_options())
    return pipeline, sources.examples(pipeline.tokenizer, "")


def stepped(parts, recipe, count, precision="fp32"):
    """The head's weights after one step of `count` batches."""
    pipeline, examples = parts
    start_state = {name: value.clone() for name, value in pipeline.state_dict().items()}
    accelerator = start(precision)
    optimiser = accelerator.prepare_optimizer(make_optimiser(pipeline, recipe))
    drawn = batches(pipeline, examples, recipe, np.random.default_rng(0), count)
    loss = train_step(pipeline, drawn, optimiser, accelerator, recipe)
    after = pipeline.head.classify[-1].weight.detach().clone()
    gradient = pipeline.head.classify[-1].weight.grad.clone()
    pipeline.load_state_dict(start_state)
    return loss, gradient, after


def test_four_batches_make_the_step_of_one_that_is_four_times_as_large(parts):
    one = stepped(parts, Recipe(batch_size=16), 1)
    four = stepped(parts, Recipe(batch_size=4, accumulate=4), 4)
    assert four[0] == pytest.approx(one[0], rel=1e-5)
    torch.testing.assert_close(four[1], one[1], rtol=1e-3, atol=1e-6)


def test_precision(parts):
    full, half = (stepped(parts, Recipe(batch_size=8), 1, precision) for precision in ("fp32", "bf16"))
    assert half[0] != full[0] and half[0] == pytest.approx(full[0], rel=0.05)
    assert half[2].dtype == torch.float32
    with pytest.raises(InputError, match="precision fp16: it needs a GPU; use fp32, or bf16"):
        start("fp16", "cpu")
    with pytest.raises(InputError, match="precision int4: there is none of this name"):
        start("int4", "cpu")


def test_gradient_is_clipped_or_let_pass(parts):
    _, usual, _ = stepped(parts, Recipe(batch_size=8), 1)
    _, free, _ = stepped(parts, Recipe(batch_size=8, clip=0), 1)
    _, small, _ = stepped(parts, Recipe(batch_size=8, clip=1e-3), 1)
    assert small.norm() <= 1.001e-3 < usual.norm() <= free.norm()


def test_schedule():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([{"params": [weight], "lr": 1.0, "peak": 1.0}])

    def rate(share, *warmup):
        set_lr(optimiser, share, *warmup)
        return optimiser.param_groups[0]["lr"]

    assert rate(0.0) == 0.01 and rate(0.025) == pytest.approx(0.5) and rate(0.05) == pytest.approx(1.0)
    assert rate(0.25, 0.5) == pytest.approx(0.5) and rate(0.5, 0.5) == pytest.approx(1.0)
    assert rate(0.0, 0.0) == pytest.approx(1.0) and rate(1.0, 0.0) == pytest.approx(0.01)


@pytest.mark.parametrize("bad", [{"average": 1.0}, {"warmup": -0.1}, {"accumulate": 0}, {"clip": -1.0}])
def test_options_out_of_range(bad):
    ((name, value),) = bad.items()
    with pytest.raises(InputError, match=f"{name}={value}: it is out of range; give at least"):
        Recipe(**bad)


def rare(tmp_path, rows=300):
    """Three overlapping classes, one of them rare."""
    rng = np.random.default_rng(0)
    label = rng.choice(["a", "b", "c"], rows, p=[0.5, 0.42, 0.08])
    place = np.select([label == "a", label == "b"], [0.0, 3.0], 1.2)
    pd.DataFrame({"x": rng.normal(place, 1.0), "y": label}).to_csv(tmp_path / "rare.csv", index=False)
    return tmp_path / "rare.csv"


def test_balanced_classes_find_the_rare_one(quick, tmp_path):
    options = {"target": "y", "epochs": 0, "tokenizer_options": {"boost": False}}
    data = rare(tmp_path)
    rows = pd.read_csv(data).query("y == 'c'").drop(columns="y")

    def found(bundle):
        return np.mean([answer.names[0] == "c" for answer in bundle(rows)])

    _, plain = quick("tabular-classification", data, **options)
    before = found(plain)
    _, bundle = quick("tabular-classification", data, class_weights="balanced", **options)
    assert found(bundle) > before + 0.2
    weights = bundle.head.config.class_weights
    assert weights[2] > 2 * max(weights[:2])


def test_class_weights_are_those_of_scikit_learn(parts):
    from sklearn.utils.class_weight import compute_class_weight

    pipeline, examples = parts
    labels = [item.target for item in examples.items][:20]
    some = FileExamples(examples.items[:20], pipeline.tokenizer, "image")
    balance(pipeline, some)
    config = pipeline.head.config
    wanted = dict(zip(sorted(set(labels)), compute_class_weight("balanced", classes=np.unique(labels), y=labels)))
    assert config.class_weights == pytest.approx([wanted.get(name, 1.0) for name in config.classes])
    logits, target = torch.randn(6, 3, generator=torch.manual_seed(0)), torch.tensor([0, 0, 1, 1, 1, 2])
    loss = pipeline.head.loss({"logits": logits}, {"labels": target})["loss"]
    each = torch.tensor(config.class_weights)[target]
    parted = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(loss, (parted * each).sum() / each.sum())
    with pytest.raises(InputError, match="class_weights rare: there is none of this name; use balanced"):
        balance(pipeline, some, "rare")


def test_class_weights_want_classes(build):
    for task in ("image-multilabel", "image-regression", "object-detection"):
        with pytest.raises(InputError, match=f"{task} does not give each input one class"):
            balance(build(task), FileExamples([], None, "image"))


def test_average_of_the_weights_is_what_is_kept(quick, image_folders):
    options = {"tokenizer_options": PATCHES, "head_options": {"hidden": 8}, "epochs": 1}
    _, plain = quick("image-classification", image_folders, **options)
    _, mean = quick("image-classification", image_folders, ema=0.9, **options)
    assert not torch.equal(plain.head.classify[-1].weight, mean.head.classify[-1].weight)


def test_deterministic_is_asked_for_and_taken_back():
    assert not torch.are_deterministic_algorithms_enabled()
    with only_deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    with only_deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with (
        pytest.raises(
            InputError, match="--deterministic: upsample_x cannot be computed so on this device; leave it out"
        ),
        only_deterministic(True),
    ):
        raise RuntimeError("upsample_x does not have a deterministic implementation, but you set …")
    with pytest.raises(RuntimeError, match="else"), only_deterministic(True):
        raise RuntimeError("something else")
    assert not torch.are_deterministic_algorithms_enabled()


def test_tensorboard(monkeypatch, quick, image_folders, tmp_path):
    board = tmp_path / "runs"
    options = {"tokenizer_options": PATCHES, "epochs": 2, "patience": 9}
    quick("image-classification", image_folders, tensorboard=board, **options)
    with (board / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_name = {name: [row for row in rows if row["loss"] == name] for name in ("loss", "lr", "validation/accuracy")}
    assert [int(row["step"]) for row in by_name["loss"]] == list(range(20)) and len(by_name["lr"]) == 20
    assert [int(row["step"]) for row in by_name["validation/accuracy"]] == [9, 19]
    assert list((board / "tensorboard").glob("events.*"))
    monkeypatch.setattr(pretrain_log, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--tensorboard: the package tensorboardX is not installed; install it: pip"):
        quick("image-classification", image_folders, tensorboard=board, **options)


TWO = """
import sys
from polysense.training.fit import fit
result = fit("image-classification", sys.argv[1], sys.argv[2], encoder=sys.argv[3], progress=True, epochs=2,
             tokenizer_options={"form": "patch", "size": 64}, head_options={"hidden": 8}, batch_size=4, lr=3e-3)
print("accuracy", result.metrics["accuracy"], result.epochs)
"""


@pytest.mark.slow
def test_two_processes_train_one_bundle(encoder_spec, image_folders, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29571"]
    done = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(image_folders), str(out), encoder_spec], capture_output=True,
        text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("accuracy")]
    assert len(said) == 2 and said[0] == said[1]
    assert done.stderr.count("epoch 1/2") == 1  # one of them speaks
    assert (out / "model.safetensors").exists() and not (tmp_path / ".bundle.fit").exists()


def test_gradients_are_means_over_processes():
    class Two:
        num_processes, device = 2, torch.device("cpu")

        def reduce(self, value, how):
            return value + 1 if how == "sum" else value / 2

    used, unused = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    used.grad = torch.full((3,), 4.0)
    compute.share_gradients(Two(), [used, unused])
    assert used.grad.tolist() == [2.0] * 3 and unused.grad.tolist() == [0.0] * 2


def waved(length=4000):
    return (np.sin(np.arange(length) * 0.9) + 0.2 * np.sin(np.arange(length) * 0.1)).astype(np.float32)


VALUES = {
    "image": lambda: Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)),
    "audio": lambda: (waved(), 8000),
    "point_cloud": lambda: np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32),
    "time_series": lambda: np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32),
}


def plain(value):
    return np.asarray(value[0] if isinstance(value, tuple) else value)


@pytest.mark.parametrize("name", VARIATIONS)
def test_variations_change_inputs_by_seed_and_keep_their_form(name):
    modality = VARIATIONS[name].modality
    value = VALUES[modality]()
    before, changed = plain(value).copy(), 0
    for seed in range(12):
        base, _ = augment(modality, value, "cat", np.random.default_rng(seed))
        first, target = augment(modality, value, "cat", np.random.default_rng(seed), [name])
        again, _ = augment(modality, value, "cat", np.random.default_rng(seed), [name])
        assert target == "cat" and type(first) is type(value) and np.array_equal(plain(first), plain(again))
        assert plain(first).shape == plain(base).shape and plain(first).dtype == plain(base).dtype
        assert np.isfinite(plain(first)).all()
        changed += not np.array_equal(plain(first), plain(base))
    assert changed and np.array_equal(plain(value), before)
    still, _ = augment(modality, value, "cat", np.random.default_rng(3), [f"{name}=0"])
    usual, _ = augment(modality, value, "cat", np.random.default_rng(3))
    if name not in ("erase", "blur"):  # these are at least a little
        np.testing.assert_allclose(plain(still), plain(usual), atol=1e-4)


def test_specaugment_silences_bands_and_stretches():
    wave = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    change = VARIATIONS["specaugment"].change
    quiet_bands = quiet_stretches = 0
    for seed in range(8):
        out, rate = change((wave, 16_000), 0.4, np.random.default_rng(seed))
        power = torch.stft(torch.from_numpy(out), 512, window=torch.hann_window(512), return_complex=True).abs()
        quiet_bands += bool((power.mean(1) < 0.05 * power.mean()).any())
        quiet_stretches += bool((power.mean(0) < 0.05 * power.mean()).any())
        assert rate == 16_000 and out.shape == wave.shape
    assert quiet_bands >= 4 and quiet_stretches >= 4
    stereo = np.stack([wave, wave], 1)
    assert change((stereo, 16_000), 0.4, np.random.default_rng(0))[0].shape == stereo.shape
    whole = (wave * 9000).clip(-32768, 32767).astype(np.int16)
    assert change(whole, 0.4, np.random.default_rng(0)).dtype == np.int16
    short = wave[:10]
    assert change(short, 0.4, np.random.default_rng(0)).shape == short.shape


def test_tilt_turns_and_drop_keeps_only_points_of_the_cloud():
    points = VALUES["point_cloud"]()
    leant = VARIATIONS["tilt"].change(points, 60.0, np.random.default_rng(0))
    distances = [np.linalg.norm(one[:, None, :3] - one[None, :, :3], axis=-1) for one in (points, leant)]
    np.testing.assert_allclose(*distances, atol=1e-5)
    assert np.array_equal(leant[:, 3:], points[:, 3:]) and not np.allclose(leant, points)
    fewer = VARIATIONS["drop"].change(points, 0.9, np.random.default_rng(1))
    kept = {tuple(row) for row in fewer[:, :3].tolist()}
    assert kept < {tuple(row) for row in points[:, :3].tolist()}


def test_erase_and_grey_leave_the_mask_where_it_is():
    mask = np.zeros((40, 56), np.uint8)
    mask[:, 20:] = 1
    image = VALUES["image"]()
    for seed in range(5):
        base, moved = augment("image", image, mask, np.random.default_rng(seed))
        value, target = augment("image", image, mask, np.random.default_rng(seed), ["erase=0.5", "grey=1"])
        assert np.array_equal(target, moved) and value.size == base.size
        pixels = np.asarray(value)
        assert (pixels == pixels[..., :1]).all()


def test_warp_keeps_ends_and_order():
    ramp = np.arange(50.0)[:, None].repeat(2, 1)
    out = VARIATIONS["warp"].change(ramp, 0.8, np.random.default_rng(0))
    assert (np.diff(out, axis=0) > 0).all() and not np.allclose(out, ramp)
    np.testing.assert_allclose(out[[0, -1]], ramp[[0, -1]], atol=1e-4)


@pytest.mark.parametrize(
    ("task", "name", "problem"),
    [("audio-classification", "tilt", "it is for point clouds with labels, not for audio-classification"),
     ("audio-classification", "spin", "choose from specaugment, noise"),
     ("image-classification", "erase=x", "its amount is no number"),
     ("image-classification", "erase=2", "its amount is out of range; give 0 to 1"),
     ("point-cloud-segmentation", "drop", "what it takes away is labelled"),
     ("forecasting", "warp", "not for forecasting")],
)  # fmt: skip
def test_variations_that_do_not_suit(task, name, problem):
    with pytest.raises(InputError, match=problem):
        check_extras(TASKS[task], [name])
    check_extras(TASKS["audio-classification"], ["specaugment=0.3", "noise"])


def test_names_reach_what_is_learnt_from():
    items = [Item((waved(), 8000), "a", "train")]
    heard = []

    class Ear:
        def read(self, value):
            heard.append(np.asarray(value[0]))
            raise StopIteration

    for extras in ((), ("noise=5",)):
        with pytest.raises(StopIteration):
            FileExamples(items, Ear(), "audio", True, extras).train(0, np.random.default_rng(0))
    assert (heard[1] - heard[0]).std() > 0.05
