"""What training does, and what it does instead where a number of the model is set otherwise.

    traces   as the numbers are · one comparison of each submodule inverted · another one of each …

    merged   the trace that does the least, and a region for each comparison that changes it

Comparisons of different submodules share a trace as far as the graphs show which of them changes
what (`apart`), so the number of traces is that of comparisons in one submodule, not in the network.
Those of one submodule are inverted together in a last one: no region may depend on another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.graph.apart import Difference, EntangledError, difference, whole_difference
from fxquant.graph.expressions import Expressions
from fxquant.graph.forward import Forward, Traced, raised_by_the_user
from fxquant.graph.live import LiveFloat
from fxquant.graph.merge import merge_where
from fxquant.graph.network import Network, network

Texts = frozenset[str]  # comparisons; as what a trace inverts, too


class Other(NamedTuple):
    """What training does beyond the least; for each comparison, whether it holds there."""

    difference: Difference
    traced: Traced
    conditions: dict[str, tuple[LiveFloat, bool]]


class Training(NamedTuple):
    """What training does at the least, what it does beyond that, and traces of several comparisons
    inverted at once, by which it can be checked.

    Drop path comes to the least where there is any.
    """

    least: Traced
    others: list[Other]
    checks: dict[Texts, Traced]


def trace_training(forward: Forward) -> Training:
    """Find out what each comparison of a live number changes.

    Refuses those that matter and are asked only where another one holds.
    """
    traces = _Traces(forward)
    natural = traces.of(Texts())
    every = Texts()  # comparisons, but those that only raise
    grown: dict[str, int] = {}  # by how many nodes, if that comparison is inverted
    for inverted, found in traces.differences(Texts(), natural.asked):
        every |= inverted
        grown |= found.grown
    off = Texts(text for text, nodes in grown.items() if nodes < 0)
    least = traces.of(off)
    for text in grown:
        if text not in least.asked:
            raise traces.nested(text)
    others = []
    for inverted, found in traces.differences(off, grown):
        conditions = {}
        for text in found.grown:
            comparison, answer, _ = natural.asked[text]
            conditions[text] = comparison, answer if text in off else not answer
        others.append(Other(found, traces.of(inverted), conditions))
    checks = {off: natural}
    try:
        checks[every] = traces.of(off ^ every)
    except CaptureError as error:
        if not raised_by_the_user(error.__cause__):
            raise
    shown = [least, *(other.traced for other in others)]
    checks = {texts: traced for texts, traced in checks.items() if traced not in shown}
    return Training(least, others, checks)


def network_in_training(model: nn.Module, training: Training) -> Network:
    """One graph of all that training does. Refuses comparisons that change it only together."""
    gm = network(model, training.least.graph)
    conditions: dict[fx.Node, str] = {}
    for other in training.others:
        graph = other.traced.graph
        conditions |= merge_where(gm, graph, other.difference, other.conditions)
    for texts, traced in training.checks.items():
        expressions = Expressions()
        holds = {node: text in texts for node, text in conditions.items()}
        if expressions.of(gm, gm.graph, holds) != expressions.of(gm, traced.graph, {}):
            raise CaptureError(
                f"what {type(model).__name__}.forward does in train() is decided by comparisons of "
                f"numbers that may be set later, together: {', '.join(sorted(texts)[:4])}.\n"
                "What to do: make one comparison of them; hold a number that never changes in the "
                "class, not in the instance; or keep that submodule in float (keep_float)."
            )
    return gm


class _Traces:
    """The traces of one forward in train(), by the comparisons that they invert."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.found: dict[Texts, Traced] = {}

    def of(self, inverted: Texts) -> Traced:
        if inverted not in self.found:
            self.found[inverted] = self.forward.traced(True, inverted)
        return self.found[inverted]

    def differences(self, start: Texts, texts: Iterable[str]) -> Iterator[tuple[Texts, Difference]]:
        """What changes where each of `texts` is inverted besides `start`: traces and differences.

        Refuses those that let another comparison be asked that matters, in turn.
        """
        base = self.of(start)
        waiting = _groups(base, texts)
        while waiting:
            group = waiting.pop(0)
            inverted = start ^ Texts(group)
            try:
                found = self._difference(base, inverted, group)
            except CaptureError as error:
                if len(group) > 1:
                    waiting[:0] = _halves(group)
                    continue
                if raised_by_the_user(error.__cause__):
                    continue  # that way lies an error
                raise
            except EntangledError as error:
                alone = [{text: path} for text, path in group.items() if text in error.texts]
                rest = {text: path for text, path in group.items() if text not in error.texts}
                waiting[:0] = [rest, *alone] if rest and alone else _halves(group)
                continue
            inner = [text for text in self.of(inverted).asked if text not in base.asked]
            for _, deeper in self.differences(inverted, inner):
                for text in deeper.grown:
                    raise self.nested(text)
            yield inverted, found

    def _difference(self, base: Traced, inverted: Texts, group: dict[str, str]) -> Difference:
        other = self.of(inverted)
        if len(group) > 1:
            return difference(base, other, group)
        return whole_difference(base.nodes, other.nodes, next(iter(group)))

    def nested(self, text: str) -> CaptureError:
        """The refusal of a comparison inside another."""
        return CaptureError(
            f"{type(self.forward.model).__name__}.forward asks {text} in train() only where "
            "another comparison holds: each has to stand by itself to follow what is set later.\n"
            "What to do: make one comparison of the two; hold a number that never changes in the "
            "class, not in the instance; or keep that submodule in float (keep_float)."
        )


def _halves(group: dict[str, str]) -> list[dict[str, str]]:
    items = list(group.items())
    middle = len(items) // 2
    return [dict(items[:middle]), dict(items[middle:])]


def _groups(base: Traced, texts: Iterable[str]) -> list[dict[str, str]]:
    """Comparisons that may be told apart in one trace, each with the submodule that asks it: at
    most one of a submodule, and none of one that is called inside another's.
    """
    around: dict[str, set[str]] = {}  # the submodules that call one, directly or not
    for call in base.calls:
        around.setdefault(call.path, set()).update(outer.path for outer in call.around())
    groups: list[dict[str, str]] = []
    alone: list[dict[str, str]] = []
    for text in texts:
        paths = {None if call is None else call.path for call in base.asked[text].calls}
        path = paths.pop()
        if paths or path is None:
            alone.append({text: ""})
            continue
        for group in groups:
            if not any(p == path or p in around[path] or path in around[p] for p in group.values()):
                group[text] = path
                break
        else:
            groups.append({text: path})
    return [*groups, *alone]
