"""Networks in the styles of published projects run, learn and repeat, as a search needs it.

    weights step on one batch (SGD), architecture step on another (Adam): first-order DARTS

How each project's script takes hold of its network is written in `SEARCHES`, one line each.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.darts.styles import nas_bench_201, p_darts, pc_darts, pt_darts, quark_darts


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)
    random.seed(0)


class Search(NamedTuple):
    """A search network, what its script hands to the two optimizers, and how it gets a loss."""

    module: Any
    make: Callable[[], nn.Module]
    alphas: Callable[[Any], list[torch.Tensor]]
    weights: Callable[[Any], list[torch.Tensor]]
    loss: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


def names_apart(net):
    names = ("alphas_normal", "alphas_reduce")
    return [v for k, v in net.named_parameters() if not k.endswith(names)]


def second_output(net, x, y):
    return F.cross_entropy(net(x)[1], y)


def own_loss(net, x, y):
    return net._loss(x, y)


def arch_parameters(net):
    return net.arch_parameters()


def all_parameters(net):
    return [*net.parameters()]


def in_201_style(make):
    return Search(
        nas_bench_201, make, lambda n: n.get_alphas(), lambda n: n.get_weights(), second_output
    )


def p_darts_search(**kwargs):
    return Search(
        p_darts, lambda: p_darts.search_network(**kwargs), arch_parameters, names_apart, own_loss
    )


SEARCHES = {
    "quark": Search(
        quark_darts, quark_darts.search_network, arch_parameters, all_parameters, own_loss
    ),
    "pt": Search(
        pt_darts,
        pt_darts.search_network,
        lambda n: [*n.alphas()],
        lambda n: [*n.weights()],
        lambda n, x, y: n.loss(x, y),
    ),
    "pc": Search(pc_darts, pc_darts.search_network, arch_parameters, all_parameters, own_loss),
    "p": p_darts_search(),
    "p uneven": p_darts_search(switches=p_darts.UNEVEN_SWITCHES),
    "p single": p_darts_search(switches=p_darts.SINGLE_SWITCHES),
    "p without dropout": p_darts_search(p=0.0),
    "201": in_201_style(nas_bench_201.search_network),
    "201 batch statistics": in_201_style(
        lambda: nas_bench_201.search_network(track_running_stats=False)
    ),
    "201 gdas": in_201_style(
        lambda: nas_bench_201.search_network(kind=nas_bench_201.TinyNetworkGDAS)
    ),
    "201 joint": in_201_style(lambda: nas_bench_201.setn_network("joint")),
    "201 widening": Search(
        nas_bench_201,
        lambda: nas_bench_201.WideningNetwork(3, 4),
        lambda n: n.get_alphas(),
        lambda n: [*n.stem.parameters(), *n.cell.parameters(), *n.classifier.parameters()],
        second_output,
    ),
}
FINALS = {
    "quark": (quark_darts.final_network, quark_darts.final_example_inputs),
    "pt": (pt_darts.final_network, pt_darts.final_example_inputs),
    "p": (p_darts.final_network, p_darts.final_example_inputs),
    "201": (nas_bench_201.final_network, nas_bench_201.example_inputs),
}
search = pytest.mark.parametrize("search", SEARCHES.values(), ids=list(SEARCHES))
final = pytest.mark.parametrize("style", FINALS)


def final_network(style, drop_path_prob, **kwargs):
    """Each script has its own way to set the probability."""
    make, example_inputs = FINALS[style]
    net = make(**kwargs)
    match style:
        case "pt":
            net.drop_path_prob(drop_path_prob)
        case "201":
            net.update_drop_path(drop_path_prob)
        case _:
            net.drop_path_prob = drop_path_prob
    return net, *example_inputs()


def labels(x):
    return torch.randint(10, x.shape[:1])


@search
def test_backward_reaches_every_alpha_and_every_weight(search):
    net, (x,) = search.make(), search.module.example_inputs()
    draws = 4 if search is SEARCHES["201 gdas"] else 1  # it may draw nothing but `none`
    for _ in range(draws):
        search.loss(net, x, labels(x)).backward()
    assert search.alphas(net)
    for alpha in search.alphas(net):
        assert alpha.is_leaf
        assert alpha.grad is not None
        assert alpha.grad.isfinite().all()
        assert alpha.grad.any()
    if draws == 1:  # else only the drawn operations are run
        assert all(w.grad is not None for w in search.weights(net))


@search
def test_alphas_and_weights_are_apart(search):
    net = search.make()
    alphas, weights = search.alphas(net), search.weights(net)
    assert not {id(a) for a in alphas} & {id(w) for w in weights}
    registered = {id(p) for p in net.parameters()}
    plain = search.module in (quark_darts, pc_darts)
    assert [id(a) in registered for a in alphas] == [not plain] * len(alphas)


@search
def test_a_bilevel_step(search):
    """Each optimizer moves its own tensors and leaves the other's alone."""
    net = search.make()
    alphas, weights = search.alphas(net), search.weights(net)
    before = [t.detach().clone() for t in (*alphas, *weights)]
    adam = torch.optim.Adam(alphas, lr=3e-3, betas=(0.5, 0.999), weight_decay=1e-3)
    sgd = torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)

    (x,) = search.module.example_inputs()
    adam.zero_grad()
    search.loss(net, x, labels(x)).backward()
    adam.step()
    moved = [not torch.equal(t, b) for t, b in zip((*alphas, *weights), before, strict=True)]
    assert moved == [True] * len(alphas) + [False] * len(weights)

    between = [a.detach().clone() for a in alphas]
    (x,) = search.module.example_inputs()
    sgd.zero_grad()
    search.loss(net, x, labels(x)).backward()
    nn.utils.clip_grad_norm_(weights, 5.0)
    sgd.step()
    assert all(torch.equal(a, b) for a, b in zip(alphas, between, strict=True))
    assert any(not torch.equal(t, b) for t, b in zip(weights, before[len(alphas):], strict=True))
    assert search.loss(net, x, labels(x)).isfinite()


