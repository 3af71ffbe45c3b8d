"""freeze_batch_norm: batch norms stop after so many steps, and their γ and β train on."""

import copy
from itertools import pairwise

import torch

import fxquant
from fxquant.graph.trace import trace
from fxquant.passes import Canonicalize, FreezeBatchNorm, FuseConvBnRelu
from tests.strategies import chain

SPEC = chain("conv", "bn", "relu", "max_pool", "bn", head=True)


def statistics(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k}


def test_statistics_stop_after_so_many_steps():
    prepared = fxquant.prepare_qat(SPEC.build(), config=fxquant.QuantConfig(freeze_after=2))
    seen = [statistics(prepared)]
    for seed in range(4):
        prepared.train()(SPEC.inputs(seed=seed))
        seen.append(statistics(prepared))
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(seen)]
    assert moved == [True, True, False, False]


def test_frozen_it_normalises_with_running_statistics():
    model = SPEC.build()
    gm = trace(copy.deepcopy(model))
    for step in (Canonicalize(), FuseConvBnRelu(), FreezeBatchNorm(after=0)):
        step.run(gm)
    torch.testing.assert_close(gm.train()(SPEC.inputs()), model.eval()(SPEC.inputs()))
    gm(SPEC.inputs()).sum().backward()
    assert all(gm.get_parameter(f"steps.{i}.weight").grad is not None for i in (1, 4))


def test_the_count_is_in_the_state_dict():
    prepared = fxquant.prepare_qat(SPEC.build(), config=fxquant.QuantConfig(freeze_after=1))
    fresh = copy.deepcopy(prepared)
    prepared.train()(SPEC.inputs())
    fresh.load_state_dict(prepared.state_dict())
    before = statistics(fresh)
    fresh.train()(SPEC.inputs(seed=1))
    assert all(torch.equal(v, before[k]) for k, v in statistics(fresh).items())


def test_evaluating_does_not_count():
    prepared = fxquant.prepare_qat(SPEC.build(), config=fxquant.QuantConfig(freeze_after=1))
    prepared(SPEC.inputs())  # in eval(), as the model was
    before = statistics(prepared)
    prepared.train()(SPEC.inputs())
    assert any(not torch.equal(v, before[k]) for k, v in statistics(prepared).items())
