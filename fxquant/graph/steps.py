"""Compute a graph node by node, at the pace of whoever asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx


class Steps:
    """One call of a graph that stops behind each node.

    A value is kept until its readers have run and until it was asked for as often as
    `wanted` says; so that little memory is held, whatever the depth.
    """

    def __init__(
        self, gm: fx.GraphModule, inputs: Sequence[Any], wanted: Iterable[fx.Node] = ()
    ) -> None:
        self._interpreter = fx.Interpreter(gm)
        self._interpreter.args_iter = iter(inputs)
        self._values = self._interpreter.env
        self._left = iter(gm.graph.nodes)
        self._uses = Counter(wanted)
        for node in gm.graph.nodes:
            self._uses.update(node.all_input_nodes)

    def step(self) -> Any:
        """What the next node gives."""
        node = next(self._left)
        value = self._interpreter.run_node(node)
        self._values[node] = value
        for read in node.all_input_nodes:
            self._use(read)
        if not self._uses[node]:
            del self._values[node]
        return value

    def replace(self, node: fx.Node, value: Any) -> None:
        """Let those who read `node` from now on get another value."""
        if node in self._values:
            self._values[node] = value

    def value(self, node: fx.Node) -> Any:
        """What a `wanted` node gives, after as many steps as that takes."""
        while node not in self._values:
            self.step()
        value = self._values[node]
        self._use(node)
        return value

    def _use(self, node: fx.Node) -> None:
        self._uses[node] -= 1
        if not self._uses[node]:
            del self._values[node]
