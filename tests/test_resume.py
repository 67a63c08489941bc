"""Fits that stop: killed, interrupted, out of numbers or of disk; what goes on from a checkpoint ends bit for bit as if
nothing had happened."""

import errno
import multiprocessing
import os
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import torch

from polysense.apps.cli import main
from polysense.core.errors import InputError
from polysense.heads.classify import ClassificationHead
from polysense.training import checkpoint, joint
from polysense.training.checkpoint import Keeper, fingerprint, random_state, set_random_state
from polysense.training.choose import fit_best
from polysense.training.examples import FileExamples
from polysense.training.fit import fit

PATCHES = {"form": "patch", "size": 64}
# Everything that moves: augmentation, dropout, an average of the weights, and a head that no probe solves.
LIVELY = {"tokenizer_options": PATCHES, "head_options": {"hidden": 8, "dropout": 0.2}, "augment": True, "ema": 0.9,
          "epochs": 3, "batch_size": 12, "lr": 3e-3}  # fmt: skip


def bits(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture
def learn(encoder_spec):
    def run(task, data, out, **over):
        return fit(task, data, out, **{"encoder": encoder_spec, "progress": False, **over})

    return run


def stop_after(monkeypatch, steps, fault=KeyboardInterrupt):
    """Lets so many steps of training through, then raises."""
    step, left = joint.train_step, [steps]

    def counted(*args):
        if left[0] == 0:
            raise fault
        left[0] -= 1
        return step(*args)

    monkeypatch.setattr(joint, "train_step", counted)


def killed(learn, out, data, when):
    """Starts a fit in a process of its own and kills it as soon as `when()` says so; False if it had ended before."""
    child = multiprocessing.get_context("fork").Process(
        target=learn, args=("image-classification", data, out), kwargs=LIVELY | {"resume": True}
    )
    child.start()
    while child.is_alive() and not when():
        time.sleep(0.002)
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL


def test_killed_and_resumed_equals_uninterrupted(learn, monkeypatch, image_folders, tmp_path):
    monkeypatch.setattr(joint, "KEEP_MINUTES", 0.0)  # a checkpoint after every step
    whole = learn("image-classification", image_folders, tmp_path / "whole", **LIVELY)
    state, seen = tmp_path / ".bundle.fit" / "state.safetensors", set()

    def late():  # somewhere in the second epoch
        if state.exists():
            seen.add(state.stat().st_mtime_ns)
        return len(seen) > 13

    assert killed(learn, tmp_path / "bundle", image_folders, late)
    assert state.exists() and not (tmp_path / "bundle").exists()
    rest = learn("image-classification", image_folders, tmp_path / "bundle", resume=True, **LIVELY)
    assert bits(whole.path) == bits(rest.path) and whole.metrics == rest.metrics and rest.epochs == whole.epochs == 3
    assert not state.parent.exists()


@pytest.mark.slow
def test_killed_at_ten_random_moments(learn, monkeypatch, image_folders, tmp_path):
    monkeypatch.setattr(joint, "KEEP_MINUTES", 0.0)
    started = time.perf_counter()
    whole = learn("image-classification", image_folders, tmp_path / "whole", **LIVELY)
    seconds, rng = time.perf_counter() - started, np.random.default_rng()
    for i in range(10):
        end = time.perf_counter() + rng.uniform(0, seconds)
        out = tmp_path / f"bundle{i}"
        killed(learn, out, image_folders, lambda end=end: time.perf_counter() > end)
        learn("image-classification", image_folders, out, resume=True, **LIVELY)
        assert bits(whole.path) == bits(out), i
        assert not (tmp_path / f".bundle{i}.fit").exists()


def table(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=90), "b": rng.normal(size=90)})
    frame["y"] = np.where(frame.a + frame.b > 0, "p", "n")
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def sine(tmp_path):
    times = pd.date_range("2024-01-01", periods=200, freq="h")
    values = np.sin(np.arange(200) / 4) + np.random.default_rng(0).normal(0, 0.2, 200)
    pd.DataFrame({"time": times, "a": values}).to_csv(tmp_path / "s.csv", index=False)
    return tmp_path / "s.csv"


CASES = {
    "probe": ("image-classification", None, {"tokenizer_options": PATCHES}),
    "adapter": ("image-classification", None, LIVELY | {"method": "lora", "adapter_options": {"dropout": 0.1}}),
    "trees": ("tabular-classification", table, {"target": "y"}),
    "forecast": ("forecasting", sine, {"horizon": 8, "context": 32}),
    "accumulate": ("image-classification", None, LIVELY | {"accumulate": 2, "precision": "bf16"}),
}


