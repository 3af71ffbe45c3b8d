"""What got worse between two files of a benchmark's results.

    python benchmarks/worse.py before.json after.json [--worse 1.05] [--only ratio]

Rows belong together where their texts, whole numbers and truths are the same. Every other number
is a cost, of which less is better, but decibels and accuracies. Prints each as a ratio, what it is
now over what it was, and ends with 1 where a cost is more than `--worse` times what it was, or a
row is missing. Milliseconds of two machines cannot be compared, ratios can: `--only ratio`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from measures import read

GAINS = ("decibels", "accuracy")  # of these more is better


class Change(NamedTuple):
    """One figure of one row, before and after; `ratio` above 1 is worse."""

    row: str
    figure: str
    before: float
    after: float

    @property
    def ratio(self) -> float:
        """How many times worse it is; 1 where both are 0."""
        worse, better = self.after, self.before
        if self.figure.endswith(GAINS):
            worse, better = better, worse
        if worse == better:
            return 1.0
        return worse / better if better else float("inf")


def name_of(row: dict[str, Any]) -> str:
    """What tells this row from the others."""
    return ", ".join(str(value) for value in row.values() if not isinstance(value, float))


def changes(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], only: str = ""
) -> Iterator[Change]:
    """Every figure that both have; `only` those whose name ends so."""
    found = {name_of(row): row for row in after}
    for row in before:
        name = name_of(row)
        for figure, value in row.items():
            now = found.get(name, {}).get(figure)
            if isinstance(value, float) and isinstance(now, float) and figure.endswith(only):
                yield Change(name, figure, value, now)


def missing(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[str]:
    """The rows that are there no more."""
    found = {name_of(row) for row in after}
    return [name_of(row) for row in before if name_of(row) not in found]


def main() -> None:
    """Print the table, the worst first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--worse", type=float, default=1.05, help="how many times is too much")
    parser.add_argument("--only", default="", help="figures whose name ends so")
    arguments = parser.parse_args()
    before, after = read(arguments.before), read(arguments.after)
    found = sorted(changes(before, after, arguments.only), key=lambda change: -change.ratio)
    table = Table("row", "figure", "before", "after", "times")
    for change in found:
        style = "red" if change.ratio > arguments.worse else None
        figures = (f"{change.before:.4g}", f"{change.after:.4g}", f"{change.ratio:.2f}")
        table.add_row(change.row, change.figure, *figures, style=style)
    console = Console()
    console.print(table)
    gone = missing(before, after)
    for name in gone:
        console.print(f"missing: {name}", style="red")
    worse = sum(change.ratio > arguments.worse for change in found)
    console.print(f"{worse} of {len(found)} figures are more than {arguments.worse:g} times worse")
    sys.exit(1 if worse or gone else 0)


if __name__ == "__main__":
    main()
