"""compare: damage is pointed at, and what is equal is said to be.

By hand, y = x against z = 1.5·x: the error is half the signal, 10·log10(1 / 0.25) = 6.02 dB.
"""

import copy
import io
import math
import pickle
import re

import pytest
import torch
from hypothesis import example, given, settings
from torch import nn

from fxquant import QuantConfig, as_float, compare, convert, prepare_qat
from fxquant.darts import DARTS_V2, NetworkCIFAR
from fxquant.errors import ConfigError, DataError, MissingExtraError, StageError, UncalibratedError
from fxquant.sites.call_site import CallSite
from tests import laws
from tests.strategies import NetSpec, Step, chain, net_specs

FOLDED = QuantConfig(batch_norm="fold")
EQUALIZED = QuantConfig(batch_norm="fold", equalize=True)


class Attention(nn.Module):
    """Tokens that look at each other, and a layer behind them."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return x + torch.relu(self.layer(x)).reshape(x.shape)


def residual():
    kinds = ("conv", "bn", "relu", "conv_depthwise", "bn")
    steps = (*map(Step, kinds), Step("add", (0, 2)), Step("avg_pool"), Step("conv"))
    return NetSpec(steps, head=True)


NETWORKS = {
    # by name: the network, a batch, and a layer in the middle that has a bias of its own
    "darts": (lambda: NetworkCIFAR(2, 4, 3, DARTS_V2), (4, 3, 12, 12), "classifier"),
    "residual": (lambda: residual().build(), (4, 4, 8, 8), "steps_7"),
    "attention": (Attention, (4, 5, 8), "layer"),
}


class Case:
    """A network in all stages, with a batch."""

    def __init__(self, name):
        torch.manual_seed(0)
        build, shape, self.biased = NETWORKS[name]
        self.model, self.x = build().eval(), torch.randn(shape)
        self.prepared = prepare_qat(self.model, self.x, FOLDED)
        laws.settle(self.prepared, self.x)
        self.converted = convert(self.prepared)

    def scaled(self):
        """Nodes whose scale can be doubled: convolutions, and layers, in order."""
        found = [
            (node, self.prepared.get_submodule(node.target))
            for node in self.prepared.graph.nodes
            if node.op == "call_module"
        ]
        return [node for node, module in found if getattr(module, "weight_quant", None)]


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    return Case(request.param)


@pytest.fixture(scope="module")
def one():
    return Case("residual")


def parameter(gm, node, name):
    return gm.get_parameter(node.kwargs[name].target)


# Damage


@pytest.mark.parametrize("place", [0, -1])
def test_doubled_weights_of_a_prepared_network_are_pointed_at(case, place):
    damaged, node = copy.deepcopy(case.prepared), case.scaled()[place]
    with torch.no_grad():
        parameter(damaged, node, "weight").mul_(2)
    assert compare(case.model, case.prepared, case.x).first is None
    found = compare(case.model, damaged, case.x)
    assert (found.first.node, found.first.why) == (node.name, "other parameters")


def test_a_dropped_bias_of_a_prepared_network_is_pointed_at(case):
    damaged = copy.deepcopy(case.prepared)
    node = next(node for node in case.scaled() if node.name == case.biased)
    with torch.no_grad():
        parameter(damaged, node, "bias").zero_()
    found = compare(as_float(case.prepared), damaged, case.x)
    assert (found.first.node, found.first.why) == (case.biased, "other parameters")


def test_the_doubled_scale_of_an_activation_is_pointed_at(case):
    damaged, node = copy.deepcopy(case.prepared), case.scaled()[0]
    damaged.get_submodule(node.target).output.scale.mul_(2)
    assert compare(case.prepared, damaged, case.x).first.node == node.name


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("stage", ["prepared", "converted"])
def test_a_doubled_multiplier_of_a_converted_network_is_pointed_at(case, stage, place):
    damaged, node = copy.deepcopy(case.converted), case.scaled()[place]
    damaged.get_submodule(node.target).shift.sub_(1)
    found = compare(getattr(case, stage), damaged, case.x)
    assert (found.first.node, found.first.why) == (node.name, "other values")
    assert not found.equal


@pytest.mark.parametrize("stage", ["prepared", "converted"])
def test_a_dropped_bias_of_a_converted_network_is_pointed_at(case, stage):
    damaged = copy.deepcopy(case.converted)
    node = next(node for node in case.scaled() if node.name == case.biased)
    damaged.get_submodule(node.target).bias.zero_()
    assert compare(getattr(case, stage), damaged, case.x).first.node == case.biased


def test_the_worst_node_is_the_one_that_errs_by_itself(case):
    damaged, node = copy.deepcopy(case.converted), case.scaled()[0]
    damaged.get_submodule(node.target).shift.sub_(3)
    assert compare(case.prepared, damaged, case.x).worst.node == node.name


# What is equal


def test_converted_is_equal_to_prepared_at_every_node(case):
    found = compare(case.prepared, case.converted, case.x)
    assert found.equal
    assert found.first is None
    assert found.worst is None
    assert "nodes are equal" in str(found)
    sites = [m for m in case.prepared.modules() if isinstance(m, CallSite)]
    assert len(found.rows) >= len(sites)
    assert all(row.max_lsb == 0.0 for row in found.rows if row.max_lsb is not None)


@settings(deadline=None, max_examples=6)
@given(net_specs(6))
@example(chain("identity"))
def test_prepared_and_converted_never_differ(spec):
    prepared = prepare_qat(spec.build(), spec.inputs())
    laws.settle(prepared)
    assert compare(prepared, convert(prepared), [spec.inputs(seed=s) for s in (3, 4)]).equal


@settings(deadline=None, max_examples=6)
@given(net_specs(6))
@example(chain("conv", "bn", "relu", "conv", "relu6"))
def test_every_node_finds_its_counterpart_in_the_model(spec):
    """Without rounding every node gives what the captured node behind it gave: folded, fused, in
    sums or not, whatever the network.
    """
    model = spec.build()
    for config in (QuantConfig(), FOLDED):
        prepared = prepare_qat(model, spec.inputs(), config)
        laws.settle(prepared)
        statistics = {k: v for k, v in model.state_dict().items() if "running" in k}
        prepared.load_state_dict(statistics, strict=False)  # training moved those of live norms
        rows = compare(model, prepared, spec.inputs()).rows
        assert all(row.parameters is None or row.parameters < 1e-3 for row in rows)
        assert any(row.parameters is not None for row in rows)


def test_the_float_network_inside_is_the_model(case):
    torch.testing.assert_close(as_float(case.prepared)(case.x), case.model(case.x))
    assert not any("fake" in type(m).__name__.lower() for m in as_float(case.prepared).modules())


def test_an_equalized_network_is_compared_with_the_float_network_inside():
    spec = chain("conv", "relu", "conv", "relu", "conv")
    prepared = prepare_qat(spec.build(), spec.inputs(), EQUALIZED)
    laws.settle(prepared)
    with pytest.raises(ConfigError, match="equalize_cross_layer changed .* on purpose"):
        compare(spec.build(), prepared, spec.inputs())
    assert compare(as_float(prepared), prepared, spec.inputs()).first is None


def test_converted_beside_the_model(case):
    found = compare(case.model, case.converted, case.x)
    assert found.first is None
    assert 15 < min(row.alone for row in found.rows) < 60


def test_networks_of_float64_are_equal_too():
    spec = chain("conv", "relu", "conv")
    prepared = prepare_qat(spec.build().double(), spec.inputs().double())
    laws.settle(prepared, spec.inputs().double())
    assert compare(prepared, convert(prepared), spec.inputs(seed=3).double()).equal


def test_pickles_are_compared_alike(one):
    """But for moved names: nodes of an unpickled graph are numbered anew."""
    again = pickle.loads(pickle.dumps(one.converted))
    found, before = (compare(one.prepared, gm, one.x).rows for gm in (again, one.converted))
    assert [row.sqnr for row in found] == [row.sqnr for row in before]


MODES = {
    "dynamic": QuantConfig(mode="dynamic"),
    "weight only": QuantConfig(mode="weight_only"),
    "groups": QuantConfig(mode="weight_only", group_size=6),
}


@pytest.mark.parametrize("config", MODES.values(), ids=MODES)
def test_layers_of_integers_between_floats(config):
    """In these modes, too: equal where equal, and damage is pointed at."""
    spec = chain("relu", head=True)
    prepared = prepare_qat(spec.build(), spec.inputs(), config)
    x = spec.inputs(seed=1)
    assert compare(spec.build(), prepared, x).first is None
    assert compare(prepared, convert(prepared), x).equal
    torch.testing.assert_close(as_float(prepared)(x), spec.build().eval()(x))
    damaged = copy.deepcopy(prepared)
    with torch.no_grad():
        damaged.get_parameter("classifier.weight").mul_(2)
    found = compare(as_float(prepared), damaged, x).first
    assert (found.node, found.why) == ("classifier", "other parameters")


class Recurrent(nn.Module):
    """A convolution, and a recurrent module that gives a tuple."""

    def __init__(self):
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(2, 4, 3), nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.lstm(self.conv(x).transpose(1, 2))[0]


def test_what_gives_several_tensors_is_measured_too():
    """It stays in float and reads what was rounded: equal by itself, not as it runs."""
    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(2, 2, 8)
    prepared = prepare_qat(model, x, QuantConfig(keep_float=("lstm",)))
    laws.settle(prepared, x)
    row = next(row for row in compare(model, prepared, x).rows if row.node == "lstm")
    assert row.alone == math.inf
    assert 20 < row.sqnr < 80


# Figures


def test_figures_by_hand():
    """x in {-1, 0, 1} against 1.5·x, in steps of 1/64 with z = 128: 32 steps at most."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    nn.init.ones_(model[0].weight)
    prepared = prepare_qat(model)
    x = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 1, 1, 3)
    prepared.train()(x)
    for name in ("quantize_input_1", "_0"):
        quantizer = prepared.fxquant.get_submodule(name).output
        quantizer.scale.fill_(1 / 64)
        quantizer.zero_point.fill_(128)
    more = copy.deepcopy(prepared)
    with torch.no_grad():
        more.get_parameter("0.weight").mul_(1.5)
    row = compare(prepared, more, x).rows[-1]
    assert row.sqnr == row.alone == pytest.approx(6.0206, abs=1e-3)
    assert row.cosine == pytest.approx(1.0)
    assert (row.max_lsb, row.saturated) == (32.0, 0.0)
    assert row.range_use == pytest.approx(192 / 255)
    far = compare(prepared, more, 10 * x).rows[-1]  # 128 + 640, clamped
    assert far.saturated == pytest.approx(2 / 3)


