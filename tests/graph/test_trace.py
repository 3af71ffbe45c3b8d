"""Capture: the graph does what the model does, in each mode, and refuses what it cannot write."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from fxquant.darts import DARTS_V2, NetworkCIFAR
from fxquant.errors import CaptureError
from fxquant.graph.inplace import IN_PLACE
from fxquant.graph.merge import Switch, TrainOnly
from fxquant.graph.trace import trace
from tests import laws
from tests.strategies import net_specs


def assert_captured(model, x, gm=None):
    """Same outputs as the model itself, in eval() and, for the same random numbers, train()."""
    gm = gm or laws.capture(model)
    for mode in (False, True):
        ours, theirs = copy.deepcopy(gm).train(mode), copy.deepcopy(model).train(mode)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            a = ours(x.clone())
            torch.manual_seed(1)
            b = theirs(x.clone())
        laws.assert_equal(a, b)


@settings(max_examples=100, deadline=None)
@given(net_specs())
def test_random_networks_in_both_modes(spec):
    assert_captured(spec.build(), spec.inputs())


def test_auxiliary_head_and_drop_path():
    net = NetworkCIFAR(4, 10, 3, DARTS_V2, auxiliary=True, drop_path_prob=0.3)
    assert_captured(net, torch.randn(4, 3, 32, 32))


class Branches(nn.Module):
    """What training does beyond eval(): another value, another structure, another layer."""

    def __init__(self):
        super().__init__()
        self.body, self.extra, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        y = self.body(x)
        if self.training:
            y = F.dropout(self.extra(y), 0.5, self.training) + y
            return self.head(y), {"aux": y}
        return self.head(y), None


def test_a_branch_on_the_mode():
    model = Branches()
    gm = trace(copy.deepcopy(model))
    assert_captured(model, torch.randn(3, 4), gm)
    kinds = [type(m) for m in gm.modules()]
    assert kinds.count(TrainOnly) == 1
    assert kinds.count(Switch) == 2  # the value that training changes, and the second output


def test_every_name_of_the_users_state_dict_is_kept():
    model = Branches()
    assert set(trace(copy.deepcopy(model)).state_dict()) == set(model.state_dict())


def test_training_only_parameters_get_gradients():
    gm = trace(copy.deepcopy(Branches())).train()
    gm(torch.randn(3, 4))[0].sum().backward()
    assert gm.extra.weight.grad is not None


def test_user_attributes_are_kept():
    model = Branches()
    model.note = "mine"
    model.register_buffer("seen", torch.zeros(()), persistent=False)
    gm = trace(copy.deepcopy(model))
    assert gm.note == "mine"
    assert "seen" in dict(gm.named_buffers())
    assert "seen" not in gm.state_dict()


class ShapeByTheMode(nn.Module):
    """What only one mode does changes a shape that both ask for."""

    def __init__(self):
        super().__init__()
        self.all, self.one = nn.Conv2d(3, 3, 1), nn.Conv2d(1, 3, 1)

    def forward(self, x):
        y = self.all(x)
        if self.training:
            y = y[:, :1]
        return self.one(y) if y.shape[1] == 1 else self.all(y)


def test_what_one_mode_asks_of_shapes_is_not_asked_in_the_other():
    x = torch.randn(2, 3, 4, 4)
    model = ShapeByTheMode()
    gm = trace(copy.deepcopy(model), (x,))
    assert_captured(model, x, gm)


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)


class Inner(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def test_data_dependent_control_flow_names_module_and_line():
    words = r"(?s)'inner' at .*trace.py:\d+.*keep_float=\('inner',\)"
    with pytest.raises(CaptureError, match=words):
        trace(DataDependent(), (torch.ones(2),))


class Overwritten(nn.Module):
    """In-place calls whose input others read: before, after, and through a view."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.relu, self.same = kind, nn.ReLU(inplace=True), nn.Identity()

    def forward(self, x):
        y = x + 1
        if self.kind == "after":
            self.relu(y)
            return y * 2
        if self.kind == "twice":
            y.sub_(0.5)
            z = y.neg_()
            y += 3
            return y + z
        if self.kind == "function":
            z = F.relu(y, inplace=True)
            return y + z + torch.relu_(y - 1)
        if self.kind == "other operand":
            z = self.relu(y)
            return z.clone().add_(y)
        if self.kind == "identity":
            alias = self.same(y)
            return self.relu(y) + alias
        view = y.view(-1)
        self.relu(y)
        return view + 1


@pytest.mark.parametrize("operator", IN_PLACE, ids=lambda operator: operator.__name__)
def test_every_augmented_assignment_is_written_as_one(operator):
    class Net(nn.Module):
        def forward(self, x, y):
            z = x + 0
            return operator(z, y), z

    values = (torch.arange(1, 5).reshape(2, 2), torch.full((2, 2), 2))
    if operator.__name__ == "itruediv":
        values = tuple(v.float() for v in values)
    if operator.__name__ == "imatmul":  # makes a new tensor in torch, too
        return
    laws.assert_equal(trace(Net())(*values), Net()(*values))


@pytest.mark.parametrize("kind", ["after", "twice", "function", "other operand", "identity"])
def test_in_place_calls_become_functional(kind):
    x = torch.randn(5)
    assert torch.equal(trace(Overwritten(kind))(x.clone()), Overwritten(kind)(x.clone()))


def test_an_overwritten_view_is_refused():
    with pytest.raises(CaptureError, match=r"(?s)overwrites memory.*'view'.*out-of-place"):
        trace(Overwritten("view"))


def test_the_mode_of_each_module_is_kept():
    model = Branches().train()
    model.extra.eval()
    gm = trace(copy.deepcopy(model))
    assert gm.training
    assert not gm.extra.training


def test_a_forward_with_defaults():
    class Optional(nn.Module):
        def forward(self, x, mask=None, scale=2):
            return x * scale if mask is None else x * mask

    x = torch.randn(3)
    assert torch.equal(trace(Optional())(x), x * 2)
