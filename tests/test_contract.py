"""What is validated is what is shipped: `convert(p)(x)` equals `p.eval()(x)`, bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant
from fxquant import QuantConfig, QuantScheme, darts
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from tests import laws
from tests.strategies import NetSpec, chain, net_specs


def prepared_and_quantized(model, x, config=None):
    prepared = fxquant.prepare_qat(model, config=config)
    laws.settle(prepared, x)
    return prepared, fxquant.convert(prepared)


GENOTYPES = ["DARTS_V1", "DARTS_V2", "NASNet", "AmoebaNet", "PDARTS", "PC_DARTS_cifar"]


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("genotype", GENOTYPES)
def test_darts_networks(genotype, auxiliary):
    torch.manual_seed(0)
    net = darts.NetworkCIFAR(4, 10, 4, darts.GENOTYPES[genotype], auxiliary, drop_path_prob=0.2)
    config = fxquant.QuantConfig(batch_norm="fold" if auxiliary else "train")
    prepared, quantized = prepared_and_quantized(net, torch.randn(4, 3, 32, 32), config)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 32, 32)
        laws.assert_equal(quantized(x), prepared(x))


@pytest.mark.parametrize("config", [laws.CONFIGS["train"], laws.CONFIGS["equalize"]])
def test_darts_for_imagenet(config):
    torch.manual_seed(0)
    net = darts.NetworkImageNet(4, 10, 4, darts.GENOTYPES["PC_DARTS_image"])
    prepared, quantized = prepared_and_quantized(net, torch.randn(2, 3, 64, 64), config)
    x = torch.randn(3, 3, 64, 64)
    laws.assert_equal(quantized(x), prepared(x))


@pytest.mark.parametrize("config", laws.CONFIGS.values(), ids=laws.CONFIGS)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_networks(name, config):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    net = models.get_model(name, num_classes=10)
    prepared, quantized = prepared_and_quantized(net, torch.randn(4, 3, 32, 32), config)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 32, 32)
        laws.assert_equal(quantized(x), prepared(x))


def test_the_batch_does_not_matter():
    spec = chain("conv", "bn", "relu", "conv_depthwise", "avg_pool_inside", head=True)
    _, quantized = prepared_and_quantized(spec.build(), spec.inputs(8))
    x = spec.inputs(20, seed=3)
    together = quantized(x)
    laws.assert_equal(torch.cat([quantized(row[None]) for row in x]), together)
    laws.assert_equal(quantized(x.flip(0)).flip(0), together)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # said whenever oneDNN is switched
def test_threads_modes_and_autocast_do_not_matter():
    spec = chain("conv", "bn", "relu", "conv_grouped", "max_pool", head=True)
    prepared, quantized = prepared_and_quantized(spec.build(), spec.inputs(8))
    x = spec.inputs(16, seed=3)
    expected = quantized(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        laws.assert_equal(quantized(x), expected)
    finally:
        torch.set_num_threads(threads)
    laws.assert_equal(quantized.train()(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        laws.assert_equal(quantized(x), expected)
        laws.assert_equal(prepared(x), expected)
    with torch.backends.mkldnn.flags(enabled=False):  # NNPACK's Winograd would round
        laws.assert_equal(quantized(x), expected)
    laws.assert_equal(quantized(x.contiguous(memory_format=torch.channels_last)), expected)


def test_a_copy_and_a_state_dict_carry_everything():
    spec = chain("conv", "bn", "relu", "conv", head=True)
    prepared, quantized = prepared_and_quantized(spec.build(), spec.inputs(4))
    x = spec.inputs(3, seed=5)
    laws.assert_equal(copy.deepcopy(quantized)(x), quantized(x))
    fresh = fxquant.prepare_qat(spec.build())
    fresh.load_state_dict(prepared.state_dict())
    laws.assert_equal(fresh.eval()(x), prepared(x))
    other = fxquant.convert(fresh)
    other.load_state_dict(quantized.state_dict())
    laws.assert_equal(other(x), quantized(x))


def train_steps(model, spec, steps, optimizer):
    model.train()
    for seed in range(steps):
        optimizer.zero_grad()
        y = model(spec.inputs(4, seed=seed))
        F.cross_entropy(y, torch.arange(4) % 3).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["train", "equalize"])
def test_converting_leaves_the_training_as_it_was(name):
    """The same weights, buffers and random numbers as if convert had never been called."""
    spec = chain("conv", "bn", "relu", "dropout", "conv_depthwise", "bn", head=True)
    states = []
    for convert_between in (False, True):
        torch.manual_seed(0)
        prepared = fxquant.prepare_qat(spec.build(), config=laws.CONFIGS[name])
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
        train_steps(prepared, spec, 3, optimizer)
        if convert_between:
            quantized = fxquant.convert(prepared)
            quantized(spec.inputs(4))
        train_steps(prepared, spec, 3, optimizer)
        states.append(prepared.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@settings(max_examples=30, deadline=None)
@given(spec=net_specs(), name=st.sampled_from(sorted(laws.CONFIGS)))
def test_the_users_model_is_not_touched(spec: NetSpec, name: str):
    model = spec.build()
    laws.capture(model)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    text = repr(model)
    prepared = fxquant.prepare_qat(model, config=laws.CONFIGS[name])
    laws.settle(prepared)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert repr(model) == text
    assert {id(t) for t in model.parameters()}.isdisjoint(id(t) for t in prepared.parameters())


def test_integers_stay_near_the_float_network():
    """With settled statistics 8 bits lose little: 25 dB or more on a plain network."""
    spec = chain("conv", "bn", "relu", "conv", "bn", "relu", "conv", head=True)
    model = spec.build()
    prepared = fxquant.prepare_qat(model, config=laws.CONFIGS["fold"])
    laws.settle(prepared, spec.inputs(64))
    x = spec.inputs(64, seed=9)
    expected, got = model(x), fxquant.convert(prepared)(x)
    noise = (got - expected).pow(2).mean()
    assert 10 * torch.log10(expected.pow(2).mean() / noise) > 25


class SqueezeExcite(nn.Module):
    """MobileNetV3's: a gate of two layers over the mean of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        gate = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.expand(gate))


class InvertedResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True),
            nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
            SqueezeExcite(8), nn.Conv2d(8, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return x + self.inner(x)


class ConvNeXtBlock(nn.Module):
    """A scale per channel that the network holds, and GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.expand, self.reduce = nn.Linear(channels, 8), nn.Linear(8, channels)
        self.gamma = nn.Parameter(torch.randn(channels))

    def forward(self, x):
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.reduce(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class SelfAttention(nn.Module):
    """Over the places of an image: softmax(q·kᵀ/√d)·v."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.channels = nn.Conv2d(channels, 3 * channels, 1), channels

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        weights = F.softmax(q.transpose(1, 2) @ k / self.channels**0.5, dim=-1)
        return x + (v @ weights.transpose(1, 2)).view_as(x)


class Gated(nn.Module):
    """A highway: t·h + (1 - t)·x, and a softplus-like quotient."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.h, self.t = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        t = torch.sigmoid(self.t(x))
        y = torch.tanh(self.h(x)) * t + (1 - t) * x
        return y / (1 + torch.exp(-y)) - 0.25 * F.leaky_relu(-y, 0.2)


BLOCKS = [InvertedResidual, ConvNeXtBlock, SelfAttention, Gated]


@pytest.mark.parametrize("config", laws.CONFIGS.values(), ids=laws.CONFIGS)
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_modern_networks(block, config):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), block(4), block(4), nn.Conv2d(4, 2, 1))
    prepared, quantized = prepared_and_quantized(net, torch.randn(4, 3, 9, 8), config)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 9, 8) * 2
        laws.assert_equal(quantized(x), prepared(x))
    train_one_step(prepared, torch.randn(4, 3, 9, 8))
    laws.assert_equal(fxquant.convert(prepared)(x), prepared.eval()(x))
    assert not torch.equal(quantized(x), prepared(x))


def train_one_step(prepared, x):
    """The layers' parameters have gradients, and move."""
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.5)
    prepared.train()(x).square().mean().backward()
    layers = [m for m in prepared.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert all(layer.weight.grad.isfinite().all() for layer in layers)
    optimizer.step()


@pytest.mark.parametrize("config", [laws.CONFIGS["train"], laws.CONFIGS["equalize"]])
@pytest.mark.parametrize("name", ["mobilenet_v3_small"])
def test_torchvision_networks_with_gates(name, config):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    net = models.get_model(name, num_classes=10)
    prepared, quantized = prepared_and_quantized(net, torch.randn(2, 3, 32, 32), config)
    x = torch.randn(3, 3, 32, 32)
    laws.assert_equal(quantized(x), prepared(x))


IMAGE, CLIP = (2, 3, 32, 32), (2, 3, 4, 16, 16)
SLOW = pytest.mark.slow
DENSE = [
    ("lraspp_mobilenet_v3_large", {}, IMAGE),
    pytest.param("deeplabv3_mobilenet_v3_large", {}, IMAGE, marks=SLOW),
    pytest.param("deeplabv3_resnet50", {}, IMAGE, marks=SLOW),
    pytest.param("fcn_resnet50", {"aux_loss": True}, IMAGE, marks=SLOW),
    ("mc3_18", {}, CLIP),
    pytest.param("r3d_18", {}, CLIP, marks=SLOW),
    pytest.param("r2plus1d_18", {}, CLIP, marks=SLOW),
]


@pytest.mark.parametrize(("name", "options", "shape"), DENSE)
def test_torchvision_networks_for_segmentation_and_video(name, options, shape):
    """Resized to the size of the input, a dict of outputs; convolutions in three dimensions."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    options = {"weights_backbone": None} | options if shape is IMAGE else options
    net = models.get_model(name, num_classes=5, **options)
    prepared, quantized = prepared_and_quantized(net, torch.randn(shape), laws.CONFIGS["train"])
    x = torch.randn(shape)
    ours, theirs = quantized(x), prepared(x)
    laws.assert_equal(ours, theirs)
    assert shape is CLIP or list(ours) == list(theirs) == list(net(x))
    kinds = {type(m) for m in quantized.modules() if not list(m.children())}
    assert kinds <= {Quantize, IntegerOp, Dequantize}


def test_a_quicker_float32_does_not_reach_the_integers():
    """Asked to be quick, matrix products cut operands of more than 8 bits off."""
    attention = nn.MultiheadAttention(32, 2, batch_first=True)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), OnItself(attention))
    config = QuantConfig(
        activation=QuantScheme(bits=12, symmetric=False),
        weight=QuantScheme(bits=2, narrow=True, per_channel=True),
    )
    x = torch.randn(64, 16, 32)
    prepared = fxquant.prepare_qat(net, x, config)
    prepared.train()(x)
    quantized = fxquant.convert(prepared.eval())
    before, expected = torch.get_float32_matmul_precision(), quantized(x)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(prepared(x), expected)
        assert torch.equal(quantized(x), expected)
    finally:
        torch.set_float32_matmul_precision(before)


class OnItself(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]
