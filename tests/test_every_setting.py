"""Settings in any combination, on random networks: what ships is what was evaluated, or the
combination is refused by one error of ours.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant
from fxquant import QuantConfig, QuantScheme
from fxquant.errors import AccumulatorError, ConfigError, FxQuantError, UnsupportedOperatorError
from fxquant.fake_quant import FAKE_QUANTS, INQ, ByChance, Clipped, Stages, Tanh
from fxquant.observers import CALIBRATORS, Fixed
from tests import laws
from tests.strategies import chain, net_specs

ROUNDINGS = ("half_up", "half_even", "half_away", "gemmlowp", "ruy", "fp32_rne")
calibrators = st.sampled_from(
    [Fixed(-1.0, 2.0) if kind is Fixed else kind() for kind in CALIBRATORS]
)
fake_quants = st.sampled_from(
    [*(kind() for kind in FAKE_QUANTS), INQ("uniform"), Stages(Tanh(), ByChance(), learned=True),
     Stages(Clipped(1.0))]
)


@st.composite
def schemes(draw, least: int) -> QuantScheme:
    """Any that can be; `least` bits."""
    bits = draw(st.integers(least, 16))
    signed = bits in (1, *range(9, 17)) or draw(st.booleans())
    return QuantScheme(
        bits=bits,
        signed=signed,
        symmetric=signed and (bits == 1 or draw(st.booleans())),
        narrow=signed and draw(st.booleans()),
        power_of_two=draw(st.integers(0, 3)) == 0,
    )


@st.composite
def configs(draw) -> QuantConfig:
    """Any that is no error by itself."""
    weight = draw(schemes(1).filter(lambda scheme: scheme.symmetric))
    mode = draw(st.sampled_from(["static", "static", "static", "dynamic", "weight_only"]))
    fold = draw(st.booleans())
    static = mode == "static"
    return QuantConfig(
        activation=draw(schemes(2)),
        weight=replace(weight, per_channel=draw(st.booleans())),
        mode=mode,
        accumulator_bits=draw(st.sampled_from([16, 24, 32, 32, 32])),
        calibrator=draw(calibrators),
        widen=draw(st.booleans()),
        fake_quant=draw(fake_quants),
        weight_fake_quant=draw(st.none() | fake_quants),
        rounding=draw(st.sampled_from(ROUNDINGS)),
        batch_norm="fold" if fold else "train",
        equalize=static and fold and draw(st.booleans()),
        absorb_high_bias=static and fold and draw(st.booleans()),
        correct_bias=static and fold and draw(st.booleans()),
        first_last_bits=draw(st.none() | st.integers(2, 16)),
    )


def trained(spec, config, ptq: bool):
    if ptq:
        prepared = fxquant.prepare_ptq(spec.build(), config=config)
        if config.mode == "static":
            fxquant.calibrate(prepared, [spec.inputs(3, seed) for seed in range(2)])
        return prepared
    prepared = fxquant.prepare_qat(spec.build(), config=config).train()
    for seed in range(2):
        found = [y for y in laws.flat(prepared(spec.inputs(3, seed))) if y.requires_grad]
        if found:
            sum(y.square().mean() for y in found).backward()
    with torch.no_grad():
        for parameter in prepared.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad.clamp(-1, 1)
    return prepared


@settings(max_examples=40, deadline=None)
@given(spec=net_specs(4), config=configs(), ptq=st.booleans())
def test_what_ships_is_what_was_evaluated(spec, config, ptq):
    laws.capture(spec.build())  # or it is refused honestly
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            prepared = trained(spec, config, ptq)
            quantized = fxquant.convert(prepared)
        except (ConfigError, AccumulatorError, UnsupportedOperatorError) as error:
            refused: FxQuantError = error
            assert "\nWhat to do: " in str(refused) or isinstance(refused, ConfigError)
            return
        for seed in (7, 8):
            x = 3 * spec.inputs(2, seed)
            laws.assert_equal(quantized(x), prepared.eval()(x))


LAYERS = chain(
    *("conv", "conv_depthwise", "conv_grouped", "conv_transposed", "conv1d", "conv3d"),
    *("linear_last", "inverted_bottleneck"),
    head=True,
)


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_layer_with_weights_and_activations_of_so_many_bits(bits):
    """Separately, and a scale for each channel, and for each group of weights."""
    x = LAYERS.inputs(2, 3)
    weight = QuantScheme(bits, narrow=True, per_channel=True)
    activation = QuantScheme(bits, signed=bits > 8, symmetric=False)
    for config in (
        QuantConfig(weight=weight),
        QuantConfig(activation=activation, weight=QuantScheme(narrow=True)),
        QuantConfig(mode="dynamic", activation=activation, weight=weight),
        QuantConfig(mode="weight_only", weight=weight, keep_float=("steps.[367]",), group_size=3),
    ):
        prepared = trained(LAYERS, config, ptq=True)
        quantized = fxquant.convert(prepared)
        assert torch.equal(quantized(x), prepared(x))
        with torch.no_grad():
            share = (quantized(x) - LAYERS.build()(x)).square().sum() / prepared(x).square().sum()
        assert share < 30 * 4.0 ** -min(config.weight.bits, config.activation.bits)