def test_errors_add_up_as_it_runs_but_not_alone(case):
    damaged, node = copy.deepcopy(case.prepared), case.scaled()[0]
    with torch.no_grad():
        parameter(damaged, node, "weight").mul_(0.5)
    intact, rows = (compare(case.model, gm, case.x).rows for gm in (case.prepared, damaged))
    assert rows[-1].sqnr < intact[-1].sqnr
    assert [r.alone for r in rows if r.node != node.name] == pytest.approx(
        [r.alone for r in intact if r.node != node.name], abs=0.5
    )


def test_batches_are_added_up(one):
    halves = [(half, torch.tensor(0)) for half in one.x.split(2)]
    once, twice = (compare(one.model, one.converted, data) for data in (one.x, halves))
    for a, b in zip(once.rows, twice.rows, strict=True):
        assert a.sqnr == pytest.approx(b.sqnr, abs=1e-3)
        assert (a.saturated, a.range_use) == (b.saturated, b.range_use)


def test_it_prints_as_a_table(one):
    found = compare(one.model, one.prepared, one.x)
    head, *rows = str(found).split("\n")
    assert re.split("  +", head)[:4] == ["node", "operator", "SQNR dB", "alone dB"]
    assert [row.split()[0] for row in rows[:-2]] == [row.node for row in found.rows]
    assert "no node is bad; the worst by itself is" in rows[-1]


