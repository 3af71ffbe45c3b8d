"""The strategies themselves: every option is really drawn, and every network runs."""

import pytest
import torch
from hypothesis import find, given, settings

from tests.strategies import KINDS, NetSpec, net_specs


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_step_is_drawn(kind):
    assert find(net_specs(), lambda spec: any(step.kind == kind for step in spec.steps))


def test_branches_outputs_and_heads_are_drawn():
    assert find(net_specs(), lambda s: any(r > 0 for step in s.steps for r in step.reads))
    assert find(net_specs(), lambda s: s.outputs)
    assert find(net_specs(), lambda s: s.head)
    assert find(net_specs(), lambda s: s.channels > 2)


@settings(max_examples=50, deadline=None)
@given(net_specs())
def test_every_network_runs(spec: NetSpec):
    net = spec.build()
    assert torch.equal(_first(net(spec.inputs())), _first(spec.build()(spec.inputs())))


def _first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs
