"""Phases of training: what moves and what is rounded in each, and that they travel."""

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import fxquant
from fxquant import LSQ, Phase, PhaseSchedule, QuantConfig, set_phase
from fxquant.errors import ConfigError, StageError, UncalibratedError
from fxquant.sites.phase import PhasedSite
from tests import laws
from tests.strategies import chain, net_specs

SPEC = chain("conv", "bn", "relu", "max_pool", "sigmoid", "bn", head=True)
OBSERVING, FROZEN = Phase(round=False), Phase(observe=False)
CONFIGS = [QuantConfig(), QuantConfig(fake_quant=LSQ())]
PLAIN = [QuantConfig(batch_norm="fold"), QuantConfig(batch_norm="fold", fake_quant=LSQ())]


def moved(prepared, x):
    """Which numbers a training forward moves: those of ranges, of statistics."""
    before = {name: value.clone() for name, value in prepared.named_buffers()}
    prepared.train()(x)
    after = dict(prepared.named_buffers())
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return any(".observer." in n for n in names), any("running" in n for n in names)


def test_what_moves_in_each_phase():
    prepared = fxquant.prepare_qat(SPEC.build())
    for phase, moves in (
        (OBSERVING, (True, True)),
        (Phase(), (True, True)),
        (FROZEN, (False, True)),
        (Phase(observe=False, batch_statistics=False), (False, False)),
        (Phase(batch_statistics=False), (True, False)),
        (Phase(observe=False, round=False), (False, True)),
    ):
        set_phase(prepared, phase)
        assert moved(prepared, SPEC.inputs(seed=1) * 3) == moves, phase


@pytest.mark.parametrize("config", CONFIGS, ids=["observed", "learned"])
@settings(max_examples=15, deadline=None)
@given(spec=net_specs(max_steps=5))
def test_observing_rounds_nothing(spec, config):
    """train() of the prepared network is train() of the model, and eval() is ready behind it."""
    model = spec.build().double()
    try:
        prepared = fxquant.prepare_qat(model, config=config)
    except fxquant.errors.CaptureError:
        return
    set_phase(prepared, OBSERVING)
    x = spec.inputs().double()
    outputs = []
    for network in (prepared, model):
        torch.manual_seed(0)
        outputs.append(network.train()(x))
    laws.assert_close(*outputs)
    prepared.eval()
    laws.assert_equal(fxquant.convert(prepared)(x), prepared(x))


@pytest.mark.parametrize("config", PLAIN, ids=["observed", "learned"])
def test_frozen_ranges_round_as_before(config):
    """The batch that is trained on does not matter to how another one is rounded."""
    spec = chain("conv", "bn", "relu", "max_pool", "conv", head=True)
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    laws.settle(prepared)
    x = spec.inputs(seed=5) * 4
    set_phase(prepared, FROZEN)
    before = prepared.train()(x)
    prepared(x * 100)
    laws.assert_equal(prepared(x), before)
    torch.testing.assert_close(before, prepared.eval()(x), rtol=0, atol=0.05)


def test_learned_scales_of_activations_get_no_gradient_while_ranges_stand_still():
    prepared = fxquant.prepare_qat(SPEC.build(), config=CONFIGS[1])
    laws.settle(prepared)
    set_phase(prepared, FROZEN)
    prepared.train()(SPEC.inputs()).sum().backward()
    steps = {n: p.grad for n, p in prepared.named_parameters() if n.endswith("output.step")}
    assert steps
    assert all(grad is None for grad in steps.values())
    assert prepared.get_parameter("steps.0.weight").grad.abs().sum() > 0
    set_phase(prepared, Phase())
    prepared(SPEC.inputs()).sum().backward()
    assert all(p.grad is not None for n, p in prepared.named_parameters() if n in steps)


def test_learned_scales_start_from_what_was_observed():
    prepared = fxquant.prepare_qat(SPEC.build(), config=CONFIGS[1])
    set_phase(prepared, OBSERVING)
    laws.settle(prepared)
    before = copy.deepcopy(prepared.state_dict())
    set_phase(prepared, Phase())
    prepared.train()(SPEC.inputs(seed=3) * 50)
    after = prepared.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items() if n.endswith("output.step"))


def test_a_schedule_goes_through_all_phases():
    prepared = fxquant.prepare_qat(SPEC.build())
    phases = PhaseSchedule(prepared, round=1, freeze_ranges=3, freeze_batch_norm=4)
    seen = []
    for step in range(6):
        seen.append(prepared.fxquant.quantize_x.phase)
        prepared.train()(SPEC.inputs(seed=step))
        phases.step()
    last = Phase(observe=False, batch_statistics=False)
    assert seen == [OBSERVING, Phase(), Phase(), FROZEN, last, last]
    assert {m.phase for m in prepared.modules() if isinstance(m, PhasedSite)} == {last}
    assert phases.state_dict() == {"steps": 6}


def test_phases_travel_in_the_state_dict_and_in_copies():
    prepared, fresh = (fxquant.prepare_qat(SPEC.build()) for _ in range(2))
    laws.settle(prepared)
    set_phase(prepared, FROZEN)
    fresh.load_state_dict(prepared.state_dict())
    for network in (fresh, copy.deepcopy(prepared)):
        assert network.fxquant.quantize_x.phase == FROZEN
        assert moved(network, SPEC.inputs(seed=1) * 3) == (False, True)
    again = PhaseSchedule(prepared, round=1, freeze_ranges=2)
    again.load_state_dict({"steps": 2})
    assert prepared.fxquant.quantize_x.phase == FROZEN


def test_statistics_are_measured_anew_also_where_they_were_frozen():
    prepared = fxquant.prepare_qat(SPEC.build())
    laws.settle(prepared)
    frozen = Phase(observe=False, batch_statistics=False)
    set_phase(prepared, frozen)
    before = prepared.get_buffer("steps.1.running_mean").clone()
    fxquant.reestimate_batch_norm(prepared, [SPEC.inputs(seed=8)])
    assert not torch.equal(prepared.get_buffer("steps.1.running_mean"), before)
    assert prepared.fxquant.quantize_x.phase == frozen


def test_what_has_no_range_cannot_be_frozen():
    prepared = fxquant.prepare_qat(SPEC.build())
    with pytest.raises(UncalibratedError, match=r"node 'quantize_x'.*cannot stand still"):
        set_phase(prepared, FROZEN)
    with pytest.raises(UncalibratedError, match="cannot stand still"):
        PhaseSchedule(prepared, freeze_ranges=0)
    assert prepared.fxquant.quantize_x.phase == Phase()


@pytest.mark.parametrize(
    "starts", [{"round": 3, "freeze_ranges": 2}, {"freeze_batch_norm": -1}, {"round": 1.5}]
)
def test_a_schedule_checks_itself(starts):
    with pytest.raises(ConfigError, match="numbers of steps, in this order"):
        PhaseSchedule(fxquant.prepare_qat(SPEC.build()), **starts)


def test_only_prepared_networks_have_phases():
    for other in (nn.Linear(1, 1), SPEC.build()):
        with pytest.raises(StageError, match="set_phase takes what prepare_qat returned"):
            set_phase(other, Phase())
