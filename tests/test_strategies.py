"""The strategies themselves: every option is really drawn, and every network runs."""

import torch
from hypothesis import given, settings

from tests.strategies import KINDS, NetSpec, net_specs


def test_every_option_is_drawn():
    drawn: list[NetSpec] = []

    @settings(max_examples=1500, deadline=None, derandomize=True)
    @given(net_specs())
    def draw(spec: NetSpec) -> None:
        drawn.append(spec)

    draw()
    steps = [step for spec in drawn for step in spec.steps]
    assert {step.kind for step in steps} == set(KINDS)
    assert any(read > 0 for step in steps for read in step.reads)
    assert any(spec.outputs for spec in drawn)
    assert any(spec.head for spec in drawn)
    assert any(spec.channels > 2 for spec in drawn)


@settings(max_examples=50, deadline=None)
@given(net_specs())
def test_every_network_runs(spec: NetSpec):
    net = spec.build()
    assert torch.equal(_first(net(spec.inputs())), _first(spec.build()(spec.inputs())))


def _first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs
