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
from difflib import SequenceMatcher
from typing import Any

from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.graph.edit import Site, call_site, called_module, module_at, nodes_in
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


def merge(gm: fx.GraphModule, training: fx.Graph, condition: fx.Node | None = None) -> None:
    """Add to `gm`, which holds the eval graph, what `training` does beyond it.

    With a condition, a node of `gm`: what another graph does where that holds.
    """
    network, extra = list(gm.graph.nodes), list(training.nodes)
    shared: dict[fx.Node, fx.Node] = {}  # node of training -> node of gm
    regions: list[list[fx.Node]] = []
    left, right = [_key(n) for n in network], [_key(n) for n in extra]
    if left == right:  # as of most networks, and the alignment may take quadratic time
        blocks = [(0, 0, len(left))]
    else:
        matcher = SequenceMatcher(None, left, right, autojunk=False)
        blocks = [(m.a, m.b, m.size) for m in matcher.get_matching_blocks()]
    end = 0
    for i, j, size in blocks:
        if j > end:
            regions.append(extra[end:j])
        shared.update(zip(extra[j : j + size], network[i : i + size], strict=True))
        end = j + size
    in_both = set(shared.values())
    if condition is None:
        _refuse_state_of_eval(gm, [node for node in network if node not in in_both])
    if regions or any(not _same_reads(node, shared) for node in extra):
        _insert(gm, extra, shared, regions, condition)


def _refuse_state_of_eval(gm: fx.GraphModule, only_in_eval: list[fx.Node]) -> None:
    """Nodes that training does not have run in both modes; their statistics must not move."""
    for node in only_in_eval:
        module = module_at(gm, node) if node.op == "call_module" else None
        if module is not None and next(module.buffers(), None) is not None:
            raise CaptureError(
                f"{describe(node)} runs in eval() only and keeps statistics.\n"
                "What to do: call it in both modes, or keep the submodule around it in float."
            )


def _owner(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module in whose forward `node` was captured; None for the model itself."""
    path = place_of(node).module
    return gm.get_submodule(path) if path else None


def _key(node: fx.Node) -> tuple[object, ...]:
    """What a node is, apart from which nodes it reads."""
    if node.op == "output":
        return ("output",)
    immediates = fx.node.map_arg((node.args, node.kwargs), lambda _: None)
    return (node.op, node.target, place_of(node).module, repr(immediates))


def _same_reads(node: fx.Node, shared: dict[fx.Node, fx.Node]) -> bool:
    mapped = fx.node.map_arg((node.args, node.kwargs), shared.__getitem__)
    return bool(mapped == (shared[node].args, shared[node].kwargs))


def _insert(
    gm: fx.GraphModule,
    extra: list[fx.Node],
    shared: dict[fx.Node, fx.Node],
    regions: list[list[fx.Node]],
    condition: fx.Node | None,
) -> None:
    value = dict(shared)  # node of training -> the value in gm that stands for it
    first = {region[0]: region for region in regions}
    position = condition or next(iter(gm.graph.nodes))
    for node in extra:
        if node in first:
            position = _insert_region(gm, first[node], value, position, condition)
        ours = shared.get(node)
        if ours is None:
            continue
        position = ours
        if ours.op == "output":
            args = fx.node.map_arg(node.args[0], value.__getitem__)
            ours.args = (_join(gm, ours, ours.args[0], args, condition),)
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), value.__getitem__)
            ours.args = tuple(
                _join(gm, ours, a, b, condition) for a, b in zip(ours.args, args, strict=True)
            )
            ours.kwargs = {
                k: _join(gm, ours, v, kwargs[k], condition) for k, v in ours.kwargs.items()
            }


def _join(
    gm: fx.GraphModule,
    reader: fx.Node,
    in_eval: Any,
    in_training: Any,
    condition: fx.Node | None,
) -> Any:
    """One argument for both modes: itself, or switches where the two part."""
    if condition is not None and _without_choices(gm, in_eval) is in_training:
        return in_eval  # the two part only where an earlier condition holds
    if in_eval is in_training or (not isinstance(in_eval, fx.Node) and in_eval == in_training):
        return in_eval
    if type(in_eval) is type(in_training) and isinstance(in_eval, (tuple, list, dict)):
        if len(in_eval) == len(in_training) and not isinstance(in_eval, dict):
            pairs = zip(in_eval, in_training, strict=True)
            return type(in_eval)([_join(gm, reader, a, b, condition) for a, b in pairs])
        if isinstance(in_eval, dict) and in_eval.keys() == in_training.keys():
            return {
                k: _join(gm, reader, v, in_training[k], condition) for k, v in in_eval.items()
            }
    with gm.graph.inserting_before(reader):
        if condition is not None:
            if _without_choices(gm, in_eval) is not in_eval:
                raise CaptureError(
                    f"what training does before {describe(reader)} is decided by two comparisons "
                    "of numbers that may be set later, one after the other.\n"
                    "What to do: make one comparison of the two, or put a submodule that both "
                    "modes call between them."
                )
            return call_site(gm, "choice", Choice(), (condition, in_eval, in_training))
        # in the mode of whoever gave the training's value
        source = next(iter(nodes_in((in_training, in_eval))), reader)
        switch = Switch(_owner(gm, source))
        node = call_site(gm, "switch", switch, (in_eval, in_training))
    copy_place(reader, node)
    return node


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
    condition: fx.Node | None,
) -> fx.Node:
    """One run of nodes that only training has as a TrainOnly node after `position`; its last."""
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
    if condition is None:
        name, kind = "train_only", TrainOnly
    else:
        name, kind, inputs = "only_if", OnlyIf, (condition, *inputs)
    module = kind(graph_module, len(results), _owner(gm, region[0]))
    with gm.graph.inserting_after(position):
        call = call_site(gm, name, module, inputs)
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


def merge_where(
    gm: fx.GraphModule, other: fx.Graph, comparison: LiveFloat, holds: bool
) -> None:
    """Add to `gm` what `other` does beyond it, to run where `comparison` is or is not true."""
    last = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    with gm.graph.inserting_before(last.next):
        condition = read_in(gm.graph, comparison)
        if not holds:
            condition = gm.graph.call_function(operator.not_, (condition,))
        set_example(condition, True)
    merge(gm, other, condition)


def item(values: tuple[Any, ...], index: int) -> Any:
    """One output of a TrainOnly region."""
    return values[index]
