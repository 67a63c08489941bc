"""Mixed columns: by hand, as the identity at first, without leaks from missing values, through fit and back."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import polysense
from polysense.core.errors import InputError
from polysense.tokenizers.tabular import TabularConfig, TabularTokenizer
from polysense.tokenizers.tabular_mixer import HEADS, MIXERS, MOST_COLUMNS, ColumnMixer, unit

KINDS = [kind for kind in MIXERS if kind != "none"]
WIDTH, COLUMNS, RANK = 24, 5, 8


def table(n=40):
    rng = np.random.default_rng(0)
    days = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 700, n), unit="D")
    frame = pd.DataFrame({"city": rng.choice(["Rome", "Oslo"], n), "age": rng.normal(40, 12, n), "since": days,
                          "member": rng.random(n) < 0.5, "size": rng.normal(size=n)})  # fmt: skip
    frame["member"] = frame["member"].astype("boolean")
    for row, name in enumerate(frame.columns):
        frame.loc[row, name] = None
    frame.loc[7] = [None] * 5
    return frame


def mixer(kind, moved=True):
    torch.manual_seed(0)
    made = ColumnMixer(kind, COLUMNS, WIDTH, RANK)
    if moved:
        for weight in (made.out, made.narrow):
            nn.init.normal_(weight, 0, 0.3)
    return made


def tokenizer_of(kind, **options):
    torch.manual_seed(0)
    config = TabularTokenizer.fit_config(TabularConfig(WIDTH, mixer=kind, mixer_rank=RANK, **options), [table()])
    made = TabularTokenizer(config)
    for weight in (made.mixer.out, made.mixer.narrow) if made.mixer is not None else ():
        nn.init.normal_(weight, 0, 0.3)
    return made


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_columns_have_weights_of_their_own(kind):
    made = mixer(kind)
    x, present = torch.randn(3, COLUMNS, WIDTH), torch.rand(3, COLUMNS) < 0.7
    present[0] = True
    for b in range(3):
        row = unit(x[b])
        if kind == "heterogeneous":
            q, k, v = ([row[c] @ weight[c] for c in range(COLUMNS)] for weight in made.project.weight)
        else:
            inner = [sum(row[c] @ read[c] for c in range(COLUMNS) if present[b, c]) for read in made.project.read]
            q, k, v = ([one @ spread[:, c] for c in range(COLUMNS)]
                       for one, spread in zip(inner, made.project.spread, strict=True))  # fmt: skip
        others, size = [c for c in range(COLUMNS) if present[b, c]], RANK // HEADS
        expected = []
        for c in range(COLUMNS):
            seen = torch.zeros(RANK)
            for part in (slice(h * size, h * size + size) for h in range(HEADS)):
                if others:
                    logits = torch.stack([q[c][part] @ k[o][part] for o in others]) * size**-0.5
                    seen[part] = sum(w * v[o][part] for w, o in zip(logits.softmax(0), others, strict=True))
            y = x[b, c] + seen @ made.out[c]
            expected.append(y + nn.functional.gelu(unit(y) @ made.widen[c]) @ made.narrow[c])
        torch.testing.assert_close(made(x, present)[b], torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_the_identity(kind):
    x = torch.randn(2, COLUMNS, WIDTH)
    assert torch.equal(mixer(kind, moved=False)(x, torch.ones(2, COLUMNS, dtype=torch.bool)), x)
    mixed, plain = tokenizer_of(kind), tokenizer_of("none")
    nn.init.zeros_(mixed.mixer.out)
    nn.init.zeros_(mixed.mixer.narrow)
    missing, unexpected = mixed.load_state_dict(plain.state_dict(), strict=False)  # settled weights keep their meaning
    assert not unexpected and all(name.startswith("mixer.") for name in missing)
    data = plain.encode(table())
    assert torch.equal(mixed(data).x, plain(data).x)
    assert mixed.must_learn and not plain.must_learn


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", ["columns", "row"])
def test_batched_equals_single(kind, tokens):
    made = tokenizer_of(kind, tokens=tokens)
    samples = list(made.read_all(table()))
    out = made(made.collate(samples))
    assert out.x.shape == (40, 5 if tokens == "columns" else 1, WIDTH) and out.x.isfinite().all()
    for i in (0, 1, 2, 3, 4, 7, 9):  # every column missing once, and all of them
        torch.testing.assert_close(made(made.collate([samples[i]])).x[0], out.x[i], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["city", "age", "since", "member", "size"])
def test_values_reach_other_columns_and_missing_ones_do_not(kind, name):
    made = tokenizer_of(kind)
    at = [column.name for column in made.used].index(name)
    row = {"city": "Rome", "age": 30.0, "since": "2023-05-01", "member": True, "size": 0.3}
    other = {"city": "Oslo", "age": 60.0, "since": "2024-05-01", "member": False, "size": -2.0}
    a, b, gone = (made.encode(pd.DataFrame([r])) for r in (row, row | {name: other[name]}, row | {name: None}))
    assert made.present(gone)[0].tolist() == [i != at for i in range(5)] and made.present(a).all()
    changed = (made(a).x - made(b).x).abs().amax(-1)[0] > 1e-5
    assert changed.all()
    with torch.no_grad():  # what stands for a missing value is learned, and says nothing to the others
        before = made(gone).x
        made.bias[at] += 1.0
        after = made(gone).x
    assert ((after - before).abs().amax(-1)[0] > 1e-6).tolist() == [i == at for i in range(5)]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind):
    made = tokenizer_of(kind)
    made(made.encode(table())).x.square().sum().backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all()
              or not p.grad.any()]  # fmt: skip
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_costs_the_same_whatever_their_number(kind):
    count = lambda c: sum(p.numel() for p in ColumnMixer(kind, c, WIDTH, RANK).parameters())  # noqa: E731
    assert count(40) - count(20) == 2 * (count(20) - count(10)) <= 20 * (6 * WIDTH * RANK + 3 * RANK**2)


def test_configuration_survives_json():
    made = tokenizer_of("hiformer", known=("answer",))
    again = TabularTokenizer(TabularConfig(**json.loads(json.dumps(made.config_dict()))))
    assert again.config == made.config
    again.load_state_dict(made.state_dict())
    data = made.encode(table())
    assert torch.equal(again(data).x, made(data).x)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mixer": "best"}, "unknown mixer 'best'; choose one of: none, heterogeneous, hiformer"),
     ({"mixer_rank": 6}, "mixer_rank must be a positive multiple of 4, got 6"),
     ({"mixer_rank": 0}, "mixer_rank must be")],
)  # fmt: skip
def test_odd_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TabularConfig(**options)


def test_too_many_columns_are_refused(build, encoder):
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(4, MOST_COLUMNS + 1))).rename(columns="c{}".format)
    with pytest.raises(InputError, match="it takes 256 columns at most, and there are 257; leave columns out"):
        polysense.Pipeline.build("tabular-embedding", encoder=encoder, tokenizer={"mixer": "hiformer"}, sources=[wide])
    config = TabularTokenizer.fit_config(TabularConfig(WIDTH), [wide])
    assert len(TabularTokenizer(config).used) == 257
    with pytest.raises(InputError):
        TabularTokenizer(replace(config, mixer="heterogeneous"))


@pytest.mark.parametrize("kind", MIXERS)
def test_only_mixed_columns_say_something_together(kind):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.choice(["x", "y"], 300), "b": rng.normal(size=300)})
    answer = torch.from_numpy(((frame.a == "x") ^ (frame.b > 0)).to_numpy(np.int64))
    torch.manual_seed(0)
    config = TabularConfig(WIDTH, tokens="row", bins=4, mixer=kind, mixer_rank=RANK)  # the sum of the columns' tokens
    made = TabularTokenizer(TabularTokenizer.fit_config(config, [frame]))
    linear, data = nn.Linear(WIDTH, 2), made.encode(frame)
    optimizer = torch.optim.AdamW([*made.parameters(), *linear.parameters()], 1e-2)
    for _ in range(100):
        loss = nn.functional.cross_entropy(linear(made(data).x[:, 0]), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = float((linear(made(data).x[:, 0]).argmax(1) == answer).float().mean())
    assert right < 0.7 if kind == "none" else right > 0.95


def test_a_fit_trains_it(quick, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=400), "b": rng.choice(["x", "y"], 400)})
    frame["kind"] = np.where((frame.a > 0) ^ (frame.b == "x"), "same", "other")
    frame.to_csv(tmp_path / "t.csv", index=False)
    options = {"boost": False, "bins": 4, "mixer": "hiformer", "mixer_rank": 8}
    result, bundle = quick("tabular-classification", tmp_path / "t.csv", target="kind", epochs=None, lr=3e-3,
                           batch_size=64, tokenizer_options=options)  # fmt: skip
    assert result.epochs > 0 and result.metrics["accuracy"] > 0.9  # a mixer is of no use unless it learns
    assert bundle.tokenizer.mixer.out.any() and bundle.tokenizer.config.mixer == "hiformer"
    twin = polysense.load(result.path)
    assert twin(frame.head(9))[3].scores == bundle(frame.head(9))[3].scores
    plain, _ = quick("tabular-classification", tmp_path / "t.csv", target="kind", epochs=None, out=tmp_path / "plain",
                     tokenizer_options=options | {"mixer": "none"})  # fmt: skip
    assert plain.epochs == 0


def test_trees_stand_beside_mixed_columns(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("polysense.training.grow_trees.MOST_ROUNDS", 20)
    frame = table(80).assign(answer=np.arange(80.0) % 7)
    frame.to_csv(tmp_path / "t.csv", index=False)
    _, bundle = quick("tabular-regression", tmp_path / "t.csv", target="answer", epochs=1,
                      tokenizer_options={"mixer": "heterogeneous"})  # fmt: skip
    tokens = bundle.tokenizer(bundle.tokenizer.encode(frame))
    assert tokens.x.shape[1] == 6 and bundle.tokenizer.trees is not None
