"""From the sums of a layer to its codes: bias, multiplier, rounding, zero point and clamp.

    q_y = clamp(z + round((total + b)·m / 2^S))        half-up: clamp(floor(total·M + o))
                                                       M = m·2^-S,  o = b·M + z + 1/2

float64 computes the right side exactly: a result that the clamp leaves alone, with all that leads
to it, is a multiple of 2^-S of at most 53 bits; and rounding is monotone, so that one beyond the
clamp stays there. torch.compile gets int64, which its vectors shift as quickly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.intmath import LayerNumbers
from fxquant.rounding import MAX_SHIFT, Rescale, Rounding

FLOAT64_EXACT = 2**53
FEW = 1 << 16  # float64 numbers that a processor's own cache holds from one call to the next


@dataclass(frozen=True, eq=False)
class Finish:
    """For sums whose last dimension holds the C channels; `bias` is still to be added to them.

    `low` and `high` are numbers, or int64 [C] where a clamp has its limits divided channel by
    channel. All other fields are int64 [C].
    """

    rounding: Rounding
    multiplier: Tensor
    shift: Tensor
    bias: Tensor
    zero: int
    low: int | Tensor
    high: int | Tensor
    dtype: torch.dtype

    def __call__(self, total: Tensor) -> Tensor:
        """Sums in any exact type to codes, same shape."""
        acc = total.to(torch.int64) + self.bias
        y = self.rounding.multiply(acc, Rescale(self.multiplier, self.shift)) + self.zero
        return _clamped(y, self.low, self.high).to(self.dtype)


@dataclass(frozen=True, eq=False)
class FinishByFloor:
    """The same in one step and a floor. `factor` and `offset`: M and o, float64 [C]; `multiplier`,
    `addend` and `shift`: m, o·2^S and S, int64 [C].
    """

    factor: Tensor
    offset: Tensor
    multiplier: Tensor
    addend: Tensor
    shift: Tensor
    low: int | Tensor
    high: int | Tensor
    dtype: torch.dtype

    def __call__(self, total: Tensor) -> Tensor:
        """Sums in any exact type to codes, same shape."""
        if torch.compiler.is_compiling():
            y = (total.to(torch.int64) * self.multiplier + self.addend) >> self.shift
            return _clamped(y, self.low, self.high).to(self.dtype)
        if total.numel() <= FEW:
            return self._floored(torch.addcmul(self.offset, total, self.factor))
        rows = torch.split(total.reshape(-1, total.shape[-1]), FEW // total.shape[-1] + 1)
        done = (self._floored(part.double().mul_(self.factor).add_(self.offset)) for part in rows)
        return torch.cat([*done]).view(total.shape)

    def _floored(self, y: Tensor) -> Tensor:
        if self.dtype.is_signed:
            y.floor_()  # for unsigned codes the conversion does
        return _clamped(y, self.low, self.high).to(self.dtype)


def finish(n: LayerNumbers, bias: Tensor, dtype: torch.dtype) -> Finish | FinishByFloor:
    """How a layer ends whose sums still lack `bias`, int64 [C]."""
    zero, low, high = int(n.y_zero), _limit(n.low), _limit(n.high)
    m, shift = n.multiplier, n.shift
    if not (n.rounding.floors and _is_exact(bias, Rescale(m, shift), dtype)):
        return Finish(n.rounding, m, shift, bias, zero, low, high, dtype)
    addend = bias * m + ((2 * zero + 1) << (shift - 1))
    return FinishByFloor(
        factor=torch.ldexp(m.double(), -shift),
        offset=torch.ldexp(addend.double(), -shift),
        multiplier=m,
        addend=addend,
        shift=shift,
        low=low,
        high=high,
        dtype=dtype,
    )


def _clamped(y: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return torch.clamp(y, torch.as_tensor(low), torch.as_tensor(high))
    return y.clamp_(low, high)


def _limit(value: Tensor) -> int | Tensor:
    return int(value) if value.numel() == 1 else value.flatten().to(torch.int64)


def _is_exact(bias: Tensor, rescale: Rescale, dtype: torch.dtype) -> bool:
    """Whether float64 holds total·m of every result that the clamp leaves alone, and o·2^S.

    Such a result and z are at most 2^b, for codes of b bits, so total·m is at most
    |b·m| + 2·2^b·2^S.
    """
    ends, (multiplier, shift) = torch.iinfo(dtype), rescale
    if int(shift.min()) < 1 or int(shift.max()) > MAX_SHIFT:
        return False
    codes = torch.full_like(shift, 2 * (ends.max - ends.min + 1))
    return int(((bias * multiplier).abs() + (codes << shift)).max()) <= FLOAT64_EXACT
