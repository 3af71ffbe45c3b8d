"""The promise of an observer: it sees tensors, changes nothing, and knows a range."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Observer(nn.Module, ABC):
    """Watches values in training and proposes a range; it never moves in eval().

    The range, two 0-dim float32 buffers `low` and `high`, starts as (+inf, -inf): nothing
    seen. Called as a module it hands its input on, untouched. Where training is distributed
    (torch.distributed) the range is that of the batches of all ranks.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(float("inf")))
        self.register_buffer("high", torch.tensor(float("-inf")))

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x` (any shape, any float dtype) when training; return it as it is."""
        if self.training:
            low, high = _over_ranks(*self._extremes(x.detach()))
            new_low, new_high = self.update(low, high)
            said = low <= high  # no host sync
            self.low.copy_(torch.where(said, new_low, self.low))
            self.high.copy_(torch.where(said, new_high, self.high))
        return x

    def _extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of one batch; (+inf, -inf) where it is empty or holds NaN or infinity."""
        nothing = self.low.new_full((), float("inf"), device=x.device)
        if x.numel() == 0:
            return nothing, -nothing
        low, high = (end.to(self.low.dtype) for end in torch.aminmax(x))
        finite = torch.isfinite(low) & torch.isfinite(high)
        return torch.where(finite, low, nothing), torch.where(finite, high, -nothing)

    @abstractmethod
    def update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The new range, from the old one and the extremes of one batch (0-dim)."""

    @property
    def seen(self) -> bool:
        """Whether any finite data came by."""
        return bool(self.low <= self.high)


def _over_ranks(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes of the batches of all ranks, so that each updates its range alike.

    Every rank takes part in every training forward, an empty batch of its own included.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return low, high
    ends = torch.stack((-low, high))  # min x = -max(-x): one collective
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return -ends[0], ends[1]
