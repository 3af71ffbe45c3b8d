"""Clamps as sites hold them: the activation's values and gradients, limits divided or not."""

import math

import pytest
import torch
import torch.nn.functional as F

from fxquant.ops.spec import Clamp

ACTIVATIONS = [
    (Clamp(0.0, math.inf), torch.relu, "relu"),
    (Clamp(0.0, 6.0), F.relu6, "relu6"),
    (Clamp(-1.0, 0.5), lambda x: F.hardtanh(x, -1.0, 0.5), "clamp(-1, 0.5)"),
    (Clamp(-math.inf, 0.5), lambda x: x.clamp(max=0.5), "clamp(-inf, 0.5)"),
    (Clamp(-1.0, math.inf), lambda x: x.clamp(min=-1.0), "clamp(-1, inf)"),
]


@pytest.mark.parametrize(("clamp", "activation", "text"), ACTIVATIONS)
def test_a_clamp_is_its_activation(clamp, activation, text):
    """In value and gradient, at its corners too."""
    values = [-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 3.0, 6.0, 7.0]
    ours, theirs = (torch.tensor(values, requires_grad=True) for _ in range(2))
    y, expected = clamp(ours), activation(theirs)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.grad, theirs.grad)
    assert str(clamp) == text


@pytest.mark.parametrize(("clamp", "activation", "text"), ACTIVATIONS)
def test_divided_limits_clamp_what_is_divided(clamp, activation, text):
    """clamp(x / d, d) = clamp(x) / d, for a d of each channel."""
    x = torch.linspace(-9, 9, 37).expand(3, -1)
    d = torch.tensor([[0.5], [1.0], [4.0]])
    assert torch.equal(clamp(x / d, d), activation(x) / d)