def test_rich_prints_it_as_a_table(one):
    rich = pytest.importorskip("rich.console", reason="rich is in the extra `demo`")
    console = rich.Console(width=200, record=True, file=io.StringIO())
    console.print(compare(one.model, one.prepared, one.x))
    assert "the worst by itself is" in console.export_text()


def test_as_a_frame(one):
    pytest.importorskip("pandas", reason="pandas is in the extra `see`")
    found = compare(one.model, one.prepared, one.x)
    frame = found.to_frame()
    assert list(frame.index) == [row.node for row in found.rows]
    assert frame.loc[one.biased, "alone"] == next(
        row.alone for row in found.rows if row.node == one.biased
    )


def test_without_pandas_the_extra_is_named(one, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fxquant\[see\]'"):
        compare(one.prepared, one.converted, one.x).to_frame()


# What is left alone, and refused


def test_nothing_is_touched(one):
    for gm in (one.prepared, one.converted, one.model):
        modes = [m.training for m in gm.modules()]
        state = {k: v.clone() for k, v in gm.state_dict().items()}
        gm.train()
        compare(one.prepared, one.converted, one.x)
        compare(one.model, one.prepared, one.x)
        assert all(torch.equal(v, state[k]) for k, v in gm.state_dict().items())
        assert gm.training or gm is one.converted
        for module, mode in zip(gm.modules(), modes, strict=True):
            module.training = mode


def test_a_float_model_is_no_candidate(one):
    with pytest.raises(StageError, match="the float model is the reference, and comes first"):
        compare(one.prepared, one.model, one.x)


def test_no_data_is_refused(one):
    with pytest.raises(DataError, match="no batch"):
        compare(one.prepared, one.converted, [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "batches are many, .* not a NoneType"),
        ([torch.zeros(2, 5, 8, 8)], "batch 0, of shape \\(2, 5, 8, 8\\), does not run"),
        ([torch.zeros(2, 4, 8, 8), torch.zeros(3)], "batch 1, of shape \\(3,\\), does not run"),
        (torch.full((2, 4, 8, 8), math.nan), "batch 0, .* holds NaN or infinity"),
    ],
)
def test_data_that_does_not_fit_is_refused(one, data, message):
    for reference, candidate in ((one.model, one.prepared), (one.prepared, one.converted)):
        with pytest.raises(DataError, match=message):
            compare(reference, candidate, data)


