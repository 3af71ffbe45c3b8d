"""What a comparison of two networks found, as rows and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxquant.extras import needs_extra

if TYPE_CHECKING:
    import pandas

COARSE = "coarse rounding"


@dataclass(frozen=True)
class Row:
    """How one node of the candidate differs from the reference. None: it has no such thing.

    node, operator    its name, and what it computes
    module            the module path that it comes from, "" at the top
    sqnr              signal to error, in dB, as the network runs; inf where nothing differs
    alone             the same of this node alone, reading what the reference computed
    cosine            of the angle between the two values, as vectors
    max_lsb           the largest difference, in steps of the node's grid
    saturated         the share of codes at an end of the range, 0 left aside
    range_use         the share of the grid between the least and the greatest code
    parameters        relative difference of the node without any rounding: of what it computes with
    why               why it is bad: "other values", "other parameters" or "coarse rounding"
    """

    node: str
    operator: str
    module: str
    sqnr: float
    alone: float
    cosine: float
    max_lsb: float | None
    saturated: float | None
    range_use: float | None
    parameters: float | None
    why: str | None

    @property
    def bad(self) -> bool:
        """Whether it differs by more than rounding explains."""
        return self.why is not None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: `rows`, one a node, in the order in which they run; print it."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row | None:
        """The first bad node; of coarse rounding only where nothing else is the matter."""
        bad = [row for row in self.rows if row.bad]
        damaged = [row for row in bad if row.why != COARSE]
        return next(iter((*damaged, *bad)), None)

    @property
    def worst(self) -> Row | None:
        """The node that errs the most by itself; None where no node errs."""
        row = min(self.rows, key=lambda row: row.alone, default=None)
        return None if row is None or row.alone == math.inf else row

    @property
    def equal(self) -> bool:
        """Whether no node differs at all."""
        return all(row.sqnr == math.inf for row in self.rows)

    def __str__(self) -> str:
        lines = [_HEAD, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        left = [f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}" for line in lines]
        numbers = [map(str.rjust, line[2:], widths[2:]) for line in lines]
        table = ("  ".join((a, *b)).rstrip() for a, b in zip(left, numbers, strict=True))
        return "\n".join((*table, "", self._end()))

    def __rich__(self) -> Any:
        with needs_extra("demo"):
            from rich.table import Table
        table = Table(caption=self._end(), caption_justify="left")
        for i, heading in enumerate(_HEAD):
            table.add_column(heading, justify="left" if i < 2 else "right")
        for row in self.rows:
            table.add_row(*_cells(row), style="bold red" if row.bad else None)
        return table

    def _end(self) -> str:
        if not self.rows:
            return "there is no operator to compare"
        if self.equal:
            return f"all {len(self.rows)} nodes are equal"
        first, worst = self.first, self.worst
        ends = [f"the first bad node is '{first.node}', {first.why}" if first else "no node is bad"]
        ends += [f"the worst by itself is '{worst.node}', {worst.alone:.1f} dB"] if worst else []
        return "; ".join(ends)

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame, a column a field, by node."""
        with needs_extra("see"):
            import pandas
        fields = list(Row.__dataclass_fields__)
        records = [[getattr(row, field) for field in fields] for row in self.rows]
        return pandas.DataFrame(records, columns=fields).set_index("node")


_HEAD = (
    *("node", "operator", "SQNR dB", "alone dB", "cosine", "max LSB"),
    *("saturated", "range use", ""),
)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.node,
        row.operator,
        "equal" if row.sqnr == math.inf else f"{row.sqnr:.1f}",
        "equal" if row.alone == math.inf else f"{row.alone:.1f}",
        f"{row.cosine:.5f}",
        "-" if row.max_lsb is None else f"{row.max_lsb:.3g}",
        "-" if row.saturated is None else f"{100 * row.saturated:.2f} %",
        "-" if row.range_use is None else f"{100 * row.range_use:.0f} %",
        row.why or "",
    )
