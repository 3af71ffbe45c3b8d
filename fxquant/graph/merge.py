"""Join what a model does in eval() and what it does in train() into one graph.

    eval     x ── conv ─────────────── add ── (y, None)
    train    x ── conv ── drop_path ── add ── (y, aux(…))

    merged   x ── conv ──┬─────────────────┐
                         └─ train_only_0 ─ switch_0 ── add ── (y, switch_1)

The eval graph is kept whole. The two are aligned in order; what only training does becomes
`TrainOnly` regions, float, that give None in eval(); where a shared node reads something
else in training, a `Switch` stands before it.

Two graphs of training, of which the network follows one or the other as a number is set, are
joined alike: `OnlyIf` and `Choice` ask a condition of the graph instead of the mode.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.graph.apart import Difference, parts, whole_difference
from fxquant.graph.edit import Site, called_module, insert_site, module_at, nodes_in
from fxquant.graph.guard import require_shapes
from fxquant.graph.live import LiveFloat, read_in, replace_numbers
from fxquant.graph.place import copy_place, describe, place_of, set_example


class _ByMode(Site):
    """Follows the mode of the module in whose forward it was captured."""

    def __init__(self, owner: nn.Module | None) -> None:
        super().__init__()
        # in a tuple, hence not registered; None at the top, whose mode is this module's own
        self._owner = (owner,)

    @property
    def in_training(self) -> bool:
        """The mode in force here."""
        owner = self._owner[0]
        return self.training if owner is None else owner.training


class Switch(_ByMode):
    """Hands on its first input in eval() and its second in train()."""

    def forward(self, in_eval: Any, in_training: Any) -> Any:
        """Any two values; the one of the present mode comes back."""
        return in_training if self.in_training else in_eval


class Choice(Site):
    """Hands on its second input, or its third where the first, a condition, holds."""

    def forward(self, condition: bool, otherwise: Any, then: Any) -> Any:
        """A truth value and any two values."""
        return then if condition else otherwise


class TrainOnly(_ByMode):
    """A float part of the network that runs in train() only; in eval() it gives Nones."""

    def __init__(self, body: fx.GraphModule, outputs: int, owner: nn.Module | None) -> None:
        super().__init__(owner)
        # not registered either: its submodules belong to the whole model, under the names
        # that the user gave them
        self._body = (body,)
        self.outputs = outputs

    @property
    def body(self) -> fx.GraphModule:
        """The region's own graph."""
        return self._body[0]

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """The region's outputs, or as many Nones."""
        if not self.in_training:
            return (None,) * self.outputs
        outputs: tuple[Any, ...] = self.body(*inputs)
        return outputs


class OnlyIf(TrainOnly):
    """A region that runs only where its first input, a condition, holds."""

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """The region's outputs, or as many Nones."""
        if not inputs[0]:
            return (None,) * self.outputs
        outputs: tuple[Any, ...] = self.body(*inputs[1:])
        return outputs


class _Parting(ABC):
    """What parts two graphs, and the sites that follow it."""

    @abstractmethod
    def join(self, gm: fx.GraphModule, reader: fx.Node, base: Any, other: Any) -> Any:
        """What `reader` reads, given what it reads in either graph; stands before it."""

    @abstractmethod
    def region(
        self,
        gm: fx.GraphModule,
        body: fx.GraphModule,
        outputs: int,
        inputs: tuple[fx.Node, ...],
        first: fx.Node,
    ) -> fx.Node:
        """A call of what only the other graph does, which begins with its node `first`."""


class _ByTheMode(_Parting):
    def join(self, gm: fx.GraphModule, reader: fx.Node, base: Any, other: Any) -> Any:
        # in the mode of whoever gave the training's value
        source = next(iter(nodes_in((other, base))), reader)
        node = insert_site(gm, "switch", Switch(_owner(gm, source)), (base, other))
        copy_place(reader, node)
        return node

    def region(
        self,
        gm: fx.GraphModule,
        body: fx.GraphModule,
        outputs: int,
        inputs: tuple[fx.Node, ...],
        first: fx.Node,
    ) -> fx.Node:
        return insert_site(gm, "train_only", TrainOnly(body, outputs, _owner(gm, first)), inputs)


