"""What a mask is to a softmax: a constant so low that a column with it has no share.

    e^(x - 128) is 0 in float32 beside any e^y with y > x - 24
"""

from __future__ import annotations

from torch import fx

from fxquant.graph.held import held_value
from fxquant.ops.add import ADD
from fxquant.ops.flow import site_of
from fxquant.ops.move import is_move
from fxquant.ops.softmax import SOFTMAX

FLOOR = -128.0  # masks go no lower: -inf has no code, and -1e9 would leave no codes for the rest


def only_softmax_reads(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is read by softmaxes alone, behind moves and sums."""
    return bool(node.users) and all(_leads_to_softmax(gm, reader) for reader in node.users)


def _leads_to_softmax(gm: fx.GraphModule, reader: fx.Node) -> bool:
    site = site_of(gm, reader)
    if site is None:
        return is_move(gm, reader) and only_softmax_reads(gm, reader)
    if site.op is ADD and site.activation is None:
        return only_softmax_reads(gm, reader)
    return site.op is SOFTMAX


def lowest(gm: fx.GraphModule, constant: fx.Node) -> float:
    """The lowest number of a tensor that the network holds."""
    value = held_value(gm, constant).detach()
    return float(value.min()) if value.numel() else 0.0
