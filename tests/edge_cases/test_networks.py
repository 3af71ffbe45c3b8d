"""What every edge-case network promises to those who run it."""

import pytest
import torch

from tests import laws
from tests.edge_cases.networks import NETWORKS, Network


def outputs(network: Network, seed: int = 0):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = network.make().eval()
        return [y for y in laws.flat(model(torch.randn(network.input_shape))) if y is not None]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_runs_and_is_decided_by_the_seed(network):
    first = outputs(network)
    assert first
    assert all(y.dtype == torch.float32 and torch.isfinite(y).all() for y in first)
    laws.assert_equal(first, outputs(network))
    assert any(not torch.equal(a, b) for a, b in zip(first, outputs(network, 1), strict=True))


def test_names_are_unique():
    assert len({n.name for n in NETWORKS}) == len(NETWORKS)


def test_numbers_are_those_of_edge_cases_and_rise():
    numbers = [n.number for n in NETWORKS]
    assert numbers == sorted(numbers)
    assert 1 <= numbers[0] <= numbers[-1] <= 69
