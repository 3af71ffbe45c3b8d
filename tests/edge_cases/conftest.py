"""Every edge case starts from the same random numbers."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_random_numbers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
