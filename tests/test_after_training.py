"""What data settles once training is over."""

import copy

import pytest
import torch

import fxquant
from fxquant.errors import ConfigError, DataError, StageError, UncalibratedError
from tests.strategies import chain

SPEC = chain("conv", "bn", "relu", "dropout", "conv", "bn", head=True)
FUNCTIONS = (fxquant.reestimate_batch_norm, fxquant.correct_bias)


def trained():
    prepared = fxquant.prepare_qat(SPEC.build())
    with torch.no_grad():
        for seed in range(3):
            prepared.train()(SPEC.inputs(8, seed))
    return prepared


def test_running_statistics_become_the_average_of_the_batches():
    prepared = trained()
    prepared.steps[4].eval()  # the user's own choice of modes comes back
    before, modes = copy.deepcopy(prepared.state_dict()), [m.training for m in prepared.modules()]
    batches = [SPEC.inputs(8, seed) for seed in range(10, 13)]
    seen = []
    hook = prepared.steps[1].register_forward_hook(lambda m, args, y: seen.append(args[0]))
    fxquant.reestimate_batch_norm(prepared, [(x, 0) for x in batches])
    hook.remove()
    expected = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(prepared.steps[1].running_mean, expected)
    assert prepared.steps[1].momentum == 0.1
    assert modes == [m.training for m in prepared.modules()]
    changed = {k for k, v in prepared.state_dict().items() if not torch.equal(v, before[k])}
    names = ("running_mean", "running_var")  # of both; the counters stand at 3 again
    assert changed == {f"steps.{i}.{name}" for i in (1, 5) for name in names}


def test_eval_gets_nearer_to_training_statistics():
    """After a large step of the weights, stale statistics are far off; new ones are not."""
    prepared = trained()
    with torch.no_grad():
        prepared.steps[0].weight.mul_(5)
    prepared.steps[3].p = 0.0  # the dropout
    x = SPEC.inputs(64, 5)
    in_training = copy.deepcopy(prepared).train()(x)
    stale = prepared.eval()(x)
    fxquant.reestimate_batch_norm(prepared, [SPEC.inputs(64, seed) for seed in range(20, 24)])
    fresh = prepared.eval()(x)
    assert (fresh - in_training).norm() < (stale - in_training).norm() / 2
    assert torch.equal(fxquant.convert(prepared)(x), fresh)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_use_loses_nothing(function):
    prepared = trained()
    before = copy.deepcopy(prepared.state_dict())
    with pytest.raises(ConfigError, match="no batch"):
        function(prepared, [])
    with pytest.raises(DataError, match=r"batch 1, of shape \(1, 99, 8, 8\), does not run"):
        function(prepared, [SPEC.inputs(), torch.zeros(1, 99, 8, 8)])
    assert all(torch.equal(v, before[k]) for k, v in prepared.state_dict().items())
    assert prepared.training
    assert not any(m._forward_hooks for m in prepared.modules())
    with pytest.raises(UncalibratedError, match="has seen no finite data"):
        function(fxquant.prepare_qat(SPEC.build()), [SPEC.inputs()])
    with pytest.raises(StageError, match="takes what prepare_qat returned"):
        function(SPEC.build(), [SPEC.inputs()])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_empty_batch_is_refused(function):
    prepared = trained()
    before = copy.deepcopy(prepared.state_dict())
    with pytest.raises(ConfigError, match="batch 1 is empty"):
        function(prepared, [SPEC.inputs(), SPEC.inputs()[:0]])
    assert all(torch.equal(v, before[k]) for k, v in prepared.state_dict().items())


def test_norms_that_the_user_froze_stay():
    prepared = trained().train()
    prepared.steps[1].eval()
    before = prepared.steps[1].running_mean.clone()
    fxquant.reestimate_batch_norm(prepared, [SPEC.inputs(8, 50)])
    assert torch.equal(prepared.steps[1].running_mean, before)
