"""A table that is measured row by row: printed as it grows, and kept as JSON.

A run that was interrupted goes on where it ended, and other rows of the file stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from measures import read, write

Row = dict[str, Any]
Measure = Callable[[Row, Callable[[], object]], Row]
"""A job to what was found out about it; its second argument is called after each step."""


def fill(
    columns: Mapping[str, str], jobs: Sequence[Row], measure: Measure, steps: int,
    path: Path | None = None,
) -> list[Row]:
    """The row of each job, that of the file at `path` where it has one.

    Args:
        columns: titles, and how a row says what stands below them, as for `str.format`.
        jobs: what each row is about; a row is that of a job when it holds all that the job says.
        measure: what a row holds beside its job.
        steps: of one job, for the progress bar.
        path: JSON that holds all rows and is written anew after each; None for no file.
    """
    known = read(path) if path is not None and path.exists() else []
    found = []
    with Progress() as progress:
        task = progress.add_task("measuring", total=len(jobs) * steps)
        for line in (columns, ["---"] * len(columns)):
            progress.print(_line(line), soft_wrap=True)
        for i, job in enumerate(jobs):
            row = next((row for row in known if job.items() <= row.items()), None)
            if row is None:
                row = job | measure(job, lambda: progress.advance(task))
                known.append(row)
                if path is not None:
                    write(path, known)
            found.append(row)
            progress.update(task, completed=(i + 1) * steps)
            progress.print(_line(text.format(**row) for text in columns.values()), soft_wrap=True)
    return found


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
