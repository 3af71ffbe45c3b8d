"""Where two networks part: node by node, on data.

    reference  ── conv1 ── relu ── pool ── …        captured, if it is a plain model
                  │                │
    candidate  ── conv1 → relu ─── pool ── …        each node beside the one whose value it gives

Every node of the candidate is measured twice: as it runs, its inputs being what came out before it,
and alone, reading what the reference computed. The first shows how errors add up, the second who
makes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.batches import arguments
from fxquant.errors import ConfigError, StageError, UncalibratedError
from fxquant.extras import needs_extra
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.around import unwrap
from fxquant.graph.edit import Site, called_module, source_of
from fxquant.graph.modes import evaluating
from fxquant.graph.network import Network
from fxquant.graph.place import place_of
from fxquant.graph.steps import Steps
from fxquant.graph.tensors import copy_of
from fxquant.graph.trace import trace
from fxquant.ops.integer import Dequantize
from fxquant.pipeline import Stage, history, say_stage, stage_of
from fxquant.schemes import QParams, dequantize, quantize
from fxquant.see.as_float import as_float
from fxquant.see.grid import Grid, grids_of, is_code
from fxquant.see.kind import kind_of

if TYPE_CHECKING:
    import pandas

# a node's name, what the reference gave in real numbers, and what the candidate did
Watch = Callable[[str, Any, Any], None]

BAD_BELOW = 15.0  # dB: an error of more than a sixth of the value
_COARSE = "coarse rounding"
_SAME = 1e-3  # relative: float networks that differ by less have the same parameters


@dataclass(frozen=True)
class Row:
    """How one node of the candidate differs from the reference. None: it has no such thing.

    node, operator    its name, and what it computes
    module            the module path that it comes from, "" at the top
    sqnr              signal to error, in dB, as the network runs; inf where nothing differs
    alone             the same of this node alone, reading what the reference computed
    cosine            of the angle between the two values, as vectors
    max_lsb           the largest difference, in steps of the node's grid
    saturated         the share of codes at an end of the range, 0 left aside
    range_use         the share of the grid between the least and the greatest code
    parameters        relative difference of the node without any rounding: of what it computes with
    why               why it is bad: "other values", "other parameters" or "coarse rounding"
    """

    node: str
    operator: str
    module: str
    sqnr: float
    alone: float
    cosine: float
    max_lsb: float | None
    saturated: float | None
    range_use: float | None
    parameters: float | None
    why: str | None

    @property
    def bad(self) -> bool:
        """Whether it differs by more than rounding explains."""
        return self.why is not None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: a row a node, in the order in which they run; print it as a table."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row | None:
        """The first bad node; of coarse rounding only where nothing else is the matter."""
        bad = [row for row in self.rows if row.bad]
        damaged = [row for row in bad if row.why != _COARSE]
        return next(iter((*damaged, *bad)), None)

    @property
    def worst(self) -> Row | None:
        """The node that errs the most by itself; None where no node errs."""
        row = min(self.rows, key=lambda row: row.alone, default=None)
        return None if row is None or row.alone == math.inf else row

    @property
    def equal(self) -> bool:
        """Whether no node differs at all."""
        return all(row.sqnr == math.inf for row in self.rows)

    def __str__(self) -> str:
        lines = [_HEAD, *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        left = [f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}" for line in lines]
        numbers = [map(str.rjust, line[2:], widths[2:]) for line in lines]
        table = ("  ".join((a, *b)).rstrip() for a, b in zip(left, numbers, strict=True))
        return "\n".join((*table, "", self._end()))

    def __rich__(self) -> Any:
        with needs_extra("demo"):
            from rich.table import Table
        table = Table(caption=self._end(), caption_justify="left")
        for i, heading in enumerate(_HEAD):
            table.add_column(heading, justify="left" if i < 2 else "right")
        for row in self.rows:
            table.add_row(*_cells(row), style="bold red" if row.bad else None)
        return table

    def _end(self) -> str:
        if self.equal:
            return f"all {len(self.rows)} nodes are equal"
        first, worst = self.first, self.worst
        ends = [f"the first bad node is '{first.node}', {first.why}" if first else "no node is bad"]
        ends += [f"the worst by itself is '{worst.node}', {worst.alone:.1f} dB"] if worst else []
        return "; ".join(ends)

    def to_frame(self) -> pandas.DataFrame:
        """The rows as a pandas DataFrame, a column a field, by node."""
        with needs_extra("see"):
            import pandas
        fields = list(Row.__dataclass_fields__)
        records = [[getattr(row, field) for field in fields] for row in self.rows]
        return pandas.DataFrame(records, columns=fields).set_index("node")


def compare(
    reference: nn.Module, candidate: fx.GraphModule, data: Tensor | Iterable[Any]
) -> Comparison:
    """Run two networks on the same data and find where they part.

    Any two of one model: a model and what prepare_qat made of it, a prepared network and what
    convert made of it, two converted networks. Both run in eval(), and nothing of them moves. What
    the captured graph's nodes became is known of every node of ours; nodes that only move
    elements, or have no counterpart, are left out.

    A node is *bad* where rounding does not explain the difference. Between networks of integers
    that is any difference. Beside a float network it is a node alone below 15 dB, or, of a prepared
    one, other parameters than the reference has. After training compare with `as_float(prepared)`.

    Args:
        reference: the model, or a prepared or converted network.
        candidate: a prepared or converted network of the same model.
        data: a batch, or batches such as a DataLoader gives: tensors, or tuples and lists that
            begin with the arguments (labels behind them are left out).

    Raises:
        StageError: the candidate is no network of ours.
        DataError: no batch, or one that is empty or not finite.
        ConfigError: no node in common; or passes rescaled the inside of the candidate on purpose
            (equalize), and the reference is a float network without that.
        UncalibratedError: the candidate has not seen data yet.
    """
    return measured(reference, candidate, data)


def measured(
    reference: nn.Module,
    candidate: fx.GraphModule,
    data: Tensor | Iterable[Any],
    watch: Watch = lambda name, expected, value: None,
) -> Comparison:
    """As `compare`; `watch` is shown each measured node's values of each batch."""
    if not isinstance(candidate, Network):
        raise StageError(
            f"compare takes a prepared or converted network to look at, got {say_stage(candidate)}."
            "\nWhat to do: the float model is the reference, and comes first."
        )
    batches = arguments(candidate, [data] if isinstance(data, Tensor) else data)
    first = next(batches)
    reference = _captured(reference, candidate, first)
    _refuse_unready(candidate)
    in_floats = stage_of(reference) is Stage.FLOAT
    if in_floats and not _is_as_float(reference):
        _refuse_rescaled(candidate)
    prepared = in_floats and stage_of(candidate) is Stage.FAKE_QUANT
    plain = as_float(candidate) if prepared else None
    measures = _measures(reference, candidate, plain)
    if not measures:
        raise ConfigError(
            f"{type(reference).__name__} and {type(candidate).__name__} have no operator in common."
            "\nWhat to do: compare networks that were made from the same model."
        )
    models = [reference, candidate, *([plain] if plain is not None else [])]
    with evaluating(*models), torch.no_grad():
        for inputs in chain((first,), batches):
            _run(reference, candidate, plain, measures, inputs, watch)
    return Comparison(tuple(measure.row(in_floats) for measure in measures.values()))


