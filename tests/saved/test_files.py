"""save and load: the network that comes back is the one that went in."""

import copy
from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import fxquant
from fxquant import darts
from fxquant.errors import FileError, StageError
from fxquant.fake_quant import FAKE_QUANTS, LSQ, AdaptiveRounding
from fxquant.fake_quant.quantizer import Quantizer
from fxquant.graph.edit import Site
from fxquant.graph.merge import TrainOnly
from fxquant.observers import CALIBRATORS, Fixed, Observer
from fxquant.saved.modules import OWN
from fxquant.saved.values import Reader, Writer
from tests import laws
from tests.strategies import chain, net_specs

pytest.importorskip("safetensors", reason="safetensors is in the extra `save`")

Pair = namedtuple("Pair", "first second")
CONFIGS = [fxquant.QuantConfig(), fxquant.QuantConfig(fake_quant=LSQ())]


def back(gm, folder, model=None):
    """`gm` as it comes back from a file."""
    path = folder / "network.safetensors"
    fxquant.save(gm, path)
    assert list(folder.iterdir()) == [path]  # nothing is left beside it
    return fxquant.load(path, model)


def assert_same(ours, theirs):
    """State, order, modes and logs."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for name, value in theirs.state_dict().items():
        again = ours.state_dict()[name]
        assert torch.equal(again, value)
        assert (again.dtype, again.stride()) == (value.dtype, value.stride())
    for (path, a), (_, b) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        assert a.training == b.training, path
    assert fxquant.explain(ours) == fxquant.explain(theirs)


def test_a_module_with_two_names_stands_where_it_stood(tmp_path):
    first, last = nn.Linear(3, 3), nn.Linear(3, 3)
    prepared = fxquant.prepare_qat(nn.Sequential(first, first, last), torch.randn(2, 3))
    assert_same(back(prepared, tmp_path), prepared)


def step(gm, x):
    """One step of training; the loss and what it leaves."""
    torch.manual_seed(0)
    loss = sum(y.square().mean() for y in laws.flat(gm.train()(x)) if y is not None)
    if loss.requires_grad:
        loss.backward()
        torch.optim.SGD([p for p in gm.parameters() if p.grad is not None], lr=0.1).step()
    return loss


@pytest.mark.parametrize("config", CONFIGS, ids=["observed", "learned"])
@settings(max_examples=20, deadline=None)
@given(spec=net_specs(max_steps=5))
def test_a_network_that_comes_back_is_the_same_and_trains_on(spec, config, tmp_path_factory):
    model = spec.build()
    try:
        prepared = fxquant.prepare_qat(model, config=config)
    except fxquant.errors.CaptureError:
        return
    laws.settle(prepared)
    quantized = fxquant.convert(prepared)
    again = back(quantized, tmp_path_factory.mktemp("q"))
    x = spec.inputs(3, seed=9)
    assert_same(again, quantized)
    laws.assert_equal(again(x), quantized(x))
    assert fxquant.audit(again) == fxquant.audit(quantized)

    resumed = back(prepared, tmp_path_factory.mktemp("p"), model)
    assert_same(resumed, prepared)
    laws.assert_equal(resumed(x), prepared(x))
    laws.assert_equal(step(resumed, x), step(prepared, x))
    assert_same(resumed, prepared)
    laws.assert_equal(fxquant.convert(resumed)(x), fxquant.convert(prepared)(x))


def test_a_darts_network_with_what_only_training_does(tmp_path):
    torch.manual_seed(0)
    net = darts.NetworkCIFAR(4, 10, 3, darts.DARTS_V2, True, drop_path_prob=0.2)
    prepared = fxquant.prepare_qat(net)
    x = torch.randn(4, 3, 32, 32)
    laws.settle(prepared, x)
    again = back(prepared, tmp_path, net)
    assert any(isinstance(module, TrainOnly) for module in again.modules())
    laws.assert_equal(step(again, x), step(prepared, x))
    assert_same(again, prepared)
    laws.assert_equal(fxquant.convert(again)(x), fxquant.convert(prepared)(x))


def test_a_search_network_keeps_its_methods_and_its_alphas_live(tmp_path):
    torch.manual_seed(0)
    primitives = ("none", "skip_connect", "sep_conv_3x3")
    net = darts.SearchNetwork(2, 3, 3, nodes=2, primitives=primitives)
    prepared = fxquant.prepare_qat(net)
    x = torch.randn(2, 3, 8, 8)
    laws.settle(prepared, x)
    again = back(prepared, tmp_path, net)
    assert again.genotype() == prepared.genotype()
    step(again, x)
    assert [a.grad is not None for a in again.arch_parameters()] == [True, True]


class Tied(nn.Module):
    """One tensor under two names, one module under two names, and odd names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleDict({"2<-0": nn.Linear(4, 4), "a b": nn.Linear(4, 4)})
        self.stem["a b"].weight = self.stem["2<-0"].weight
        self.again = self.stem["2<-0"]

    def forward(self, x):
        return {"y": self.again(torch.relu(self.stem["a b"](self.stem["2<-0"](x)))), "none": None}


def test_what_is_tied_stays_tied(tmp_path):
    prepared = fxquant.prepare_qat(Tied())
    x = torch.randn(5, 4)
    laws.settle(prepared, x)
    again = back(prepared, tmp_path)
    assert again.stem["a b"].weight is again.stem["2<-0"].weight is again.again.weight
    assert torch.equal(again(x)["y"], prepared(x)["y"])
    assert again(x)["none"] is None


def test_a_transformer_layer(tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 5, 8)
    prepared = fxquant.prepare_qat(layer, x)
    laws.settle(prepared, x)
    laws.assert_equal(back(fxquant.convert(prepared), tmp_path)(x), prepared(x))
    laws.assert_equal(back(prepared, tmp_path)(x), prepared(x))


