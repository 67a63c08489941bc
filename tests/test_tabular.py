"""Table tokenizer: schema, encoding, odd values, tokens."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from polysense.core.errors import InputError
from polysense.tokenizers.base import TOKENIZERS
from polysense.tokenizers.tabular import NumberEmbedding, TabularConfig, TabularTokenizer
from polysense.tokenizers.tabular_schema import Column, bin_edges, infer_column

WIDTH = 24


def table(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    days = pd.Timestamp("2023-01-01") + pd.to_timedelta(rng.integers(0, 700, n), unit="D")
    frame = pd.DataFrame({
        "id": [f"customer-{i}" for i in range(n)], "row": np.arange(n), "age": rng.normal(40, 12, n).round(1),
        "city": rng.choice(["Rome", "Oslo", "Lima"], n), "member": rng.random(n) < 0.5, "since": days,
        "empty": np.nan, "same": 3.0, "answer": rng.choice(["yes", "no"], n),
    })  # fmt: skip
    frame.loc[3, "age"], frame.loc[4, "city"], frame.loc[5, "since"] = np.nan, None, pd.NaT
    return frame


@pytest.fixture(scope="module")
def tokenizer() -> TabularTokenizer:
    torch.manual_seed(0)
    return TabularTokenizer(TabularTokenizer.fit_config(TabularConfig(WIDTH, targets=("answer",)), [table()]))


def kinds(config: TabularConfig) -> dict[str, str]:
    return {column.name: column.kind for column in config.columns}


def row(**changes) -> dict:
    return {"age": 30.0, "city": "Rome", "member": True, "since": "2023-05-01", "same": 3.0} | changes


def test_schema(tokenizer):
    assert kinds(tokenizer.config) == {
        "id": "ignored", "row": "ignored", "age": "number", "city": "category", "member": "boolean", "since": "date",
        "empty": "ignored", "same": "number"}  # fmt: skip
    assert tokenizer.config.names == tuple(table().columns)
    assert TOKENIZERS["tabular"] is TabularTokenizer


def test_schema_from_paths_and_rows(tmp_path):
    table().to_csv(tmp_path / "a.csv", index=False)
    config = TabularConfig(WIDTH, targets=("answer",))
    expected = kinds(TabularTokenizer.fit_config(config, [table()]))
    assert kinds(TabularTokenizer.fit_config(config, [tmp_path / "a.csv"])) == expected
    assert kinds(TabularTokenizer.fit_config(config, table().to_dict("records"))) == expected
    fitted = TabularTokenizer.fit_config(config, [table()])
    assert TabularTokenizer.fit_config(fitted, [pd.DataFrame({"other": [1, 2]})]) is fitted


def test_schema_errors():
    with pytest.raises(InputError, match="no column 'price'"):
        TabularTokenizer.fit_config(TabularConfig(targets=("price",)), [table()])
    with pytest.raises(InputError, match="no column can be used"):
        TabularTokenizer.fit_config(TabularConfig(targets=("y",)), [pd.DataFrame({"y": [1.0, 2.0]})])
    with pytest.raises(ValueError, match="fit_config"):
        TabularTokenizer(TabularConfig())


def test_rare_categories_share_one_code():
    values = pd.Series([f"c{i % 80}" for i in range(800)])
    assert len(infer_column("c", values, 4).categories) == 64
    assert infer_column("c", values.sample(frac=1, random_state=0), 4) == infer_column("c", values, 4)


def test_bins_of_a_mostly_constant_column_reach_the_rare_values():
    edges = bin_edges(np.array([0.0] * 95 + [1, 5, 10, 50, 100]), 8)
    assert len(edges) <= 9 and edges[0] == 0 and edges[-1] == 100 and sum(0 < e < 100 for e in edges) >= 4


def test_config_round_trip(tokenizer):
    config = TabularConfig(**json.loads(json.dumps(tokenizer.config_dict())))
    assert config == tokenizer.config and isinstance(config.columns[0], Column)
    twin = TabularTokenizer(config)
    twin.load_state_dict(tokenizer.state_dict())
    batch = tokenizer.collate([tokenizer.read(row())])
    assert torch.equal(twin(batch).x, tokenizer(batch).x)


def test_numbers_are_piecewise_linear():
    layer = NumberEmbedding([Column("x", "number", mean=2.0, std=2.0, edges=(0.0, 2.0, 6.0))], bins=3, width=4)
    layer.weight.data = torch.eye(4)[None]  # shows the code: three bins (one unused) and the value
    code = layer((torch.tensor([[-2.0], [1.0], [4.0], [10.0], [float("nan")]]) - 2) / 2)[:, 0]
    expected = [[0, 0, 0, -2], [0.5, 0, 0, -0.5], [1, 0.5, 0, 1], [1, 1, 0, 4], [0, 0, 0, 0]]
    torch.testing.assert_close(code, torch.tensor(expected))


@pytest.mark.parametrize("tokens", ["columns", "row"])
def test_tokens(tokenizer, tokens):
    tokenizer = TabularTokenizer(replace(tokenizer.config, tokens=tokens))
    samples = list(tokenizer.read_all(table()))
    out = tokenizer(tokenizer.collate(samples))
    n = 5 if tokens == "columns" else 1
    assert out.x.shape == (60, n, WIDTH) and out.mask is None and out.grid is None
    assert out.pos[0].flatten().tolist() == list(range(n))
    for i in (0, 3, 4, 5, 59):  # rows with missing values among them
        torch.testing.assert_close(tokenizer(tokenizer.collate([samples[i]])).x[0], out.x[i], atol=1e-5, rtol=1e-5)
    assert out.x.isfinite().all()


@pytest.mark.parametrize("name", ["age", "city", "member", "since", "same"])
def test_each_token_depends_on_its_column_alone(tokenizer, name):
    new = {"age": 55.0, "city": "Oslo", "member": False, "since": "2024-02-02", "same": 4.0}[name]
    a, b = (tokenizer(tokenizer.collate([tokenizer.read(r)])).x[0] for r in (row(), row(**{name: new})))
    changed = (a != b).any(-1).tolist()
    assert changed == [name == column.name for column in tokenizer.used]


def test_gradient_reaches_every_parameter(tokenizer):
    tokenizer(tokenizer.collate(list(tokenizer.read_all(table())))).x.square().sum().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    tokenizer.zero_grad()


def test_column_order_and_extra_columns_do_not_matter(tokenizer):
    a = tokenizer.encode(table())
    b = tokenizer.encode(table()[["since", "member", "same", "city", "age"]].assign(more=1))
    assert a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(-99), b[k].nan_to_num(-99)) for k in a)


def test_unseen_and_missing_values(tokenizer):
    codes = [int(tokenizer.read(row(city=city)).data["categories"][0]) for city in ("Rome", "Paris", None, "?")]
    assert codes[0] >= 2 and codes[1:] == [1, 0, 0]
    gone = table().assign(age=np.nan, city=None, member=None, since=pd.NaT)
    assert tokenizer(tokenizer.encode(gone)).x.isfinite().all()
    assert tokenizer.read(row(age=float("inf"))).data["numbers"].isnan().sum() == 1


@pytest.mark.parametrize("value", [True, "true", "TRUE", "yes", 1, "1"])
def test_booleans_however_they_are_written(tokenizer, value):
    truth = tokenizer.read(row(member=True)).data["categories"]
    assert torch.equal(tokenizer.read(row(member=value)).data["categories"], truth)


def test_number_categories_match_however_they_are_typed():
    config = TabularTokenizer.fit_config(TabularConfig(WIDTH), [pd.DataFrame({"code": ["1", "2", "A"] * 9})])
    tokenizer = TabularTokenizer(config)
    for frame in ({"code": [1, 2]}, {"code": [1.0, 2.0, None]}, {"code": ["1", "2"]}):
        assert tokenizer.encode(pd.DataFrame(frame))["categories"][:2, 0].tolist() == [2, 3]


@pytest.mark.parametrize("value", ["2023-05-01", pd.Timestamp("2023-05-01"), "2023-05-01T00:00:00Z"])
def test_dates_however_they_are_written(tokenizer, value):
    expected = tokenizer.encode(table().head(1).assign(since=pd.Timestamp("2023-05-01")))
    found = tokenizer.read(row(since=value)).data
    torch.testing.assert_close(found["cycles"], expected["cycles"][0])
    assert found["numbers"][1] == expected["numbers"][0, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"age": 1.0}, "no columns 'city', 'member', 'since', 'same'"),
        (row(age="old"), "'age' holds 'old' in row 0, which is no number"),
        (row(since="soon"), "'since' holds 'soon' in row 0, which is no date"),
        ([row(), row()], "2 rows"),
        (7, "no table"),
    ],
)
def test_errors(tokenizer, source, message):
    with pytest.raises(InputError, match=message):
        tokenizer.read(source)


def test_sources_are_named(tokenizer, tmp_path):
    table().head(3).to_csv(tmp_path / "a.csv", index=False)
    samples = list(tokenizer.read_all(tmp_path / "a.csv"))
    assert [s.source for s in samples] == [f"{tmp_path / 'a.csv'}#{i}" for i in range(3)]
    assert [s.meta["row"] for s in samples] == [0, 1, 2]
    batch = tokenizer.collate(samples)
    assert batch["meta"][2] == {"row": 2, "source": f"{tmp_path / 'a.csv'}#2"}
    assert tokenizer.read(table().iloc[0]).data["numbers"].shape == (3,)


def test_rows_without_header_match_by_place(tmp_path):
    frame = pd.DataFrame({"answer": ["a", "b"] * 10, "x": np.arange(20) * 0.5, "kind": ["p", "p", "q", "q"] * 5})
    tokenizer = TabularTokenizer(TabularTokenizer.fit_config(TabularConfig(WIDTH, targets=("answer",)), [frame]))
    expected = tokenizer.encode(frame)
    for drop in ([], ["answer"]):  # with and without the target
        path = tmp_path / f"{len(drop)}.csv"
        frame.drop(columns=drop).to_csv(path, index=False, header=False)
        found = tokenizer.collate(list(tokenizer.read_all(path)))
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_only_one_kind_of_column():
    for frame in (pd.DataFrame({"x": [1.0, 2.5, 4.0]}), pd.DataFrame({"c": ["a", "b", "a"]})):
        tokenizer = TabularTokenizer(TabularTokenizer.fit_config(TabularConfig(WIDTH), [frame]))
        assert tokenizer(tokenizer.encode(frame)).x.shape == (3, 1, WIDTH)


def test_it_learns():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=400), "c": rng.choice(["a", "b"], 400)})
    target = torch.tensor(((frame.x.abs() > 0.7) ^ (frame.c == "a")).to_numpy(np.int64))
    tokenizer = TabularTokenizer(TabularTokenizer.fit_config(TabularConfig(WIDTH, tokens="row"), [frame]))
    head = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, 2))
    data = tokenizer.encode(frame)
    optimizer = torch.optim.AdamW([*tokenizer.parameters(), *head.parameters()], 1e-2)
    for _ in range(80):
        loss = nn.functional.cross_entropy(head(tokenizer(data).x[:, 0]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(tokenizer(data).x[:, 0]).argmax(1) == target).float().mean() > 0.95