def _captured(
    reference: nn.Module, candidate: fx.GraphModule, inputs: tuple[Any, ...]
) -> fx.GraphModule:
    """The reference as a graph whose nodes have the names that the candidate's were captured by."""
    if isinstance(reference, Network):
        return reference
    model, _ = unwrap(reference)
    called = {str(node.target) for node in candidate.graph.nodes if node.op == "call_module"}
    leaves = {path for path in called if not isinstance(candidate.get_submodule(path), Site)}
    return trace(copy_of(model), inputs, frozenset(leaves))


def _is_as_float(reference: fx.GraphModule) -> bool:
    """Whether passes have run on it: then it has the parameters that they left."""
    return any(record.name == "canonicalize" for record in history(reference))


def _refuse_unready(candidate: fx.GraphModule) -> None:
    for module in candidate.modules():
        if isinstance(module, ActivationFakeQuant) and not module.ready:
            raise UncalibratedError(
                "compare needs ranges, but the candidate has values that saw no finite data.\n"
                "What to do: run some batches through it in train() mode first."
            )


def _refuse_rescaled(candidate: fx.GraphModule) -> None:
    rescaling = {"equalize_cross_layer", "absorb_high_bias"}
    ran = [r.name for r in history(candidate) if r.name in rescaling and r.changed]
    if ran:
        raise ConfigError(
            f"{' and '.join(ran)} changed the values inside {type(candidate).__name__} on purpose: "
            "they cannot be compared with the model's.\n"
            "What to do: compare with as_float(prepared)."
        )


