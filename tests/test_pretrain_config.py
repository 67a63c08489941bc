"""Configurations of a pretraining: what they mean, and the one line that says what is wrong with them."""

from pathlib import Path

import pytest

from polysense.core.errors import InputError
from polysense.training.pretrain_config import read_plan

GOOD = """
[encoder]
width = 96
mlp_ratio = 2.0
[training]
steps = 10
clip = "coordinate"
[[stream]]
modality = "image"
labels = true
licence = "CC0"
data = ["a", {path = "b", labels = false, licence = "MIT"}]
[[stream]]
modality = "time_series"
data = "synthetic"
[card]
licence = "MIT"
"""


def plan(tmp_path: Path, text: str):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return read_plan(path)


def test_a_configuration_as_written(tmp_path: Path) -> None:
    found = plan(tmp_path, GOOD)
    assert (found.encoder.width, found.encoder.options, found.encoder.start) == (96, {"mlp_ratio": 2.0}, "identity")
    assert (found.training.steps, found.training.clip, found.training.lr) == (10, "coordinate", 1e-3)
    image, series = found.streams
    assert [(one.path, one.labels, one.licence) for one in image.data] == [("a", True, "CC0"), ("b", False, "MIT")]
    assert image.losses == {"rebuild": 1.0, "classes": 0.3}
    assert series.losses == {"rebuild": 1.0, "forecast": 1.0}
    assert (found.card.licence, found.text, found.folder) == ("MIT", GOOD, tmp_path)


def test_losses_by_name_and_by_weight(tmp_path: Path) -> None:
    named = '[[stream]]\nmodality = "image"\ndata = "a"\nlosses = '
    assert plan(tmp_path, named + '["contrast"]').streams[0].losses == {"contrast": 0.5}
    assert plan(tmp_path, named + "{rebuild = 2, contrast = 0.1}").streams[0].losses == {"rebuild": 2, "contrast": 0.1}


STREAM = '[[stream]]\nmodality = "image"\ndata = "a"\n'
FAULTS = {
    "it is not TOML": "[encoder\n",
    "there is no part 'optimizer'": "[optimizer]\n" + STREAM,
    "it has no stream": "[encoder]\nwidth = 96\n",
    "its modality is 'smell'": '[[stream]]\nmodality = "smell"\ndata = "a"\n',
    "its modality is None": '[[stream]]\ndata = "a"\n',
    "it names no data": '[[stream]]\nmodality = "image"\n',
    "an entry of data has no path": '[[stream]]\nmodality = "image"\ndata = [{labels = true}]\n',
    "there is no option 'step'": "[training]\nstep = 3\n" + STREAM,
    "its option steps cannot be 'many'": '[training]\nsteps = "many"\n' + STREAM,
    "steps is at least 1": "[training]\nsteps = 0\n" + STREAM,
    "clip is one of": '[training]\nclip = "value"\n' + STREAM,
    "it is not a table": "training = 3\n" + STREAM,
    "there is no option 'dept'": "[encoder]\ndept = 3\n" + STREAM,
    "mlp_ratio is given by embedded itself": '[encoder]\nstart = "embedded"\nmlp_ratio = 2.0\n' + STREAM,
    "there is no option 'batchsize'": STREAM + "batchsize = 3\n",
    "two streams read image": STREAM + STREAM,
    "there is no loss 'forecast'": STREAM + 'losses = ["forecast"]\n',
    "the loss classes has nothing to learn from": STREAM + 'losses = ["classes"]\n',
    "the loss teacher has nothing to learn from": STREAM + 'losses = ["teacher"]\n',
    "the weight of rebuild is": STREAM + "losses = {rebuild = -1}\n",
    "losses cannot be 3": STREAM + "losses = 3\n",
    "is no teacher of image": STREAM + 'teacher = "yamnet:x"\n',
    "its start is": STREAM + 'start = "scratch"\n',
    "batch and horizon are at least 1": STREAM + "batch = 0\n",
    "weight, stem_lr and balance are at least 0": STREAM + "weight = -1\n",
    "point_cloud has no stem": '[[stream]]\nmodality = "point_cloud"\ndata = "a"\nfrozen_stem = true\n',
    "some of its data have a share": '[[stream]]\nmodality = "image"\ndata = ["a", {path = "b", share = 0.5}]\n',
    "the share of b is 0": '[[stream]]\nmodality = "image"\ndata = [{path = "b", share = 0}]\n',
    "image cannot be generated": '[[stream]]\nmodality = "image"\ndata = "synthetic"\n',
}


@pytest.mark.parametrize("problem", FAULTS)
def test_a_fault_is_named(problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        plan(tmp_path, FAULTS[problem])
    assert problem in caught.value.problem and caught.value.fix
    assert "config.toml" in caught.value.source


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_plan(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs").glob("*.toml")), ids=lambda p: p.stem
)
def test_configurations_that_ship_can_be_read(path: Path) -> None:
    assert read_plan(path).streams
