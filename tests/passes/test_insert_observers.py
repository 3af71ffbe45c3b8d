"""insert_observers: one observer per range of its own, and an entrance per float value."""

import pytest
import torch
from torch import nn

from fxquant.errors import StageError, UnsupportedOperatorError
from fxquant.graph.place import example_of, place_of
from fxquant.graph.trace import trace
from fxquant.observers import Observer
from fxquant.passes import Canonicalize, FuseConvBnRelu, InsertFakeQuant, InsertObservers
from fxquant.sites.call_site import InputQuantizer
from fxquant.sites.flow import sites
from tests.strategies import chain


def observe(model):
    gm = trace(model)
    Canonicalize().run(gm)
    return gm, InsertObservers().run(gm)


def test_values_with_a_range_of_their_own_are_observed():
    gm, _ = observe(chain("conv", "relu", "max_pool", "avg_pool", "bn").build())
    observed = [site.op.name for _, site in sites(gm) if isinstance(site.output, Observer)]
    assert observed == ["conv2d", "batch_norm"]


@pytest.mark.parametrize(
    ("model", "low", "high"),
    [
        (nn.Sigmoid(), 0.0, 1.0),
        (nn.Tanh(), -1.0, 1.0),
        (nn.Sequential(nn.Tanh(), nn.ReLU()), 0.0, 1.0),
        (nn.Sequential(nn.Tanh(), nn.Hardtanh(-0.25, 2.0)), -0.25, 1.0),
    ],
)
def test_a_range_known_beforehand_is_not_observed_but_waits_for_data(model, low, high):
    gm = trace(nn.Sequential(model))
    for step in (Canonicalize(), FuseConvBnRelu()):
        step.run(gm)
    log = InsertObservers().run(gm)
    assert log.changed[0].text == "its range is known"
    ((_, site),) = sites(gm)
    assert not site.output.seen
    gm.train()(torch.randn(3, 3) / 9)
    assert (float(site.output.low), float(site.output.high)) == (low, high)


def test_a_float_value_enters_once_however_many_read_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.a(x) + self.b(x) + x

    gm, _ = observe(Net())
    entrances = [n for n in gm.graph.nodes if n.name == "quantize_x"]
    assert len(entrances) == 1
    assert len(entrances[0].users) == 3
    assert isinstance(gm.fxquant.quantize_x, InputQuantizer)


def test_an_entrance_has_the_place_and_the_example_of_what_enters():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(nn.Softsign()), nn.Conv2d(2, 2, 1))
    gm = trace(model, (torch.zeros(1, 2, 3, 3),), frozenset({"1"}))
    Canonicalize().run(gm)
    InsertObservers(frozenset({"1"})).run(gm)
    entrance = next(node for node in gm.graph.nodes if node.name == "quantize__1")
    assert place_of(entrance) == place_of(entrance.args[0])
    assert place_of(entrance).module == "1"
    assert example_of(entrance).shape == (1, 2, 3, 3)


def test_observers_watch_in_train_and_stand_still_in_eval():
    gm, _ = observe(chain("conv").build())
    x = torch.randn(2, 4, 8, 8)
    gm.eval()(x)
    assert not gm.fxquant.quantize_x.output.seen
    gm.train()(x)
    assert gm.fxquant.quantize_x.output.low == x.min()
    gm.eval()(x * 10)
    assert gm.fxquant.quantize_x.output.low == x.min()


def test_an_operator_without_an_integer_form_is_named_with_its_place():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(nn.Softsign()))
    with pytest.raises(UnsupportedOperatorError, match=r"(?s)in '1.0'.*keep_float=\('1.0',\)"):
        observe(model)


def test_an_operator_without_a_module_of_its_own_asks_for_one():
    class Net(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    with pytest.raises(UnsupportedOperatorError, match="move it into a submodule"):
        observe(Net())


@pytest.mark.parametrize(("count", "more"), [(10, []), (13, ["  and 3 more"])])
def test_ten_operators_without_an_integer_form_are_named(count, more):
    with pytest.raises(UnsupportedOperatorError) as raised:
        observe(nn.Sequential(*(nn.Softsign() for _ in range(count))))
    lines = str(raised.value).split("\n")
    assert sum(line.startswith("  node '_") for line in lines) == 10
    assert [line for line in lines if "more" in line] == more


def test_inputs_stay_together_at_the_top():
    class Net(nn.Module):
        def forward(self, x, y, z):
            return x + y + z

    gm, _ = observe(Net())
    assert [node.op for node in gm.graph.nodes][:4] == ["placeholder"] * 3 + ["call_module"]


def test_a_fake_quant_pass_needs_an_observed_graph():
    gm = trace(chain("conv").build())
    words = "'insert_fake_quant' needs an observed graph, but this is a float graph"
    with pytest.raises(StageError, match=words):
        InsertFakeQuant().run(gm)
