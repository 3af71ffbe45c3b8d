"""What is validated is what is shipped: `convert(p)(x)` equals `p.eval()(x)`, bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant
from fxquant import darts
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
