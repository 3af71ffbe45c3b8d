"""Random networks, through every pass and both recipes: the function kept, the contract held.

Some of each configuration in every run; 20,000 in all with --slow.
"""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant
from fxquant.pipeline import Keeps
from fxquant.recipes import prepare_recipe
from tests import laws
from tests.strategies import NetSpec, net_specs

RECIPES = laws.CONFIGS | laws.NEARLY


def goes_through(spec: NetSpec, name: str, batch: int) -> None:
    """Every pass of the recipe in float64, then prepare, settle, convert in float32."""
    every_pass_keeps_the_function(spec, RECIPES[name])
    model = spec.build()
    prepared = fxquant.prepare_qat(model, config=RECIPES[name])
    laws.settle(prepared, spec.inputs(4))
    x = spec.inputs(batch, seed=7) * 2
    laws.assert_equal(fxquant.convert(prepared)(x), prepared(x))


def every_pass_keeps_the_function(spec: NetSpec, config: fxquant.QuantConfig) -> None:
    gm, x = laws.capture(spec.build().double()), spec.inputs().double()
    for step in prepare_recipe(config, frozenset()).passes:
        before = copy.deepcopy(gm)
        step.run(gm)
        if step.keeps is not Keeps.NOTHING:
            laws.keeps_values(gm, before, x, step.keeps)


@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=30, deadline=None)
@given(spec=net_specs(), batch=st.integers(1, 3))
def test_random_networks(name, spec, batch):
    goes_through(spec, name, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=4000, deadline=None)
@given(spec=net_specs(), batch=st.integers(1, 3))
def test_many_random_networks(name, spec, batch):
    goes_through(spec, name, batch)
