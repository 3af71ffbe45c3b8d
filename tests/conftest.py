"""How tests are run: one torch thread per xdist worker, slow tests only with --slow."""

import os

import pytest
import torch
from hypothesis import Phase, settings

# for tools/mutants.py: few examples, the same every time, and a failure need not be small
settings.register_profile(
    "mutants",
    max_examples=30,
    derandomize=True,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption(
        "--fuzz", type=float, default=0, metavar="MINUTES", help="how long to go on fuzzing"
    )


@pytest.fixture
def minutes(request: pytest.FixtureRequest) -> float:
    """How long to go on, beyond the few examples of every run."""
    return float(request.config.getoption("--fuzz"))


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers share the cores already


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Networks that a file makes when it is imported have the same weights every time."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
