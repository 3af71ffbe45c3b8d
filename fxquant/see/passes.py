"""The graph before and after each pass, side by side.

    with fxquant.watch_passes() as passes:
        prepared = fxquant.prepare_qat(model)
        train(prepared)
        quantized = fxquant.convert(prepared)
    passes.save("passes.html")
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant.errors import ConfigError
from fxquant.files import ending_of, write_whole
from fxquant.pipeline import PassRecord, history, watched
from fxquant.see.facts import to_networkx
from fxquant.see.page import graph_data, in_notebook, page

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Step:
    """One pass: what it did, and the graph as `to_networkx` gives it, before and after."""

    record: PassRecord
    before: networkx.DiGraph
    after: networkx.DiGraph

    @property
    def added(self) -> tuple[str, ...]:
        """The nodes that only the graph after it has."""
        return tuple(name for name in self.after if name not in self.before)

    @property
    def removed(self) -> tuple[str, ...]:
        """The nodes that only the graph before it has."""
        return tuple(name for name in self.before if name not in self.after)

    @property
    def changed(self) -> tuple[str, ...]:
        """The nodes of both that do something else now, or give something else, or are named by
        the log.
        """
        named = {entry.node for entry in self.record.changed}
        return tuple(
            name
            for name in self.after
            if name in self.before
            and (name in named or self.before.nodes[name] != self.after.nodes[name])
        )


class Passes:
    """What the recipes inside `watch_passes` did, step by step; shows itself in Jupyter."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._before: networkx.DiGraph | None = None
        self._records: tuple[PassRecord, ...] = ()

    def __call__(self, gm: fx.GraphModule) -> None:
        """A graph before a recipe's first pass, or after any."""
        records, graph = history(gm), to_networkx(gm)
        follows = len(records) == len(self._records) + 1 and records[:-1] == self._records
        if self._before is not None and follows:
            self.steps.append(Step(records[-1], self._before, graph))
        self._before, self._records = graph, records

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all.

        Raises ConfigError where the ending is not .html, or no pass ran; WriteError.
        """
        ending_of(path, ("html",), "a page")
        write_whole(path, self.render())

    def render(self) -> bytes:
        """The page: a slider over the passes, the graph before and after, reasons of refusals."""
        if not self.steps:
            raise ConfigError(
                "no pass ran inside watch_passes.\n"
                "What to do: call prepare_qat or convert inside the `with` block."
            )
        return page("fxquant: every pass", "passes", {"steps": self._told()})

    def _repr_html_(self) -> str:
        return in_notebook(self.render())

    def _told(self) -> list[dict[str, Any]]:
        """The graphs of a step only where they differ from those of the step before it."""
        told: list[dict[str, Any]] = []
        shown: dict[str, Any] = {}
        for step in self.steps:
            before, after = graph_data(step.before), graph_data(step.after)
            told.append({
                **asdict(step.record),
                "before": None if before == shown else before,
                "after": None if before == after else after,
                "added": step.added,
                "removed": step.removed,
                "altered": step.changed,
            })
            shown = after
        return told


@contextmanager
def watch_passes() -> Iterator[Passes]:
    """Inside, every pass of every recipe is looked at before and after; save what comes of it."""
    passes = Passes()
    with watched(passes):
        yield passes
