"""A search on a prepared search network, from its first step to the integers of what it found."""

import pytest
import torch
import torch.nn.functional as F

import fxquant
from fxquant.darts import NetworkCIFAR, SearchNetwork, strongest_edges

PRIMITIVES = ("none", "skip_connect", "sep_conv_3x3")
IMAGES, LABELS = 8, 4


def batch():
    return torch.randn(IMAGES, 3, 8, 8), torch.randint(LABELS, (IMAGES,))


def step(model, optimizer):
    optimizer.zero_grad()
    x, labels = batch()
    F.cross_entropy(model.train()(x), labels).backward()
    optimizer.step()


def values(parameters):
    return [p.detach().clone() for p in parameters]


def changed(parameters, before):
    return [not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)]


def is_kept(prepared):
    x, _ = batch()
    with torch.no_grad():
        return torch.equal(fxquant.convert(prepared)(x), prepared.eval()(x))


@pytest.fixture(scope="module")
def searched():
    """The network as it was, the prepared one, and what each step of the search changed."""
    torch.manual_seed(0)
    net = SearchNetwork(2, LABELS, 3, nodes=2, primitives=PRIMITIVES)
    prepared = fxquant.prepare_qat(net)
    weights, alphas = prepared.weight_parameters(), prepared.arch_parameters()
    of_weights = torch.optim.SGD(weights, lr=0.1)
    of_alphas = torch.optim.Adam(alphas, lr=0.5)
    log = []
    for _ in range(2):
        before = values(weights), values(alphas)
        step(prepared, of_alphas)
        log.append(("alphas", changed(weights, before[0]), changed(alphas, before[1])))
        before = values(weights), values(alphas)
        step(prepared, of_weights)
        log.append(("weights", changed(weights, before[0]), changed(alphas, before[1])))
    return net, prepared, log


def test_each_optimizer_moves_its_own(searched):
    """All alphas in every step of theirs; most weights in theirs (some get no gradient)."""
    for which, weights, alphas in searched[2]:
        if which == "alphas":
            assert all(alphas)
            assert not any(weights)
        else:
            assert not any(alphas)
            assert sum(weights) > 0.9 * len(weights)


def test_the_parameters_are_the_float_networks_own_two_lists(searched):
    net, prepared, _ = searched
    for name in ("weight_parameters", "arch_parameters"):
        ours, theirs = getattr(prepared, name)(), getattr(net, name)()
        assert [p.shape for p in ours] == [p.shape for p in theirs]
        assert not {id(p) for p in ours} & {id(p) for p in theirs}  # the search left `net` alone


def test_the_genotype_follows_the_alphas_of_the_prepared_network(searched):
    net, prepared, _ = searched
    found = prepared.genotype()
    assert found.normal == strongest_edges(prepared.alphas_normal, PRIMITIVES)
    assert found != net.genotype()


def test_the_search_network_keeps_the_contract(searched):
    assert is_kept(searched[1])


def test_the_network_that_was_found_trains_and_keeps_the_contract(searched):
    prepared = fxquant.prepare_qat(NetworkCIFAR(2, LABELS, 3, searched[1].genotype()))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    before = values(prepared.parameters())
    for _ in range(2):
        step(prepared, optimizer)
    assert all(changed(prepared.parameters(), before))
    assert is_kept(prepared)
