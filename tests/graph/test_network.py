"""What a network keeps of the class of its model."""

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fxquant
from fxquant.errors import StageError, UnsupportedOperatorError

X = torch.randn(2, 3, 4, 4)


@dataclass
class Scores:
    logits: torch.Tensor


class Scored(nn.Conv2d):
    def forward(self, x):
        return Scores(super().forward(x))


def test_what_holds_a_network_is_not_prepared_again():
    prepared = fxquant.prepare_qat(nn.Conv2d(3, 3, 1))
    around = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(prepared))
    with pytest.raises(StageError, match=r"its '1.0' is a Conv2d, a fake-quant graph"):
        fxquant.prepare_qat(around, X)
    fxquant.calibrate(prepared, [X])
    around[1] = fxquant.convert(prepared)
    with pytest.raises(StageError, match=r"its '1' is a Conv2d, an integer graph"):
        fxquant.prepare_ptq(around, X)


def test_outputs_in_a_dataclass_are_refused_by_its_name():
    for examples in (None, X):
        with pytest.raises(UnsupportedOperatorError, match="call_function Scores"):
            fxquant.prepare_qat(Scored(3, 3, 1), examples)


class Searched(nn.Conv2d):
    kind = "searched"

    def __init__(self):
        super().__init__(3, 3, 1)
        self.calls = []

    def arch_parameters(self):
        return [self.weight]

    @property
    def size(self):
        return self.weight.numel()

    @staticmethod
    def twice(x):
        return 2 * x

    def forward(self, x):
        return super().forward(x) + 1.0


def test_methods_properties_and_class_attributes_are_the_models_own():
    prepared = fxquant.prepare_qat(Searched(), X)
    for network in (prepared, pickle.loads(pickle.dumps(prepared))):
        assert network.arch_parameters()[0] is network.weight
        assert network.size == 9
        assert network.kind == "searched"
        assert network.twice(3) == 6
        with pytest.raises(AttributeError, match="no attribute 'other'"):
            _ = network.other


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_pickle_is_read_under_no_grad(mode):
    prepared = fxquant.prepare_qat(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), X)
    prepared(X)
    prepared.eval()
    for network in (prepared, fxquant.convert(prepared)):
        with mode():
            loaded = pickle.loads(pickle.dumps(network))
        assert torch.equal(loaded(X), prepared(X))


def test_a_class_that_no_name_leads_to_is_left_out_of_a_pickle():
    class Local(Searched):
        pass

    prepared = fxquant.prepare_qat(Local(), X)
    assert prepared.size == 9
    loaded = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(loaded.eval()(X), prepared.eval()(X))
    assert not hasattr(loaded, "size")
