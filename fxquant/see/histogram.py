"""How values are distributed, and what of them a range cuts off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.schemes import QParams

BINS = 64


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width between `low` and `high`.

    `range` is what the grid can hold, `outside` the share of values beyond it; None without a grid.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    range: tuple[float, float] | None
    outside: float | None


class Distribution:
    """Counts values over batches; the first one sets where the bins lie."""

    def __init__(self, q: QParams | None = None) -> None:
        """`q` is the grid that the values are meant for."""
        self._range = None if q is None else _range(q)
        self._step = 0.0 if q is None else float(q.scale.max())
        self._counts: Tensor | None = None
        self._low = self._high = 0.0
        self._total = self._outside = 0

    def add(self, values: Tensor) -> None:
        """Values of any shape; those beyond the first batch's extremes count at the ends. NaN and
        infinity are in no bin, and outside.
        """
        every = values.detach().double().flatten()
        x = every[every.isfinite()]
        self._total += every.numel()
        self._outside += every.numel() - x.numel()
        if not x.numel():
            return
        if self._counts is None:
            self._low, self._high = float(x.min()), float(x.max())
            if self._low == self._high:
                self._low, self._high = self._low - 0.5, self._high + 0.5
            self._counts = torch.zeros(BINS, dtype=torch.float64, device=x.device)
        self._counts += torch.histc(x.clamp(self._low, self._high), BINS, self._low, self._high)
        if self._range is not None:
            low, high = self._range[0] - self._step / 2, self._range[1] + self._step / 2
            self._outside += int(((x < low) | (x > high)).sum())

    def histogram(self) -> Histogram | None:
        """What was counted; None without any value."""
        if self._counts is None:
            return None
        counts = tuple(int(count) for count in self._counts)
        outside = None if self._range is None else self._outside / self._total
        return Histogram(self._low, self._high, counts, self._range, outside)


def _range(q: QParams) -> tuple[float, float]:
    """The least and the greatest value of any channel's grid."""
    ends: Any = [(end - q.zero_point) * q.scale for end in (q.scheme.qmin, q.scheme.qmax)]
    return float(ends[0].min()), float(ends[1].max())