class _ByACondition(_Parting):
    def __init__(self, condition: fx.Node) -> None:
        self.condition = condition

    def join(self, gm: fx.GraphModule, reader: fx.Node, base: Any, other: Any) -> Any:
        if _without_choices(gm, base) is not base:
            raise CaptureError(
                f"what training does before {describe(reader)} is decided by two comparisons "
                "of numbers that may be set later, one after the other.\n"
                "What to do: make one comparison of the two, or put a submodule that both "
                "modes call between them."
            )
        return insert_site(gm, "choice", Choice(), (self.condition, base, other))

    def region(
        self,
        gm: fx.GraphModule,
        body: fx.GraphModule,
        outputs: int,
        inputs: tuple[fx.Node, ...],
        first: fx.Node,
    ) -> fx.Node:
        module = OnlyIf(body, outputs, _owner(gm, first))
        return insert_site(gm, "only_if", module, (self.condition, *inputs))


def merge(gm: fx.GraphModule, training: fx.Graph) -> None:
    """Add to `gm`, which holds the eval graph, what `training` does beyond it."""
    extra = list(training.nodes)
    found = whole_difference(list(gm.graph.nodes), extra, "the mode")
    _refuse_state(gm, found, "in eval() only")
    _insert(gm, extra, found, {"the mode": _ByTheMode()}, next(iter(gm.graph.nodes)))


def merge_where(
    gm: fx.GraphModule,
    other: fx.Graph,
    found: Difference,
    conditions: Mapping[str, tuple[LiveFloat, bool]],
) -> dict[fx.Node, str]:
    """Add to `gm` what `other` does beyond it, to run where each comparison is or is not true;
    the nodes that tell, with their comparisons.
    """
    _refuse_state(gm, found, "where a number of the model has some values only")
    told: dict[fx.Node, str] = {}
    last = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    condition = last
    for text, (comparison, holds) in conditions.items():
        with gm.graph.inserting_before(last.next):
            condition = read_in(gm.graph, comparison)
            if not holds:
                condition = gm.graph.call_function(operator.not_, (condition,))
            set_example(condition, True)
        told[condition] = text
    partings = {text: _ByACondition(node) for node, text in told.items()}
    _insert(gm, list(other.nodes), found, partings, condition)
    return told


def _refuse_state(gm: fx.GraphModule, found: Difference, when: str) -> None:
    """Nodes that the other graph does not have run for both; their statistics must not move."""
    for _, node in found.only_base:
        module = module_at(gm, node) if node.op == "call_module" else None
        if module is not None and next(module.buffers(), None) is not None:
            raise CaptureError(
                f"{describe(node)} runs {when} and keeps statistics.\n"
                "What to do: call it in any case, or keep the submodule around it in float."
            )


