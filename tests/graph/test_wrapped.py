"""Functions that their authors marked with torch.fx.wrap are traced into."""

import pickle

import pytest
import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch

import fxquant
from fxquant.errors import CaptureError
from fxquant.graph.modes import is_identity_in_eval
from fxquant.graph.trace import trace
from tests import laws


def doubled(x):
    return x + x


def dropped(x, p, training):
    """As torchvision's stochastic depth: nothing in eval(), rows dropped in train()."""
    if not training or p == 0.0:
        return x
    noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    return x * noise.bernoulli_(1.0 - p)


def signed(x):
    return x if x.sum() > 0 else -x


for _name in ("doubled", "dropped", "signed", "len"):
    fx.wrap(_name)


class Dropped(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        return dropped(x, self.p, self.training)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.conv, self.drop = function, nn.Conv2d(3, 3, 1), Dropped()

    def forward(self, x):
        return self.function(self, self.conv(x))


X = torch.randn(4, 3, 5, 5)


def test_it_is_traced_into():
    before = dict(_wrapped_fns_to_patch)
    gm = trace(Net(lambda m, x: doubled(x)), (X,))
    assert [n.name for n in gm.graph.nodes] == ["x", "conv", "add", "output"]
    assert before == _wrapped_fns_to_patch


def test_without_us_it_stays_one_node():
    assert "doubled" in str(fx.symbolic_trace(Net(lambda m, x: doubled(x))).graph)


def test_builtins_stay_wrapped():
    gm = trace(Net(lambda m, x: x.view(len(x), -1)))  # without example inputs nobody knows
    assert any(node.target is len for node in gm.graph.nodes)


def test_a_module_around_it_is_the_identity_in_eval():
    assert is_identity_in_eval(Dropped())
    assert is_identity_in_eval(Dropped(0.0))


class InForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.p = nn.Conv2d(3, 3, 1), 0.5

    def forward(self, x):
        return dropped(self.conv(x), self.p, training=self.training) + 1.0


@pytest.mark.parametrize("net", [Net(lambda m, x: m.drop(x) + 1.0), InForward()])
def test_what_only_training_does_stays_whole(net):
    prepared = fxquant.prepare_qat(net, X)
    torch.manual_seed(0)
    rows = prepared.train()(X).flatten(1).var(1)
    assert 0 < (rows == 0).sum() < len(X)
    laws.settle(prepared, X)
    quantized = fxquant.convert(prepared)
    assert torch.equal(quantized(X), prepared(X))
    assert quantized(X).flatten(1).var(1).min() > 0


class Optional(nn.Module):
    def forward(self, x, mask=None):
        return x + torch.ones(x.shape[1], 5, 5)


def test_later_traces_find_what_the_code_of_a_graph_wraps():
    """Also that of a pickle, which torch traces anew: no function of torch is asked for by name."""
    gm = pickle.loads(pickle.dumps(trace(Optional(), (X,))))
    again = pickle.loads(pickle.dumps(gm))
    assert torch.equal(again(X), X + 1.0)


def test_what_cannot_be_captured_is_refused_with_its_line():
    with pytest.raises(CaptureError, match=r"(?s)in eval\(\) mode, at .*test_wrapped.py:\d+.*What"):
        trace(Net(lambda m, x: signed(x)), (X,))
