"""Prove, node by node, that an integer network cannot overflow, and list its integers.

    print(fxquant.audit(quantized))

    node   operator       codes  scale   zero  multiplier       shift    terms  sum bits  proved …
    conv1  conv2d → relu  uint8  0.0311  0     2^30.0 … 2^30.9  38 … 41  27     21 of 32  yes    …

No data is asked: the worst case takes each code as far from its zero point as its scheme allows,
with the very weights that the network holds. What only the shapes of a call decide (how many terms
a matrix product has) is known where the network was prepared with example inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Any

from torch import Tensor, fx

from fxquant.errors import StageError
from fxquant.graph.edit import SITES, called_module, get_attribute
from fxquant.ops.accumulator import Accumulator
from fxquant.pipeline import Stage, say_stage, stage_of
from fxquant.schemes import QuantScheme
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize


@dataclass(frozen=True)
class AuditRow:
    """One node of an integer network. None: it has no such thing, or nobody can know.

    node, operator   its path, which it keeps in pickles, and what it computes, as 'conv2d → relu'
    scheme           the integers that it gives: bits, signed or not
    scale, zero_point
                     what they stand for: (q - zero_point)·scale
    multiplier, shift
                     the least and the greatest of its rescaling, which is m·2^-S; m is an integer,
                     but in fp32_rne the factor itself
    terms            how many products or codes it adds up
    sum_bits         what the worst case of its sum takes, sign included
    width            what that has to fit
    proved           whether it fits; of what adds nothing up there is nothing to prove
    kernel           what adds up, on this machine, as `use_kernels` has chosen; "codes" where codes
                     are only moved, looked up, rescaled
    why              why nothing quicker does; empty where nothing is known to
    weight_bytes     of its weight, or of a constant
    """

    node: str
    operator: str
    scheme: QuantScheme | None = None
    scale: float | None = None
    zero_point: int | None = None
    multiplier: tuple[float, float] | None = None
    shift: tuple[int, int] | None = None
    terms: int | None = None
    sum_bits: int | None = None
    width: int | None = None
    proved: bool = True
    kernel: str = "codes"
    weight_bytes: int = 0
    why: str = ""


@dataclass(frozen=True)
class Audit:
    """What `audit` found: `rows`, one a node, in the order in which they run; print it."""

    rows: tuple[AuditRow, ...]

    @property
    def unproved(self) -> tuple[AuditRow, ...]:
        """The rows whose sums are not proved to fit, because nobody knows how long they are."""
        return tuple(row for row in self.rows if not row.proved)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights and constants."""
        return sum(row.weight_bytes for row in self.rows)

    @property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """As a table of texts: the headings, then a line a row."""
        return (_HEAD, *map(_cells, self.rows))

    @property
    def result(self) -> str:
        """What it comes to, in a sentence."""
        sums = [row for row in self.rows if row.width is not None]
        proved = sum(row.proved for row in sums)
        return f"{proved} of {len(sums)} sums are proved to fit; {self.weight_bytes:,} weight bytes"

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.cells, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in self.cells]
        slow = [f"{row.node}: {row.kernel}, {row.why}" for row in self.rows if row.why]
        return "\n".join([*table, "", self.result, *slow])


def audit(quantized: fx.GraphModule) -> Audit:
    """Every integer and every sum of `quantized`, what convert returned.

    Raises StageError for anything else.
    """
    stage = stage_of(quantized) if isinstance(quantized, fx.GraphModule) else Stage.FLOAT
    if stage is not Stage.INTEGER:
        way = "prepare_qat, train and convert it first"
        if stage is Stage.FAKE_QUANT:
            way = "convert it first"
        if stage in (Stage.MIXED, Stage.INTEGER_LAYERS):
            way = "prepare the model with mode='static', so that all between the layers is integers"
        raise StageError(
            f"audit takes what convert returned, got {say_stage(quantized)}.\nWhat to do: {way}."
        )
    rows = (_row(quantized, node) for node in quantized.graph.nodes)
    return Audit(tuple(row for row in rows if row is not None))


def _row(gm: fx.GraphModule, node: fx.Node) -> AuditRow | None:
    """The row of a node; None for moves, arguments, numbers and the output."""
    module, path = called_module(gm, node), str(node.target).removeprefix(f"{SITES}.")
    if isinstance(module, IntegerOp):
        return _operator_row(path, module)
    if isinstance(module, (Quantize, Dequantize)):
        name = type(module).__name__.lower()
        scale, zero_point = float(module.scale), int(module.zero_point)
        return AuditRow(path, name, module.scheme, scale, zero_point)
    value = get_attribute(gm, str(node.target)) if node.op == "get_attr" else None
    if isinstance(value, Tensor):
        return AuditRow(path, "constant", weight_bytes=value.nbytes)
    return None


def _operator_row(path: str, module: IntegerOp) -> AuditRow:
    numbers: dict[str, Any] = dict(module.named_buffers())
    sums = module.accumulator
    return AuditRow(
        node=path,
        operator=module.text,
        scheme=module.scheme,
        scale=module.facts.scale,
        zero_point=module.facts.zero_point,
        multiplier=_ends(numbers.get("multiplier")),
        shift=_ends(numbers.get("shift")),
        terms=None if sums is None else sums.terms,
        sum_bits=None if sums is None else sums.needs,
        width=None if sums is None else sums.bits,
        proved=sums is None or sums.proved,
        kernel=module.kernel.name or _carrier(sums),
        weight_bytes=numbers["weight"].nbytes if "weight" in numbers else 0,
        why=module.kernel.why,
    )


def _carrier(sums: Accumulator | None) -> str:
    return "codes" if sums is None else str(sums.carrier).removeprefix("torch.")


def _ends(values: Tensor | None) -> tuple[Any, Any] | None:
    return None if values is None else (values.min().item(), values.max().item())


_HEAD = (
    *("node", "operator", "codes", "scale", "zero", "multiplier", "shift", "terms", "sum bits"),
    *("proved", "kernel", "weight bytes"),
)


def _cells(row: AuditRow) -> tuple[str, ...]:
    nothing = "-"
    sums = nothing
    if row.width is not None:
        sums = f"{'?' if row.sum_bits is None else row.sum_bits} of {row.width}"
    return (
        row.node,
        row.operator,
        nothing if row.scheme is None else str(row.scheme),
        nothing if row.scale is None else f"{row.scale:.4g}",
        nothing if row.zero_point is None else str(row.zero_point),
        nothing if row.multiplier is None else _span(*map(_power, row.multiplier)),
        nothing if row.shift is None else _span(*map(str, row.shift)),
        nothing if row.terms is None else str(row.terms),
        sums,
        nothing if row.width is None else ("yes" if row.proved else "no"),
        row.kernel,
        f"{row.weight_bytes:,}" if row.weight_bytes else nothing,
    )


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} … {high}"


def _power(number: float) -> str:
    """A multiplier as a power of two: 31 bits are hard to read."""
    return "0" if number == 0 else f"{'-' if number < 0 else ''}2^{log2(abs(number)):.1f}"
