"""Observers watch values go by; calibrators, one a file, find a range in what was seen."""

from fxquant.observers.base import Calibrator, Extremes, Observer, Statistic, Statistical
from fxquant.observers.fixed import Fixed
from fxquant.observers.min_max import MinMax
from fxquant.observers.moving_average import MovingAverage

__all__ = [
    "Calibrator",
    "Extremes",
    "Fixed",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Statistic",
    "Statistical",
]
