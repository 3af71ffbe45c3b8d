"""benchmarks/accuracy_rates.py: what rates are chosen on is no part of what results come from."""

import pytest
import torch

pytest.importorskip("sklearn", reason="the digits are scikit-learn's: pip install scikit-learn")

import accuracy_rates
from accuracy import SEEDS
from accuracy_rates import CANDIDATES, OTHER_SEEDS, Row
from digits import ALL, NETWORKS, TRAINING, digits, seeded


def images(data):
    """As sets: two digits of the 1797 that are alike count as one."""
    return {tuple(image.flatten().tolist()) for image in data.images}


@pytest.mark.parametrize("seed", OTHER_SEEDS)
def test_rates_are_chosen_on_digits_that_no_row_tests_and_nothing_was_trained_on(seed):
    training, validation = accuracy_rates.digits(seed, 1)
    assert len(training.labels) == TRAINING
    assert 300 < len(validation.labels) < ALL - TRAINING
    assert not images(training) & images(validation)
    for reported in SEEDS:
        _, held_out = digits(seeded(reported))
        assert not images(held_out) & images(validation)


def test_the_table_of_rates_is_of_seeds_that_have_every_row():
    rows = [Row(n, OTHER_SEEDS[0], *rates, 0.5) for n in NETWORKS for rates in CANDIDATES]
    extra = Row("ResNet", OTHER_SEEDS[1], *CANDIDATES[0], 1.0)
    assert accuracy_rates.table([*rows, extra]) == accuracy_rates.table(rows)
    assert accuracy_rates.table(rows).count("| 50.0 | 50.0 | 50.0 | 50.0 |") == len(CANDIDATES)
    assert len(accuracy_rates.table(rows[1:]).splitlines()) == 2


def test_a_digit_is_trained_on_or_held_out():
    for seed in SEEDS:
        parts = digits(seeded(seed))
        assert [len(part.labels) for part in parts] == [TRAINING, ALL - TRAINING]
        assert torch.cat([part.images for part in parts]).shape == (ALL, 1, 8, 8)
