"""Search networks of five published styles, unchanged, through the whole of fxquant."""

import copy

import pytest
import torch
from torch import nn

import fxquant
from tests import laws
from tests.darts.styles import nas_bench_201, p_darts, pc_darts, pt_darts, quark_darts

STYLES = {
    "quark0/darts": quark_darts,
    "pt.darts": pt_darts,
    "PC-DARTS": pc_darts,
    "P-DARTS": p_darts,
    "NAS-Bench-201": nas_bench_201,
}


def alphas_of(model) -> list[torch.Tensor]:
    """Where each style's search loop looks for them."""
    if hasattr(model, "alphas") and callable(model.alphas):  # pt.darts
        return list(model.alphas())
    found = model.arch_parameters() if callable(model.arch_parameters) else model.arch_parameters
    return [found] if isinstance(found, torch.Tensor) else list(found)


def last(outputs):
    return outputs[-1] if isinstance(outputs, tuple) else outputs


@pytest.fixture(scope="module", params=STYLES.values(), ids=STYLES)
def prepared(request):
    """The network, its inputs, and the prepared model with its ranges settled."""
    torch.manual_seed(0)
    net, inputs = request.param.search_network(), request.param.example_inputs()
    prepared = fxquant.prepare_qat(net, inputs)
    before = last(prepared.eval()(*inputs))
    torch.testing.assert_close(before, last(net.eval()(*inputs)), rtol=1e-4, atol=1e-5)
    laws.settle(prepared, *inputs)
    return net, inputs, prepared


def test_the_contract_holds_also_when_alphas_have_moved(prepared):
    _, inputs, prepared = prepared
    prepared = copy.deepcopy(prepared)
    outputs = []
    for _ in range(2):
        quantized = fxquant.convert(prepared)
        for scale in (1, 2):
            x = [value * scale for value in inputs]
            laws.assert_equal(quantized(*x), prepared(*x))
        outputs.append(last(quantized(*inputs)))
        with torch.no_grad():
            for alpha in alphas_of(prepared):
                alpha.add_(torch.randn_like(alpha))
    assert not torch.equal(*outputs)


def test_alphas_get_gradients_and_steps_as_in_the_float_search(prepared):
    net, inputs, prepared = prepared
    prepared = copy.deepcopy(prepared)
    alphas = alphas_of(prepared)
    assert [a.shape for a in alphas] == [a.shape for a in alphas_of(net)]
    optimizer = torch.optim.Adam(alphas, lr=0.1)
    for _ in range(2):  # twice: nothing of the graph is used up by the first
        optimizer.zero_grad()
        last(prepared.train()(*inputs)).logsumexp(1).sum().backward()
        assert all(alpha.grad is not None for alpha in alphas)
        assert any(bool(alpha.grad.abs().sum() > 0) for alpha in alphas)
        optimizer.step()


def test_alphas_are_in_the_state_dict_and_no_parameter_is_new(prepared):
    net, _, prepared = prepared
    state = prepared.state_dict()
    held = {value.data_ptr() for value in state.values()}
    assert all(alpha.data_ptr() in held for alpha in alphas_of(prepared))
    assert [name for name, _ in prepared.named_parameters()] == [
        name for name, _ in net.named_parameters()
    ]


def test_the_mixed_operation_is_one_node(prepared):
    _, _, prepared = prepared
    names = [site.op.name for _, site in fxquant.sites.flow.sites(prepared)]
    assert "weighted_sum" in names
    assert "mul" not in names
    assert not any(
        isinstance(module, nn.Module) and "quantize" in node.name
        for node in prepared.graph.nodes
        if node.op == "call_module"
        for module in [prepared.get_submodule(str(node.target))]
        if any(word in node.name for word in ("alpha", "softmax"))
    )


def test_methods_of_the_model_go_on_working(prepared):
    net, inputs, prepared = prepared
    if hasattr(net, "genotype"):
        assert repr(prepared.genotype()) == repr(net.genotype())
    if hasattr(net, "_loss"):
        target = torch.zeros(len(inputs[0]), dtype=torch.long)
        expected = net._criterion(prepared(*inputs), target)
        assert torch.equal(prepared._loss(*inputs, target), expected)
    assert not hasattr(prepared, "no_such_method")
