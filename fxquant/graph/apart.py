"""Where two traces of one forward part, and which comparison parts them.

    base    a ── [ b ── c ] ── d ── [ e ] ── f             [ … ] calls of submodules that ask
    other   a ── [ b ── p ── c ] ── d ── [ e ── q ] ── f   p is of the first, q of the second

Several comparisons can be inverted in one trace where each is asked by a submodule of its own, and
the calls of those look the same from outside in both traces (`calls`): then what lies outside, and
in each other call, is as it would be without this one. All of that is checked, node by node; what
is not so is an EntangledError, and has to be traced alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from torch import fx

from fxquant.graph.calls import Call
from fxquant.graph.edit import nodes_in
from fxquant.graph.forward import Traced
from fxquant.graph.place import place_of


class EntangledError(Exception):
    """These comparisons cannot be told apart from others that were traced with them."""

    def __init__(self, texts: set[str]) -> None:
        super().__init__(texts)
        self.texts = texts


class Run(NamedTuple):
    """Nodes in a row, in a base and in what is compared with it; they may differ by one comparison
    only, or, where that is None, not at all.
    """

    base: list[fx.Node]
    other: list[fx.Node]
    text: str | None


class Difference:
    """What one graph does beyond a base, or instead of it.

    `shared` has the nodes of the other that stand for one of the base; with the comparison that
    decides, `only_base` has the other nodes of the base and `regions` the runs of nodes that only
    the other has.
    `grown` says, for each comparison that makes a difference, how many nodes it adds.
    """

    def __init__(
        self, runs: list[Run], gave: Mapping[tuple[fx.Node, fx.Node], str] | None = None
    ) -> None:
        """`gave` are pairs of nodes that calls gave, with the comparisons that these ask."""
        self.shared: dict[fx.Node, fx.Node] = {}
        self.regions: list[tuple[str, list[fx.Node]]] = []
        self.grown: dict[str, int] = {}
        self._gave = gave or {}
        self._text_of = {
            node: run.text for run in runs for node in (*run.base, *run.other) if run.text
        }
        for run in runs:
            self._align(run)
        in_both = set(self.shared.values())
        self.only_base = [
            (run.text, node)
            for run in runs
            for node in run.base
            if run.text is not None and node not in in_both
        ]
        found = {text for text, _ in (*self.regions, *self.only_base)}
        for text, region in self.regions:
            for node in region:
                self._need_of(text, node.all_input_nodes, in_other=True)
        for node, ours in self.shared.items():
            for a, b in self.parted((ours.args, ours.kwargs), (node.args, node.kwargs)):
                found.add(self.cause(node, a, b))
        for run in runs:
            if run.text in found:
                grown = self.grown.get(run.text, 0)
                self.grown[run.text] = grown + len(run.other) - len(run.base)

    def _align(self, run: Run) -> None:
        base, other = [_key(n) for n in run.base], [_key(n) for n in run.other]
        if run.text is None and base != other:
            raise EntangledError(set())
        end = 0
        for i, j, size in _matching(base, other):
            if j > end and run.text is not None:
                self.regions.append((run.text, run.other[end:j]))
            self.shared.update(zip(run.other[j : j + size], run.base[i : i + size], strict=True))
            end = j + size

    def parted(self, base: Any, other: Any) -> Iterator[tuple[Any, Any]]:
        """The parts of the arguments of two nodes in which they read something else."""
        pairs = parts(base, other)
        if pairs is not None:
            for a, b in pairs:
                yield from self.parted(a, b)
        elif self.shared.get(other) is not base if isinstance(other, fx.Node) else base != other:
            yield base, other

    def cause(self, reader: fx.Node, base: Any, other: Any) -> str:
        """The comparison for which `reader`, of the other graph, reads something else there."""
        text = self._text_of.get(reader)
        if isinstance(base, fx.Node) and isinstance(other, fx.Node):
            of_call = self._gave.get((base, other), text)
            if of_call != text and of_call is not None:
                return of_call
        if text is None:
            nodes = nodes_in((base, other))
            raise EntangledError({self._text_of[n] for n in nodes if n in self._text_of})
        self._need_of(text, nodes_in(base), in_other=False)
        self._need_of(text, nodes_in(other), in_other=True)
        return text

    def _need_of(self, text: str, nodes: list[fx.Node], in_other: bool) -> None:
        """Nodes that are read where `text` decides must depend on no other comparison."""
        for node in nodes:
            of_call = self._text_of.get(node, text)
            if of_call != text:
                pairs = [pair for pair in self._gave if pair[in_other] is node]
                if not pairs or any(self.shared.get(b) is not a for a, b in pairs):
                    raise EntangledError({text, of_call})


def parts(base: Any, other: Any) -> list[tuple[Any, Any]] | None:
    """Two containers of one structure, part by part; None for all else."""
    if type(base) is not type(other) or not isinstance(base, (tuple, list, dict)):
        return None
    if isinstance(base, dict):
        return [(base[k], other[k]) for k in base] if base.keys() == other.keys() else None
    return list(zip(base, other, strict=True)) if len(base) == len(other) else None


def _key(node: fx.Node) -> tuple[object, ...]:
    """What a node is, apart from which nodes it reads."""
    if node.op == "output":
        return ("output",)
    immediates = fx.node.map_arg((node.args, node.kwargs), lambda _: None)
    return (node.op, node.target, place_of(node).module, repr(immediates))


def _matching(left: list[Any], right: list[Any]) -> Iterator[tuple[int, int, int]]:
    """Blocks that two lists have in common: where they begin and how long they are; the last at
    the end of both. SequenceMatcher takes quadratic time, so it sees only what lies between
    beginnings and ends that are equal.
    """
    shortest = min(len(left), len(right))
    head = next((i for i in range(shortest) if left[i] != right[i]), shortest)
    most = shortest - head
    tail = next((i for i in range(most) if left[-1 - i] != right[-1 - i]), most)
    a, b = len(left) - tail, len(right) - tail
    yield 0, 0, head
    if head < a and head < b:
        matcher = SequenceMatcher(None, left[head:a], right[head:b], autojunk=False)
        for i, j, size in matcher.get_matching_blocks():
            if size:
                yield i + head, j + head, size
    yield a, b, tail


def whole_difference(base: list[fx.Node], other: list[fx.Node], text: str) -> Difference:
    """The difference of two graphs that a single comparison makes, or the mode."""
    return Difference([Run(base, other, text)])


def difference(base: Traced, other: Traced, paths: Mapping[str, str]) -> Difference:
    """The difference that several comparisons make; `paths` says which submodule asks each.

    Raises EntangledError where they cannot be told apart.
    """
    if base.writes or other.writes:
        raise EntangledError(set())
    texts = {path: text for text, path in paths.items()}
    for text, path in paths.items():
        for call in other.asked[text].calls if text in other.asked else ():
            if call is None or call.path != path:
                around = [] if call is None else [call, *call.around()]
                raise EntangledError({text, *(texts[c.path] for c in around if c.path in texts)})
    calls = list(_outermost(base, texts)), list(_outermost(other, texts))
    if [call.path for call in calls[0]] != [call.path for call in calls[1]]:
        raise EntangledError(set())
    runs: list[Run] = []
    gave: dict[tuple[fx.Node, fx.Node], str] = {}
    i = j = 0
    for ours, theirs in zip(*calls, strict=True):
        text = texts[ours.path]
        if ours.given is None or ours.gave is None or ours.gave != theirs.gave:
            raise EntangledError({text})
        if ours.given != theirs.given:
            raise EntangledError(set())
        inside = set(base.nodes[ours.start : ours.end])
        pairs = zip(ours.nodes, theirs.nodes, strict=True)
        gave.update({pair: text for pair in pairs if pair[0] in inside})
        runs.append(Run(base.nodes[i : ours.start], other.nodes[j : theirs.start], None))
        i, j = ours.end, theirs.end
        runs.append(Run(base.nodes[ours.start : i], other.nodes[theirs.start : j], text))
    runs.append(Run(base.nodes[i:], other.nodes[j:], None))
    return Difference(runs, gave)


def _outermost(traced: Traced, texts: Mapping[str, str]) -> Iterator[Call]:
    """The calls of submodules that ask one of those comparisons; none lies in another one's."""
    for call in traced.calls:
        around = {outer.path for outer in call.around()} & texts.keys()
        if call.path in texts and around - {call.path}:
            raise EntangledError({texts[path] for path in (call.path, *around)})
        if call.path in texts and not around:
            yield call
