"""Stages, passes, recipes, and the log of what each pass did and did not do.

    Recipe  =  Pass, Pass, Pass …      each declares the stage it needs and the stage it gives
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

from torch import fx, nn

from fxquant.errors import RecipeError, StageError, VerifyError
from fxquant.graph.compare import largest_differences
from fxquant.graph.edit import (
    check,
    delete_unused_sites,
    erase_unread_attributes,
    is_erased,
)
from fxquant.graph.network import restore
from fxquant.sites.verify import verify_fake_quant, verify_integer, verify_observed

_WATCHERS: ContextVar[tuple[Callable[[fx.GraphModule], None], ...]] = ContextVar(
    "_WATCHERS", default=()
)
_STAGE, _LOG = "_fxquant_stage", "_fxquant_log"  # attributes of a graph module


class Stage(Enum):
    """How far a graph has travelled."""

    FLOAT = "a float graph"
    OBSERVED = "an observed graph"
    FAKE_QUANT = "a fake-quant graph"
    INTEGER = "an integer graph"
    MIXED = "a float graph with quantized layers"
    INTEGER_LAYERS = "a float graph with integer layers"


PREPARED = (Stage.FAKE_QUANT, Stage.MIXED)
"""What prepare_qat and prepare_ptq return."""
CONVERTED = (Stage.INTEGER, Stage.INTEGER_LAYERS)
"""What convert makes of them."""

_VERIFY: dict[Stage, Callable[[fx.GraphModule], None]] = {
    Stage.FLOAT: lambda gm: None,
    Stage.OBSERVED: verify_observed,
    Stage.FAKE_QUANT: verify_fake_quant,
    Stage.INTEGER: verify_integer,
    Stage.MIXED: lambda gm: None,
    Stage.INTEGER_LAYERS: lambda gm: None,
}


class Keeps(Enum):
    """In which modes a pass leaves the function of the network as it was."""

    BOTH_MODES = "train() and eval()"
    EVAL = "eval() only"
    NOTHING = "neither: it rounds, or keeps it but nearly"


@dataclass(frozen=True)
class Entry:
    """One line of a log: something done at a node, or left alone there, and why."""

    node: str
    text: str


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to one graph."""

    name: str
    summary: str
    nodes_before: int
    nodes_after: int
    changed: tuple[Entry, ...]
    left_alone: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    def __deepcopy__(self, memo: object) -> PassRecord:
        return self  # nothing in it ever changes


class Log:
    """What a pass writes while it runs."""

    def __init__(self) -> None:
        self.changed: list[Entry] = []
        self.left_alone: list[Entry] = []
        self.notes: list[str] = []

    def change(self, node: fx.Node, text: str) -> None:
        """Something was done at `node`."""
        self.changed.append(Entry(node.name, text))

    def leave(self, node: fx.Node, reason: str) -> None:
        """A place where the pass might have fitted stays as it is, for this reason."""
        self.left_alone.append(Entry(node.name, reason))

    def note(self, sentence: str) -> None:
        """Something that concerns the whole graph."""
        self.notes.append(sentence)


class Pass(ABC):
    """One named change of a graph, in place. It keeps the function, or `keeps` says otherwise."""

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[Stage]
    gives: ClassVar[Stage]
    keeps: ClassVar[Keeps] = Keeps.BOTH_MODES

    @abstractmethod
    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Change the graph and its modules; write each change and each refusal down."""

    def run(self, gm: fx.GraphModule) -> PassRecord:
        """Edit `gm`, check what came out, and add what happened to the graph's log."""
        record = self.run_uncompiled(gm)
        gm.recompile()
        return record

    def run_uncompiled(self, gm: fx.GraphModule) -> PassRecord:
        """The same for who compiles `gm` anew later, before anybody calls it."""
        if stage_of(gm) is not self.needs:
            raise StageError(
                f"'{self.name}' needs {self.needs.value}, but this is {stage_of(gm).value}.\n"
                "What to do: run the passes before it first, in the order of recipes.py."
            )
        before, log = len(gm.graph.nodes), Log()
        self.edit(gm, log)
        erase_unread_attributes(gm)
        delete_unused_sites(gm)
        check(gm)
        _VERIFY[self.gives](gm)
        record = PassRecord(
            self.name,
            self.summary,
            before,
            len(gm.graph.nodes),
            tuple(log.changed),
            tuple(log.left_alone),
            tuple(log.notes),
        )
        set_stage(gm, self.gives)
        setattr(gm, _LOG, (*history(gm), record))
        return record


