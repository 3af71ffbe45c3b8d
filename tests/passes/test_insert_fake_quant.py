"""insert_fake_quant: who is quantized with what."""

import pytest
import torch

import fxquant
from fxquant.sites.flow import sites
from tests import laws
from tests.strategies import NetSpec, Step, chain


def prepare(spec, config=None):
    return fxquant.prepare_qat(spec.build(), config=config)


def by_operator(gm):
    return {site.op.name: site for _, site in sites(gm)}


def test_pools_and_activations_share_their_inputs_quantizer():
    found = by_operator(prepare(chain("conv", "max_pool", "relu", "avg_pool", "conv")))
    for name in ("max_pool2d", "relu", "avg_pool2d"):
        assert found[name].quantizer is found["conv2d"].sources[0]


def test_every_weight_has_a_quantizer_and_its_own_axis():
    gm = prepare(chain("conv", "bn", head=True))
    for _, site in sites(gm):
        assert (site.weight_quant is not None) == (site.op.weight_axis is not None)


@pytest.mark.parametrize("training", [True, False])
def test_quantizers_are_in_the_mode_of_the_network(training):
    gm = fxquant.prepare_qat(chain("conv", "bn", "relu", head=True).build().train(training))
    assert {module.training for module in gm.modules()} == {training}


def test_values_lie_on_the_grid_in_training():
    gm = prepare(NetSpec((Step("conv"), Step("add", (0, 1)), Step("avg_pool"))))
    laws.settle(gm)
    gm.train()
    seen = []
    for _, site in sites(gm):
        site.register_forward_hook(lambda s, _, y: seen.append((s.quantizer.qparams, y)))
    gm(gm.spec.inputs())
    assert len(seen) == 3
    for q, y in seen:
        codes = y / q.scale
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
        assert codes.min() >= -q.zero_point
        assert codes.max() <= 255 - q.zero_point


def test_gradients_reach_every_parameter():
    gm = prepare(chain("conv", "bn", "relu", "conv_depthwise", "avg_pool", head=True)).train()
    gm(gm.spec.inputs()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gm.steps.parameters())


def test_before_any_data_eval_is_the_float_network():
    spec = chain("conv", "bn", "relu", "conv", head=True)
    laws.assert_equal(prepare(spec)(spec.inputs()), spec.build()(spec.inputs()))
