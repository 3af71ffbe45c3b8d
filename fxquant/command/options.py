"""The options of `fxquant quantize` as a configuration.

    --config FILE or --preset NAME, or 8 bits after training;  then what single options say
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fxquant.config import QuantConfig
from fxquant.config_file import load_config
from fxquant.errors import ConfigError
from fxquant.observers import (
    ACIQ,
    KL,
    MSE,
    AverageMinMax,
    Calibrator,
    MeanStd,
    MinMax,
    Percentile,
)
from fxquant.overrides import Override
from fxquant.presets import preset
from fxquant.schemes import QuantScheme

CLIPS = ("none", "average", "std", "percentile", "kl", "mse", "aciq-laplace", "aciq-gauss")
ACTIVATIONS = ("unsigned", "signed", "symmetric")


@dataclass(frozen=True)
class Options:
    """What single options say; None where they are not given."""

    config: Path | None = None
    preset: str | None = None
    mode: str | None = None
    activations: str | None = None
    activation_bits: int | None = None
    weight_bits: int | None = None
    accumulator_bits: int | None = None
    first_last_bits: int | None = None
    multiplier_bits: int | None = None
    rounding: str | None = None
    per_channel: bool | None = None
    clip: str | None = None
    stds: float | None = None
    percent: float | None = None
    no_clip: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    equalize: bool | None = None

    def to_config(self) -> QuantConfig:
        """The configuration. Raises ConfigError where options do not go together."""
        base = self._base()
        given = {
            "mode": None if self.mode is None else self.mode.replace("-", "_"),
            "activation": self._activation(base.activation),
            "weight": self._weight(base.weight),
            "accumulator_bits": self.accumulator_bits,
            "first_last_bits": self.first_last_bits,
            "multiplier_bits": self.multiplier_bits,
            "rounding": self.rounding,
            "calibrator": self._calibrator(),
            "keep_float": (*base.keep_float, *self.keep_float) or None,
            "overrides": (*base.overrides, *self._unclipped()) or None,
            "equalize": self.equalize,
            "batch_norm": "fold",
        }
        settings: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        return replace(base, **settings)

    def _base(self) -> QuantConfig:
        if self.config is not None and self.preset is not None:
            raise ConfigError("--config and --preset do not go together: a file may name a preset")
        if self.config is not None:
            return load_config(self.config)
        if self.preset is not None:
            return preset(self.preset).config
        return QuantConfig(calibrator=MinMax())

    def _activation(self, base: QuantScheme) -> QuantScheme:
        if self.activations is not None:
            if self.activations not in ACTIVATIONS:
                raise ConfigError(
                    f"--activations is one of {', '.join(ACTIVATIONS)}, got {self.activations!r}"
                )
            symmetric = self.activations == "symmetric"
            signed = self.activations != "unsigned" or base.bits > 8
            base = QuantScheme(base.bits, signed, symmetric, narrow=symmetric)
        return base if self.activation_bits is None else base.with_bits(self.activation_bits)

    def _weight(self, base: QuantScheme) -> QuantScheme:
        if self.per_channel is not None:
            base = replace(base, per_channel=self.per_channel)
        return base if self.weight_bits is None else base.with_bits(self.weight_bits)

    def _calibrator(self) -> Calibrator | None:
        for name, clip in (("stds", "std"), ("percent", "percentile")):
            if getattr(self, name) is not None and self.clip != clip:
                raise ConfigError(f"--{name} needs --clip {clip}")
        if self.clip is None:
            return None
        if self.clip == "std":
            return MeanStd() if self.stds is None else MeanStd(self.stds)
        if self.clip == "percentile":
            return Percentile() if self.percent is None else Percentile(self.percent)
        for name, calibrator in _CLIPPED:
            if name == self.clip:
                return calibrator
        raise ConfigError(f"--clip is one of {', '.join(CLIPS)}, got {self.clip!r}")

    def _unclipped(self) -> tuple[Override, ...]:
        return tuple(Override(path=path, calibrator=MinMax()) for path in self.no_clip)


_CLIPPED: tuple[tuple[str, Calibrator], ...] = (
    ("none", MinMax()),
    ("average", AverageMinMax()),
    ("kl", KL()),
    ("mse", MSE()),
    ("aciq-laplace", ACIQ("laplace")),
    ("aciq-gauss", ACIQ("gauss")),
)