@search
def test_equal_seeds_give_equal_networks_and_losses(search):
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        net, (x,) = search.make(), search.module.example_inputs()
        losses.append(search.loss(net, x, labels(x)).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("mode", ["urs", "select", "dynamic"])
def test_the_other_ways_to_run_a_cell(mode):
    net = nas_bench_201.setn_network(mode)
    feature, logits = net(*nas_bench_201.example_inputs())
    assert feature.shape == (2, 16)
    logits.sum().backward()
    assert net.arch_parameters.grad is None  # these choose, they do not weigh


def test_genotypes_have_two_edges_a_node_and_no_none():
    for style in (quark_darts, pc_darts):
        genotype = style.search_network(steps=3).genotype()
        assert len(genotype.normal) == len(genotype.reduce) == 6
        assert [*genotype.normal_concat] == [2, 3, 4]
        assert "none" not in [name for name, _ in genotype.normal + genotype.reduce]
    genotype = pt_darts.search_network().genotype()
    assert [len(edges) for edges in genotype.normal + genotype.reduce] == [2] * 4
    assert len(nas_bench_201.search_network().genotype()) == 3


def test_a_derived_genotype_can_be_built():
    for style in (quark_darts, pt_darts):
        genotype = style.search_network().genotype()
        net = style.final_network(genotype=genotype, auxiliary=False).eval()
        net.drop_path_prob = 0.0
        assert net(*style.example_inputs())[0].shape == (2, 10)
    genotype = nas_bench_201.search_network().genotype()
    net = nas_bench_201.final_network(genotype=genotype)
    assert net(*nas_bench_201.example_inputs())[0].shape == (2, 16)


@pytest.mark.parametrize("style", [quark_darts, pc_darts])
def test_new_copies_the_alphas_and_not_the_weights(style):
    """As the unrolled step of second-order DARTS needs it."""
    net = style.search_network()
    new = net.new()
    for theirs, ours in zip(new.arch_parameters(), net.arch_parameters(), strict=True):
        assert torch.equal(theirs, ours)
        assert theirs is not ours
    new.load_state_dict(net.state_dict())  # which knows of no alphas
    (x,) = style.example_inputs()
    assert torch.equal(new(x), net(x))


def test_update_p_reaches_the_dropouts():
    net = p_darts.search_network(p=0.4)
    net.p = 0.1
    net.update_p()
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.1}


@final
@pytest.mark.parametrize("drop_path_prob", [0.0, 0.3])
def test_final_networks_train_and_evaluate(style, drop_path_prob):
    net, x = final_network(style, drop_path_prob)
    outputs = net(x)
    # the two logits, and in the 201 style the feature before them in a tuple of its own
    logits, auxiliary = outputs[1] if style == "201" else outputs
    assert logits.shape == auxiliary.shape == (2, 10)
    (logits.sum() + auxiliary.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])
    assert net(x)[1].shape == (2, 10) if style == "201" else net(x)[1] is None


@final
def test_drop_path_drops_in_training_only(style):
    net, x = final_network(style, 0.5, auxiliary=False)
    first = net(x)[0]
    assert any(not torch.equal(net(x)[0], first) for _ in range(5))
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


def test_quarks_final_network_wants_its_probability_set_from_outside():
    net = quark_darts.final_network()
    with pytest.raises(AttributeError, match="drop_path_prob"):
        net(*quark_darts.final_example_inputs())


@final
def test_the_auxiliary_head_overwrites_what_it_reads(style):
    """Its first ReLU is in place: after the call the state it was given has no negatives."""
    net, x = final_network(style, 0.0)
    head = net.aux_head if style == "pt" else net.auxiliary_head
    seen = []
    head.register_forward_pre_hook(lambda module, args: seen.append((args[0], args[0].clone())))
    net(x)
    ((state, before),) = seen
    assert torch.equal(state, before.relu())
    assert not torch.equal(state, before)
