"""Published cells, written down; and one more, read from a training log.

    Genotype(normal=(('sep_conv_3x3', 1), ('skip_connect', 0),  ('dil_conv_3x3', 2), ...
                     └──────────── node 0 = state 2 ─────────┘  └──── node 1 = state 3 ...
             normal_concat=(2, 3, 4, 5), ...)

States 0 and 1 are the outputs of the two cells before. Node i is state i + 2: the sum of two
edges, each an operation on an earlier state. The states in `*_concat`, side by side, are the
output of the cell. `normal` keeps the size of the map, `reduce` halves it.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from reprlib import repr as short
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from fxquant.errors import ConfigError

__all__ = [
    "DARTS_V1",
    "DARTS_V2",
    "GENOTYPES",
    "PDARTS",
    "PRIMITIVES",
    "AmoebaNet",
    "Edge",
    "Genotype",
    "NASNet",
    "PC_DARTS_cifar",
    "PC_DARTS_image",
    "parse_genotype",
]

Edge = tuple[str, int]

# What the DARTS search chooses from, in the order of its architecture parameters.
PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
# Not in the search, but NASNet and AmoebaNet use them.
_OPERATIONS = (*PRIMITIVES, "sep_conv_7x7", "conv_7x1_1x7")


class _Fields(NamedTuple):
    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]


class Genotype(_Fields):
    """Two cells, checked when made: whoever holds a Genotype can build it.

    Takes any iterables, `range(2, 6)` too, and keeps tuples, so genotypes compare and hash by
    value. One that other code made becomes ours with `Genotype(*theirs)`.

    Source: Liu, Simonyan, Yang, DARTS, ICLR 2019, arXiv:1806.09055.
    """

    __slots__ = ()

    def __new__(
        cls,
        normal: Iterable[Edge],
        normal_concat: Iterable[int],
        reduce: Iterable[Edge],
        reduce_concat: Iterable[int],
    ) -> Self:
        """Raise ConfigError, saying which item and why, for cells that cannot be built."""
        fields = _Fields(tuple(normal), tuple(normal_concat), tuple(reduce), tuple(reduce_concat))
        if mistake := _find_mistake(*fields):
            raise ConfigError(f"genotype: {mistake}")
        return super().__new__(cls, *fields)

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # type: ignore[override]  # mypy's own, fixed
        # NamedTuple's own, which `_replace` calls too, would go around the checks above.
        return cls(*iterable)


class _Mistake(NamedTuple):
    field: str
    item: int | None  # None: the field as a whole
    why: str

    def __str__(self) -> str:
        return f"{self.field}{'' if self.item is None else f'[{self.item}]'}: {self.why}"


def _find_mistake(
    normal: Sequence[object],
    normal_concat: Sequence[object],
    reduce: Sequence[object],
    reduce_concat: Sequence[object],
) -> _Mistake | None:
    cells = (("normal", normal, normal_concat), ("reduce", reduce, reduce_concat))
    for name, edges, concat in cells:
        if not edges or len(edges) % 2:
            return _Mistake(name, None, f"expected two edges for every node, got {len(edges)}")
        for number, edge in enumerate(edges):
            if why := _reject_edge(edge, number // 2):
                return _Mistake(name, number, why)
        if not concat:
            return _Mistake(f"{name}_concat", None, "expected at least one state, got none")
        seen: set[object] = set()
        for number, state in enumerate(concat):
            if why := _reject_output(state, len(edges) // 2, seen):
                return _Mistake(f"{name}_concat", number, why)
            seen.add(state)
    return None


def _reject_edge(edge: object, node: int) -> str | None:
    if not isinstance(edge, tuple) or len(edge) != 2:
        return f"expected (operation, state), got {short(edge)}"
    name, state = edge
    if not isinstance(name, str):
        return f"expected the name of an operation, got {short(name)}"
    if name not in _OPERATIONS:
        near = get_close_matches(name, _OPERATIONS) or _OPERATIONS
        return f"unknown operation {short(name)}, expected {' or '.join(near)}"
    if type(state) is not int or not 0 <= state < node + 2:
        return f"expected a state that node {node} can read, 0 to {node + 1}, got {short(state)}"
    return None


def _reject_output(state: object, nodes: int, seen: set[object]) -> str | None:
    if type(state) is not int or not 2 <= state < nodes + 2:
        return f"expected the state of a node, 2 to {nodes + 1}, got {short(state)}"
    if state in seen:
        return f"state {state} is already listed"
    return None


def parse_genotype(text: str) -> Genotype:
    """Read the one `Genotype(...)` in `text`, as training scripts print it; nothing is run.

    What stands before it (a time, `genotype = `) is skipped. Lists, tuples and, for the concats,
    `range(2, 6)` are read. Raises ConfigError saying what is wrong, where, and what was expected.
    """
    starts = [found.start() for found in re.finditer(r"\bGenotype\(", text)]
    if len(starts) != 1:
        raise ConfigError(f"genotype text: expected one 'Genotype(...)', found {len(starts)}")
    return _Reader(text, starts[0]).genotype()


class _Reader:
    """The text of one genotype, and where in it each mistake is."""

    def __init__(self, text: str, start: int) -> None:
        self.code = text[start:].rstrip()
        self.lines_before = text.count("\n", 0, start)
        self.columns_before = start - (text.rfind("\n", 0, start) + 1)

    def genotype(self) -> Genotype:
        nodes = self.fields(self.call())
        values = {name: self.sequence(node) for name, node in nodes.items()}
        mistake = _find_mistake(**values)
        if mistake is None:
            return Genotype(**values)
        node = nodes[mistake.field]
        if mistake.item is not None and isinstance(node, ast.List | ast.Tuple):
            node = node.elts[mistake.item]
        raise self.wrong(str(mistake), node.lineno, node.col_offset + 1)

    def call(self) -> ast.Call:
        try:
            call = ast.parse(self.code, mode="eval").body
        except SyntaxError as error:
            why = f"expected Python's notation: {error.msg}"
            raise self.wrong(why, error.lineno, error.offset) from error
        except (ValueError, RecursionError, MemoryError) as error:  # odd bytes, a million brackets
            raise self.wrong(f"expected Python's notation: {error}") from error
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise self.wrong("expected 'Genotype(...)' and nothing after it")
        return call

    def fields(self, call: ast.Call) -> dict[str, ast.expr]:
        if call.args:
            raise self.wrong_at(call.args[0], f"expected {_Fields._fields[0]}=...")
        fields: dict[str, ast.expr] = {}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg not in _Fields._fields:
                raise self.wrong_at(keyword, f"expected one of {', '.join(_Fields._fields)}")
            if keyword.arg in fields:
                raise self.wrong_at(keyword, f"expected {keyword.arg} once")
            fields[keyword.arg] = keyword.value
        for name in _Fields._fields:
            if name not in fields:
                raise self.wrong(f"{name} is missing, expected {', '.join(_Fields._fields)}")
        return fields

    def sequence(self, node: ast.expr) -> Any:
        match node:
            case ast.List(items) | ast.Tuple(items):
                return tuple(self.literal(item) for item in items)
            case ast.Call(ast.Name("range"), bounds, []) if bounds:
                arguments: list[Any] = [self.literal(bound) for bound in bounds]
                try:
                    # Stays a range, because range(2, 10**12) must not be unrolled to be refused.
                    return range(*arguments)
                except (TypeError, ValueError) as error:
                    why = f"expected range(first, after_last): {error}"
                    raise self.wrong_at(node, why) from error
        raise self.wrong_at(node, "expected a list")

    def literal(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(value):
                return value
            case ast.UnaryOp(ast.USub(), ast.Constant(int(value))):
                return -value
            case ast.List(items) | ast.Tuple(items):
                return tuple(self.literal(item) for item in items)
        raise self.wrong_at(node, "expected a name, a number or a pair of them")

    def wrong_at(self, node: ast.expr | ast.keyword, why: str) -> ConfigError:
        got = ast.get_source_segment(self.code, node)
        return self.wrong(f"{why}, got {short(got)}", node.lineno, node.col_offset + 1)

    def wrong(self, why: str, line: int | None = 1, column: int | None = 1) -> ConfigError:
        line, column = line or 1, column or 1
        if line == 1:
            column += self.columns_before
        where = f"line {line + self.lines_before}, column {column}"
        return ConfigError(f"genotype text, {where}: {why}")


# Below, a line of two edges is a node.

# Zoph et al., Learning Transferable Architectures, CVPR 2018, arXiv:1707.07012 (NASNet-A).
NASNet = Genotype(
    normal=[
        ("sep_conv_5x5", 1), ("sep_conv_3x3", 0),
        ("sep_conv_5x5", 0), ("sep_conv_3x3", 0),
        ("avg_pool_3x3", 1), ("skip_connect", 0),
        ("avg_pool_3x3", 0), ("avg_pool_3x3", 0),
        ("sep_conv_3x3", 1), ("skip_connect", 1),
    ],
    normal_concat=range(2, 7),
    reduce=[
        ("sep_conv_5x5", 1), ("sep_conv_7x7", 0),
        ("max_pool_3x3", 1), ("sep_conv_7x7", 0),
        ("avg_pool_3x3", 1), ("sep_conv_5x5", 0),
        ("skip_connect", 3), ("avg_pool_3x3", 2),
        ("sep_conv_3x3", 2), ("max_pool_3x3", 1),
    ],
    reduce_concat=[4, 5, 6],
)

# Real et al., Regularized Evolution, AAAI 2019, arXiv:1802.01548 (AmoebaNet-A).
AmoebaNet = Genotype(
    normal=[
        ("avg_pool_3x3", 0), ("max_pool_3x3", 1),
        ("sep_conv_3x3", 0), ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0), ("avg_pool_3x3", 3),
        ("sep_conv_3x3", 1), ("skip_connect", 1),
        ("skip_connect", 0), ("avg_pool_3x3", 1),
    ],
    normal_concat=[4, 5, 6],
    reduce=[
        ("avg_pool_3x3", 0), ("sep_conv_3x3", 1),
        ("max_pool_3x3", 0), ("sep_conv_7x7", 2),
        ("sep_conv_7x7", 0), ("avg_pool_3x3", 1),
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("conv_7x1_1x7", 0), ("sep_conv_3x3", 5),
    ],
    reduce_concat=[3, 4, 6],
)

# Liu, Simonyan, Yang, DARTS, ICLR 2019, arXiv:1806.09055: first order, then second order.
DARTS_V1 = Genotype(
    normal=[
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 0),
        ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0), ("skip_connect", 2),
    ],
    normal_concat=range(2, 6),
    reduce=[
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("skip_connect", 2), ("max_pool_3x3", 0),
        ("max_pool_3x3", 0), ("skip_connect", 2),
        ("skip_connect", 2), ("avg_pool_3x3", 0),
    ],
    reduce_concat=range(2, 6),
)
DARTS_V2 = Genotype(
    normal=[
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("skip_connect", 0),
        ("skip_connect", 0), ("dil_conv_3x3", 2),
    ],
    normal_concat=range(2, 6),
    reduce=[
        ("max_pool_3x3", 0), ("max_pool_3x3", 1),
        ("skip_connect", 2), ("max_pool_3x3", 1),
        ("max_pool_3x3", 0), ("skip_connect", 2),
        ("skip_connect", 2), ("max_pool_3x3", 1),
    ],
    reduce_concat=range(2, 6),
)

# Xu et al., PC-DARTS, ICLR 2020, arXiv:1907.05737: searched on CIFAR-10, then on ImageNet.
PC_DARTS_cifar = Genotype(
    normal=[
        ("sep_conv_3x3", 1), ("skip_connect", 0),
        ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
        ("sep_conv_5x5", 0), ("sep_conv_3x3", 1),
        ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
    ],
    normal_concat=range(2, 6),
    reduce=[
        ("sep_conv_5x5", 1), ("max_pool_3x3", 0),
        ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 0), ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
    ],
    reduce_concat=range(2, 6),
)
PC_DARTS_image = Genotype(
    normal=[
        ("skip_connect", 1), ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 0), ("skip_connect", 1),
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 1), ("dil_conv_5x5", 4),
    ],
    normal_concat=range(2, 6),
    reduce=[
        ("sep_conv_3x3", 0), ("skip_connect", 1),
        ("dil_conv_5x5", 2), ("max_pool_3x3", 1),
        ("sep_conv_3x3", 2), ("sep_conv_3x3", 1),
        ("sep_conv_5x5", 0), ("sep_conv_3x3", 3),
    ],
    reduce_concat=range(2, 6),
)

# Chen et al., Progressive DARTS, ICCV 2019, arXiv:1904.12760.
PDARTS = Genotype(
    normal=[
        ("skip_connect", 0), ("dil_conv_3x3", 1),
        ("skip_connect", 0), ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1), ("sep_conv_3x3", 3),
        ("sep_conv_3x3", 0), ("dil_conv_5x5", 4),
    ],
    normal_concat=range(2, 6),
    reduce=[
        ("avg_pool_3x3", 0), ("sep_conv_5x5", 1),
        ("sep_conv_3x3", 0), ("dil_conv_5x5", 2),
        ("max_pool_3x3", 0), ("dil_conv_3x3", 1),
        ("dil_conv_3x3", 1), ("dil_conv_5x5", 3),
    ],
    reduce_concat=range(2, 6),
)

GENOTYPES: Mapping[str, Genotype] = MappingProxyType(
    {
        "NASNet": NASNet,
        "AmoebaNet": AmoebaNet,
        "DARTS_V1": DARTS_V1,
        "DARTS_V2": DARTS_V2,
        "PC_DARTS_cifar": PC_DARTS_cifar,
        "PC_DARTS_image": PC_DARTS_image,
        "PDARTS": PDARTS,
    }
)
