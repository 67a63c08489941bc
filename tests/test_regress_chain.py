"""Chained regression: as scikit-learn's, better where something was measured, no worse where nothing was."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.multioutput import RegressorChain

import polysense
from polysense.core.errors import InputError
from polysense.core.types import Features, Tokens
from polysense.data.table import read_table
from polysense.heads.regress import RegressionConfig, RegressionHead
from polysense.heads.regress_chain import Chain
from polysense.tokenizers.tabular import TabularConfig, TabularTokenizer
from polysense.training.probe_chain import solve_chain, surest_first

WIDTH = 24
NAMES = ("cheap", "middle", "costly")


def by_hand(chain, own, measured):
    """What the equations of `Chain` say, one value after the other."""
    order, known = chain.order.tolist(), measured.isfinite()
    guess, surprise, answer = torch.zeros_like(own), torch.zeros_like(own), torch.zeros_like(own)
    for place, i in enumerate(order):
        before = order[:place]
        guess[:, i] = own[:, i] + guess[:, before] @ chain.link[i, before]
        move = surprise[:, before] @ chain.gain[i, before]
        surprise[:, i] = torch.where(known[:, i], measured[:, i] - guess[:, i], move)
        answer[:, i] = guess[:, i] + move
    return guess, answer


def make_chain(count=4, seed=0):
    torch.manual_seed(seed)
    chain = Chain(count)
    chain.order.copy_(torch.randperm(count))
    torch.nn.init.normal_(chain.link)
    torch.nn.init.normal_(chain.gain)
    return chain


@torch.no_grad()
def test_values_follow_one_after_the_other():
    chain = make_chain()
    own, measured = torch.randn(40, 4), torch.randn(40, 4)
    measured[torch.rand(40, 4) < 0.5] = float("nan")
    guess, answer = by_hand(chain, own, measured)
    torch.testing.assert_close(chain(own), guess, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(chain.told(chain(own), measured), answer, atol=1e-4, rtol=1e-4)
    nothing = torch.full_like(measured, float("nan"))
    assert torch.equal(chain.told(guess, nothing), guess)
    for i in range(4):  # a value's own measurement changes those after it alone
        only = nothing.clone()
        only[:, i] = 3.0
        moved = (chain.told(guess, only) != guess).any(0)
        assert moved.tolist() == chain.before()[:, i].tolist()


def test_gradients_are_finite_where_nothing_was_measured():
    chain = make_chain()
    own, measured = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    measured[::2] = float("nan")
    chain.told(chain(own), measured).square().sum().backward()
    for found in (own.grad, chain.link.grad, chain.gain.grad):
        assert found.isfinite().all() and found.any()
    assert not (chain.link.grad * ~chain.before()).any()


def linked(count, seed=0, features=6):
    """Cheap, middle and costly: a linear part of few features each, and a common part that the features do not show."""
    rng = np.random.default_rng(seed)
    x, hidden = rng.normal(size=(count, features)), rng.normal(size=count)
    cheap = x[:, 0] + hidden + 0.2 * rng.normal(size=count)
    middle = x[:, 1] - 0.8 * hidden + 0.4 * rng.normal(size=count)
    costly = x[:, 2] + 0.5 * x[:, 0] + 1.5 * hidden + 0.2 * rng.normal(size=count)
    return x, np.stack([cheap, middle, costly], 1)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("penalty", [0.5, 50.0])
def test_guesses_are_those_of_scikit_learn(order, penalty):
    x, y = linked(150)
    weight, bias, link, _ = (torch.from_numpy(part) for part in solve_chain(x, y, order, penalty))
    chain = Chain(3)
    chain.order.copy_(torch.tensor(order))
    chain.link.data.copy_(link)
    reference = RegressorChain(Ridge(penalty), order=order, cv=KFold(5, shuffle=True, random_state=0)).fit(x, y)
    new, _ = linked(50, seed=1)
    found = chain(torch.from_numpy(new) @ weight.T + bias).detach().numpy()
    np.testing.assert_allclose(found, reference.predict(new), atol=1e-4)
    assert np.abs(link.numpy()).max() > 1e-3  # the chain is not trivial


def test_the_surest_target_comes_first():
    x, y = linked(200)
    rng = np.random.default_rng(3)
    noisy = np.stack([rng.normal(size=200), x @ rng.normal(size=6), y[:, 0]], 1)
    assert surest_first(x, noisy / noisy.std(0)) == [1, 2, 0]


def test_one_row_is_too_few():
    with pytest.raises(InputError, match="training part: it has one row"):
        solve_chain(np.ones((1, 2)), np.ones((1, 2)), [0, 1], 1.0)


def head(**options):
    torch.manual_seed(0)
    made = RegressionHead(RegressionConfig(NAMES, (1.0, -2.0, 30.0), (2.0, 0.5, 10.0), chain=True, **options), WIDTH)
    for weight in (made.chain.link, made.chain.gain):
        torch.nn.init.normal_(weight, 0, 0.5)
    return made


def features(rows=5):
    x = torch.randn(rows, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    return Features(Tokens(x, None, torch.zeros(rows, 3, 1)))


META = [{"source": f"s{i}"} for i in range(5)]


@torch.no_grad()
def test_measured_values_are_in_the_targets_units():
    made = head().eval()
    out = made(features())
    plain = [answer.values for answer in made.decode(out, META)]
    told = made.decode(out, [{**META[0], "known": {"cheap": plain[0]["cheap"] + 2.0}}, *META[1:]])
    gain = made.chain.gain
    assert told[0].values["cheap"] == pytest.approx(plain[0]["cheap"], abs=1e-4)  # no echo of the measurement
    # One deviation (2) more than guessed of the first target, times the gain, in deviations (.5) of the second.
    assert told[0].values["middle"] == pytest.approx(plain[0]["middle"] + 0.5 * float(gain[1, 0]), abs=1e-4)
    assert [answer.values for answer in told[1:]] == plain[1:]
    alone = made.decode(made.merge(made(features()), torch.tensor([0, 0, 1, 1, 1]), META), META[:2])
    assert len(alone) == 2  # windows of one input are averaged before what was measured counts


def test_the_loss_teaches_both_matrices_and_the_features():
    made = head(hidden=4)
    labels = [dict(zip(NAMES, row, strict=True)) for row in np.random.default_rng(0).normal(size=(5, 3))]
    target = made.targets(labels, META)
    out = made(features())
    found = made.loss(out, target)["loss"]
    free = torch.nn.functional.mse_loss(out["values"], target["values"])
    forced = torch.nn.functional.mse_loss(made.chain.told(out["values"], target["values"]), target["values"])
    torch.testing.assert_close(found, (free + forced) / 2)
    found.backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_configuration_and_order_are_saved():
    made = head()
    made.chain.order.copy_(torch.tensor([2, 0, 1]))
    again = RegressionHead(RegressionConfig(**json.loads(json.dumps(made.config_dict()))), WIDTH)
    again.load_state_dict(made.state_dict())
    assert again.config == made.config and again.chain.order.tolist() == [2, 0, 1]
    torch.testing.assert_close(again(features())["values"], made(features())["values"])
    assert not any("chain" in name for name in RegressionHead(RegressionConfig(NAMES), WIDTH).state_dict())


def test_odd_options_are_refused():
    with pytest.raises(InputError, match="the chain: it needs two targets or more, and price is alone; name the cheap"):
        RegressionConfig(("price",), chain=True)
    with pytest.raises(ValueError, match="unknown chain 'best'"):
        RegressionConfig(NAMES, chain="best")


def test_odd_known_values_are_refused(build):
    pipeline = build("tabular-regression", head={"chain": True})
    row = {"size": 9.0, "count": 2.0, "kind": "red"}
    assert len(pipeline([polysense.Known(row, {"p": 4.0}), row])) == 2
    for known, problem in (({"r": 1.0}, "'r' is no target; choose from p, q"), ({"p": None}, "p cannot be None"),
                           ({"p": float("nan")}, "p cannot be nan"), ({"p": "4"}, "p cannot be '4'")):  # fmt: skip
        with pytest.raises(InputError, match=problem):
            pipeline(polysense.Known(row, known))
    with pytest.raises(InputError, match="this model uses none; fit one with --chain"):
        build("tabular-regression")(polysense.Known(row, {"p": 4.0}))
    skipped = list(pipeline.stream([polysense.Known(row, {"r": 1.0}), row], on_error="skip"))
    assert isinstance(skipped[0], InputError) and len(skipped) == 2


@pytest.mark.parametrize("modality", ["image", "audio", "time_series", "text", "point_cloud"])
def test_known_values_of_any_modality(modality, build, make):
    pipeline = build(f"{modality.replace('_', '-')}-regression", head={"chain": True})
    torch.nn.init.constant_(pipeline.head.chain.gain, 1.0)
    sources = [make(modality, number) for number in (0, 3, 1)]  # some are several windows
    plain = [answer.values for answer in pipeline(sources)]
    known = [polysense.Known(sources[0], {"p": plain[0]["p"] + 2.0}), sources[1],
             polysense.Known(sources[2], {"p": plain[2]["p"] - 4.0})]  # fmt: skip
    told = [answer.values for answer in pipeline(known, batch_size=2)]
    for one, other, moved in zip(plain, told, (1.0, 0.0, -2.0), strict=True):  # in deviations of p, 2
        assert other["q"] == pytest.approx(one["q"] + 0.5 * moved, abs=1e-3)
        assert other["p"] == pytest.approx(one["p"], abs=1e-3)


def table(count, seed=0):
    x, y = linked(count, seed)
    columns = {f"x{i}": x[:, i] for i in range(x.shape[1])}
    return pd.DataFrame(columns | {name: 10 + 5 * y[:, i] for i, name in enumerate(NAMES)})


def mean_square(bundle, given, truth):
    answers = bundle(given, batch_size=256)
    return np.mean([(answer.values["costly"] - value) ** 2 for answer, value in zip(answers, truth["costly"])])


def test_known_targets_halve_the_error_and_unknown_ones_do_not_harm(quick, tmp_path):
    table(300).to_csv(tmp_path / "train.csv", index=False)
    options = {"target": ",".join(NAMES), "epochs": None, "tokenizer_options": {"boost": False, "bins": 2}}
    _, alone = quick("tabular-regression", tmp_path / "train.csv", out=tmp_path / "alone", **options)
    _, chained = quick("tabular-regression", tmp_path / "train.csv", out=tmp_path / "chained",
                       head_options={"chain": True}, **options)  # fmt: skip
    test = table(200, seed=1)
    inputs = test.drop(columns=list(NAMES))
    apart = mean_square(alone, inputs, test)
    assert mean_square(alone, test, test) == apart  # without a chain, answers in the table are no inputs
    assert mean_square(chained, inputs, test) < 1.02 * apart
    one, both = (mean_square(chained, test.drop(columns=left), test) for left in (["middle", "costly"], ["costly"]))
    assert both < one < 0.25 * apart
    # What a target itself is measured at is no input of its answer.
    assert mean_square(chained, test, test) == pytest.approx(both)
    gaps = test.drop(columns="costly")
    gaps.loc[::2, ["cheap", "middle"]] = np.nan
    mixed = [answer.values for answer in chained(gaps)]
    full, none = ([a.values for a in chained(t)] for t in (test.drop(columns="costly"), inputs))
    for i in range(20):
        assert mixed[i] == pytest.approx((none if i % 2 == 0 else full)[i], abs=1e-3)
    with pytest.raises(InputError, match="column 'cheap' holds 'much' in row 0, which is no number"):
        chained(test.assign(cheap="much"))


def test_known_columns_of_files_without_a_header(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 4)).round(2))
    frame.to_csv(tmp_path / "all.csv", header=False, index=False)
    frame[[1, 2]].assign(extra=frame[3]).to_csv(tmp_path / "inputs.csv", header=False, index=False)
    known = ("column_0",)
    inputs = read_table(tmp_path / "all.csv").drop(columns=list(known))
    tokenizer = TabularTokenizer(TabularTokenizer.fit_config(TabularConfig(WIDTH, known=known), [inputs]))
    whole, bare = (list(tokenizer.read_all(tmp_path / f"{name}.csv")) for name in ("all", "inputs"))
    assert [sample.meta["known"] for sample in whole] == [{"column_0": value} for value in frame[0]]
    assert not any("known" in sample.meta for sample in bare)  # its first column is another one
    assert all(torch.equal(a.data["numbers"], b.data["numbers"]) for a, b in zip(whole, bare, strict=True))


def test_an_order_that_training_finds(quick, tmp_path):
    data = table(120)
    data["costly"], data["cheap"] = 3 * data["x0"], np.random.default_rng(0).normal(size=120)  # nothing tells it
    data.to_csv(tmp_path / "train.csv", index=False)
    for hidden in (0, 8):
        _, bundle = quick("tabular-regression", tmp_path / "train.csv", target="cheap,costly", epochs=1,
                          tokenizer_options={"boost": False},
                          head_options={"chain": "found", "hidden": hidden})  # fmt: skip
        assert bundle.head.chain.order.tolist() == [1, 0]
        if not hidden:  # solved for: the second place takes from the first
            assert bundle.head.chain.link.argwhere().tolist() == bundle.head.chain.gain.argwhere().tolist() == [[0, 1]]


def test_the_command_line_takes_a_chain(encoder_spec, tmp_path, capsys):
    from polysense.apps.cli import main

    table(80).to_csv(tmp_path / "train.csv", index=False)
    call = ["fit", "tabular-regression", str(tmp_path / "train.csv"), "--encoder", encoder_spec, "--chain", "--quiet",
            "--tokenizer", "boost=false", "--out", str(tmp_path / "b")]  # fmt: skip
    with pytest.raises(SystemExit) as done:
        main([*call, "--target", ",".join(NAMES)])
    assert done.value.code == 0
    assert polysense.load(tmp_path / "b").head.config.chain is True
    with pytest.raises(SystemExit) as done:
        main([*call, "--target", "costly"])
    assert done.value.code == 1 and "it needs two targets or more" in capsys.readouterr().err
