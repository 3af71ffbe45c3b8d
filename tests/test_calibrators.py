"""Calibrators: their formulas, their sources' numbers, and that merging loses nothing."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.errors import ConfigError
from fxquant.observers import (
    ACIQ,
    CALIBRATORS,
    KL,
    MSE,
    AverageMinMax,
    Fixed,
    MeanStd,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    Statistical,
)
from fxquant.observers.aciq import gauss_clip, laplace_clip
from fxquant.observers.histogram import Histogram, bins_of
from fxquant.observers.kl import best_threshold, divergence, spread
from fxquant.observers.mse import squared_error
from fxquant.schemes import INT8_WEIGHT, UINT8, QuantScheme

ALL = [Fixed(-1.0, 2.0) if kind is Fixed else kind() for kind in CALIBRATORS]
STATISTICAL = [calibrator for calibrator in ALL if isinstance(calibrator, Statistical)]
OF_A_HISTOGRAM = [c for c in STATISTICAL if isinstance(c.statistic, Histogram)]
INT8, INT4 = QuantScheme(), QuantScheme(bits=4)

odd = st.sampled_from([0.0, 1.0, -1.0, 2.0**-149])
values = st.one_of(st.floats(-(2.0**99), 2.0**99, width=32), odd)
batches = st.lists(st.lists(values, min_size=1, max_size=6), min_size=1, max_size=5)


def normal(n: int = 100_000, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def found(calibrator, *data, scheme=INT8) -> tuple[float, float]:
    observer = Observer(calibrator)
    for batch in data:
        observer(torch.as_tensor(batch, dtype=torch.float32))
    low, high = observer.range(scheme)
    return float(low), float(high)


# ------------------------------------------------------------------------ what is always true


@pytest.mark.parametrize("calibrator", ALL, ids=str)
@settings(deadline=None, max_examples=15)
@given(batches, st.sampled_from([INT8, INT4, UINT8, INT8_WEIGHT, QuantScheme(16)]))
def test_ranges_are_finite_and_lie_in_what_was_seen(calibrator, data, scheme):
    low, high = found(calibrator, *data, scheme=scheme)
    assert math.isfinite(low)
    assert math.isfinite(high)
    if not isinstance(calibrator, Fixed):
        assert low >= min(map(min, data))
        assert high <= max(map(max, data))


@settings(deadline=None)
@given(batches, st.randoms())
def test_a_histogram_does_not_know_batches_or_their_order(data, random):
    statistic = Histogram()

    def merged(parts):
        total = statistic.empty()
        for part in parts:
            total = statistic.merge(total, statistic.of(torch.tensor(part)))
        return total

    everything = [x for batch in data for x in batch]
    whole = statistic.of(torch.tensor(everything))
    assert torch.equal(merged(data), whole)
    random.shuffle(everything)
    assert torch.equal(merged([[x] for x in everything]), whole)
    assert float(whole[1:].sum()) == len(everything)


@settings(deadline=None)
@given(batches)
def test_each_value_lies_in_its_bin(data):
    """Against plain Python: bin k is [k·w, (k + 1)·w), and no narrower power of two would do."""
    everything = [x for batch in data for x in batch]
    bins = bins_of(Histogram().of(torch.tensor(everything)))
    for number in (0, len(bins.counts) - 1, len(bins.counts) // 2):
        low, high = ((bins.first + number + i) * bins.width for i in (0, 1))
        assert float(bins.counts[number]) == sum(low <= x < high for x in everything)
    if any(everything):
        assert max(map(abs, everything)) >= 1024 * bins.width


@pytest.mark.parametrize("calibrator", STATISTICAL, ids=str)
def test_memory_does_not_grow_with_the_data(calibrator):
    observer = Observer(calibrator)
    size = observer.statistics.numel()
    for seed in range(5):
        observer(normal(1000, seed) * 10**seed)
    assert observer.statistics.numel() == size


OF_RANKS = ((normal(50, 1), normal(70, 2) * 9), (normal(9, 3) - 5, torch.tensor([math.nan])))


def _watch_on_a_rank(rank, folder):
    """What one process does: each calibrator sees its own batches."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    ranges = [found(calibrator, *OF_RANKS[rank]) for calibrator in STATISTICAL]
    torch.save(ranges, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
def test_ranks_agree_on_what_one_process_would_find(tmp_path):
    torch.multiprocessing.spawn(_watch_on_a_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    for calibrator, ends in zip(STATISTICAL, first, strict=True):
        assert ends == pytest.approx(found(calibrator, *OF_RANKS[0], *OF_RANKS[1])), calibrator


@pytest.mark.parametrize("calibrator", STATISTICAL, ids=str)
@pytest.mark.parametrize("odd", [[float("nan"), 9.0], [float("inf")], []])
def test_batches_that_say_nothing_change_nothing(calibrator, odd):
    observer = Observer(calibrator)
    observer(torch.tensor(odd))
    assert not observer.seen
    observer(torch.tensor([-1.0, 2.0]))
    before = observer.range(INT8)
    observer.watch(torch.tensor(odd), 0.0, 6.0)
    observer.eval()(torch.tensor([-100.0, 100.0]))
    assert observer.range(INT8) == before


@pytest.mark.parametrize("calibrator", ALL, ids=str)
@pytest.mark.parametrize("constant", [0.0, 3.0, -2.0])
def test_a_constant_has_a_range(calibrator, constant):
    low, high = found(calibrator, [constant] * 5)
    assert low <= high


@pytest.mark.parametrize("calibrator", STATISTICAL, ids=str)
def test_statistics_stay_what_they_are_in_half_precision(calibrator):
    observer = Observer(calibrator)
    observer(normal())
    before = observer.statistics.clone()
    observer.half().float()
    assert torch.equal(observer.statistics, before)


@pytest.mark.parametrize("calibrator", OF_A_HISTOGRAM, ids=str)
def test_the_histogram_lets_a_range_forget_one_outlier(calibrator):
    if calibrator == Percentile(100.0):
        return
    _, high = found(calibrator, normal(), [40.0], scheme=INT4)
    assert high < 10.0


# ------------------------------------------------------------------------ by hand


def test_average_min_max_by_hand():
    """(-1 - 3)/2 and (4 + 2)/2."""
    assert found(AverageMinMax(), [-1.0, 4.0], [-3.0, 2.0]) == (-2.0, 3.0)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), min_size=1))
