"""benchmarks/fidelity.py: what it counts, and fxquant's own row on a small network."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision", reason="the networks are torchvision's: pip install torchvision")
import fidelity


def test_counts_in_steps_of_the_grid():
    shipped = torch.tensor([[0.0, 0.25, 1.0], [0.5, 0.25, 0.0]])
    pair = fidelity.Pair(shipped + torch.tensor([[0.0, 0.1, 0.25], [0.0, 0.3, 0.0]]), shipped)
    assert fidelity.step_of(shipped) == 0.25
    told = fidelity.compared(pair, exactly=False)
    assert told == {"differ": pytest.approx(2 / 6), "steps": 1.2, "told_otherwise": 1}
    assert fidelity.compared(pair, exactly=True)["differ"] == pytest.approx(3 / 6)


def test_nothing_differs_through_fxquant():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
    x = torch.randn(40, 3, 8, 8)
    pair = fidelity.with_fxquant(net, x, lambda prepared: prepared(x))
    assert fidelity.compared(pair, exactly=True) == {"differ": 0, "steps": 0, "told_otherwise": 0}


def test_page():
    row = {"network": "one", "tool": "two", "differ": 0.125, "steps": 3.0, "told_otherwise": 4}
    assert "| one | two | 12.5 % | 3 | 4 of 256 |" in fidelity.page([row])
