"""The laws, on every listed pass."""

import pytest
from hypothesis import given, settings

from fxquant.passes import PASSES, CorrectBias
from fxquant.pipeline import Keeps
from tests import laws
from tests.strategies import NetSpec, net_specs

KEEPING = [p for p in PASSES if p.keeps is not Keeps.NOTHING]
# a correction is taken off the bias each time
IDEMPOTENT = [p for p in PASSES if p.needs is p.gives and p is not CorrectBias]


@pytest.mark.parametrize("kind", KEEPING, ids=lambda p: p.name)
@settings(max_examples=15, deadline=None)
@given(spec=net_specs())
def test_keeps_the_function(kind, spec: NetSpec):
    step, config = laws.step_and_config(kind)
    laws.keeps_the_function(step, spec, config)


@pytest.mark.parametrize("kind", IDEMPOTENT, ids=lambda p: p.name)
@settings(max_examples=20, deadline=None)
@given(spec=net_specs())
def test_twice_is_once(kind, spec: NetSpec):
    step, config = laws.step_and_config(kind)
    laws.twice_is_once(step, spec, config)


@pytest.mark.parametrize("kind", PASSES, ids=lambda p: p.name)
@settings(max_examples=20, deadline=None)
@given(spec=net_specs())
def test_leaves_a_sound_graph(kind, spec: NetSpec):
    step, config = laws.step_and_config(kind)
    laws.leaves_a_sound_graph(step, spec, config)
