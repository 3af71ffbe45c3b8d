"""A batch norm that stops after so many steps of training.

From then on it normalises with its running statistics, also in train(); γ and β train on.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FreezeAfter(nn.Module):
    """Calls a batch norm, and counts; the count is a buffer, so that checkpoints have it."""

    steps: Tensor

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, batch_norm: nn.Module, x: Tensor) -> Tensor:
        """[N, C, ...] through `batch_norm`, a module; same shape."""
        bn: Any = batch_norm
        if self.training and self.steps >= self.after:
            stopped: Tensor = F.batch_norm(
                x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps
            )
            return stopped
        if self.training:
            self.steps += 1
        live: Tensor = bn(x)
        return live

    def extra_repr(self) -> str:
        """The number of steps, for print(model)."""
        return f"after={self.after}"
