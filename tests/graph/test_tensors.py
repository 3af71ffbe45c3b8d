"""Tensors that a model holds as plain attributes: live, in every mode and copy."""

import copy
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxquant
from fxquant.graph.tensors import copy_of
from tests import laws

Pair = namedtuple("Pair", "first second")
X = torch.randn(2, 3, 4, 4)


class Alphas(nn.Module):
    """A sum weighted by softmax of a tensor that is found in the way `kind` says."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 3, 1)
        alpha = torch.randn(2, requires_grad=True)
        if kind == "attribute":
            self.alpha = alpha
            self._all = [alpha]
        elif kind == "list":
            self._all = [alpha]
        elif kind == "dict":
            self._all = {"a": alpha}
        elif kind == "tuples":
            self._all = [("a", alpha)]
        elif kind == "named tuple":
            self._all = Pair(alpha, "b")
        elif kind == "parameters":
            self._all = nn.ParameterList([alpha])
        elif kind == "submodule":
            self.inner = Alphas("list")
            self._all = self.inner._all

    def own(self):
        found = self._all
        if self.kind == "dict":
            return found["a"]
        return found[0][1] if self.kind == "tuples" else found[0]

    def forward(self, x):
        w = F.softmax(self.own(), dim=-1)
        return w[0] * x + w[1] * self.conv(x)


KINDS = ("attribute", "list", "dict", "tuples", "named tuple", "parameters", "submodule")


@pytest.mark.parametrize("kind", KINDS)
def test_they_stay_live(kind):
    model = Alphas(kind)
    prepared = fxquant.prepare_qat(model, X)
    torch.testing.assert_close(prepared.eval()(X), model.eval()(X))
    laws.settle(prepared, X)
    for network in (prepared, copy.deepcopy(prepared)):
        alpha = network.own()
        assert isinstance(alpha, torch.Tensor)
        network.train()(X).sum().backward()
        assert alpha.grad.abs().sum() > 0
        before = fxquant.convert(network)(X)
        with torch.no_grad():
            alpha.copy_(torch.tensor([3.0, -3.0]))
        quantized = fxquant.convert(network)
        assert not torch.equal(quantized(X), before)
        assert torch.equal(quantized(X), network.eval()(X))
        held = {value.data_ptr() for value in network.state_dict().values()}
        assert alpha.data_ptr() in held


def test_no_parameter_is_new():
    model = Alphas("attribute")
    prepared = fxquant.prepare_qat(model)
    assert dict(prepared.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert isinstance(vars(model)["alpha"], torch.Tensor)  # the user's model as it was


def test_results_of_computations_are_copied_detached():
    """A feature that forward has kept, as hooks and caches do, is no obstacle."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.kept = model(X)
    model.lists = {"a": [model.kept]}
    copied = copy_of(model)
    assert torch.equal(copied.kept, model.kept)
    assert not copied.kept.requires_grad
    assert copied.lists["a"][0] is copied.kept
    assert torch.equal(fxquant.prepare_qat(model, X).eval()(X), model.eval()(X))


def test_constants_stay_out_of_the_state_dict_and_can_be_set():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = torch.tensor([[[1.0]], [[0.0]], [[2.0]]])

        def forward(self, x):
            return x * (self.mask * 2)

    prepared = fxquant.prepare_qat(Masked(), X)
    assert not [name for name in prepared.state_dict() if "mask" in name and "fxquant" not in name]
    prepared.mask = torch.ones(3, 1, 1)
    torch.testing.assert_close(prepared.eval()(X), 2 * X)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_leaves_also_in_another_dtype(kind):
    prepared = fxquant.prepare_qat(Alphas(kind), X).double()
    alpha, x = prepared.own(), X.double()
    for _ in range(2):
        prepared.train()(x).sum().backward()
    assert alpha.is_leaf
    assert alpha.dtype is torch.float64
    assert alpha.grad.abs().sum() > 0
    copied = copy.deepcopy(prepared).eval()
    with torch.no_grad():
        before = copied(x)
        copied.own().copy_(torch.tensor([3.0, -3.0]))
        assert not torch.equal(copied(x), before)
