"""What a graph computes, as expressions: equal for two graphs that compute the same in other words.

    y = relu(x); z = add(y, y)    the numbers of   x · relu(x) · add(relu(x), relu(x))

Conditions of live numbers are taken to turn out as asked, so that a merged graph can be compared
with a trace of what it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from fxquant.graph.edit import called_module
from fxquant.graph.live import LiveFloat
from fxquant.graph.merge import Choice, OnlyIf, item


class Expressions:
    """Numbers for expressions: the same number is the same expression, in whatever graph."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def of(
        self, gm: fx.GraphModule, graph: fx.Graph, holds: Mapping[fx.Node, bool]
    ) -> tuple[Any, set[int]]:
        """What a graph over the modules of `gm` gives, and the calls in it that move statistics.
        `holds` has the conditions.
        """
        value: dict[fx.Node, Any] = {}
        effects: set[int] = set()
        return self._run(gm, graph, holds, value, effects), effects

    def _run(
        self,
        gm: fx.GraphModule,
        graph: fx.Graph,
        holds: Mapping[fx.Node, bool],
        value: dict[fx.Node, Any],
        effects: set[int],
    ) -> Any:
        for node in graph.nodes:
            if node.op == "output":
                return self._written(node.args, value)
            if node in value:  # an input of a region
                continue
            module = called_module(gm, node)
            if isinstance(module, Choice):
                condition, otherwise, then = node.args
                chosen = then if holds[condition] else otherwise
                value[node] = self._written(chosen, value)
            elif isinstance(module, OnlyIf):
                if holds[node.args[0]]:
                    body = module.body
                    inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
                    given = [self._written(a, value) for a in node.args[1:]]
                    inner = dict(zip(inputs, given, strict=True))
                    (value[node],) = self._run(body, body.graph, holds, inner, effects)
            elif node.target is item:
                call, index = node.args
                if call in value:  # the region runs
                    value[node] = value[call][index]
            else:
                reads = self._written((node.args, node.kwargs), value)
                value[node] = self._number((node.op, node.target, reads))
                if module is not None and next(module.buffers(), None) is not None:
                    effects.add(value[node])
        raise AssertionError("a graph without an output")

    def _number(self, expression: Any) -> int:
        return self._numbers.setdefault(expression, len(self._numbers))

    def _written(self, part: Any, value: Mapping[fx.Node, Any]) -> Any:
        """Arguments, hashable, with an expression in the place of each node and live number."""
        if isinstance(part, fx.Node):
            return value.get(part, "a region that does not run")
        if isinstance(part, LiveFloat):
            if part.path is not None:
                return self._number(("get_attr", part.path, ((), ())))
            assert part.source is not None
            function, arguments = part.source
            return self._number(("call_function", function, (self._written(arguments, value), ())))
        if isinstance(part, (tuple, list)):
            return tuple(self._written(p, value) for p in part)
        if isinstance(part, dict):
            return tuple((k, self._written(p, value)) for k, p in part.items())
        if isinstance(part, slice):
            return self._written((part.start, part.stop, part.step), value)
        return (type(part), repr(part))
