"""Configurations by name: where to start from.

    QuantConfig()          8 bits, batch norms live: what training with fake-quants wants
    preset("w4a8").config  a `QuantConfig` that dataclasses.replace may change further
"""

from __future__ import annotations

from dataclasses import dataclass

from fxquant.config import QuantConfig
from fxquant.errors import ConfigError
from fxquant.fake_quant import LSQ
from fxquant.observers import KL, MSE, MinMax
from fxquant.overrides import near_misses
from fxquant.schemes import QuantScheme

_INT8 = QuantScheme(symmetric=False)
_W4 = QuantScheme(bits=4, narrow=True, per_channel=True)
_A4 = QuantScheme(bits=4, signed=False, symmetric=False)


@dataclass(frozen=True)
class Preset:
    """A configuration with a name, and when to use it."""

    name: str
    summary: str
    config: QuantConfig


PRESETS = (
    Preset("int8", "8 bits, batch norms live: to train with fake-quants", QuantConfig()),
    Preset(
        "ptq",
        "8 bits after training: batch norms folded, layers equalized, ranges that hold all",
        QuantConfig(batch_norm="fold", equalize=True, calibrator=MinMax()),
    ),
    Preset(
        "w4a8",
        "weights of 4 bits, activations of 8, first and last layer at 8; least squares clipping",
        QuantConfig(weight=_W4, first_last_bits=8, calibrator=MSE()),
    ),
    Preset(
        "w4a4",
        "4 bits, first and last layer at 8, steps that the loss trains",
        QuantConfig(weight=_W4, activation=_A4, first_last_bits=8, fake_quant=LSQ()),
    ),
    Preset(
        "tensorrt",
        "as TensorRT has it: symmetric int8, KL calibration, float32 factors, ties to even",
        QuantConfig(
            activation=QuantScheme(narrow=True), batch_norm="fold", calibrator=KL(), widen=False,
            rounding="fp32_rne",
        ),
    ),
    Preset(
        "litert",
        "as LiteRT's reference kernels have it: int8 with zero points, gemmlowp's rounding",
        QuantConfig(activation=_INT8, rounding="gemmlowp", widen=False),
    ),
)


def preset(name: str) -> Preset:
    """The preset of that name, or a ConfigError that names those there are."""
    for known in PRESETS:
        if known.name == name:
            return known
    names = [known.name for known in PRESETS]
    near = near_misses(str(name), names)
    raise ConfigError(f"there is no preset '{name}', only {', '.join(names)}{near}")