@pytest.mark.parametrize(
    ("name", "steps"), [("probe", 0), ("probe", 14), ("adapter", 14), ("trees", 3), ("forecast", 14), ("accumulate", 4)]
)
def test_interrupted_and_resumed_equals_uninterrupted(name, steps, learn, monkeypatch, image_folders, tmp_path):
    task, make, options = CASES[name]
    data, options = make(tmp_path) if make else image_folders, options | {"epochs": 2}
    monkeypatch.setattr(joint, "KEEP_MINUTES", 0.0)
    torch.manual_seed(3)  # what adapters start from
    whole = learn(task, data, tmp_path / "whole", **options)
    torch.manual_seed(3)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            learn(task, data, tmp_path / "bundle", **options)
    torch.manual_seed(99)  # another process begins elsewhere
    rest = learn(task, data, tmp_path / "bundle", resume=True, **options)
    assert bits(whole.path) == bits(rest.path) and whole.metrics == rest.metrics


@pytest.fixture
def stopped(learn, monkeypatch, image_folders, tmp_path):
    """A fit that was interrupted in its second epoch, with a checkpoint of the first."""
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        with pytest.raises(KeyboardInterrupt):
            learn("image-classification", image_folders, tmp_path / "bundle", **LIVELY)
    return tmp_path / "bundle"


def test_it_must_be_said_what_becomes_of_an_interrupted_fit(learn, stopped, image_folders):
    with pytest.raises(
        InputError, match="an interrupted fit of it stands beside it; add --resume to go on, or --fresh"
    ):
        learn("image-classification", image_folders, stopped, **LIVELY)
    result = learn("image-classification", image_folders, stopped, resume=False, **LIVELY | {"epochs": 1})
    assert result.epochs == 1 and not Keeper(stopped, True).folder.exists()


def test_resume_where_nothing_was_begun(learn, image_folders, tmp_path):
    result = learn("image-classification", image_folders, tmp_path / "new", resume=True, **LIVELY | {"epochs": 1})
    assert result.epochs == 1


def test_other_settings_or_data_are_refused_by_name(learn, stopped, image_folders):
    with pytest.raises(InputError, match=r"seed was 0 when this fit began and is 5 now; .*--fresh"):
        learn("image-classification", image_folders, stopped, resume=True, **LIVELY, seed=5)
    (image_folders / "red" / "0.png").write_bytes((image_folders / "blue" / "0.png").read_bytes())
    with pytest.raises(InputError, match="the data is not what it was when this fit began"):
        learn("image-classification", image_folders, stopped, resume=True, **LIVELY)
    assert Keeper(stopped, True).under_way()


def test_rate_and_batch_may_change(learn, stopped, image_folders):
    other = LIVELY | {"lr": 1e-4, "batch_size": 6, "accumulate": 2}
    assert learn("image-classification", image_folders, stopped, resume=True, **other).epochs == 3


def test_a_damaged_checkpoint_is_named(learn, stopped, image_folders):
    path = Keeper(stopped, True).folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"state.safetensors: the checkpoint is damaged .*; begin anew with --fresh"):
        learn("image-classification", image_folders, stopped, resume=True, **LIVELY)


def test_loss_that_is_no_number_leaves_the_last_good_state(learn, monkeypatch, image_folders, tmp_path):
    loss, calls = ClassificationHead.loss, [0]

    def broken(self, out, target):
        calls[0] += self.training
        return {"loss": loss(self, out, target)["loss"] * (float("inf") if self.training and calls[0] > 15 else 1)}

    out = tmp_path / "bundle"
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationHead, "loss", broken)
        with pytest.raises(InputError, match=r"epoch 2, step 6: the loss became inf; .*--resume and a smaller --lr"):
            learn("image-classification", image_folders, out, **LIVELY)
    assert not out.exists()
    tensors, facts = Keeper(out, True).load()
    assert facts["epoch"] == 1 and all(value.isfinite().all() for value in tensors.values())
    result = learn("image-classification", image_folders, out, resume=True, **LIVELY | {"max_minutes": 0})
    assert result.epochs == 1  # the best state so far, as a bundle
    assert (out / "model.safetensors").exists() and not Keeper(out, True).under_way()