def test_what_is_no_model_is_no_reference(one):
    with pytest.raises(StageError, match="compare takes a model as the reference, got a NoneType"):
        compare(None, one.prepared, one.x)
    with pytest.raises(ConfigError, match="have no operator in common"):
        compare(nn.Conv2d(4, 4, 3), one.prepared, one.x)


def test_networks_whose_values_have_other_shapes_are_refused():
    wide, narrow = (prepare_qat(nn.Sequential(nn.Conv2d(4, n, 3))) for n in (3, 2))
    x = torch.randn(2, 4, 8, 8)
    for gm in (wide, narrow):
        laws.settle(gm, x)
    with pytest.raises(ConfigError, match=r"'_0' gives \(2, 2, 6, 6\), and in the reference"):
        compare(wide, narrow, x)


def test_networks_of_other_models_are_refused(one):
    other = prepare_qat(nn.Sequential(nn.Identity(), nn.Identity(), nn.Hardswish()))
    with pytest.raises((ConfigError, UncalibratedError)):
        compare(one.prepared, other, one.x)


def test_a_network_without_ranges_is_refused(one):
    fresh = prepare_qat(one.model, one.x)
    with pytest.raises(UncalibratedError, match="the candidate .*\n.*train\\(\\) mode first"):
        compare(one.model, fresh, one.x)
    with pytest.raises(UncalibratedError, match="the reference has values that saw no"):
        compare(fresh, one.prepared, one.x)


def test_only_prepared_networks_hold_a_float_one(one):
    with pytest.raises(StageError, match="as_float takes what prepare_qat returned"):
        as_float(one.converted)
