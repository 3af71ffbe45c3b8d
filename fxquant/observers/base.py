"""The promise of an observer: it sees tensors, changes nothing, and knows a range."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fxquant.schemes import Number, in_memory_order, on_host


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
            self.watch(x)
        return x

    def watch(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> None:
        """Watch `x` limited to [least, most]; a batch that holds NaN or infinity says nothing."""
        x = x.detach()
        if on_host(x) and not _is_distributed():
            # with numbers: a dozen operations on 0-dim tensors would cost more than a small layer
            if x.numel() > 0:
                ends = [end.item() for end in _extremes(x)]
                if all(map(math.isfinite, ends)):
                    low, high = (min(max(end, least), most) for end in ends)
                    self._follow(low, high)
            return
        nothing = self.low.new_full((), math.inf, device=x.device)
        a, b = _extremes(x) if x.numel() > 0 else (nothing, -nothing)
        finite = torch.isfinite(a) & torch.isfinite(b)
        a, b = _over_ranks(torch.where(finite, a, nothing), torch.where(finite, b, -nothing))
        self._follow_without_waiting(a.clamp(least, most), b.clamp(least, most))

    def _follow(self, low: float, high: float) -> None:
        before = self.low.item(), self.high.item()
        seen = before[0] <= before[1]
        after = self.next(before, (low, high)) if seen else self.first((low, high))
        self.low.fill_(after[0])
        self.high.fill_(after[1])

    def _follow_without_waiting(self, low: Tensor, high: Tensor) -> None:
        said, seen = low <= high, self.low <= self.high
        first = self.first((low, high))
        following = self.next((self.low, self.high), (low, high))
        for buffer, start, after in zip((self.low, self.high), first, following, strict=True):
            buffer.copy_(torch.where(said, torch.where(seen, after, start), buffer))

    def first(self, batch: tuple[Number, Number]) -> tuple[Number, Number]:
        """The range after the first batch with these extremes: numbers, or 0-dim tensors."""
        return batch

    @abstractmethod
    def next(
        self, before: tuple[Number, Number], batch: tuple[Number, Number]
    ) -> tuple[Number, Number]:
        """The range after another one."""

    @property
    def seen(self) -> bool:
        """Whether any finite data came by."""
        return bool(self.low <= self.high)


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    # aminmax copies what does not lie in order
    low, high = torch.aminmax(in_memory_order(x) if x.dim() > 1 else x)
    return low.to(torch.float32), high.to(torch.float32)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _over_ranks(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes of the batches of all ranks, so that each updates its range alike.

    Every rank takes part in every training forward, an empty batch of its own included.
    """
    if not _is_distributed():
        return low, high
    ends = torch.stack((-low, high))  # min x = -max(-x): one collective
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return -ends[0], ends[1]
