"""Observers watch values go by; calibrators, one a file, find a range in what was seen."""

from fxquant.observers.aciq import ACIQ
from fxquant.observers.average_min_max import AverageMinMax
from fxquant.observers.base import Calibrator, Extremes, Observer, Statistic, Statistical
from fxquant.observers.fixed import Fixed
from fxquant.observers.kl import KL
from fxquant.observers.mean_std import MeanStd
from fxquant.observers.min_max import MinMax
from fxquant.observers.moving_average import MovingAverage
from fxquant.observers.mse import MSE
from fxquant.observers.percentile import Percentile

CALIBRATORS: tuple[type[Calibrator], ...] = (
    MinMax,
    MovingAverage,
    AverageMinMax,
    MeanStd,
    Percentile,
    KL,
    MSE,
    ACIQ,
    Fixed,
)

__all__ = [
    "ACIQ",
    "CALIBRATORS",
    "KL",
    "MSE",
    "AverageMinMax",
    "Calibrator",
    "Extremes",
    "Fixed",
    "MeanStd",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "Statistic",
    "Statistical",
]
