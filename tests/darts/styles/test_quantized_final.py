"""Final networks of published styles, unchanged: drop path that the script sets every epoch."""

import copy

import pytest
import torch

import fxquant
from fxquant.graph.compare import largest_differences
from fxquant.graph.trace import trace
from tests import laws
from tests.darts.styles import nas_bench_201, p_darts, pt_darts, quark_darts

STYLES = {
    "quark0/darts": quark_darts,
    "pt.darts": pt_darts,
    "P-DARTS": p_darts,
    "NAS-Bench-201": nas_bench_201,
}


def set_drop_path(model, prob):
    """As each style's training script does before an epoch."""
    if hasattr(model, "update_drop_path"):
        model.update_drop_path(prob)
    elif callable(getattr(model, "drop_path_prob", None)):
        model.drop_path_prob(prob)
    else:
        model.drop_path_prob = prob


@pytest.fixture(params=STYLES.values(), ids=STYLES)
def network(request):
    torch.manual_seed(0)
    net = request.param.final_network()
    inputs = getattr(request.param, "final_example_inputs", request.param.example_inputs)()
    set_drop_path(net, 0.0)
    return net, inputs


def test_both_modes_follow_the_probability(network):
    net, inputs = network
    gm = trace(copy.deepcopy(net), inputs)
    for prob in (0.0, 0.2, 0.6):
        set_drop_path(net, prob)
        set_drop_path(gm, prob)
        assert list(largest_differences(gm, net, inputs, (False, True))) == [0.0, 0.0]


def test_the_contract_holds(network):
    net, inputs = network
    prepared = fxquant.prepare_qat(net, inputs)
    set_drop_path(prepared, 0.3)
    laws.settle(prepared, *inputs)
    quantized = fxquant.convert(prepared)
    for scale in (1, 2):
        x = [value * scale for value in inputs]
        laws.assert_equal(quantized(*x), prepared(*x))
