"""What the user wants: one frozen record, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxquant.errors import ConfigError
from fxquant.fake_quant import FakeQuant, StraightThrough
from fxquant.fields import check_fields
from fxquant.intmath import ACCUMULATOR_BITS
from fxquant.observers import Calibrator, MovingAverage
from fxquant.overrides import (
    Choice,
    Choices,
    Override,
    check_calibrator,
    check_fake_quant,
    check_scheme,
)
from fxquant.rounding import Rounding, rounding_named, with_multiplier_bits
from fxquant.schemes import INT8_WEIGHT, UINT8, QuantScheme


@dataclass(frozen=True)
class QuantConfig:
    """How a network is quantized.

    activation   the integers of activations
    weight       the integers of weights; symmetric
    mode         "static": integers throughout, ranges known beforehand; for layers between values
                 that stay float: "dynamic", whose inputs have the range of each batch, and
                 "weight_only" (docs/modes.md); these read nothing of what concerns ranges
    group_size   so many weights of an output channel that lie one behind the other share a scale;
                 None for all of them (needs mode="weight_only": sums over several scales are no
                 integers)
    accumulator_bits
                 what the sums of layers and of matrix products must fit, sign included, 16 to 32:
                 convert refuses those that are not proved to, whatever the input; a bias may take
                 half of it
    calibrator   how the range of an activation is found in the data that is seen: MovingAverage()
                 follows the training; docs/calibrators.md says which others there are
    widen        whether what 8 bits describe badly gets 16: what a softmax or a norm of rows reads,
                 and shares that weigh others (sites/width.py; explain tells which)
    fake_quant   how values are rounded in training, such as LSQ(), whose scales are parameters
                 (docs/fake_quants.md); a range that is known beforehand, such as a sigmoid's, stays
    weight_fake_quant
                 the same for weights, where it is another one; None for `fake_quant`
    rounding     how eval() and the integers round: "half_up", "half_even", "half_away",
                 "gemmlowp", "ruy" or "fp32_rne"; docs/rounding.md says which engine rounds how
    multiplier_bits
                 the bits of the integers that results are rescaled with (and shifted); None for
                 the 31 that are exact enough
    batch_norm   "train": batch norms stay live, train on, and are folded into the integers of
                 eval(); "fold": they are folded into the weights before training
    equalize     whether weight ranges are evened out across layers (needs batch_norm="fold",
                 because a live batch norm undoes it)
    absorb_high_bias
                 whether offsets that a ReLU all but never sees below move into the layers
                 behind it (needs batch_norm="fold", which tells how channels are distributed)
    correct_bias whether biases make up for what rounded weights add on average, as far as
                 folded batch norms tell (for networks that are not trained further; needs
                 batch_norm="fold"; the function of that name does it from data)
    verify       whether every pass that keeps the function is checked to do so, on random inputs
                 like the example inputs, and undone if it does not (slow; see explain)
    first_last_bits
                 the bits of the first and the last layers, where they are not those of the others:
                 of their weights, of what both read and of the outputs; None for the same
    overrides    calls that are quantized otherwise than the rest, by module path, operator or
                 call; the later one wins, and one that matches nothing is an error
    keep_float   paths of submodules that stay in float, `*` and `?` allowed; each is one node,
                 so that even code which cannot be captured may stand inside
    """

    activation: QuantScheme = UINT8
    weight: QuantScheme = INT8_WEIGHT
    mode: Literal["static", "dynamic", "weight_only"] = "static"
    group_size: int | None = None
    accumulator_bits: int = ACCUMULATOR_BITS
    calibrator: Calibrator = MovingAverage()  # noqa: RUF009 - a frozen record
    widen: bool = True
    fake_quant: FakeQuant = StraightThrough()  # noqa: RUF009 - likewise
    weight_fake_quant: FakeQuant | None = None
    rounding: Literal["half_up", "half_even", "half_away", "gemmlowp", "ruy", "fp32_rne"] = (
        "half_up"
    )
    multiplier_bits: int | None = None
    batch_norm: Literal["train", "fold"] = "train"
    equalize: bool = False
    absorb_high_bias: bool = False
    correct_bias: bool = False
    verify: bool = False
    first_last_bits: int | None = None
    overrides: tuple[Override, ...] = ()
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("activation", "weight"):
            check_scheme(name, getattr(self, name))
        check_calibrator(self.calibrator)
        if type(self.accumulator_bits) is not int or not 16 <= self.accumulator_bits <= 32:
            raise ConfigError(f"accumulator_bits is 16 to 32, got {self.accumulator_bits!r}")
        check_fake_quant("fake_quant", self.fake_quant)
        if self.weight_fake_quant is not None:
            check_fake_quant("weight_fake_quant", self.weight_fake_quant)
        rounding = rounding_named(self.rounding)  # or it says which there are
        if self.multiplier_bits is not None:
            with_multiplier_bits(rounding, self.multiplier_bits)  # or it says why not
        if self.batch_norm not in ("train", "fold"):
            raise ConfigError(f"batch_norm is 'train' or 'fold', got {self.batch_norm!r}")
        for name, why in (
            ("equalize", "a live batch norm undoes the factors"),
            ("absorb_high_bias", "it asks folded batch norms how channels are distributed"),
            ("correct_bias", "it asks folded batch norms how channels are distributed"),
        ):
            if getattr(self, name) and self.batch_norm != "fold":
                raise ConfigError(f"{name}=True needs batch_norm='fold': {why}")
        if self.first_last_bits is not None:
            # or it says how many there may be; they are bits of activations, too
            check_scheme("first_last_bits", QuantScheme(bits=self.first_last_bits))
        if not isinstance(self.overrides, tuple) or not all(
            isinstance(override, Override) for override in self.overrides
        ):
            raise ConfigError(
                "overrides is a tuple of them, such as (Override(path='stem', weight=8),), "
                f"got {self.overrides!r}"
            )
        _check_mode(self)
        if not isinstance(self.keep_float, tuple) or not all(
            isinstance(path, str) and path for path in self.keep_float
        ):
            raise ConfigError(
                f"keep_float is a tuple of paths, such as ('head',), got {self.keep_float!r}"
            )

    @property
    def rounds(self) -> Rounding:
        """How eval() and the integers round."""
        rounding = rounding_named(self.rounding)
        if self.multiplier_bits is None:
            return rounding
        return with_multiplier_bits(rounding, self.multiplier_bits)

    @property
    def choices(self) -> Choices:
        """What each call is to be quantized with."""
        of_weight = self.weight_fake_quant or self.fake_quant
        default = Choice(self.activation, self.weight, self.fake_quant, of_weight)
        return Choices(default, self.first_last_bits, self.widen, self.overrides)


def _check_mode(config: QuantConfig) -> None:
    if config.mode not in ("static", "dynamic", "weight_only"):
        raise ConfigError(f"mode is 'static', 'dynamic' or 'weight_only', got {config.mode!r}")
    if config.group_size is not None:
        if type(config.group_size) is not int or config.group_size < 1:
            raise ConfigError(f"group_size is a number of weights, got {config.group_size!r}")
        if config.mode != "weight_only" or not config.weight.per_channel:
            raise ConfigError(
                "group_size needs mode='weight_only' and a weight scheme with per_channel=True: "
                "a sum over weights of several scales is no sum of integers"
            )
    if config.mode != "static":
        for override in config.overrides:
            reads = config.mode == "dynamic" or override.activation is None
            if override.calibrator is not None or not reads:
                raise ConfigError(f"{override} sets what mode={config.mode!r} does not read")
        for name, why in (
            ("equalize", "it evens out ranges for integers throughout"),
            ("absorb_high_bias", "it spares activations a range"),
            ("correct_bias", "it asks quantized sites"),
        ):
            if getattr(config, name):
                raise ConfigError(f"{name}=True needs mode='static': {why}")
