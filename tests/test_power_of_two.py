"""Scales that are powers of two: everywhere, whatever is folded, and then results are shifted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant
from fxquant import LSQ, TQT, QuantConfig, QuantScheme
from fxquant.errors import ConfigError
from fxquant.schemes import next_power_of_two, range_to_numbers, range_to_qparams
from fxquant.sites.integer import IntegerOp, Quantize
from tests import laws
from tests.strategies import chain, net_specs

ACTIVATION = QuantScheme(signed=False, symmetric=False, power_of_two=True)
WEIGHT = QuantScheme(narrow=True, per_channel=True, power_of_two=True)


def is_power(x: float) -> bool:
    return math.frexp(x)[0] == 0.5


@given(st.floats(2.0**-126, 2.0**127, width=32))
def test_the_next_power_of_two(scale):
    power = float(next_power_of_two(torch.tensor(scale)))
    assert is_power(power)
    assert scale <= power < 2 * scale


@given(
    st.floats(-(2.0**20), 0, width=32), st.floats(0, 2.0**20, width=32), st.integers(2, 8),
    st.booleans(),
)
def test_ranges_are_not_clipped(low, high, bits, symmetric):
    scheme = QuantScheme(bits, symmetric=symmetric, power_of_two=True)
    scale, zero = range_to_numbers(low, high, scheme)
    q = range_to_qparams(torch.tensor(low), torch.tensor(high), scheme)
    assert is_power(scale)
    plain, _ = range_to_numbers(low, high, QuantScheme(bits, symmetric=symmetric))
    assert plain <= scale < 2 * plain or plain == scale == 1.0
    assert scheme.qmin <= zero <= scheme.qmax
    assert float(q.scale) == scale


@settings(max_examples=20, deadline=None)
@given(net_specs(4), st.sampled_from(["train", "fold"]))
def test_eval_is_convert(spec, batch_norm):
    laws.capture(spec.build())  # or it is refused honestly
    config = QuantConfig(activation=ACTIVATION, weight=WEIGHT, batch_norm=batch_norm)
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    laws.settle(prepared, spec.inputs(seed=0))
    laws.assert_equal(fxquant.convert(prepared)(spec.inputs()), prepared(spec.inputs()))


@pytest.mark.parametrize("batch_norm", ["train", "fold"])
@pytest.mark.parametrize("method", [None, TQT()])
def test_multipliers_are_shifts(batch_norm, method):
    """Also where a live batch norm is folded into the scales of the weights."""
    more = {} if method is None else {"fake_quant": method}
    config = QuantConfig(
        activation=ACTIVATION, weight=WEIGHT, batch_norm=batch_norm, widen=False, **more
    )
    spec = chain("conv", "bn", "relu", "conv", head=True)
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    laws.settle(prepared, spec.inputs(seed=0))
    quantized = fxquant.convert(prepared)
    assert torch.equal(quantized(spec.inputs()), prepared(spec.inputs()))
    layers = 0
    for module in quantized.modules():
        if isinstance(module, Quantize):
            assert is_power(float(module.scale))
        if isinstance(module, IntegerOp) and module.op.weight_axis is not None:
            layers += 1
            assert all(m & (m - 1) == 0 for m in module.multiplier.tolist())
    assert layers == 3


def test_steps_that_are_learned_are_refused():
    for settings_ in ({"activation": ACTIVATION}, {"weight": WEIGHT}):
        config = QuantConfig(fake_quant=LSQ(), **settings_)
        with pytest.raises(ConfigError, match=r"LSQ.*learns scales that are no powers of two"):
            fxquant.prepare_qat(chain("conv").build(), config=config)
