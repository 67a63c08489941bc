"""The convolutional front parts: shapes, and equality with an independent implementation."""

from __future__ import annotations

from math import log

import pytest
import timm
import torch
from torch import Tensor, nn

from polysense.tokenizers.audio_features import FLOOR
from polysense.tokenizers.stems import Lite0Stem, PaddedConv, YamnetStem


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution without bias followed by a batch norm in eval mode."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def load(ours: nn.Conv2d, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    weight, bias = fold(conv, norm)
    ours.load_state_dict({"weight": weight, "bias": bias})


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """timm's EfficientNet-lite0 with random weights and random batch norm statistics."""
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model


@pytest.mark.parametrize(("stride", "last"), [(32, 15), (16, 10), (4, 2)])
@torch.no_grad()
def test_lite0_is_the_front_of_efficientnet_lite0(reference: nn.Module, stride: int, last: int) -> None:
    stem = Lite0Stem(stride).eval()
    blocks = [block for stage in reference.blocks for block in stage][: last + 1]  # type: ignore[union-attr]
    load(stem.first, reference.conv_stem, reference.bn1)  # type: ignore[arg-type]
    assert len(stem.blocks) == len(blocks)
    for ours, theirs in zip(stem.blocks, blocks, strict=True):
        if ours.expand is not None:
            load(ours.expand, theirs.conv_pw, theirs.bn1)
            load(ours.depthwise, theirs.conv_dw, theirs.bn2)
            load(ours.project, theirs.conv_pwl, theirs.bn3)
        else:
            load(ours.depthwise, theirs.conv_dw, theirs.bn1)
            load(ours.project, theirs.conv_pw, theirs.bn2)
    x = torch.randn(2, 3, 64, 96)
    expected = reference.bn1(reference.conv_stem(x))  # type: ignore[operator]
    for block in blocks:
        expected = block(expected)
    got = stem(x)
    assert expected.std() > 0.1  # else equality would say little
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)  # 16 blocks of rounding


@pytest.mark.parametrize(("stride", "channels"), [(32, 320), (16, 112), (4, 24)])
def test_lite0_shape(stride: int, channels: int) -> None:
    stem = Lite0Stem(stride)
    assert stem(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 64 // stride, 96 // stride)
    assert (stem.channels, stem.stride) == (channels, stride)


def test_lite0_knows_three_strides() -> None:
    with pytest.raises(ValueError, match="stride 4, 16, 32"):
        Lite0Stem(8)


def test_lite0_is_as_small_as_promised() -> None:
    assert sum(p.numel() for p in Lite0Stem().parameters()) == pytest.approx(2.94e6, rel=0.01)


@torch.no_grad()
def test_yamnet_gives_layer_7_and_what_layers_9_and_14_make_of_it() -> None:
    torch.manual_seed(0)
    stem, mel = YamnetStem(), torch.randn(1, 1, 96, 64)
    bands, late = stem(mel).split([4, 2], 3)
    early, middle = bands.chunk(2, 1)
    torch.testing.assert_close(middle, stem.blocks[6:8](early))
    torch.testing.assert_close(late[:, :, ::2], stem.blocks[8:](middle))
    torch.testing.assert_close(late[:, :, 1::2], late[:, :, ::2])
    stem.blocks[7].pointwise.bias.add_(1.0)
    assert torch.equal(stem(mel)[:, :512, :, :4], early) and not torch.equal(stem(mel)[:, 512:, :, :4], middle)


@torch.no_grad()
def test_yamnet_reads_window_after_window() -> None:
    """A window's answer does not depend on the one before; a short last one is followed by silence."""
    torch.manual_seed(0)
    stem, mel = YamnetStem(), torch.randn(2, 1, 96 + 32, 64)
    alone = stem(torch.nn.functional.pad(mel[:, :, 96:], (0, 0, 0, 64), value=log(FLOOR)))
    together = stem(mel)
    assert together.shape == (2, 1024, 8, 6)
    torch.testing.assert_close(together[:, :, :6], stem(mel[:, :, :96]))
    torch.testing.assert_close(together[:, :, 6:], alone[:, :, :2])


def test_yamnet_shape_and_size() -> None:
    stem = YamnetStem()
    assert stem(torch.zeros(2, 1, 96, 64)).shape == (2, 1024, 6, 6)
    assert sum(p.numel() for p in stem.parameters()) == pytest.approx(3.2e6, rel=0.02)


@torch.no_grad()
def test_lite0_maps_are_what_leads_to_its_answer() -> None:
    for stride, channels in ((32, (320, 112, 40, 24)), (16, (112, 40, 24)), (4, (24,))):
        stem, x = Lite0Stem(stride), torch.rand(1, 3, 64, 96) * 2 - 1
        maps = stem.maps(x)
        assert torch.equal(maps[0], stem(x)) and stem.fine_channels == channels[1:]
        assert [one.shape[1] for one in maps] == list(channels)
        sides = [(64 // stride << i, 96 // stride << i) for i in range(len(maps))]
        assert [tuple(one.shape[2:]) for one in maps] == sides
    early, full = Lite0Stem(4), Lite0Stem(16)
    early.load_state_dict({k: v for k, v in full.state_dict().items() if k in early.state_dict()})
    torch.testing.assert_close(full.maps(x)[-1], early(x))


@pytest.mark.parametrize(("kernel", "stride", "before"), [(3, 1, 1), (3, 2, 0), (5, 1, 2), (5, 2, 1), (1, 1, 0)])
@torch.no_grad()
def test_padding_is_tensorflows_same(kernel: int, stride: int, before: int) -> None:
    conv = PaddedConv(1, 1, kernel, stride, bias=False)
    nn.init.zeros_(conv.weight)
    conv.weight[0, 0, before, before] = 1.0  # picks each output's own pixel when `before` zeros stand in front
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(conv(x), x[..., ::stride, ::stride])


@pytest.mark.parametrize("stem", [Lite0Stem(32), YamnetStem()], ids=["lite0", "yamnet"])
def test_gradient_reaches_every_parameter(stem: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 96, 64) if isinstance(stem, YamnetStem) else torch.randn(2, 3, 64, 64)
    stem(x).square().sum().backward()
    for name, parameter in stem.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
