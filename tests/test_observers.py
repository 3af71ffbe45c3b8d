"""Observers: what they make of batches, and what they refuse to learn from."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.errors import ConfigError
from fxquant.observers import Fixed, MinMax, MovingAverage, Observer, base

values = st.floats(-1e6, 1e6, width=32)
batches = st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=4)


@given(batches)
def test_min_max_keeps_the_extremes_of_all(data):
    observer = Observer(MinMax())
    for batch in data:
        observer(torch.tensor(batch))
    everything = [x for batch in data for x in batch]
    assert (float(observer.low), float(observer.high)) == (min(everything), max(everything))


@given(batches)
def test_the_moving_average_starts_with_the_first_batch(data):
    """low ← low + m·(min x - low), in float32."""
    observer = Observer(MovingAverage(momentum=0.25))
    for batch in data:
        observer(torch.tensor(batch))
    low = min(data[0])
    for batch in data[1:]:
        low += 0.25 * (min(batch) - low)
    assert float(observer.low) == pytest.approx(low, rel=1e-5, abs=1e-5)


@given(batches)
def test_a_fixed_range_stays_from_the_first_batch_on(data):
    observer = Observer(Fixed(-1.0, 2.0))
    assert not observer.seen
    for batch in data:
        observer(torch.tensor(batch))
        assert (float(observer.low), float(observer.high)) == (-1.0, 2.0)


@pytest.mark.parametrize("kind", [MinMax(), MovingAverage(), Fixed(-1.0, 2.0)])
@pytest.mark.parametrize("odd", [[float("nan"), 9.0], [float("inf")], [-float("inf"), 0.0], []])
def test_batches_that_say_nothing_change_nothing(kind, odd):
    observer = Observer(kind)
    observer(torch.tensor(odd))
    assert not observer.seen
    observer(torch.tensor([-1.0, 2.0]))
    observer(torch.tensor(odd))
    assert (float(observer.low), float(observer.high)) == (-1.0, 2.0)


@pytest.mark.parametrize("kind", [MinMax(), MovingAverage(), Fixed(-1.0, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_is_watched_and_handed_on(kind, dtype):
    observer, x = Observer(kind), torch.tensor([-1.0, 2.0], dtype=dtype)
    assert observer(x) is x
    assert observer.low.dtype is torch.float32
    observer.eval()(x * 4)
    assert float(observer.high) == 2.0


def test_a_momentum_checks_itself():
    with pytest.raises(ConfigError, match="momentum must lie in"):
        MovingAverage(momentum=0.0)


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_fixed_range_checks_itself(ends):
    with pytest.raises(ConfigError, match="finite and not empty"):
        Fixed(*ends)


@settings(deadline=None)
@given(batches, st.sampled_from([(-math.inf, math.inf), (0.0, math.inf), (-1.0, 0.5)]))
def test_limits_and_ways_to_compute_agree(data, limits):
    """Limited values are watched, not the values as they come; without waiting for a device too."""
    for kind in (MinMax(), MovingAverage(), Fixed(-1.0, 2.0)):
        limited, apart, elsewhere = Observer(kind), Observer(kind), Observer(kind)
        for batch in data:
            x = torch.tensor(batch)
            limited.watch(x, *limits)
            apart(x.clamp(*limits))
            with patch.object(base, "on_host", lambda x: False):
                elsewhere.watch(x, *limits)
        largest = max(abs(x) for batch in data for x in batch)  # float32 rounds what cancels out
        for other in (apart, elsewhere):
            for a, b in ((limited.low, other.low), (limited.high, other.high)):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * largest)
