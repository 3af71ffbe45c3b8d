"""How a node's values differ from those of its counterpart, summed up over batches."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx

from fxquant.errors import ConfigError
from fxquant.graph.place import place_of
from fxquant.graph.tensors import tensors_in
from fxquant.schemes import QParams, dequantize, quantize
from fxquant.see.comparison import COARSE, Row
from fxquant.see.grid import Grid, is_code

BAD_BELOW = 15.0  # dB: an error of more than a sixth of the value
_SAME = 1e-3  # relative: float networks that differ by less have the same parameters


class Measure:
    """A node of the candidate, its counterparts, and what was summed up over the batches."""

    def __init__(
        self, node: fx.Node, operator: str, other: fx.Node, plain: fx.Node | None,
        their_grid: Grid | None, grid: Grid | None,
    ) -> None:
        self.node, self.operator, self.other, self.plain = node, operator, other, plain
        self._theirs = None if their_grid is None else their_grid.qparams
        self._ours = None if grid is None else grid.qparams
        self._signal = self._power = self._product = 0.0
        self._error = self._error_alone = self._error_exact = self._largest = 0.0
        self._codes = _Codes()
        self.seen = False  # whether it gave a tensor

    def expected(self, value: Any) -> Any:
        """What the reference's node gave, in real numbers."""
        return _real(value, self._theirs)

    def as_candidate(self, expected: Any, value: Any) -> Any:
        """The same as the candidate would write it."""
        if isinstance(value, Tensor) and self._ours is not None and is_code(value):
            return quantize(expected, self._ours)
        return expected

    def add(self, expected: Any, value: Any, alone: Any, exact: Any) -> None:
        """One batch: of the reference, of the candidate as it runs, alone, and unrounded; tensors,
        or several in tuples, as of a recurrent module in float.
        """
        every = [[*tensors_in(given)] for given in (expected, value, alone)]
        unrounded: list[Tensor | None] = [*tensors_in(exact)] or [None] * len(every[0])
        for part in zip(*every, unrounded, strict=True):
            self._add(*part)

    def _add(self, expected: Tensor, value: Tensor, alone: Tensor, exact: Tensor | None) -> None:
        if expected.shape != value.shape:
            ours, theirs = tuple(value.shape), tuple(expected.shape)
            raise ConfigError(
                f"'{self.node.name}' gives {ours}, and in the reference {theirs}.\n"
                "What to do: compare networks that were made from the same model."
            )
        self.seen = True
        a = expected.double()
        b, by_itself = (_real(y, self._ours).double() for y in (value, alone))
        self._signal += _energy(a)
        self._power += _energy(b)
        self._product += float((a * b).sum())
        self._error += _energy(a - b)
        self._error_alone += _energy(a - by_itself)
        self._error_exact += 0.0 if exact is None else _energy(a - exact.double())
        if a.numel():
            self._largest = max(self._largest, float((a - b).abs().max()))
        if self._ours is not None:
            self._codes.add(value if is_code(value) else quantize(value, self._ours), self._ours)

    def row(self, in_floats: bool) -> Row:
        """What that makes; beside a float network rounding is expected."""
        grid = self._ours or self._theirs
        sqnr, alone = (_decibel(self._signal, e) for e in (self._error, self._error_alone))
        moved = None if self.plain is None else _root(self._error_exact, self._signal)
        return Row(
            node=self.node.name,
            operator=self.operator,
            module=place_of(self.node).module,
            sqnr=sqnr,
            alone=alone,
            cosine=self._cosine(),
            max_lsb=None if grid is None else self._largest / float(grid.scale),
            saturated=self._codes.saturated,
            range_use=self._codes.range_use,
            parameters=moved,
            why=_why_beside_floats(alone, moved) if in_floats else _why_beside_integers(sqnr),
        )

    def _cosine(self) -> float:
        length = math.sqrt(self._signal) * math.sqrt(self._power)
        return self._product / length if length else float(self._signal == self._power)


class _Codes:
    """Which codes of a grid came by."""

    def __init__(self) -> None:
        self._count = self._at_ends = 0
        self._low, self._high, self._steps = math.inf, -math.inf, 1

    def add(self, codes: Tensor, q: QParams) -> None:
        """Codes of one batch."""
        if not codes.numel():
            return
        ends = [end for end in (q.scheme.qmin, q.scheme.qmax) if end != int(q.zero_point)]
        self._count += codes.numel()
        self._at_ends += sum(int((codes == end).sum()) for end in ends)
        self._low = min(self._low, int(codes.min()))
        self._high = max(self._high, int(codes.max()))
        self._steps = q.scheme.qmax - q.scheme.qmin

    @property
    def saturated(self) -> float | None:
        return self._at_ends / self._count if self._count else None

    @property
    def range_use(self) -> float | None:
        return (self._high - self._low) / self._steps if self._count else None


def _why_beside_integers(sqnr: float) -> str | None:
    return None if sqnr == math.inf else "other values"


def _why_beside_floats(alone: float, moved: float | None) -> str | None:
    if moved is not None and moved > _SAME:
        return "other parameters"
    return COARSE if alone < BAD_BELOW else None


def _real(value: Any, q: QParams | None) -> Any:
    return dequantize(value, q) if q is not None and is_code(value) else value


def _energy(x: Tensor) -> float:
    return float(x.square().sum())


def _decibel(signal: float, error: float) -> float:
    if error == 0.0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0.0 and error < math.inf else -math.inf


def _root(error: float, signal: float) -> float:
    if error == 0.0:
        return 0.0
    return math.sqrt(error / signal) if signal > 0.0 else math.inf
