"""Multipliers of fewer bits: what they are, how far they move results, and the contract."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant
from fxquant import QuantConfig
from fxquant.errors import ConfigError
from fxquant.rounding import HALF_UP, rounding_named, shortened, with_multiplier_bits
from fxquant.sites.integer import IntegerOp
from tests import laws
from tests.strategies import chain, net_specs

factors = st.floats(2.0**-20, 2.0**20)


@given(st.lists(factors, min_size=1, max_size=4), st.integers(2, 31))
def test_a_short_multiplier_is_the_nearest_of_its_bits(values, bits):
    factor = torch.tensor(values, dtype=torch.float64)
    multiplier, shift = with_multiplier_bits(HALF_UP, bits).rescale(factor)
    got = torch.ldexp(multiplier.double(), -shift)
    assert torch.equal(got, shortened(factor, bits))
    assert bool(((got - factor).abs() <= factor * 2.0**-bits).all())
    small = factor < 1
    assert bool((multiplier[small] < 2**bits).all())


def test_by_hand():
    """0.3 = 0.6·2^-1: 0.6·16 = 9.6 is 10, and 10/32 = 0.3125."""
    assert shortened(torch.tensor(0.3, dtype=torch.float64), 4).item() == 0.3125
    multiplier, shift = with_multiplier_bits(HALF_UP, 4).rescale(torch.tensor(0.3).double())
    assert (int(multiplier), int(shift)) in {(10, 5), (5, 4)}


@settings(max_examples=20, deadline=None)
@given(net_specs(4), st.integers(2, 31))
def test_eval_is_convert(spec, bits):
    laws.capture(spec.build())  # or it is refused honestly
    config = QuantConfig(multiplier_bits=bits)
    prepared = fxquant.prepare_qat(spec.build(), config=config)
    laws.settle(prepared, spec.inputs(seed=0))
    quantized = fxquant.convert(prepared)
    laws.assert_equal(quantized(spec.inputs()), prepared(spec.inputs()))
    again = pickle.loads(pickle.dumps(copy.deepcopy(quantized)))
    laws.assert_equal(again(spec.inputs()), quantized(spec.inputs()))


def test_layers_hold_short_multipliers_and_lose_little():
    spec = chain("conv", "relu", "conv", head=True)
    outputs = {}
    for bits in (None, 16, 6):
        prepared = fxquant.prepare_ptq(spec.build(), config=QuantConfig(multiplier_bits=bits))
        fxquant.calibrate(prepared, [spec.inputs(8)])
        quantized = fxquant.convert(prepared)
        for module in quantized.modules():
            if bits is not None and isinstance(module, IntegerOp) and "conv" in module.text:
                assert int(module.multiplier.abs().max()) < 2**bits
        outputs[bits] = quantized(spec.inputs(8, 1))
    moved = {bits: float((outputs[None] - outputs[bits]).abs().max()) for bits in (16, 6)}
    assert moved[16] < moved[6]


@pytest.mark.parametrize("rounding", ["gemmlowp", "ruy", "fp32_rne"])
def test_engines_have_multipliers_of_their_own(rounding):
    with pytest.raises(ConfigError, match="needs rounding='half_up'"):
        QuantConfig(rounding=rounding, multiplier_bits=16)


@pytest.mark.parametrize("bits", [1, 32, 8.0, True, "8"])
def test_how_many_there_may_be(bits):
    with pytest.raises(ConfigError, match="multiplier_bits is 2 to 31, got"):
        QuantConfig(multiplier_bits=bits)


def test_names():
    assert rounding_named("half_up/16").name == "half_up/16"
    with pytest.raises(ConfigError, match="multiplier_bits is 2 to 31"):
        rounding_named("half_up/99")
