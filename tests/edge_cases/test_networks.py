"""What every edge-case network promises to those who run it, and what fxquant makes of it."""

import pytest
import torch

import fxquant
from fxquant.errors import FxQuantError
from tests import laws
from tests.edge_cases.checks import apart, kept, run
from tests.edge_cases.networks import NETWORKS, Network

# live batch norms and folded ones; the recipes between have tests of their own
CONFIGS = {name: laws.CONFIGS[name] for name in ("train", "equalize")}

NO_FORM = "no integer form for"
# what is refused: the words, and the modules without which it is kept, if any
REFUSED = {
    "track_running_stats=False": (NO_FORM, ("1",)),
    "average pool with a divisor": (NO_FORM, ("2",)),
}


# where torch itself cannot train on one input: it is an example in eval(), and two are trained on
ONE_IN_EVAL = {"one value per channel"}


def made(network: Network):
    torch.manual_seed(0)  # every edge case starts so: see conftest.py
    return network.make(), torch.randn(network.input_shape)


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


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.name)
def test_kept_or_refused(network):
    model, x = made(network)
    if network.name in ONE_IN_EVAL:
        for config in CONFIGS.values():
            prepared = fxquant.prepare_qat(model, x, config)
            assert apart(run(prepared, (x,), False), run(model, (x,), False)) <= 1e-5
        x = torch.cat([x, -x])
    if network.name not in REFUSED:
        kept(model, x, example=True, configs=CONFIGS)
        return
    words, in_float = REFUSED[network.name]
    for config in CONFIGS.values():
        with pytest.raises(FxQuantError) as caught:
            fxquant.prepare_qat(model, x, config)
        assert words in str(caught.value)
        assert "\nWhat to do: " in str(caught.value)
    if in_float:
        kept(model, x, example=True, configs=CONFIGS, keep_float=in_float)


def test_what_is_named_exists():
    assert set(REFUSED) | ONE_IN_EVAL <= {n.name for n in NETWORKS}
