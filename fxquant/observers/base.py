"""What watches values go by, and the promise of what finds a range in them.

    batches ── Observer: extremes, statistics ── Calibrator: a range ── scale and zero point

A `Calibrator` is a frozen record, such as `Percentile(99.9)`; the `Observer` that follows it is a
module, whose buffers hold all that was seen: they do not grow with the data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fxquant.schemes import EVERYWHERE, Ends, Number, QuantScheme, in_memory_order, on_host


class Extremes(ABC):
    """Asks of each batch its extremes alone, and follows them; of any scheme the same range."""

    def first(self, batch: tuple[Number, Number]) -> tuple[Number, Number]:
        """The range after the first batch with these extremes: numbers, or 0-dim tensors."""
        return batch

    @abstractmethod
    def next(
        self, before: tuple[Number, Number], batch: tuple[Number, Number]
    ) -> tuple[Number, Number]:
        """The range after another one."""


class Statistic(ABC):
    """What is kept of values: a float64 vector, and how the vectors of two batches become one.

    Merging is associative and commutative, up to the rounding of float64 sums: neither the size nor
    the order of batches matters, nor which rank saw them.
    """

    @abstractmethod
    def empty(self) -> Tensor:
        """That of no data: merged with any other, it gives the other."""

    @abstractmethod
    def of(self, x: Tensor) -> Tensor:
        """That of a batch, finite and not empty, of any shape and float dtype; on its device."""

    @abstractmethod
    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        """That of both together."""


class Statistical(ABC):
    """Finds a range for a scheme in a statistic of all that was seen."""

    statistic: ClassVar[Statistic]

    @abstractmethod
    def range(self, statistics: Tensor, scheme: QuantScheme) -> tuple[float, float]:
        """The range, of statistics on the CPU that hold data. What lies beyond the extremes of all
        that was seen is cut off by the observer.
        """


Calibrator = Extremes | Statistical


class Observer(nn.Module):
    """Watches values in training and proposes a range; it never moves in eval().

    The range of an `Extremes`, and the extremes of all that was seen for a `Statistical`, are two
    0-dim float32 buffers `low` and `high`, which start as (+inf, -inf): nothing seen. Called as
    a module it hands its input on, untouched. Where training is distributed (torch.distributed)
    it sees the batches of all ranks.
    """

    low: Tensor
    high: Tensor
    statistics: Tensor  # of a `Statistical` alone
    _seen_by_eval: bool | None = None

    def __init__(self, calibrator: Calibrator) -> None:
        super().__init__()
        self.calibrator = calibrator
        self.register_buffer("low", torch.tensor(float("inf")))
        self.register_buffer("high", torch.tensor(float("-inf")))
        if isinstance(calibrator, Statistical):
            self.register_buffer("statistics", calibrator.statistic.empty())

    def forward(self, x: Tensor) -> Tensor:
        """Watch `x` (any shape, any float dtype) when training; return it as it is."""
        if self.training:
            self.watch(x)
        return x

    def watch(self, x: Tensor, least: float = -math.inf, most: float = math.inf) -> Ends:
        """Watch `x` limited to [least, most]; a batch that holds NaN or infinity says nothing, and
        neither does one that is computed again for a backward.

        All of `x` lies between the numbers that come back: infinities, unless they cost nothing.
        """
        x = x.detach()
        if isinstance(self.calibrator, Statistical):
            if not in_backward():
                self._gather(self.calibrator.statistic, x, least, most)
            return EVERYWHERE
        return self._watch_extremes(self.calibrator, x, least, most)

    def range(self, scheme: QuantScheme) -> tuple[Tensor, Tensor]:
        """The range proposed for a scheme: two 0-dim float32 tensors. Needs data (`seen`)."""
        if not isinstance(self.calibrator, Statistical):
            return self.low, self.high
        least, most = self.calibrator.range(self.statistics.cpu(), scheme)
        ends = torch.stack((self.low, self.high)).clamp(least, most)
        low, high = ends.clamp(self.low, self.high).unbind()
        return low, high

    @property
    def seen(self) -> bool:
        """Whether any finite data came by."""
        if torch.compiler.is_compiling() and self._seen_by_eval is not None:
            return self._seen_by_eval
        return bool(self.low <= self.high)

    def train(self, mode: bool = True) -> Self:
        """As every module; eval() notes whether any data came by, which a compiled graph asks."""
        super().train(mode)
        self._note_for_eval()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._note_for_eval()

    def _note_for_eval(self) -> None:
        self._seen_by_eval = None if self.training or self.low.is_meta else self.seen

    def extra_repr(self) -> str:
        """The calibrator, for print(model)."""
        return str(self.calibrator)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Statistics stay float64, whatever becomes of the model: they count."""
        before = self._buffers.get("statistics")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before is not None:
            self.statistics = before.to(self.low.device)
        return self

    # -------------------------------------------------------------------- extremes

    def _watch_extremes(
        self, calibrator: Extremes, x: Tensor, least: float, most: float
    ) -> Ends:
        if not on_host(x) or _is_distributed():
            if in_backward():
                return EVERYWHERE
            a, b = self._over_ranks(x)
            self._follow_without_waiting(calibrator, a.clamp(least, most), b.clamp(least, most))
            return EVERYWHERE
        # with numbers: a dozen operations on 0-dim tensors would cost more than a small layer
        if x.numel() == 0:
            return EVERYWHERE
        low, high = (float(end.item()) for end in _extremes(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            return EVERYWHERE
        if not in_backward():
            self._follow(calibrator, min(max(low, least), most), min(max(high, least), most))
        return low, high

    def _over_ranks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The extremes of the batches of all ranks, so that each updates its range alike; (+inf,
        -inf) where none of them says anything.

        Every rank takes part in every training forward, an empty batch of its own included.
        """
        nothing = self.low.new_full((), math.inf, device=x.device)
        a, b = _extremes(x) if x.numel() > 0 else (nothing, -nothing)
        finite = torch.isfinite(a) & torch.isfinite(b)
        low, high = torch.where(finite, a, nothing), torch.where(finite, b, -nothing)
        if not _is_distributed():
            return low, high
        ends = torch.stack((-low, high))  # min x = -max(-x): one collective
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return -ends[0], ends[1]

    def _follow(self, calibrator: Extremes, low: float, high: float) -> None:
        before = self.low.item(), self.high.item()
        seen = before[0] <= before[1]
        after = calibrator.next(before, (low, high)) if seen else calibrator.first((low, high))
        self.low.fill_(after[0])
        self.high.fill_(after[1])

    def _follow_without_waiting(self, calibrator: Extremes, low: Tensor, high: Tensor) -> None:
        said, seen = low <= high, self.low <= self.high
        first = calibrator.first((low, high))
        following = calibrator.next((self.low, self.high), (low, high))
        for buffer, start, after in zip((self.low, self.high), first, following, strict=True):
            buffer.copy_(torch.where(said, torch.where(seen, after, start), buffer))

    # -------------------------------------------------------------------- statistics

    def _gather(self, statistic: Statistic, x: Tensor, least: float, most: float) -> None:
        said = x.numel() > 0 and bool(torch.isfinite(x).all())
        x = x.clamp(least, most) if said else x.flatten()[:0]
        batch = statistic.of(x) if said else statistic.empty().to(x.device)
        if _is_distributed():
            of_ranks = [torch.empty_like(batch) for _ in range(dist.get_world_size())]
            dist.all_gather(of_ranks, batch)
            batch = reduce(statistic.merge, of_ranks)
        self.statistics.copy_(statistic.merge(self.statistics, batch))
        low, high = self._over_ranks(x)
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    # aminmax copies what does not lie in order
    low, high = torch.aminmax(in_memory_order(x) if x.dim() > 1 else x)
    return low.to(torch.float32), high.to(torch.float32)


def in_backward() -> bool:
    """Whether a backward is running: gradient checkpointing runs the forward once more there, which
    has to round as it did the first time, and is no new batch.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