def test_mean_and_deviation_are_those_of_all(data):
    observer = Observer(MeanStd())
    for batch in data:
        observer(torch.tensor(batch))
    everything = torch.tensor([x for batch in data for x in batch]).double()
    count, mean, squares = observer.statistics
    largest = float(everything.abs().max())
    assert int(count) == len(everything)
    torch.testing.assert_close(mean, everything.mean(), rtol=1e-12, atol=1e-12 * largest)
    expected = (everything - everything.mean()).square().sum()
    torch.testing.assert_close(squares, expected, rtol=1e-9, atol=1e-9 * largest**2)


def test_mean_std_by_hand():
    """μ = 0, σ = √(10/4): two of it on either side, but for what was never seen."""
    low, high = found(MeanStd(stds=1.0), [-2.0, 1.0], [2.0, -1.0])
    assert (low, high) == pytest.approx((-math.sqrt(2.5), math.sqrt(2.5)))
    assert found(MeanStd(stds=2.0), [-2.0, 1.0], [2.0, -1.0]) == (-2.0, 2.0)


def test_percentiles_of_a_known_distribution():
    x = normal()
    for percent in (90.0, 99.0, 99.9):
        low, high = found(Percentile(percent), x)
        expected = torch.quantile(x, percent / 100)
        assert high == pytest.approx(float(expected), abs=0.01)
        assert low == pytest.approx(-high, abs=0.15)
    assert found(Percentile(100.0), x) == pytest.approx((float(x.min()), float(x.max())), abs=0.01)


def test_the_worked_example_of_kl():
    """SEEDS 004: P in 2 groups: (1+0+2+3)/3 = 2 and (5+3+1+7)/4 = 4."""
    p = torch.tensor([1, 0, 2, 3, 5, 3, 1, 7], dtype=torch.float64)
    assert spread(p, 2).tolist() == [2, 0, 2, 2, 4, 4, 4, 4]


@pytest.mark.parametrize("levels", [8, 32, 128])
def test_kl_clips_nothing_of_few_values(levels):
    """Pixels of eight shades that lie far apart, most of them the darkest: each keeps its code."""
    counts = torch.zeros(2048, dtype=torch.float64)
    counts[255::256] = 1.0
    counts[-1] = 8.0
    assert best_threshold(counts, levels) == 2048


def test_divergence_by_hand():
    """¼·log(¼/½) + ¾·log(¾/½), and infinite where Q is 0 and P is not."""
    p, q = torch.tensor([1.0, 3.0, 0.0]).double(), torch.tensor([2.0, 2.0, 0.0]).double()
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert divergence(p, q) == pytest.approx(expected)
    assert divergence(p, torch.tensor([1.0, 0.0, 1.0]).double()) == math.inf


