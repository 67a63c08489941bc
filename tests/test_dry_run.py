"""A dry run tells what a fit would do, by measuring on real examples, and writes nothing."""

import numpy as np
import pandas as pd
import pytest

from polysense.apps import cli
from polysense.core.errors import InputError
from polysense.training.fit import fit

PATCHES = {"form": "patch", "size": 64}


def test_plan_agrees_with_the_fit(image_folders, encoder_spec, tmp_path, quick, encoder):
    options = {"tokenizer_options": PATCHES, "val_share": 0.25, "epochs": 2, "encoder": encoder_spec}
    result = fit("image-classification", image_folders, tmp_path / "none", dry_run=True, progress=False, **options)
    plan = result.plan
    assert not (tmp_path / "none").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["pictures"]
    assert result.metrics == {} and plan.parts == {"train": 27, "val": 9}
    assert plan.epochs == 2 and plan.batch_size == 27 and plan.steps == 10 and plan.probe
    assert plan.tokens[0] >= 9 and plan.sequences == (1, 1) and all(plan.inputs.values())
    assert 0 < plan.seconds["example"] < plan.seconds["all"] and plan.seconds["step"] > 0
    assert plan.memory > 50e6
    # What it says is what a fit finds.
    fitted, bundle = quick("image-classification", image_folders, **options)
    assert fitted.trainable == result.trainable
    assert plan.parameters["head"] == sum(p.numel() for p in bundle.head.parameters())
    assert plan.parameters["tokenizer"] == sum(p.numel() for p in bundle.tokenizer.parameters())
    assert plan.parameters["encoder"] == sum(p.numel() for p in encoder.parameters()) and not plan.parameters["adapter"]
    assert bundle.encoder_hash == encoder.fingerprint()


def test_what_learns_depends_on_the_method(image_folders, encoder_spec, tmp_path):
    def plan(**options):
        return fit("image-classification", image_folders, tmp_path / "none", dry_run=True, progress=False, check=False,
                   tokenizer_options=PATCHES, val_share=0.25, encoder=encoder_spec, **options).plan  # fmt: skip

    probe, head, lora = plan(method="probe"), plan(train="head", epochs=1), plan(method="lora", epochs=1)
    assert probe.epochs == 0 and not probe.learning and "no joint training" in "\n".join(probe.lines())
    assert head.learning["head"] and not head.learning["tokenizer"] and not head.learning["encoder"]
    assert lora.learning["adapter"] == lora.parameters["adapter"] > 0 and lora.learning["encoder"] == 0
    assert plan(epochs=1000, max_minutes=0.01).seconds["all"] < 60


def test_series_and_tables(encoder_spec, tmp_path):
    t = np.arange(400)
    pd.DataFrame({"a": np.sin(t / 5), "b": np.cos(t / 7)}).to_csv(tmp_path / "s.csv", index=False)
    common = {"dry_run": True, "progress": False, "encoder": encoder_spec}
    series = fit("forecasting", tmp_path / "s.csv", tmp_path / "x", horizon=8, context=24, epochs=1, **common).plan
    assert series.sequences == (2, 2) and series.probe and series.learning["head"]
    frame = pd.DataFrame({"a": t % 7, "b": np.sin(t), "y": np.where(t % 7 > 3, "high", "low")})
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = fit("tabular-classification", tmp_path / "t.csv", tmp_path / "x", target="y", **common).plan
    assert table.boosted and table.epochs == 0 and "boosted trees come on top" in "\n".join(table.lines())
    assert not (tmp_path / "x").exists()


def test_the_command(image_folders, encoder_spec, tmp_path, capsys):
    arguments = ["fit", "image-classification", str(image_folders), "--out", str(tmp_path / "none"), "--dry-run",
                 "--encoder", encoder_spec, "--tokenizer", "form=patch", "--tokenizer", "size=64"]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--epochs", "1", "--device", "cpu"])
    shown = capsys.readouterr()
    assert not end.value.code and not (tmp_path / "none").exists()
    names = [line.partition(":")[0] for line in shown.out.splitlines()]
    assert names == ["examples", "input", "sequences an example", "parameters", "first", "then", "time", "memory"]
    assert "checked: train" in shown.err
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--method", "auto"])
    assert end.value.code == 1 and "name it" in capsys.readouterr().err


def test_faults_come_as_in_a_fit(tmp_path, encoder_spec):
    with pytest.raises(InputError, match="there is no such file or folder"):
        fit("image-classification", tmp_path / "nothing", tmp_path / "x", dry_run=True, encoder=encoder_spec)