# Who is compared with whom


def _measures(
    reference: fx.GraphModule, candidate: fx.GraphModule, plain: fx.GraphModule | None
) -> dict[fx.Node, _Measure]:
    """For each site of the candidate, and each layer kept in float, its counterparts."""
    theirs, unrounded = _by_source(reference), {} if plain is None else _by_source(plain)
    their_grids, grids = grids_of(reference), grids_of(candidate)
    found = {}
    for node in candidate.graph.nodes:
        module, source = called_module(candidate, node), source_of(candidate, node)
        if module is None or isinstance(module, Dequantize) or source not in theirs:
            continue
        other = theirs[source]
        found[node] = _Measure(
            node, kind_of(candidate, node), other, unrounded.get(source), their_grids.get(other),
            grids.get(node),
        )
    return found


def _by_source(gm: fx.GraphModule) -> dict[str, fx.Node]:
    """The nodes that give each captured node's value; the last, which is rounded, where several."""
    sources = ((source_of(gm, node), node) for node in gm.graph.nodes)
    return dict(sources)


def _run(
    reference: fx.GraphModule,
    candidate: fx.GraphModule,
    plain: fx.GraphModule | None,
    measures: dict[fx.Node, _Measure],
    inputs: tuple[Any, ...],
    watch: Watch,
) -> None:
    """One batch, all networks in step."""
    theirs = Steps(reference, inputs, [measure.other for measure in measures.values()])
    runs, alone = Steps(candidate, inputs), Steps(candidate, inputs)
    unrounded = None if plain is None else Steps(plain, inputs, _plain_nodes(measures))
    for node in candidate.graph.nodes:
        value, by_itself = runs.step(), alone.step()
        measure = measures.get(node)
        if measure is None:
            continue
        expected = measure.expected(theirs.value(measure.other))
        exact = None
        if unrounded is not None and measure.plain is not None:
            exact = unrounded.value(measure.plain)
            unrounded.replace(measure.plain, expected)
        alone.replace(node, measure.as_candidate(expected, value))
        measure.add(expected, value, by_itself, exact)
        watch(node.name, expected, value)


def _plain_nodes(measures: dict[fx.Node, _Measure]) -> list[fx.Node]:
    return [measure.plain for measure in measures.values() if measure.plain is not None]


# What is measured


