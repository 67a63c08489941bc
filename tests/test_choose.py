"""Choosing a method by trying, and fitting from Python."""

import pytest

import polysense
from polysense.core.errors import InputError
from polysense.training.choose import Trial, fit_best, line
from polysense.training.fit import fit


def test_fitting_from_python_gives_a_pipeline(image_folders, encoder_spec, tmp_path):
    options = {"encoder": encoder_spec, "epochs": 1, "progress": False}
    pipeline = polysense.fit("image-classification", image_folders, method="scale", **options)
    assert pipeline.encoder.method == "scale" and pipeline.metrics["accuracy"] > 0.3
    picture = next(image_folders.rglob("*.png"))
    kept = polysense.fit("image-classification", image_folders, tmp_path / "kept", method="probe", **options)
    assert kept(picture)[0].answer() in ("blue", "green", "red") and (tmp_path / "kept/config.json").is_file()


def test_the_best_on_validation_is_fitted(image_folders, encoder_spec, tmp_path):
    said = []
    result = fit_best("image-classification", image_folders, tmp_path / "b", candidates=("probe", "scale"),
                      trial_epochs=1, say=said.append, encoder=encoder_spec, epochs=1, progress=False)  # fmt: skip
    rows = {text.split("\n")[-1].split()[0]: text.split("\n")[-1].split() for text in said[:2]}
    assert list(rows) == ["probe", "scale"] and said[0].startswith("method") and "accuracy" in said[0]
    values = {name: float(row[1]) for name, row in rows.items()}
    best = max(values, key=lambda name: (values[name], name == "probe"))  # ties: fewer parameters
    assert said[2] == f"fitting with {best}"
    assert (polysense.load(result.path).encoder.learns) == (best == "scale")
    assert int(rows["probe"][2].replace(",", "")) < int(rows["scale"][2].replace(",", ""))


def test_faults(image_folders, tmp_path):
    with pytest.raises(InputError, match="there are none"):
        fit_best("image-classification", image_folders, tmp_path / "b", candidates=())
    with pytest.raises(InputError, match="method=magic: unknown choice"):
        fit("image-classification", image_folders, tmp_path / "b", method="magic")
    assert "1,234" in line(Trial("lora", "accuracy", 0.5, 1234, 3.0))
