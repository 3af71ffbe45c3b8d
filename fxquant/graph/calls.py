"""The calls of submodules that a trace went through: what each was given, what it gave back.

    look of (args)  ── forward ──▶  look of (args, result)

A look is all that Python code can tell of values: their structure, numbers and examples, and which
of them are one object, but not which nodes stand behind them. So where a call looks the same in two
traces, from both sides, nobody outside has noticed what was decided inside.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from fxquant.graph.live import LiveFloat
from fxquant.graph.own import attributes_of, is_torchs_module

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, type(Ellipsis)),
    *(torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format),
)


class Call:
    """One call of the submodule at `path`, made inside the call `outer`: it wrote the nodes from
    `start` to `end`. A look is None where a value was of a kind that can hide anything.
    """

    def __init__(self, path: str, outer: Call | None, start: int) -> None:
        self.path, self.outer, self.start, self.end = path, outer, start, start
        self.given: Hashable = None
        self.gave: Hashable = None
        self.nodes: list[fx.Node] = []  # behind what it gave, in the order of the look

    def around(self) -> Iterator[Call]:
        """The calls that this one was made in, from the inside out."""
        call = self.outer
        while call is not None:
            yield call
            call = call.outer


class Calls:
    """All calls of one trace, in the order of their beginnings, and the one that now runs."""

    def __init__(self, example: Callable[[fx.Node], Hashable]) -> None:
        """`example` tells what is known of a node."""
        self.all: list[Call] = []
        self.now: Call | None = None
        self.example = example

    @contextmanager
    def follow(self, path: str, arguments: Any, graph: fx.Graph) -> Iterator[list[Any]]:
        """Note down a call that is made meanwhile; its result goes into the list."""
        call = Call(path, self.now, len(graph.nodes))
        eyes = _Eyes(self.example)
        call.given = eyes.look(arguments)
        self.all.append(call)
        self.now = call
        result: list[Any] = []
        try:
            yield result
            call.gave, call.nodes = eyes.look((arguments, result)), eyes.nodes
        finally:
            self.now, call.end = call.outer, len(graph.nodes)


class Contents:
    """What the lists, dicts and sets of the user's modules hold: one call may read there what
    another has written.
    """

    def __init__(self, root: nn.Module) -> None:
        self.before = [
            (value, _objects(value))
            for module in root.modules()
            if not is_torchs_module(module)
            for value in attributes_of(module).values()
            if isinstance(value, (list, dict, set))
        ]

    def changed(self) -> bool:
        """Whether any of them holds other objects now."""
        return any(_objects(value) != before for value, before in self.before)


class _Object:
    """Equal to another that stands for the same object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Object) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _objects(value: Any) -> Any:
    if isinstance(value, dict):
        return [_Object(value), *((_objects(k), _objects(v)) for k, v in value.items())]
    if isinstance(value, (list, tuple, set)):
        return [_Object(value), *map(_objects, value)]
    return _Object(value)


class _HiddenError(Exception):
    """A value of a kind that is not looked into."""


class _Eyes:
    """Look at values; what was seen before is recognized."""

    def __init__(self, example: Callable[[fx.Node], Hashable]) -> None:
        self.example = example
        self.known: dict[int, tuple[int, Any]] = {}  # with the object: a lost one's id is reused
        self.nodes: list[fx.Node] = []

    def look(self, value: Any) -> Hashable:
        self.nodes = []
        try:
            return self._look(value, set())
        except _HiddenError:
            return None

    def _look(self, value: Any, open_: set[int]) -> Hashable:
        kind = type(value)
        if kind is LiveFloat:
            return (kind, value.text, repr(float(value)))
        if kind in _PLAIN:
            return (kind, repr(value))
        number, _ = self.known.setdefault(id(value), (len(self.known), value))
        if isinstance(value, fx.Proxy) and not isinstance(value, fx.proxy.Attribute):
            self.nodes.append(value.node)
            return (fx.Proxy, number, self.example(value.node))
        if isinstance(value, nn.Module):
            return (nn.Module, id(value))
        if id(value) in open_:
            return number
        if kind in (dict, OrderedDict):
            parts = [part for pair in value.items() for part in pair]
        elif kind in (list, tuple) or (isinstance(value, tuple) and hasattr(kind, "_fields")):
            parts = list(value)
        elif kind is slice:
            parts = [value.start, value.stop, value.step]
        else:
            raise _HiddenError
        looks = [self._look(part, open_ | {id(value)}) for part in parts]
        return (kind, number if kind in (list, dict, OrderedDict) else None, *looks)
