"""Adapters: the encoder stays as it is, padding changes nothing, files come back, merged weights compute the same."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from polysense.backbone.adapters import METHODS, AdaptedEncoder, AdapterConfig, adapt, load_adapter
from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.core.errors import InputError
from polysense.core.types import Tokens

MERGEABLE = ("lora", "dora", "vera", "ia3", "scale", "bitfit", "full")
PEFT = ("lora", "dora", "vera", "ia3")
NEW_FROM_THE_START = ("prompts", "deep-prompts", "prefix")
LENGTHS = (7, 3, 5, 1)


def base(**options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = Encoder(EncoderConfig(width=24, depth=2, heads=3, **options), "random:test")
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, 0, 0.2)
    return encoder.freeze()


def batch(lengths=LENGTHS, padding=0.0, to=None):
    to = to or max(lengths)
    x, pos = torch.full((len(lengths), to, 24), padding), torch.full((len(lengths), to, 3), padding)
    mask = torch.zeros(len(lengths), to, dtype=torch.bool)
    for i, length in enumerate(lengths):
        own = torch.Generator().manual_seed(length)
        x[i, :length], pos[i, :length] = (torch.randn(length, c, generator=own) for c in (24, 3))
        mask[i, :length] = True
    return Tokens(x, None if bool(mask.all()) else mask, pos)


def shaken(encoder, method, **options):
    """An adapter far from where it starts."""
    torch.manual_seed(0)
    adapted = adapt(encoder, AdapterConfig(method, **{"rank": 3, "tokens": 2, "kernel": 3, "neighbours": 3, **options}))
    with torch.no_grad():
        for parameter in adapted.adapter_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted.eval()


@pytest.fixture(params=[{}, {"class_token": True, "layer_scale": True}], ids=["plain", "with class token"])
def frozen(request):
    return base(**request.param)


@pytest.mark.parametrize("method", METHODS)
def test_starts_as_the_encoder_itself_and_shares_its_weights(method, frozen):
    adapted = adapt(frozen, AdapterConfig(method, rank=4)).eval()
    shared = {parameter.data_ptr() for parameter in frozen.parameters()}
    if method not in ("full", "bitfit"):
        assert shared <= {parameter.data_ptr() for parameter in adapted.parameters()}
    if method not in NEW_FROM_THE_START:
        torch.testing.assert_close(adapted(batch()).last.x[0], frozen(batch()).last.x[0], atol=1e-5, rtol=1e-5)
    assert isinstance(adapted, Encoder) and adapted.fingerprint() == frozen.fingerprint()


@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapter_learns(method, frozen):
    before = frozen.fingerprint()
    adapted = shaken(frozen, method)
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    found = adapted(batch(), layers=(1,))
    real = batch().mask
    (found.last.x[real] ** 3).sum().add(0 if found.cls is None else found.cls.sum()).backward()
    own = adapted.adapter_parameters()
    assert own and [name for name, p in own.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert sum(bool(p.grad.any()) for p in own.values()) >= 0.9 * len(own)  # biases of keys have no effect
    assert all(p.grad is None for p in frozen.parameters())
    optimiser.step()
    assert frozen.fingerprint() == before == adapted.fingerprint()


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_neighbours_in_the_batch_change_nothing(method, frozen):
    adapted = shaken(frozen, method)
    together = adapted(batch(), layers=(0, 1))
    assert together.last.x.shape == batch().x.shape and together.last.pos is not None
    for padded in (batch(padding=1e4, to=12), batch(padding=float("nan"), to=9)):
        other = adapted(padded, layers=(0, 1))
        for i, length in enumerate(LENGTHS):
            torch.testing.assert_close(other.last.x[i, :length], together.last.x[i, :length], atol=1e-4, rtol=1e-4)
    for i, length in enumerate(LENGTHS):
        single = adapted(batch([length]), layers=(0, 1))
        torch.testing.assert_close(single.last.x[0], together.last.x[i, :length], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(single.hidden[1].x[0], together.hidden[1].x[i, :length], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(single.hidden[0].x[0], batch([length]).x[0])
        if single.cls is not None:
            torch.testing.assert_close(single.cls[0], together.cls[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_files_come_back(method, frozen, tmp_path):
    adapted = shaken(frozen, method)
    adapted.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = load_adapter(frozen, tmp_path).eval()
    torch.testing.assert_close(again(batch([5])).last.x, adapted(batch([5])).last.x, atol=0, rtol=0)
    assert sorted(again.adapter_parameters()) == sorted(adapted.adapter_parameters())
    assert any(parameter.requires_grad for parameter in again.parameters())  # it may learn on


@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_compute_the_same_and_leave_the_encoder_alone(method, frozen):
    adapted = shaken(frozen, method)
    before = frozen.fingerprint()
    if method not in MERGEABLE:
        with pytest.raises(InputError, match="cannot be merged"):
            adapted.merged()
        return
    merged = adapted.merged()
    torch.testing.assert_close(merged(batch([6])).last.x, adapted(batch([6])).last.x, atol=1e-5, rtol=1e-5)
    assert type(merged) is Encoder and set(merged.state_dict()) >= set(frozen.state_dict())
    assert frozen.fingerprint() == before != merged.fingerprint()
    torch.testing.assert_close(shaken(frozen, method)(batch([6])).last.x, adapted(batch([6])).last.x)


def test_several_adapters_stand_on_one_encoder(frozen):
    one, other = shaken(frozen, "lora"), shaken(frozen, "houlsby")
    first, second, plain = (e(batch([5])).last.x for e in (one, other, frozen))
    for _ in range(2):  # in turn, and each gives its own answer
        assert torch.equal(one(batch([5])).last.x, first) and torch.equal(other(batch([5])).last.x, second)
        assert torch.equal(frozen(batch([5])).last.x, plain)
    assert (first - second).abs().max() > 1e-2
    assert adapt(one, AdapterConfig("scale")).plain is frozen


@pytest.mark.parametrize("method", PEFT)
def test_peft_reads_ours_and_we_read_theirs(method, frozen, tmp_path):
    from peft import PeftModel, get_peft_model

    from polysense.backbone.adapters.config import shared_copy

    adapted = shaken(frozen, method)
    adapted.save(tmp_path)
    theirs = PeftModel.from_pretrained(shared_copy(frozen), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(batch([5])).last.x, adapted(batch([5])).last.x, atol=1e-6, rtol=1e-6)
    made = get_peft_model(shared_copy(frozen), theirs.peft_config["default"])
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad or "lora" in name or "vera_lambda" in name or "ia3" in name:
                parameter.add_(0.05)
    made.save_pretrained(str(tmp_path / "theirs"))
    ours = load_adapter(frozen, tmp_path / "theirs").eval()
    torch.testing.assert_close(ours(batch([5])).last.x, made.eval()(batch([5])).last.x, atol=1e-6, rtol=1e-6)


def test_guided_adapters_look_at_neighbours_of_flat_views():
    from polysense.backbone.adapters.guided import nearest

    pos = torch.tensor([[[0.0, 0, 9], [0.1, 0, -9], [5, 5, 9], [5, 5, 0]]])
    tokens = Tokens(torch.zeros(1, 4, 24), torch.tensor([[True, True, True, False]]), pos)
    found = nearest(tokens, 2)[0]
    assert found.shape == (6, 4, 2)
    assert found[0, :2].tolist() == [[0, 1], [1, 0]]  # seen from above the first two are neighbours
    assert found[5, 0].tolist() == [0, 2]  # by height the first and the third
    assert (found[:, :3] != 3).all()  # padding is nobody's neighbour
    lone = nearest(Tokens(torch.zeros(1, 2, 24), torch.tensor([[True, False]]), torch.zeros(1, 2, 3)), 2)
    assert (lone[0, :, 0] == 0).all()


def test_a_convolution_reads_its_own_sequence_only(frozen):
    adapted = shaken(frozen, "conv")
    x = batch([5, 5])
    changed = Tokens(torch.stack([x.x[0], torch.randn(5, 24)]), None, x.pos)
    torch.testing.assert_close(adapted(changed).last.x[0], adapted(x).last.x[0], atol=1e-5, rtol=1e-5)


def test_faults_are_one_clear_sentence(tmp_path):
    encoder = base()
    with pytest.raises(ValueError, match="unknown adapter 'magic'"):
        AdapterConfig("magic")
    with pytest.raises(ValueError, match=r"targets are among attn\.qkv"):
        AdapterConfig(targets=("attn.all",))
    with pytest.raises(ValueError, match="kernel is odd"):
        AdapterConfig("conv", kernel=4)
    with pytest.raises(ValueError, match="windows"):
        adapt(base(windows=(1, 1)), AdapterConfig("prefix"))
    with pytest.raises(InputError, match="holds no adapter"):
        load_adapter(encoder, tmp_path)
    shaken(encoder, "houlsby").save(tmp_path)
    with pytest.raises(InputError, match="does not fit the encoder"):
        load_adapter(Encoder(EncoderConfig(width=48, depth=2, heads=3)).freeze(), tmp_path)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    told["polysense"]["rank"] = 5
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="does not fit"):
        load_adapter(encoder, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="no whole safetensors file"):
        load_adapter(encoder, tmp_path)
    shaken(encoder, "lora").save(tmp_path)
    save_file({"odd": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="other tensors"):
        load_adapter(encoder, tmp_path)


def test_parameters_are_few():
    encoder = base()
    total = sum(parameter.numel() for parameter in encoder.parameters())
    counts = {
        m: sum(p.numel() for p in adapt(encoder, AdapterConfig(m)).adapter_parameters().values()) for m in METHODS
    }
    assert counts["full"] == total and counts["ia3"] < counts["scale"] < counts["lora"] < counts["dora"] < total
    assert counts["bitfit"] == sum(p.numel() for name, p in encoder.named_parameters() if name.endswith("bias"))
    assert np.isclose(counts["pfeiffer"] * 2, counts["houlsby"])


def test_an_adapter_of_an_adapted_encoder_is_an_encoder():
    adapted = shaken(base(), "lora")
    assert isinstance(adapted, AdaptedEncoder) and adapted.freeze() is adapted and adapted.method == "lora"


@pytest.mark.parametrize("method", ["dora", "conv"])
def test_a_pipeline_trains_saves_and_loads_its_adapter(method, image_folders, quick, tmp_path):
    result, bundle = quick("image-classification", image_folders, method=method, adapter_options={"rank": 2})
    names = {path.name for path in result.path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors"} <= names
    assert f"adapter ({method})" in (result.path / "README.md").read_text()
    picture = next(image_folders.rglob("*.png"))
    answer = bundle(picture)[0]
    assert answer.scores == bundle.with_adapter(result.path)(picture)[0].scores  # from its own files once more
    other = bundle.with_adapter(result.path)
    other.adapt("scale")
    assert isinstance(bundle.encoder, AdaptedEncoder) and bundle(picture)[0].scores == answer.scores
    plain = bundle.encoder.plain
    assert bundle.encoder_hash == plain.fingerprint() and not any(p.requires_grad for p in plain.parameters())
    moved = sum(float(p.detach().abs().sum()) for name, p in bundle.encoder.adapter_parameters().items()
                if name.endswith(("lora_B.default.weight", "up.weight")))  # fmt: skip
    assert moved > 0  # it began at zero


def test_an_adapter_that_is_none_is_refused(build):
    with pytest.raises(InputError, match="unknown adapter 'magic'"):
        build("image-classification", adapter={"method": "magic"})
    with pytest.raises(InputError, match="colour"):
        build("image-classification", adapter={"colour": 3})
