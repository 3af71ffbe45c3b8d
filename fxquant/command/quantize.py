"""The steps of `fxquant quantize`, with a progress bar for each that takes long.

    model ── prepare_ptq ── calibrate, or statistics from a file ── convert ── evaluate, save
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant.api import convert, prepare_ptq
from fxquant.batches import part_of
from fxquant.calibration import calibrate
from fxquant.command.data import Images
from fxquant.command.scores import Scores, evaluate
from fxquant.config import QuantConfig
from fxquant.errors import ConfigError
from fxquant.extras import needs_extra
from fxquant.graph.edit import state_bytes
from fxquant.statistics_file import load_statistics, save_statistics

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Job:
    """What to quantize, on what, and what to keep.

    share          of the batches of `images`, to calibrate on
    stats          a file of statistics to take instead
    save_stats     where to write those that were seen
    evaluate       whether to compare float and integer network on all of `images`
    """

    model: nn.Module
    config: QuantConfig
    images: Images | None = None
    share: float = 0.05
    stats: Path | None = None
    save_stats: Path | None = None
    evaluate: bool = True


@dataclass(frozen=True)
class Outcome:
    """The converted network, and the scores of both where they were asked for."""

    quantized: fx.GraphModule
    float_bytes: int
    integer_bytes: int
    before: Scores | None = None
    after: Scores | None = None


def run(job: Job) -> Outcome:
    """Do it. Raises the errors of prepare_ptq, calibrate, convert and of the files."""
    static = job.config.mode == "static"
    if job.images is None and (job.evaluate or (static and job.stats is None)):
        raise ConfigError(
            "there is nothing to calibrate or evaluate on.\n"
            "What to do: name images with --data, or --stats FILE and --no-evaluate."
        )
    if not static and (job.stats is not None or job.save_stats is not None):
        raise ConfigError(f"mode={job.config.mode!r} has no statistics: leave --stats files out")
    example = None if job.images is None else next(iter(job.images)).images[:1]
    prepared = prepare_ptq(job.model, example, job.config)
    with progress() as bars:
        if static:
            _settle(prepared, job, bars)
        quantized = convert(prepared)
        before = after = None
        if job.evaluate and job.images is not None:
            before = scores(job.model, job.images, bars, "float network")
            after = scores(quantized, job.images, bars, "integers")
    if job.save_stats is not None:
        save_statistics(prepared, job.save_stats)
    return Outcome(quantized, state_bytes(job.model), state_bytes(quantized), before, after)


def _settle(prepared: fx.GraphModule, job: Job, bars: Progress) -> None:
    if job.stats is not None:
        load_statistics(prepared, job.stats)
        return
    assert job.images is not None  # as `run` has seen to
    batches = part_of(job.images, job.share) or len(job.images)
    task = bars.add_task("calibrating", total=batches, text="")
    calibrate(prepared, job.images, job.share, lambda done: bars.update(task, completed=done))


def scores(model: nn.Module, images: Images, bars: Progress, title: str) -> Scores:
    """The scores of a model, shown as they come."""
    task = bars.add_task(title, total=images.count, text="")

    def tell(so_far: Scores) -> None:
        bars.update(task, completed=so_far.images, text=str(so_far))

    return evaluate(model, images, tell)


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars with a title, what is done, the time, and a text."""
    with needs_extra("cli"):
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    columns: tuple[Any, ...] = (
        TextColumn("{task.description:13}"), BarColumn(14), TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),  # loss and accuracy: 80 columns in all
    )
    with Progress(*columns) as bars:
        yield bars