def test_memory_order_modes_and_frozen_parameters_come_back(tmp_path):
    spec = chain("conv", "bn", "relu", "conv", "bn")
    prepared = fxquant.prepare_qat(spec.build()).to(memory_format=torch.channels_last)
    laws.settle(prepared)
    prepared.train()
    prepared.get_submodule("steps.1").eval()
    prepared.get_parameter("steps.0.weight").requires_grad_(False)
    again = back(prepared, tmp_path)
    assert_same(again, prepared)
    assert not again.get_parameter("steps.0.weight").requires_grad
    assert again.get_parameter("steps.3.weight").requires_grad


def test_layers_kept_in_float_come_back_torchs_own_from_the_file_others_from_the_model(tmp_path):
    spec = chain("conv", "relu", "gate", head=True)
    model, x = spec.build(), spec.inputs()
    for kept, code in (("classifier", None), ("steps.2", model)):
        prepared = fxquant.prepare_qat(model, config=fxquant.QuantConfig(keep_float=(kept,)))
        laws.settle(prepared)
        quantized = fxquant.convert(prepared)
        laws.assert_equal(back(quantized, tmp_path, code)(x), quantized(x))
    with pytest.raises(FileError, match=r"calls 'steps.2', a _Gate, which is the user's own code"):
        back(quantized, tmp_path)
    with pytest.raises(FileError, match=r"the model has no such submodule"):
        back(quantized, tmp_path, nn.Linear(1, 1))


def test_what_no_file_can_hold_is_said_with_its_place(tmp_path):
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Linear(2, 2)))
    prepared.graph.find_nodes(op="output")[0].args = (Pair(1, 2),)
    path = tmp_path / "network.safetensors"
    with pytest.raises(FileError, match=r"node 'output'.*Pair has no form in a file"):
        fxquant.save(prepared, path)
    sparse = copy.deepcopy(fxquant.prepare_qat(nn.Linear(2, 2))).to("meta")
    with pytest.raises(FileError, match="'weight' is a Parameter on meta"):
        fxquant.save(sparse, path)
    with pytest.raises(StageError, match="save takes what prepare_qat or convert returned"):
        fxquant.save(nn.Linear(2, 2), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [
    {0.5: 1}, torch.ones(2), nn.ReLU(), object(), lambda: None,
], ids=["a key", "a tensor", "a module from elsewhere", "an object", "a function of the user's"])
def test_values_that_no_file_can_hold(value, tmp_path):
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Linear(2, 2)))
    prepared.graph.find_nodes(op="output")[0].args = (value,)
    with pytest.raises(FileError, match=r"node 'output'.* file"):
        fxquant.save(prepared, tmp_path / "network.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_unready_learned_step_starts_anew_where_it_came_back(tmp_path):
    spec = chain("conv", "relu")
    prepared = fxquant.prepare_qat(spec.build(), config=fxquant.QuantConfig(fake_quant=LSQ()))
    unready = copy.deepcopy(prepared.state_dict())
    laws.settle(prepared, spec.inputs(seed=1))
    again = back(prepared, tmp_path)
    again.load_state_dict(unready)
    laws.settle(again, spec.inputs(seed=1))
    laws.assert_equal(again(spec.inputs()), prepared(spec.inputs()))


def test_every_class_of_ours_that_stands_in_a_network_can_be_saved():
    """A class that is missing goes into the tuple in saved/modules.py. Private ones, and the
    rounding that is being learned, stand in a network only while a function of ours runs.
    """
    found = [Site, Quantizer, Observer]
    for kind in found:  # which grows
        found += kind.__subclasses__()
    ours = [kind for kind in found if kind.__module__.startswith("fxquant.")]
    last = {kind for kind in ours if not kind.__subclasses__() and kind.__name__[0] != "_"}
    assert last - {AdaptiveRounding} <= {*OWN}


@pytest.mark.parametrize("mode", ["dynamic", "weight_only"])
def test_networks_of_integer_layers_come_back(mode, tmp_path):
    spec = chain("conv", "bn", "relu", "conv", head=True)
    prepared = fxquant.prepare_qat(spec.build(), config=fxquant.QuantConfig(mode=mode)).eval()
    x = spec.inputs()
    for network in (prepared, fxquant.convert(prepared)):
        again = back(network, tmp_path)
        assert_same(again, network)
        laws.assert_equal(again(x), network(x))


def test_every_calibrator_can_be_saved(tmp_path):
    spec = chain("conv", "relu")
    for calibrator in CALIBRATORS:
        made = calibrator(0.0, 1.0) if calibrator is Fixed else calibrator()
        assert Reader({}, {}).read(Writer({}).write(made)) == made
    prepared = fxquant.prepare_ptq(spec.build())
    fxquant.calibrate(prepared, [spec.inputs(seed=i) for i in range(2)])
    laws.assert_equal(back(prepared, tmp_path)(spec.inputs()), prepared(spec.inputs()))


@pytest.mark.parametrize("kind", FAKE_QUANTS, ids=lambda kind: kind.__name__)
def test_every_fake_quant_comes_back(kind, tmp_path):
    spec = chain("conv", "bn", "relu", "conv", head=True)
    config = fxquant.QuantConfig(fake_quant=kind())
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    laws.settle(prepared, spec.inputs())
    again = back(prepared, tmp_path)
    assert_same(again, prepared)
    laws.assert_equal(step(again, spec.inputs()), step(prepared, spec.inputs()))
    x = spec.inputs(seed=1)
    laws.assert_equal(fxquant.convert(again)(x), fxquant.convert(prepared)(x))
