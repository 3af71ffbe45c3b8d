"""Take what shapes decide for what it is in the example, where integers need to know it.

    before   c = q.shape[-1] ** -0.5     q * c         mask = ones(t, t).tril()     x + mask
    after    assert c == 0.125           q * 0.125     assert t == 197              x + constant

Such a number goes into a multiplier and such a mask into codes, neither of which is made anew at
every call. Other shapes than the example's are refused then, by the assertions: numbers of channels
never change, and sizes of images may. What depends on parameters, too, stays computed from them.
Left alone: sizes in reshapes, paddings and slices, which may be others at every call; and what no
example inputs tell.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.decided import CASTS, decided, decided_values, taken_as_model
from fxquant.graph.edit import constant_site, erase, map_nodes
from fxquant.graph.guard import require_shapes
from fxquant.graph.held import held
from fxquant.graph.place import copy_place, example_of, place_of, set_example
from fxquant.graph.values import assertions
from fxquant.pipeline import Log, Pass, Stage
from fxquant.sites.move import is_move
from fxquant.sites.reading import read_call, read_spelling


class FixShapes(Pass):
    """Takes what shapes decide for what it is in the example, where integers need it."""

    name = "fix_shapes"
    summary = "numbers and masks that shapes decide become constants where integers need them"
    needs = gives = Stage.FLOAT

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Visit every call that looks at values, and fix what it reads."""
        by_shapes, constants, checks = decided(gm.graph), held(gm), assertions(gm.graph)
        fix = _Fix(gm, by_shapes - constants)
        for node in list(gm.graph.nodes):
            if node in by_shapes or node in checks or node.op in ("placeholder", "output"):
                continue
            if _needs_numbers(gm, node, fix.by_shapes):
                fix.numbers_of(node)
                log.change(node, "reads numbers as they are in the example")
            for value in node.all_input_nodes:
                if _is_table(gm, value, by_shapes, constants):
                    log.change(value, "is as for the shapes of the example")
                    fix.tensor(value)


def _needs_numbers(gm: fx.GraphModule, node: fx.Node, by_shapes: set[fx.Node]) -> bool:
    """Whether `node` spells an operator only where its numbers are known."""
    if not any(_is_number(x) and x in by_shapes for x in node.all_input_nodes):
        return False
    found = read_call(gm, node)
    if isinstance(found, tuple) and by_shapes.isdisjoint(found[1].inputs):
        return False
    known = read_spelling(node, *map_nodes((node.args, node.kwargs), _literal))
    return isinstance(known, tuple) and not any(map(_is_number, known[1].inputs))


def _is_table(
    gm: fx.GraphModule, value: fx.Node, by_shapes: set[fx.Node], constants: set[fx.Node]
) -> bool:
    """Whether `value` is a tensor that shapes decide, and no mere parameter, or zeros, moved."""
    if value not in by_shapes or not isinstance(example_of(value), Tensor):
        return False
    while value not in constants and is_move(gm, value) and isinstance(value.args[0], fx.Node):
        value = value.args[0]
    found = read_call(gm, value)
    reads_values = isinstance(found, tuple) and not by_shapes.issuperset(found[1].inputs)
    return value not in constants and not reads_values


def _is_number(node: fx.Node) -> bool:
    return isinstance(example_of(node), (bool, int, float, torch.Size))


def _literal(node: fx.Node) -> Any:
    """The number that `node` gives for the example inputs, as code has it; else the node."""
    example = example_of(node)
    if isinstance(example, torch.Size):
        return tuple(example)
    return example if isinstance(example, (bool, int, float, torch.dtype)) else node


class _Fix:
    """Writes constants and assertions into one graph."""

    def __init__(self, gm: fx.GraphModule, by_shapes: set[fx.Node]) -> None:
        self.gm = gm
        self.by_shapes = by_shapes
        self.guarded: set[fx.Node] = set()

    @functools.cached_property
    def values(self) -> dict[fx.Node, Any]:
        """What each of them gives for the example inputs, where the network is."""
        tensors = (*self.gm.parameters(), *self.gm.buffers(), torch.empty(0))
        with torch.no_grad():
            return decided_values(self.gm, self.by_shapes, tensors[0].device)

    def tensor(self, node: fx.Node) -> None:
        """A constant in the place of `node`; where parameters decide it too, of what it reads."""
        if not self.by_shapes.issuperset(_ancestry(node, self.by_shapes)):
            if node.target in CASTS:  # what the network holds is where the network is
                node.target, node.kwargs = "to", {}
                node.args = (node.args[0], example_of(node).dtype)
            self.numbers_of(node)
            for part in node.all_input_nodes:
                if part in self.by_shapes and isinstance(example_of(part), Tensor):
                    self.tensor(part)
            return
        value = self.values.get(node)
        if value is None:
            return
        for part in _ancestry(node, self.by_shapes):
            self._guard_inputs(part)
        with self.gm.graph.inserting_before(node):
            constant = constant_site(self.gm, node.name, value)
        copy_place(node, constant)
        node.replace_all_uses_with(constant)
        for part in _ancestry(node, self.by_shapes):  # readers before what they read
            if not part.users:
                erase(part)

    def numbers_of(self, node: fx.Node) -> None:
        """Plain numbers in the place of those that `node` reads from shapes."""
        self._guard_inputs(node)

        def known(part: fx.Node) -> Any:
            return _literal(part) if part in self.by_shapes else part

        node.args, node.kwargs = map_nodes(node.args, known), map_nodes(node.kwargs, known)

    def _guard_inputs(self, node: fx.Node) -> None:
        for part in node.all_input_nodes:
            if node.op == "call_function" and part is taken_as_model(node):
                self._guard_shape(part)
            elif part in self.by_shapes and _is_number(part):
                self._guard(part)

    def _guard_shape(self, node: fx.Node) -> None:
        with self.gm.graph.inserting_after(node):
            shape = self.gm.graph.call_function(getattr, (node, "shape"))
        copy_place(node, shape)
        set_example(shape, getattr(example_of(node), "shape", None))
        self._guard(shape)

    def _guard(self, number: fx.Node) -> None:
        if number in self.guarded:
            return
        self.guarded.add(number)
        expected, where = _literal(number), place_of(number)
        text = f"prepared for example inputs whose '{number.name}' {where} is {expected}"
        with self.gm.graph.inserting_after(number):
            equal = self.gm.graph.call_function(operator.eq, (number, expected))
        with self.gm.graph.inserting_after(equal):
            self.gm.graph.call_function(require_shapes, (equal, text))


def _ancestry(node: fx.Node, by_shapes: set[fx.Node]) -> list[fx.Node]:
    """`node` and every tensor that shapes decide, or parameters, that it is computed from; those
    that read others before them.
    """
    found = {node}
    for part in reversed(node.graph.nodes):
        if part in found and part in by_shapes and isinstance(example_of(part), Tensor):
            inputs = [x for x in part.all_input_nodes if x is not taken_as_model(part)]
            found.update(x for x in inputs if not _is_number(x))
    return [part for part in reversed(node.graph.nodes) if part in found]
