"""How large the sum that an operator rounds may become, and the width that has to hold it.

    integer   acc = Σ t_i        |acc| <= worst < 2^(bits-1)

`worst` is a matter of the integers alone: each code as far from its zero point as its scheme
allows, times the very weights and multipliers of the call. No data is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxquant.errors import AccumulatorError
from fxquant.intmath import ACCUMULATOR_BITS, accumulator_limit
from fxquant.schemes import QuantScheme


class Operand(NamedTuple):
    """What is known of the codes that an integer operator reads: `shape` only from examples."""

    scheme: QuantScheme
    shape: tuple[int, ...] | None


class IntegerCall(NamedTuple):
    """One call of an integer operator: all that decides how large its sums become. Of its
    settings those are missing that only the tensors of a call tell.
    """

    numbers: Any
    inputs: tuple[Operand, ...]
    settings: Mapping[str, Any]
    bits: int  # that the sums of layers and matrix products may have


class Accumulator(NamedTuple):
    """What an operator sums before it rounds.

    `worst`   the largest absolute value it may reach, for each channel or for all at once; None
              where only the tensors of a call tell
    `terms`   how many products or codes are summed; None likewise
    `bits`    the width that has to hold it, sign included
    `carrier` the type that adds it up
    `exact`   whether that type is known to hold every partial sum
    """

    worst: tuple[int, ...] | None
    terms: int | None
    bits: int
    carrier: torch.dtype = torch.int64
    exact: bool = True

    @property
    def needs(self) -> int | None:
        """The bits that the worst case takes, sign included."""
        return None if self.worst is None else max(self.worst).bit_length() + 1

    @property
    def proved(self) -> bool:
        """Whether no input whatever makes it overflow."""
        return self.needs is not None and self.needs <= self.bits and self.exact


def adds_nothing(call: IntegerCall) -> None:
    """The accumulator of an operator that selects, looks up or rescales codes one by one."""


def reach(scheme: QuantScheme, zero_point: Tensor) -> int:
    """The largest |q - z|."""
    return max(scheme.qmax - int(zero_point), int(zero_point) - scheme.qmin)


def overflow(which: str, terms: int, worst: int, bits: int, path: str = "…") -> AccumulatorError:
    """The refusal of a sum that `bits` bits may not hold; `path` is what to keep in float."""
    needed = worst.bit_length() + 1
    wider = f"set accumulator_bits={needed}, " if bits < needed <= ACCUMULATOR_BITS else ""
    return AccumulatorError(
        f"{which} sums {terms} products and may reach {worst}, beyond the {bits} bits of its "
        f"accumulator.\nWhat to do: {wider}keep it in float, QuantConfig(keep_float=('{path}',)), "
        "give weights or activations fewer bits, or sum fewer products at a time."
    )


def prove(accumulator: Accumulator, which: str, path: str) -> None:
    """Refuse a sum that is known not to fit its width."""
    worst, terms = accumulator.worst, accumulator.terms
    if worst is None or terms is None or max(worst) < accumulator_limit(accumulator.bits):
        return
    channel = worst.index(max(worst))
    which = which if len(worst) == 1 else f"channel {channel} of {which}"
    raise overflow(which, terms, worst[channel], accumulator.bits, path)