class RewritePass(Pass):
    """A pass that looks at places one by one: where, why not, what."""

    @abstractmethod
    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """The nodes of a place that ends at `node`, or None. Changes nothing."""

    @abstractmethod
    def reject(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str | None:
        """Why this place must stay as it is, as a sentence, or None. Changes nothing."""

    @abstractmethod
    def rewrite(self, gm: fx.GraphModule, match: tuple[fx.Node, ...]) -> str:
        """Change this place; what was done comes back as a phrase."""

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Visit every node once, in order."""
        for node in list(gm.graph.nodes):
            match = None if is_erased(node) else self.match(gm, node)
            if match is None:
                continue
            reason = self.reject(gm, match)
            if reason is not None:
                log.leave(node, reason)
            else:
                log.change(match[0], self.rewrite(gm, match))


@dataclass(frozen=True)
class Recipe:
    """Passes in order. A wrong order is an error when the recipe is made, not when it runs."""

    name: str
    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        for before, after in zip(self.passes, self.passes[1:], strict=False):
            if before.gives is not after.needs:
                raise RecipeError(
                    f"recipe '{self.name}': '{after.name}' needs {after.needs.value}, "
                    f"but '{before.name}' before it gives {before.gives.value}"
                )

    def run(self, gm: fx.GraphModule, check_on: Sequence[Any] | None = None) -> None:
        """Run every pass on `gm`, in place.

        With inputs to `check_on`, outputs before and after each pass that says it keeps the
        function are compared (1e-5 of the largest value); one that did not is undone, and the
        log says so. Raises VerifyError where it cannot be left out, because it gives another
        stage than it needs.
        """
        _tell(gm)
        for step in self.passes:
            if check_on is None or step.keeps is Keeps.NOTHING:
                step.run_uncompiled(gm)
            else:
                _run_checked(step, gm, check_on)
            _tell(gm)
        gm.recompile()  # once, since it costs as much as several passes


@contextmanager
def watched(watcher: Callable[[fx.GraphModule], None]) -> Iterator[None]:
    """Inside, every recipe shows its graph to `watcher` before it begins and after each pass."""
    token = _WATCHERS.set((*_WATCHERS.get(), watcher))
    try:
        yield
    finally:
        _WATCHERS.reset(token)


def _tell(gm: fx.GraphModule) -> None:
    watchers = _WATCHERS.get()
    if watchers:
        gm.recompile()
    for watcher in watchers:
        watcher(gm)


def _run_checked(step: Pass, gm: fx.GraphModule, inputs: Sequence[Any]) -> None:
    before = copy.deepcopy(gm)
    record = step.run(gm)
    modes = (False, True) if step.keeps is Keeps.BOTH_MODES else (False,)
    error = max(largest_differences(gm, before, inputs, modes))
    if error <= 1e-5:
        return
    text = f"undone: it changed the outputs by {error:.2g} of the largest"
    if step.needs is not step.gives:
        raise VerifyError(f"'{step.name}' cannot be {text}")
    record = replace(record, nodes_after=record.nodes_before, changed=())
    record = replace(record, left_alone=(Entry("the whole graph", text),))
    restore(gm, before)
    setattr(gm, _LOG, (*history(before), record))


def stage_of(gm: fx.GraphModule) -> Stage:
    """How far `gm` has travelled; a graph that no pass has touched is a float graph."""
    stage: Stage = getattr(gm, _STAGE, Stage.FLOAT)
    return stage


def say_stage(gm: object) -> str:
    """What an argument is, for messages: its type, and how far it has travelled."""
    name = f"a {type(gm).__name__}"
    return f"{name}, {stage_of(gm).value}" if isinstance(gm, fx.GraphModule) else name


def set_stage(gm: fx.GraphModule, stage: Stage) -> None:
    """Say how far `gm` has travelled."""
    setattr(gm, _STAGE, stage)


def need_prepared(gm: object, name: str) -> None:
    """Refuse what prepare_qat did not return, in the name of the function that was called."""
    stage = stage_of(gm) if isinstance(gm, fx.GraphModule) else Stage.FLOAT
    if stage is not Stage.FAKE_QUANT:
        way = "prepare it with prepare_qat, and train it, first"
        if stage is Stage.MIXED:
            way = "prepare it with mode='static': other modes have no ranges of activations"
        elif path := _path_inside(gm):
            way = f"hand in the network inside, which is its '{path}'"
        raise StageError(
            f"{name} takes what prepare_qat returned, got {say_stage(gm)}.\nWhat to do: {way}."
        )


def _path_inside(wrapper: object) -> str:
    """Where in what DistributedDataParallel, torch.compile or an average wraps a prepared network
    is; "" if there is none.
    """
    for name in ("module", "_orig_mod"):
        inner = getattr(wrapper, name, None)
        if isinstance(inner, fx.GraphModule):
            return name if stage_of(inner) is Stage.FAKE_QUANT else ""
        if isinstance(inner, nn.Module):
            rest = _path_inside(inner)
            return f"{name}.{rest}" if rest else ""
    return ""


def note(gm: fx.GraphModule, name: str, summary: str, text: str) -> None:
    """Write into the log of `gm` what happened to the model before any pass ran."""
    nodes, entry = len(gm.graph.nodes), Entry("the model", text)
    setattr(gm, _LOG, (*history(gm), PassRecord(name, summary, nodes, nodes, (entry,), ())))


def note_left_alone(gm: fx.GraphModule, name: str, summary: str, reason: str) -> None:
    """Write into the log of `gm` what could not be done before any pass ran, and why."""
    nodes, entry = len(gm.graph.nodes), Entry("the model", reason)
    setattr(gm, _LOG, (*history(gm), PassRecord(name, summary, nodes, nodes, (), (entry,))))


def carry_over(source: fx.GraphModule, target: fx.GraphModule) -> None:
    """Let `target`, made from `source`'s graph, be of its stage and have its log."""
    set_history(target, stage_of(source), history(source))


def set_history(gm: fx.GraphModule, stage: Stage, records: tuple[PassRecord, ...]) -> None:
    """Let `gm` be of that stage, and have that log."""
    set_stage(gm, stage)
    setattr(gm, _LOG, records)


def check_stage(gm: fx.GraphModule) -> None:
    """Check `gm` against what its stage may hold. Raises VerifyError."""
    check(gm)
    _VERIFY[stage_of(gm)](gm)


def history(gm: fx.GraphModule) -> tuple[PassRecord, ...]:
    """What each pass did to `gm`, in order."""
    records: tuple[PassRecord, ...] = getattr(gm, _LOG, ())
    return records