def full(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["checkpoint", "bundle"])
def test_full_disk_leaves_what_stood_there(what, learn, monkeypatch, image_folders, tmp_path):
    out = tmp_path / "bundle"
    learn("image-classification", image_folders, out, **LIVELY | {"epochs": 1, "seed": 8})
    before = bits(out)
    import safetensors.torch

    real = safetensors.torch.save_file

    def small(tensors, path, *rest):
        return (
            full() if (path.suffix == ".partial") == (what == "checkpoint") and calls() else real(tensors, path, *rest)
        )

    count = iter(range(100))

    def calls():
        return what == "bundle" or next(count) >= 2  # the third checkpoint

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", small)
        with pytest.raises(InputError, match=r"No space left on device.*; make room"):
            learn("image-classification", image_folders, out, **LIVELY)
    assert bits(out) == before
    assert sorted(path.name for path in tmp_path.glob(".bundle*")) == [".bundle.fit"]
    assert not list(Keeper(out, True).folder.glob("*.partial"))
    whole = learn("image-classification", image_folders, tmp_path / "whole", **LIVELY)
    assert bits(learn("image-classification", image_folders, out, resume=True, **LIVELY).path) == bits(whole.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk wants root")
def test_a_disk_that_is_really_full(learn, image_folders, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        learn("image-classification", image_folders, disk / "bundle", method="probe", tokenizer_options=PATCHES)
        before = bits(disk / "bundle")
        (disk / "ballast").write_bytes(b"0" * 30_000)
        with pytest.raises(InputError, match="No space left on device"):
            learn("image-classification", image_folders, disk / "bundle", **LIVELY)
        assert bits(disk / "bundle") == before
    finally:
        subprocess.run(["umount", disk], check=True)


def test_ctrl_c_says_how_to_go_on(monkeypatch, encoder_spec, image_folders, tmp_path, capsys):
    stop_after(monkeypatch, 12)
    folder, out = str(image_folders), str(tmp_path / "b")
    arguments = ["fit", "image-classification", folder, "-o", out, "--encoder", encoder_spec, "--epochs", "3", "-q",
                 "--tokenizer", "form=patch", "--tokenizer", "size=64", "--device", "cpu"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 130
    assert "interrupted: the same command with --resume goes on from the last checkpoint." in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1 and "add --resume to go on, or --fresh" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--resume"])
    assert stop.value.code == 0 and (tmp_path / "b" / "config.json").exists()


def test_auto_goes_on_with_the_way_that_was_chosen(monkeypatch, encoder_spec, image_folders, tmp_path):
    said = []
    options = dict(encoder=encoder_spec, tokenizer_options=PATCHES, epochs=2, progress=False, candidates=("head",),
                   trial_epochs=1, say=said.append)  # fmt: skip
    with monkeypatch.context() as patch:
        stop_after(patch, 25)  # ten of the trial
        with pytest.raises(KeyboardInterrupt):
            fit_best("image-classification", image_folders, tmp_path / "b", **options)
    with pytest.raises(InputError, match="--resume"):
        fit_best("image-classification", image_folders, tmp_path / "b", **options)
    said.clear()
    assert fit_best("image-classification", image_folders, tmp_path / "b", resume=True, **options).epochs == 2
    assert said == ["going on with head"]


def test_random_numbers_go_on_where_they_were():
    import json
    import random

    rng = np.random.default_rng(3)
    rng.random(5, np.float32)  # leaves half a draw behind
    rng.integers(9, size=3, dtype=np.int32)

    def drawn():
        return (
            rng.random(3).tolist(),
            rng.integers(9, size=3, dtype=np.int32).tolist(),
            torch.rand(2).tolist(),
            random.random(),
        )

    state = json.loads(json.dumps(random_state(rng)))
    first, other = drawn(), drawn()
    set_random_state(state, rng)
    assert drawn() == first != other


def test_fingerprint_sees_values_targets_and_files(image_folders, encoder):
    from polysense.data.dataset import Item

    files = sorted(image_folders.rglob("*.png"))[:3]

    def of(items):
        return fingerprint(FileExamples(items, None, "image"))

    items = [Item(file, "a", "train") for file in files]
    assert of(items) == of(list(items)) != of(items[:2])
    assert of([Item(files[0], "b", "train"), *items[1:]]) != of(items)
    before = of(items)
    os.utime(files[0], (1, 1))
    assert of(items) != before
    series = [Item(np.arange(4.0), "a", "train")]
    assert of(series) != of([Item(np.arange(4.0) + 1e-9, "a", "train")])
    assert of(series) == of([Item(np.arange(4.0), "a", "train")])
    with pytest.raises(TypeError, match="object have no fingerprint"):
        of([Item(object(), "a", "train")])
    frame = pd.DataFrame({"x": [1.0, 2.0]})
    assert [*checkpoint._pieces(frame)] != [*checkpoint._pieces(frame + 1)]
    # 0 and 8 fall together in a small set's table, so that the one inserted first comes first.
    one, two = ([*checkpoint._pieces(frozenset(names))] for names in ((0, 8), (8, 0)))
    assert one == two != [*checkpoint._pieces(frozenset((0, 1)))]
