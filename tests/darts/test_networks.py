"""DARTS networks: shapes for any genotype and size, published sizes, drop path, plain tracing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from fxquant.darts import (
    DARTS_V2,
    GENOTYPES,
    OPS,
    AmoebaNet,
    Cell,
    DropPath,
    FactorizedReduce,
    Genotype,
    NASNet,
    NetworkCIFAR,
    NetworkImageNet,
)
from fxquant.errors import ConfigError


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@st.composite
def cells(draw):
    """The edges and the concat of one cell of at most three nodes."""
    n = draw(st.integers(1, 3))
    names = st.sampled_from(sorted(OPS))
    edges = [(draw(names), draw(st.integers(0, i + 1))) for i in range(n) for _ in range(2)]
    return edges, draw(st.lists(st.integers(2, n + 1), min_size=1, unique=True))


genotypes = st.builds(lambda normal, reduce: Genotype(*normal, *reduce), cells(), cells())
some = settings(max_examples=20, deadline=None)


def halved(size, times):
    return size if times == 0 else halved(-(-size // 2), times - 1)


def gives(op, x):
    """The output of `op` in eval mode, from plain tracing too, which must not differ."""
    op.eval()
    with torch.no_grad():
        out = op(x)
        torch.testing.assert_close(fx.symbolic_trace(op)(x), out, rtol=0, atol=0)
    return out


# What is built, for any genotype and any size of image


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_an_operation_divides_the_size_by_its_stride_rounding_up(name, stride, size):
    out = gives(OPS[name](4, stride, True), torch.randn(2, 4, size, size + 1))
    assert out.shape == (2, 4, -(-size // stride), -(-(size + 1) // stride))


@pytest.mark.parametrize(
    ("name", "pixels", "width"),
    [
        ("sep_conv_3x3", 5 * 5, 5),  # 3 x 3 twice
        ("sep_conv_5x5", 9 * 9, 9),
        ("sep_conv_7x7", 13 * 13, 13),
        ("dil_conv_3x3", 3 * 3, 5),  # every other pixel
        ("dil_conv_5x5", 5 * 5, 9),
        ("conv_7x1_1x7", 7 * 7, 7),
        ("max_pool_3x3", 3 * 3, 3),
        ("avg_pool_3x3", 3 * 3, 3),
        ("skip_connect", 1, 1),
        ("none", 0, 0),
    ],
)
def test_what_one_pixel_reaches(name, pixels, width):
    """A single 1 in the middle, weights of one: so many pixels are not 0, within that width."""
    op = OPS[name](1, 1, True).eval()
    for module in op.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    x = torch.zeros(1, 1, 15, 15)
    x[..., 7, 7] = 1.0
    reached = op(x)[0, 0].nonzero()
    assert len(reached) == pixels
    assert pixels == 0 or [*(reached.amax(0) - reached.amin(0) + 1)] == [width, width]


@pytest.mark.parametrize("name", ["avg_pool_3x3", "max_pool_3x3"])
def test_a_pool_does_not_count_the_padding(name):
    x = torch.full((1, 1, 4, 4), -2.0)
    assert torch.equal(OPS[name](1, 1, True)(x), x)


@some
@given(genotypes, st.integers(1, 3), st.integers(3, 5), st.integers(1, 9), st.integers(1, 9))
def test_any_genotype_on_any_image(genotype, C, layers, height, width):
    net = NetworkCIFAR(C, 5, layers, genotype, in_channels=2)
    assert gives(net, torch.randn(2, 2, height, width)).shape == (2, 5)


@some
@given(genotypes, st.integers(3, 4), st.integers(1, 70))
def test_any_genotype_on_any_large_image(genotype, layers, size):
    net = NetworkImageNet(2, 5, layers, genotype)
    assert gives(net, torch.randn(2, 3, size, size)).shape == (2, 5)


@some
@given(genotypes, st.booleans(), st.booleans(), st.integers(1, 9))
def test_a_cell_gives_its_concat(genotype, reduction, reduction_prev, size):
    cell = Cell(genotype, 3, 5, 4, reduction, reduction_prev).eval()
    s0 = torch.randn(2, 3, 2 * size - 1 if reduction_prev else size, size * (1 + reduction_prev))
    out = cell(s0, torch.randn(2, 5, size, size))
    concat = genotype.reduce_concat if reduction else genotype.normal_concat
    assert cell.multiplier == len(concat)
    assert out.shape == (2, 4 * len(concat), *[halved(size, reduction)] * 2)


def test_a_cell_by_hand():
    """Edges none and skip on state 0, twice avg_pool on state 1; the concat has a gap.

    Preprocessing is relu, 1 x 1, bn; with weights of one it is relu. A map of 3s and one of 5s:
    state 2 = 0 * 3 + 3 = 3, state 3 = 5 + 5 = 10, state 4 = 3 + 10 = 13; out = [3, 13].
    """
    edges = [("none", 0), ("skip_connect", 0), *[("avg_pool_3x3", 1)] * 2]
    edges += [("skip_connect", 2), ("skip_connect", 3)]
    cell = Cell(Genotype(edges, [2, 4], edges, [2, 4]), 1, 1, 1, False, False).eval()
    for parameter in (cell.preprocess0.op[1].weight, cell.preprocess1.op[1].weight):
        nn.init.ones_(parameter)
    out = cell(torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 4, 4), 5.0))
    torch.testing.assert_close(out[0, :, 2, 2], torch.tensor([3.0, 13.0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [4, 5])
def test_factorized_reduce_reads_even_and_odd_pixels(size):
    """With weights of one, on x[h, w] = 10 h + w: x[::2, ::2] and x[1::2, 1::2].

    At size 5 the second one misses a row and a column, which are zeros.
    """
    op = FactorizedReduce(1, 2, affine=False).eval()
    nn.init.ones_(op.conv_1.weight)
    nn.init.ones_(op.conv_2.weight)
    x = 10.0 * torch.arange(size)[:, None] + torch.arange(size)
    even, odd = op(x[None, None])[0]
    torch.testing.assert_close(even, x[::2, ::2], rtol=1e-4, atol=0)
    n = size // 2
    torch.testing.assert_close(odd[:n, :n], x[1::2, 1::2], rtol=1e-4, atol=0)
    assert not odd[n:].any()
    assert not odd[:, n:].any()


# Published facts


def millions(net):
    sizes = (p.numel() for name, p in net.named_parameters() if "auxiliary" not in name)
    return sum(sizes) / 1e6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DARTS_V2", 3.349342),  # quark0/darts prints "param size = 3.349342MB"
        ("PDARTS", 3.433798),  # github.com/chenxin061/pdarts/issues/7
    ],
)
def test_published_size_on_cifar(name, expected):
    with torch.device("meta"):
        net = NetworkCIFAR(36, 10, 20, GENOTYPES[name], auxiliary=True)
    assert millions(net) == expected


@pytest.mark.parametrize(("name", "expected"), [("DARTS_V2", 4.7), ("PC_DARTS_image", 5.3)])
def test_published_size_on_imagenet(name, expected):
    """In millions, as rounded in tables of the papers."""
    with torch.device("meta"):
        net = NetworkImageNet(48, 1000, 14, GENOTYPES[name], auxiliary=True)
    assert round(millions(net), 1) == expected


def test_auxiliary_head_of_the_published_size():
    """P-DARTS with its head: 3910224, github.com/chenxin061/pdarts/issues/7."""
    with torch.device("meta"):
        net = NetworkCIFAR(36, 10, 20, GENOTYPES["PDARTS"], auxiliary=True)
    assert sum(p.numel() for p in net.parameters()) == 3910224


def test_names_are_those_of_published_checkpoints():
    keys = NetworkCIFAR(2, 10, 3, DARTS_V2, auxiliary=True, drop_path_prob=0.2).state_dict().keys()
    assert keys >= {
        "stem.0.weight",
        "stem.1.running_mean",
        "cells.0.preprocess0.op.1.weight",
        "cells.0._ops.0.op.1.weight",
        "cells.0._ops.0.op.7.num_batches_tracked",
        "cells.2.preprocess0.conv_1.weight",
        "cells.2.preprocess0.conv_2.weight",
        "cells.2.preprocess0.bn.weight",
        "auxiliary_head.features.2.weight",
        "auxiliary_head.classifier.bias",
        "classifier.weight",
    }
    assert not [key for key in keys if "drop" in key]
    keys = NetworkImageNet(2, 10, 3, DARTS_V2, auxiliary=True).state_dict().keys()
    assert keys >= {"stem0.3.weight", "stem0.4.weight", "stem1.1.weight", "stem1.2.weight"}
    assert "auxiliary_head.features.6.weight" not in keys  # the BN that the paper left out


# Training: the auxiliary head, drop path


@pytest.mark.parametrize(("kind", "size"), [(NetworkCIFAR, 32), (NetworkImageNet, 224)])
def test_auxiliary_logits_while_training_only(kind, size):
    net = kind(2, 5, 3, NASNet, auxiliary=True)
    x = torch.randn(2, 3, size, size)
    logits, aux = net(x)
    assert logits.shape == aux.shape == (2, 5)
    (logits.sum() + aux.sum()).backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "auxiliary" in name)
    net.eval()
    logits, aux = net(x)
    assert logits.shape == (2, 5)
    assert aux is None
    traced, none = fx.symbolic_trace(net)(x)
    assert none is None
    assert torch.equal(traced, logits)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    drop = DropPath(0.75)
    x = torch.randn(4000, 2, 3, 3)
    out = drop(x)
    kept = out.abs().sum((1, 2, 3)) > 0
    assert torch.equal(out[kept], x[kept] / 0.25)
    assert 0.2 < kept.float().mean() < 0.3
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_drop_path_spares_identities_and_nothing_else():
    """Almost everything dropped: a node of two skips keeps its value, one of two pools is 0."""
    edges = [("skip_connect", 0), ("skip_connect", 0), ("avg_pool_3x3", 1), ("max_pool_3x3", 1)]
    genotype = Genotype(edges, [2, 3], edges, [2, 3])
    cell = Cell(genotype, 1, 1, 1, False, False, drop_path_prob=1 - 1e-9)
    skips, pools = cell(torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)).unbind(1)
    assert skips.any()
    assert not pools.any()


def test_drop_path_prob_reaches_every_cell():
    net = NetworkCIFAR(2, 5, 4, AmoebaNet, drop_path_prob=0.1)
    drops = [module for module in net.modules() if isinstance(module, DropPath)]
    assert len(drops) == 4
    assert {drop.p for drop in drops} == {0.1}
    net.drop_path_prob = 0.3
    assert net.drop_path_prob == 0.3
    assert {drop.p for drop in drops} == {0.3}
    x = torch.randn(4, 3, 8, 8)
    assert not torch.equal(net(x), net(x))
    net.drop_path_prob = 0.0
    assert torch.equal(net(x), net(x))


# What is refused


@pytest.mark.parametrize("kind", [NetworkCIFAR, NetworkImageNet])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"layers": 2}, "layers: expected at least 3, got 2"),
        ({"C": 0}, "C: expected at least 1, got 0"),
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"in_channels": -1}, "in_channels: expected at least 1"),
        ({"drop_path_prob": 1.0}, "drop_path_prob: expected 0 <= p < 1, got 1"),
        ({"drop_path_prob": float("nan")}, "drop_path_prob: expected 0 <= p < 1, got nan"),
    ],
)
def test_refuses(kind, arguments, says):
    with pytest.raises(ValueError, match=says):
        kind(**{"C": 2, "num_classes": 5, "layers": 3, "genotype": DARTS_V2, **arguments})


def test_refuses_odd_channels_where_they_are_halved():
    with pytest.raises(ValueError, match="C: expected an even number"):
        NetworkImageNet(3, 5, 3, DARTS_V2)
    with pytest.raises(ValueError, match="expected an even number of channels, got 3"):
        FactorizedReduce(3, 3)


def test_refuses_the_published_order_of_arguments():
    with pytest.raises(ConfigError, match=r"expected a fxquant.darts.Genotype, got bool"):
        NetworkCIFAR(2, 5, 3, True, DARTS_V2)


def test_refuses_an_impossible_drop_path_prob_later_too():
    net = NetworkCIFAR(2, 5, 3, DARTS_V2)
    with pytest.raises(ValueError, match=r"expected 0 <= p < 1, got -0\.1"):
        net.drop_path_prob = -0.1
    with pytest.raises(ValueError, match="expected 0 <= p < 1, got 1"):
        DropPath(1.0)
