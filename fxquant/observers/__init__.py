"""Observers watch values go by and then propose a range. One a file."""

from fxquant.observers.base import Observer
from fxquant.observers.fixed import Fixed
from fxquant.observers.min_max import MinMax
from fxquant.observers.moving_average import MovingAverage

__all__ = ["Fixed", "MinMax", "MovingAverage", "Observer"]
