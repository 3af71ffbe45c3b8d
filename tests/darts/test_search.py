"""The search network: what its alphas prefer, shapes, what reaches what, plain tracing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from fxquant.darts import (
    OPS,
    PRIMITIVES,
    MixedOp,
    NetworkCIFAR,
    SearchCell,
    SearchNetwork,
    strongest_edges,
)
from tests.darts.styles import quark_darts

THREE = ("none", "skip_connect", "sep_conv_3x3")
some = settings(max_examples=20, deadline=None)


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


def logs(*rows):
    """Alphas whose softmax is these rows."""
    return torch.tensor(rows).log()


# The rule


def test_the_rule_by_hand():
    """Node 0 reads states 0 and 1, node 1 states 0, 1 and 2; rows are none, skip, sep.

    Node 0: 0.3 (sep) from state 0, 0.6 (skip) from state 1; both stay, the stronger first.
    Node 1: 0.5 (sep), 0.35 (skip), 0.4 (skip): state 1 is out.
    """
    alphas = logs(
        [0.5, 0.2, 0.3],
        [0.1, 0.6, 0.3],
        [0.1, 0.4, 0.5],
        [0.3, 0.35, 0.35 - 1e-4],
        [0.5, 0.4, 0.1],
    )
    assert strongest_edges(alphas, THREE) == (
        ("skip_connect", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 0),
        ("skip_connect", 2),
    )


def test_none_is_never_chosen_but_weakens_its_edge():
    """Into node 1, states 1 and 2 leave skip 0.04 and 0.05, state 0 leaves 0.03: it is out.

    By the alphas alone, 3.0 is the largest: the softmax comes first.
    """
    by_share = logs(
        [0.90, 0.05, 0.05],
        [0.90, 0.06, 0.04],
        [0.96, 0.03, 0.01],
        [0.95, 0.04, 0.01],
        [0.94, 0.05, 0.01],
    )
    by_share[2] += 3.0 - by_share[2, 1]
    assert by_share[2, 1] == by_share[:, 1:].max()
    assert strongest_edges(by_share, THREE) == (
        ("skip_connect", 1),
        ("skip_connect", 0),
        ("skip_connect", 2),
        ("skip_connect", 1),
    )


def test_of_equals_the_earlier_wins():
    first_two = (("skip_connect", 0), ("skip_connect", 1))
    assert strongest_edges(torch.zeros(9, 3), THREE) == first_two * 3
    swapped = ("sep_conv_3x3", "none", "skip_connect")
    assert strongest_edges(torch.ones(2, 3), swapped) == (("sep_conv_3x3", 0), ("sep_conv_3x3", 1))


def test_without_none_everything_competes():
    alphas = logs([0.6, 0.4], [0.2, 0.8])
    assert strongest_edges(alphas, THREE[1:]) == (("sep_conv_3x3", 1), ("skip_connect", 0))


@some
@given(st.integers(1, 5), st.integers(0, 2**32))
def test_the_rule_is_that_of_the_published_code(nodes, seed):
    torch.manual_seed(seed)
    theirs = quark_darts.Network(1, 2, 3, nn.CrossEntropyLoss(), steps=nodes, multiplier=nodes)
    ours = SearchNetwork(1, 2, 3, nodes)
    for a, b in zip(theirs.arch_parameters(), ours.arch_parameters(), strict=True):
        b.data = a.data.normal_()
    expected = theirs.genotype()
    genotype = ours.genotype()
    assert [*genotype.normal] == expected.normal
    assert [*genotype.reduce] == expected.reduce
    assert [*genotype.normal_concat] == [*expected.normal_concat]


def test_a_genotype_of_normal_and_of_reduction_cells_that_builds():
    net = SearchNetwork(2, 5, 3, nodes=2, primitives=THREE)
    net.alphas_normal.data = torch.tensor([[0.0, 1.0, 0.0]]).repeat(5, 1)
    net.alphas_reduce.data = torch.tensor([[9.0, 0.0, 1.0]]).repeat(5, 1)
    genotype = net.genotype()
    assert {name for name, _ in genotype.normal} == {"skip_connect"}
    assert {name for name, _ in genotype.reduce} == {"sep_conv_3x3"}
    assert genotype.normal_concat == genotype.reduce_concat == (2, 3)
    final = NetworkCIFAR(2, 5, 3, genotype).eval()
    assert final(torch.randn(2, 3, 8, 8)).shape == (2, 5)


# What is built


@some
@given(
    st.integers(1, 3),
    st.integers(3, 5),
    st.integers(1, 3),
    st.lists(st.sampled_from(sorted(set(OPS) - {"none"})), min_size=1, max_size=3, unique=True),
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
)
def test_any_search_network_on_any_image(C, layers, nodes, primitives, size):
    net = SearchNetwork(C, 5, layers, nodes, primitives, in_channels=2).eval()
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        out = net(x)
        assert out.shape == (2, 5)
        assert torch.equal(fx.symbolic_trace(net)(x), out)


@pytest.mark.parametrize("reduction", [False, True])
def test_a_cell_has_an_edge_from_every_state_before(reduction):
    cell = SearchCell(3, 4, 6, 2, reduction, False, THREE)
    assert len(cell._ops) == 2 + 3 + 4
    out = cell(torch.randn(2, 4, 7, 7), torch.randn(2, 6, 7, 7), torch.full((9, 3), 1 / 3))
    assert out.shape == (2, 3 * 2, 4 if reduction else 7, 4 if reduction else 7)


def test_channels_layers_and_operations_are_as_asked():
    net = SearchNetwork(4, 10, 6, nodes=2, primitives=THREE, in_channels=1, stem_multiplier=2)
    assert net.stem[0].weight.shape == (8, 1, 3, 3)
    assert [cell.reduction for cell in net.cells] == [False, False, True, False, True, False]
    assert [cell.preprocess1.op[1].out_channels for cell in net.cells] == [4, 4, 8, 8, 16, 16]
    assert net.classifier.weight.shape == (10, 2 * 16)
    assert all(len(m._ops) == 3 for m in net.modules() if isinstance(m, MixedOp))
    assert [alpha.shape for alpha in net.arch_parameters()] == [(5, 3)] * 2


def test_no_batch_norm_is_affine_and_every_pool_has_one():
    net = SearchNetwork(2, 5, 3, nodes=1)
    for name, module in net.cells.named_modules():
        assert not (isinstance(module, nn.BatchNorm2d) and module.affine), name
    for edge in (m for m in net.modules() if isinstance(m, MixedOp)):
        pools = [op for op, name in zip(edge._ops, PRIMITIVES, strict=True) if "pool" in name]
        assert all(isinstance(pool[1], nn.BatchNorm2d) for pool in pools)


def test_an_edge_by_hand():
    """0.2 * 0 + 0.5 * x + 0.3 * max over 3 x 3, whose BN in eval() divides by sqrt(1 + 1e-5).

    On a map of 2s: 0.2 * 0 + 0.5 * 2 + 0.3 * 2 = 1.6.
    """
    edge = MixedOp(1, 1, ("none", "skip_connect", "max_pool_3x3")).eval()
    out = edge(torch.full((1, 1, 4, 4), 2.0), torch.tensor([0.2, 0.5, 0.3]))
    torch.testing.assert_close(out, torch.full((1, 1, 4, 4), 1.6), rtol=1e-5, atol=0)


def test_it_computes_what_the_published_network_computes():
    """Also: the names in its state_dict are theirs."""
    theirs = quark_darts.Network(2, 5, 4, nn.CrossEntropyLoss(), steps=3, multiplier=3)
    ours = SearchNetwork(2, 5, 4, nodes=3)
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (missing, unexpected) == (["alphas_normal", "alphas_reduce"], [])
    for a, b in zip(theirs.arch_parameters(), ours.arch_parameters(), strict=True):
        b.data = a.data.normal_().clone()
    x = torch.randn(3, 3, 8, 8)
    for training in (True, False):
        expected = theirs.train(training)(x)
        torch.testing.assert_close(ours.train(training)(x), expected, rtol=1e-4, atol=1e-5)


# A search


def test_the_two_kinds_of_parameters_are_all_and_apart():
    net = SearchNetwork(2, 5, 3, nodes=2)
    alphas = {id(p) for p in net.arch_parameters()}
    weights = {id(p) for p in net.weight_parameters()}
    assert len(alphas) == 2
    assert not alphas & weights
    assert alphas | weights == {id(p) for p in net.parameters()}
    twin = copy.deepcopy(net)
    assert twin.arch_parameters()[0] is twin.alphas_normal
    assert net.state_dict().keys() >= {"alphas_normal", "alphas_reduce"}


def test_every_parameter_learns():
    net = SearchNetwork(2, 5, 3, nodes=2)
    F.cross_entropy(net(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(alpha.grad.any() for alpha in net.arch_parameters())


@pytest.mark.parametrize("wanted", range(3))
def test_alphas_find_the_operation_that_made_the_targets(wanted):
    edge = MixedOp(2, 1, ("none", "skip_connect", "max_pool_3x3"))
    alpha = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([alpha], lr=0.2)
    x = torch.randn(8, 2, 6, 6)
    targets = edge._ops[wanted](x)
    for _ in range(40):
        optimizer.zero_grad()
        F.mse_loss(edge(x, alpha.softmax(-1)), targets).backward()
        optimizer.step()
    assert alpha.softmax(-1)[wanted] > 0.9


# What is refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"layers": 2}, "layers: expected at least 3, got 2"),
        ({"C": 0}, "C: expected at least 1, got 0"),
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"nodes": 0}, "nodes: expected at least 1"),
        ({"in_channels": 0}, "in_channels: expected at least 1"),
        ({"stem_multiplier": 0}, "stem_multiplier: expected at least 1"),
        ({"primitives": ["skip"]}, "unknown operation 'skip', expected none, max_pool_3x3"),
        ({"primitives": ["none"]}, "one operation at least besides 'none'"),
        ({"primitives": ()}, "one operation at least besides 'none'"),
        ({"primitives": ["skip_connect"] * 2}, "each operation once, got skip_connect, skip_con"),
    ],
)
def test_refuses(arguments, says):
    with pytest.raises(ValueError, match=says):
        SearchNetwork(**{"C": 2, "num_classes": 5, "layers": 3, **arguments})


@pytest.mark.parametrize("shape", [(3, 3), (0, 3), (1, 3), (5, 2), (5,), (2, 2, 3)])
def test_refuses_alphas_of_no_cell(shape):
    with pytest.raises(ValueError, match=r"2, 5, 9, 14, ... edges and 3 operations, got the sha"):
        strongest_edges(torch.zeros(shape), THREE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_alphas_of_a_search_that_diverged(value):
    alphas = torch.zeros(5, 3)
    alphas[1, 2] = value
    with pytest.raises(ValueError, match="did the search diverge"):
        strongest_edges(alphas, THREE)