def slow_threshold(counts: list[float], levels: int) -> int:
    """In plain Python lists, as the slides say it."""
    counts = [counts[1], *counts[1:]]
    best, chosen = math.inf, len(counts)
    for kept in range(levels, len(counts) + 1):
        p = counts[:kept]
        if kept < len(counts) and len([x for x in p if x]) < 2:
            continue
        q = [0.0] * kept
        for level in range(levels):
            group = [k for k in range(kept) if k * levels // kept == level]
            filled = [k for k in group if p[k]]
            for k in filled:
                q[k] = sum(p[i] for i in group) / len(filled)
        p[-1] += sum(counts[kept:])
        if any(a and not b for a, b in zip(p, q, strict=True)):
            continue
        a, b = sum(p), sum(q)
        cost = sum(x / a * math.log(x / a / (y / b)) for x, y in zip(p, q, strict=True) if x)
        if cost < best - 1e-12:
            best, chosen = cost, kept
    return chosen


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 20), min_size=6, max_size=24), st.integers(1, 4))
def test_the_threshold_is_that_of_plain_lists(counts, levels):
    counts = [float(c) for c in counts[:-1]] + [1.0]
    ours = best_threshold(torch.tensor(counts, dtype=torch.float64), levels)
    theirs = slow_threshold(counts, levels)
    if ours != theirs:  # two may cost the same
        cost = {n: slow_cost(counts, n, levels) for n in (ours, theirs)}
        assert cost[ours] == pytest.approx(cost[theirs], abs=1e-9)


def slow_cost(counts: list[float], kept: int, levels: int) -> float:
    counts = [counts[1], *counts[1:]]
    p = torch.tensor(counts[:kept], dtype=torch.float64)
    q = spread(p, levels)
    p[-1] += sum(counts[kept:])
    return divergence(p, q)


def test_mse_is_the_least_of_its_candidates():
    x = normal()
    low, high = found(MSE(), x, scheme=INT4)
    bins = bins_of(Histogram().of(x))
    cost = squared_error(bins, low, high, INT4)
    assert all(
        cost <= squared_error(bins, t / 50 * bins.low, t / 50 * bins.high, INT4) * (1 + 1e-9)
        for t in range(1, 51)
    )
    assert 2.0 < high < 3.2  # Banner et al. 2019, table 1: 2.56 σ at 4 bits


@pytest.mark.parametrize(
    ("clip", "published"),
    [
        # of 2 to 8 bits, some cut off behind two digits
        (laplace_clip, (2.83, 3.89, 5.03, 6.2048, 7.41312622, 8.64561995, 9.89675982)),
        (gauss_clip, (1.7106, 2.1516, 2.5591, 2.9362, 3.2869, 3.6151, 3.9240)),
    ],
)
def test_aciq_gives_the_published_numbers(clip, published):
    assert [clip(bits) for bits in range(2, 9)] == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_aciq_costs_as_little_as_any_clipping(bits):
    x, scheme = normal(), QuantScheme(bits=bits, symmetric=False)
    low, high = found(ACIQ("gauss"), x, scheme=scheme)
    bins = bins_of(Histogram().of(x))
    ours = squared_error(bins, low, high, scheme)
    least = min(squared_error(bins, -t / 20, t / 20, scheme) for t in range(10, 100))
    assert ours < 1.05 * least


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_aciq_of_what_a_relu_leaves(bits):
    x, scheme = torch.relu(normal()), QuantScheme(bits, False, False)
    low, high = found(ACIQ("gauss"), x, scheme=scheme)
    assert low == 0.0
    assert high == pytest.approx(gauss_clip(bits + 1), rel=0.01)
    bins = bins_of(Histogram().of(x))
    ours = squared_error(bins, low, high, scheme)
    assert ours < 1.05 * min(squared_error(bins, 0.0, t / 20, scheme) for t in range(10, 100))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("calibrator", OF_A_HISTOGRAM, ids=str)
def test_values_of_one_sign_have_a_range_of_one_sign(calibrator, sign):
    low, high = found(calibrator, sign * normal().abs(), scheme=UINT8)
    assert (low, high) == (max(low, 0.0), high) if sign > 0 else (low, min(high, 0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MovingAverage(0.0), "momentum must lie in"),
        (lambda: MeanStd(0.0), "a positive number of deviations, got 0.0"),
        (lambda: MeanStd(math.nan), "a positive number of deviations, got nan"),
        (lambda: Percentile(101), r"percent lies in \(50, 100\], got 101"),
        (lambda: Percentile(math.nan), r"percent lies in \(50, 100\]"),
        (lambda: ACIQ("cauchy"), "'laplace' or 'gauss', got 'cauchy'"),
        (lambda: Fixed(1.0, 0.0), "finite and not empty"),
    ],
)
def test_calibrators_check_themselves(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_calibrators_are_values():
    assert Percentile(99.9) == Percentile(99.9) != Percentile(99.0)
    assert len({MinMax(), MinMax(), KL()}) == 2


def test_the_page_has_a_formula_and_a_picture_of_each():
    docs = Path(__file__).parent.parent / "docs"
    page = (docs / "calibrators.md").read_text()
    for kind in CALIBRATORS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{kind.__name__}("))
        assert len(row.split("|")[2].strip()) > 5, row
        picture = f"pictures/calibrator_{kind.__name__.lower()}.svg"
        assert f"]({picture})" in page
        assert (docs / picture).is_file()
