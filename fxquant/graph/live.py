"""Numbers that a model holds as plain attributes and a training script sets later, such as
`drop_path_prob`: in what only training does they stay live.

    before   if self.drop_path_prob > 0.: x = drop_path(x, self.drop_path_prob)
    after    the region runs where `self.drop_path_prob > 0.0` holds, and reads the attribute

While a forward is traced, its float attributes are `LiveFloat`s: floats that remember where they
come from, through arithmetic, and that ask the capture for the answer when they are compared.
Integers are not: they are layer counts and strides, which shape the graph itself.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.graph.own import attributes_of, is_torchs_module
from fxquant.graph.place import set_example

_CONSTANT = re.compile(r"_\w+_constant_?\d+")

_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_OF_ONE = ("neg", "pos", "abs")


class Asked(NamedTuple):
    """A comparison, its answer as numbers are now, and by which calls it was asked, in order."""

    comparison: LiveFloat
    answer: bool
    calls: dict[Any, None]


class Decisions:
    """The comparisons asked of LiveFloats, and which of them are answered the other way."""

    def __init__(self, inverted: frozenset[str] = frozenset()) -> None:
        self.inverted = inverted
        self.asked: dict[str, Asked] = {}
        self.call: Callable[[], Any] = lambda: None  # the call that now runs, as the tracer has it
        self.recording = True

    def decide(self, comparison: LiveFloat) -> bool:
        """The answer to a comparison, noted down."""
        answer = bool(float(comparison))
        if not self.recording:
            return answer
        text = comparison.text
        self.asked.setdefault(text, Asked(comparison, answer, {})).calls[self.call()] = None
        return answer is not (text in self.inverted)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Comparisons meanwhile are not the forward's own."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before


class LiveFloat(float):
    """A float with its source: the path of an attribute, or a function and its arguments."""

    path: str | None
    source: tuple[Callable[..., Any], tuple[Any, ...]] | None
    decisions: Decisions

    @property
    def text(self) -> str:
        """How it is made of attributes and numbers."""
        if self.path is not None:
            return self.path
        assert self.source is not None
        function, arguments = self.source
        parts = [a.text if isinstance(a, LiveFloat) else repr(a) for a in arguments]
        return f"{function.__name__}({', '.join(parts)})"

    def __bool__(self) -> bool:
        return self.decisions.decide(_derived(self.decisions, operator.ne, (self, 0.0)))

    __hash__ = float.__hash__


def _derived(
    decisions: Decisions, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> LiveFloat:
    plain = [float(a) if isinstance(a, LiveFloat) else a for a in arguments]
    result = LiveFloat(function(*plain))
    result.path, result.source, result.decisions = None, (function, arguments), decisions
    return result


def _define(name: str, function: Callable[..., Any], compares: bool, reflected: bool) -> None:
    def method(self: LiveFloat, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        arguments = (other, self) if reflected else (self, other)
        result = _derived(self.decisions, function, arguments)
        return self.decisions.decide(result) if compares else result

    setattr(LiveFloat, f"__{'r' if reflected else ''}{name}__", method)


def _define_of_one(name: str, function: Callable[..., Any]) -> None:
    def method(self: LiveFloat) -> LiveFloat:
        return _derived(self.decisions, function, (self,))

    setattr(LiveFloat, f"__{name}__", method)


for _name in _OF_ONE:
    _define_of_one(_name, getattr(operator, _name))
for _name in _COMPARISONS:
    _define(_name, getattr(operator, _name), True, False)
for _name in _ARITHMETIC:
    _define(_name, getattr(operator, _name), False, False)
    _define(_name, getattr(operator, _name), False, True)


@contextmanager
def live_floats(model: nn.Module, decisions: Decisions) -> Iterator[None]:
    """Let every float attribute of the user's modules be a LiveFloat."""
    before: list[tuple[dict[str, Any], str, float]] = []
    for path, module in model.named_modules():
        if is_torchs_module(module):
            continue
        for name, value in vars(module).items():
            if type(value) is float:
                live = LiveFloat(value)
                live.path = f"{path}.{name}" if path else name
                live.source, live.decisions = None, decisions
                before.append((vars(module), name, value))
                vars(module)[name] = live
    state = _written(model)
    try:
        yield
        decisions.recording = False
        _refuse_written(model, state)
    finally:
        decisions.recording = False
        for held, name, value in before:
            held[name] = value


def _written(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the user's modules hold as plain attributes."""
    return {
        path: attributes_of(module)
        for path, module in model.named_modules()
        if not is_torchs_module(module)
    }


def _refuse_written(model: nn.Module, before: dict[str, dict[str, Any]]) -> None:
    """A graph of the forward would not write them."""
    for path, held in _written(model).items():
        for name, value in held.items():
            if is_constant(name):
                continue
            if name not in before[path] or value is not before[path][name]:
                where = f"of '{path}'" if path else "of the model"
                raise CaptureError(
                    f"the forward {where} sets its attribute '{name}', which a graph of it would "
                    "not do.\nWhat to do: return the value, take it with a forward hook on a "
                    "submodule, or keep that submodule in float (keep_float)."
                )


def is_constant(name: str) -> bool:
    """Whether torch.fx keeps a tensor under an attribute of that name that it met in a forward."""
    return _CONSTANT.fullmatch(name) is not None


def replace_numbers(arguments: Any, function: Callable[[LiveFloat], Any]) -> Any:
    """Arguments of a node with `function` of every LiveFloat in its place."""
    return fx.node.map_aggregate(arguments, lambda a: function(a) if type(a) is LiveFloat else a)


def plain(arguments: Any) -> Any:
    """Arguments of a node with every LiveFloat as the number that it is now."""
    return replace_numbers(arguments, float)


def make_plain(graph: fx.Graph) -> None:
    """Bake the numbers into a graph: what eval() does ships as it is."""
    for node in graph.nodes:
        node.args, node.kwargs = plain(node.args), plain(node.kwargs)


def read_beside_parameters(graph: fx.Graph) -> None:
    """Read the numbers in what is computed from parameters alone, as a temperature of alphas."""
    held: set[fx.Node] = set()
    for node in list(graph.nodes):
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            held.add(node)
        elif node.op != "output" and inputs and held.issuperset(inputs):
            held.add(node)
            with graph.inserting_before(node):
                node.args, node.kwargs = (
                    replace_numbers(part, lambda number: read_in(graph, number))
                    for part in (node.args, node.kwargs)
                )


def read_in(graph: fx.Graph, number: LiveFloat) -> fx.Node:
    """Nodes, where `graph` inserts, that read the attributes and compute the number anew."""
    if number.path is not None:
        # not graph.get_attr, which warns that this is no tensor
        node = graph.create_node("get_attr", number.path)
    else:
        assert number.source is not None
        function, arguments = number.source
        nodes = [read_in(graph, a) if isinstance(a, LiveFloat) else a for a in arguments]
        node = graph.call_function(function, tuple(nodes))
    set_example(node, float(number))
    return node