class _Measure:
    """A node of the candidate, its counterparts, and what was summed up over the batches."""

    def __init__(
        self, node: fx.Node, operator: str, other: fx.Node, plain: fx.Node | None,
        their_grid: Grid | None, grid: Grid | None,
    ) -> None:
        self.node, self.operator, self.other, self.plain = node, operator, other, plain
        self._theirs = None if their_grid is None else their_grid.qparams
        self._ours = None if grid is None else grid.qparams
        self._signal = self._power = self._product = 0.0
        self._error = self._error_alone = self._error_exact = self._largest = 0.0
        self._codes = _Codes()

    def expected(self, value: Any) -> Any:
        """What the reference's node gave, in real numbers."""
        return _real(value, self._theirs)

    def as_candidate(self, expected: Any, value: Any) -> Any:
        """The same as the candidate would write it."""
        if isinstance(value, Tensor) and self._ours is not None and is_code(value):
            return quantize(expected, self._ours)
        return expected

    def add(self, expected: Any, value: Any, alone: Any, exact: Any) -> None:
        """One batch: of the reference, of the candidate as it runs, alone, and unrounded."""
        if not isinstance(expected, Tensor) or not isinstance(value, Tensor):
            return
        a = expected.double()
        b, by_itself = (_real(y, self._ours).double() for y in (value, alone))
        self._signal += _energy(a)
        self._power += _energy(b)
        self._product += float((a * b).sum())
        self._error += _energy(a - b)
        self._error_alone += _energy(a - by_itself)
        self._error_exact += 0.0 if exact is None else _energy(a - exact.double())
        if a.numel():
            self._largest = max(self._largest, float((a - b).abs().max()))
        if self._ours is not None:
            self._codes.add(value if is_code(value) else quantize(value, self._ours), self._ours)

    def row(self, in_floats: bool) -> Row:
        """What that makes; beside a float network rounding is expected."""
        grid = self._ours or self._theirs
        sqnr, alone = (_decibel(self._signal, e) for e in (self._error, self._error_alone))
        moved = None if self.plain is None else _root(self._error_exact, self._signal)
        return Row(
            node=self.node.name,
            operator=self.operator,
            module=place_of(self.node).module,
            sqnr=sqnr,
            alone=alone,
            cosine=self._cosine(),
            max_lsb=None if grid is None else self._largest / float(grid.scale),
            saturated=self._codes.saturated,
            range_use=self._codes.range_use,
            parameters=moved,
            why=_why_beside_floats(alone, moved) if in_floats else _why_beside_integers(sqnr),
        )

    def _cosine(self) -> float:
        length = math.sqrt(self._signal) * math.sqrt(self._power)
        return self._product / length if length else float(self._signal == self._power)


class _Codes:
    """Which codes of a grid came by."""

    def __init__(self) -> None:
        self._count = self._at_ends = 0
        self._low, self._high, self._steps = math.inf, -math.inf, 1

    def add(self, codes: Tensor, q: QParams) -> None:
        """Codes of one batch."""
        if not codes.numel():
            return
        ends = [end for end in (q.scheme.qmin, q.scheme.qmax) if end != int(q.zero_point)]
        self._count += codes.numel()
        self._at_ends += sum(int((codes == end).sum()) for end in ends)
        self._low = min(self._low, int(codes.min()))
        self._high = max(self._high, int(codes.max()))
        self._steps = q.scheme.qmax - q.scheme.qmin

    @property
    def saturated(self) -> float | None:
        return self._at_ends / self._count if self._count else None

    @property
    def range_use(self) -> float | None:
        return (self._high - self._low) / self._steps if self._count else None


def _why_beside_integers(sqnr: float) -> str | None:
    return None if sqnr == math.inf else "other values"


def _why_beside_floats(alone: float, moved: float | None) -> str | None:
    if moved is not None and moved > _SAME:
        return "other parameters"
    return _COARSE if alone < BAD_BELOW else None


def _real(value: Any, q: QParams | None) -> Any:
    return dequantize(value, q) if q is not None and is_code(value) else value


def _energy(x: Tensor) -> float:
    return float(x.square().sum())


def _decibel(signal: float, error: float) -> float:
    if error == 0.0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0.0 and error < math.inf else -math.inf


def _root(error: float, signal: float) -> float:
    if error == 0.0:
        return 0.0
    return math.sqrt(error / signal) if signal > 0.0 else math.inf


# As a table

_HEAD = (
    *("node", "operator", "SQNR dB", "alone dB", "cosine", "max LSB"),
    *("saturated", "range use", ""),
)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.node,
        row.operator,
        "equal" if row.sqnr == math.inf else f"{row.sqnr:.1f}",
        "equal" if row.alone == math.inf else f"{row.alone:.1f}",
        f"{row.cosine:.5f}",
        "-" if row.max_lsb is None else f"{row.max_lsb:.3g}",
        "-" if row.saturated is None else f"{100 * row.saturated:.2f} %",
        "-" if row.range_use is None else f"{100 * row.range_use:.0f} %",
        row.why or "",
    )
