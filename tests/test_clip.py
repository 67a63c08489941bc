"""Users' own CLIP and CLAP models in the anchor's place, with random weights: the same interface, the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional as F

from polysense.backbone.anchor import load_anchor
from polysense.backbone.weights import create_timm
from polysense.clip import clip_pictures
from polysense.core.errors import InputError
from polysense.zero_shot import zero_shot

TOWER = "random:vit_xsmall_patch16_clip_224"  # 512 numbers
SMALL = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_words(folder: Path) -> None:
    """A tokenizer of whole words, as transformers keeps it."""
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    from tokenizers import Tokenizer

    words = ["[PAD]", "[UNK]", "[EOS]", "a", "photo", "of", "dog", "cat", "sound", "the"]
    splitter = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    splitter.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=splitter, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]",
                            model_max_length=20).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {**SMALL, "max_position_embeddings": 20, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 3}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 16}, projection_dim=512)
    ).save_pretrained(folder)
    save_words(folder)
    return f"transformers:{folder}"


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8))


def test_words_equal_the_library(clip: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = clip.partition(":")[2]
    texts = ["a photo of a dog", "a cat"]
    vectors = load_anchor(clip)(texts)
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder).eval().get_text_features(**batch)
    expected = F.normalize(found if isinstance(found, torch.Tensor) else found.pooler_output, dim=-1)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert load_anchor(clip).dim == 512


def test_pictures_equal_timm(clip: str) -> None:
    pipeline = clip_pictures(TOWER, clip)
    model = create_timm(TOWER, head=True)
    data = timm.data.resolve_model_data_config(model)
    pixels = torch.from_numpy(np.asarray(picture())).permute(2, 0, 1).float()[None] / 255
    mean, std = (torch.tensor(data[name])[None, :, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = F.normalize(model((pixels - mean) / std), dim=-1)[0]
    assert torch.allclose(torch.from_numpy(pipeline(picture())[0].vector), expected, atol=1e-4)


def test_naming_by_such_a_space(clip: str) -> None:
    space = clip_pictures(TOWER, clip)
    pipeline = zero_shot("image", "dog, cat", none="other", meaning=space)
    answer = pipeline(picture())[0]
    assert set(answer.names) == {"dog", "cat", "other"} and sum(answer.scores) == pytest.approx(1)
    assert pipeline.encoder.spec == TOWER and pipeline.head.config.dim == 512
    words, vector = load_anchor(clip)(["dog", "a photo of a dog"]).mean(0), space(picture())[0].vector
    cosine = float(F.cosine_similarity(words, torch.from_numpy(vector), dim=0))
    batch = pipeline.tokenizer.collate([pipeline.tokenizer.read(picture())])
    out = pipeline.head.from_pooled(pipeline.head.pool(pipeline.features(batch)))
    assert float(pipeline.head.cosines(out["vector"])[0, 0]) == pytest.approx(cosine, abs=1e-5)


def test_words_of_clap(tmp_path: Path) -> None:
    from transformers import ClapConfig, ClapModel

    text = {**SMALL, "max_position_embeddings": 40, "pad_token_id": 0}
    audio = {"patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 32,
             "num_mel_bins": 64, "spec_size": 64, "num_hidden_layers": 2}  # fmt: skip
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).save_pretrained(tmp_path)
    save_words(tmp_path)
    anchor = load_anchor(f"transformers:{tmp_path}")
    vectors = anchor(["the sound of a dog", "a cat"])
    assert vectors.shape == (2, 24) == (2, anchor.dim) and torch.allclose(vectors.norm(dim=1), torch.ones(2))


def test_faults_are_named(tmp_path: Path, clip: str) -> None:
    with pytest.raises(InputError, match="the model cannot be had"):
        load_anchor(f"transformers:{tmp_path / 'nothing'}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **SMALL}))
    with pytest.raises(InputError, match=r"cannot be had|leads texts nowhere"):
        load_anchor(f"transformers:{tmp_path}")
    with pytest.raises(InputError, match="does not end in a projection"):
        clip_pictures("random:resnet18", clip)