def _owner(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module in whose forward `node` was captured; None for the model itself."""
    path = place_of(node).module
    return gm.get_submodule(path) if path else None


def _insert(
    gm: fx.GraphModule,
    extra: list[fx.Node],
    found: Difference,
    partings: Mapping[str, _Parting],
    position: fx.Node,
) -> None:
    value = dict(found.shared)  # node of the other graph -> the value in gm that stands for it
    first = {region[0]: (text, region) for text, region in found.regions}

    def joined(node: fx.Node, ours: fx.Node, base: Any, other: Any) -> Any:
        """One argument for both graphs: itself, or switches where the two part."""
        here, usual = fx.node.map_arg(other, value.__getitem__), _without_choices(gm, base)
        if base == here or usual is here:  # or they part only where an earlier condition holds
            return base
        pairs = parts(base, other)
        if pairs is not None:
            return _rebuilt(base, [joined(node, ours, a, b) for a, b in pairs])
        with gm.graph.inserting_before(ours):
            return partings[found.cause(node, usual, other)].join(gm, ours, base, here)

    for text, node in found.only_base:
        if node.target in (require_shapes, torch._assert):
            # it runs for both, but what it checks holds for one
            with gm.graph.inserting_before(node):
                holds = partings[text].join(gm, node, node.args[0], True)
            node.args = (holds, *node.args[1:])
    for node in extra:
        if node in first:
            text, region = first[node]
            position = _insert_region(gm, region, value, position, partings[text])
        ours = found.shared.get(node)
        if ours is not None:
            if ours.op != "placeholder" or position.op == "placeholder":
                position = ours  # conditions come behind the last placeholder
            ours.args = joined(node, ours, ours.args, node.args)
            ours.kwargs = joined(node, ours, ours.kwargs, node.kwargs)


def _rebuilt(container: Any, values: list[Any]) -> Any:
    if isinstance(container, dict):
        return dict(zip(container, values, strict=True))
    return type(container)(*values) if hasattr(container, "_fields") else type(container)(values)


def _without_choices(gm: fx.GraphModule, value: Any) -> Any:
    """What `value` is where no condition holds."""
    while isinstance(value, fx.Node) and isinstance(called_module(gm, value), Choice):
        value = value.args[1]
    return value


def _insert_region(
    gm: fx.GraphModule,
    region: list[fx.Node],
    value: dict[fx.Node, fx.Node],
    position: fx.Node,
    parting: _Parting,
) -> fx.Node:
    """One run of nodes that only the other graph has as a region after `position`; its last."""
    for node in region:  # what the model holds comes in as an argument, so that it stays live
        if node.op == "get_attr":
            with gm.graph.inserting_after(position):
                position = value[node] = gm.graph.create_node("get_attr", str(node.target))
            copy_place(node, position)
    region = [node for node in region if node.op != "get_attr"]
    if not region:
        return position
    numbers, position = _read_numbers(gm, region, position)
    inside = set(region)
    reads = dict.fromkeys(n for node in region for n in node.all_input_nodes if n not in inside)
    results = [node for node in region if any(u not in inside for u in node.users)]
    body = fx.Graph()
    inner: dict[fx.Node, fx.Node] = {n: body.placeholder(n.name) for n in reads}
    inside_numbers = {text: body.placeholder(n.name) for text, n in numbers.items()}
    for node in region:
        copied = inner[node] = body.node_copy(node, inner.__getitem__)
        copied.args, copied.kwargs = (
            replace_numbers(part, lambda number: inside_numbers[number.text])
            for part in (copied.args, copied.kwargs)
        )
    body.output(tuple(inner[n] for n in results))
    graph_module = fx.GraphModule(gm, body, class_name="TrainOnlyBody")
    inputs = (*(value[n] for n in reads), *numbers.values())
    with gm.graph.inserting_after(position):
        call = parting.region(gm, graph_module, len(results), inputs, region[0])
    copy_place(region[0], call)
    position = call
    for i, node in enumerate(results):
        with gm.graph.inserting_after(position):
            position = gm.graph.call_function(item, (call, i))
        copy_place(node, position)
        value[node] = position
    return position


def _read_numbers(
    gm: fx.GraphModule, region: list[fx.Node], position: fx.Node
) -> tuple[dict[str, fx.Node], fx.Node]:
    """Nodes behind `position` that read the live numbers of a region; the last of them."""
    found: dict[str, LiveFloat] = {}
    for node in region:
        replace_numbers((node.args, node.kwargs), lambda n: found.setdefault(n.text, n))
    nodes: dict[str, fx.Node] = {}
    with gm.graph.inserting_before(position.next):
        for text, number in found.items():
            nodes[text] = position = read_in(gm.graph, number)
    return nodes, position


def item(values: tuple[Any, ...], index: int) -> Any:
    """One output of a TrainOnly region."""
    return values[index]
