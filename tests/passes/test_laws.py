"""The laws, on every listed pass."""

import pytest
from hypothesis import given, settings

from fxquant.passes import PASSES
from fxquant.pipeline import Keeps
from tests import laws
from tests.strategies import NetSpec, net_specs

KEEPING = [p for p in PASSES if p.keeps is not Keeps.NOTHING]
IDEMPOTENT = [p for p in PASSES if p.needs is p.gives]


def config_for(step):
    return laws.CONFIGS["train" if step.name == "fuse_conv_bn_relu" else "equalize"]


@pytest.mark.parametrize("kind", KEEPING, ids=lambda p: p.name)
@settings(max_examples=40, deadline=None)
@given(spec=net_specs())
def test_keeps_the_function(kind, spec: NetSpec):
    laws.keeps_the_function(kind(), spec, config_for(kind))


@pytest.mark.parametrize("kind", IDEMPOTENT, ids=lambda p: p.name)
@settings(max_examples=20, deadline=None)
@given(spec=net_specs())
def test_twice_is_once(kind, spec: NetSpec):
    laws.twice_is_once(kind(), spec, config_for(kind))


@pytest.mark.parametrize("kind", PASSES, ids=lambda p: p.name)
@settings(max_examples=20, deadline=None)
@given(spec=net_specs())
def test_leaves_a_sound_graph(kind, spec: NetSpec):
    laws.leaves_a_sound_graph(kind(), spec, config_for(kind))
