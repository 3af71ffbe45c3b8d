"""Which values get 16 bits where 8 are asked for: what one range of 256 codes describes badly.

    shares    softmax ── mul, sum_of_products     with 8 bits a tenth to a fifth of the sums moves
    scores    … ── softmax                        their errors are factors of the shares
    masks     mask ── add ── softmax              -100 would leave few codes for the scores
    streams   … ── add ── cat ── layer_norm       rows of any size share one range, and the norm
                                                  makes them, and their rounding, equally large

Left alone: what a convolution, a linear layer or a matrix product reads too, whose sums of 16-bit
codes would not fit their accumulators, and rows that are too long for 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, fx

from fxquant.graph.edit import called_module, map_nodes
from fxquant.graph.place import example_of
from fxquant.ops.add import ADD
from fxquant.ops.cat import CAT
from fxquant.ops.layer_norm import LAYER_NORM
from fxquant.ops.matmul import MATMUL
from fxquant.ops.moments import longest_row
from fxquant.ops.mul import MUL
from fxquant.ops.normalize import NORMALIZE
from fxquant.ops.rms_norm import RMS_NORM
from fxquant.ops.softmax import SOFTMAX
from fxquant.ops.spec import OpSpec, Output, as_tuple
from fxquant.ops.sum_of_products import SUM_OF_PRODUCTS
from fxquant.schemes import INT16
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.flow import site_of
from fxquant.sites.move import is_move

_NORMS = (LAYER_NORM, RMS_NORM, NORMALIZE)
_HAND_ON = (ADD, CAT)  # what they read may be wide, if what they give is
_WEIGH = (MUL, SUM_OF_PRODUCTS)


def wide_values(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """The nodes with a range of their own that get 16 bits, and why."""
    wide: dict[fx.Node, str] = {}
    for node in reversed(list(gm.graph.nodes)):
        module = called_module(gm, node)
        if not isinstance(module, (CallSite, InputQuantizer)) or _keeps_range(module):
            continue
        if _weighs_others(gm, node):
            wide[node] = "its shares weigh others"
        elif not (isinstance(module, CallSite) and module.op is SOFTMAX):
            readers = list(_readers(gm, node))
            if all(op is None or _takes(reader, op) for reader, op in readers):
                reasons = (_why(op) or wide.get(reader) for reader, op in readers)
                reason = next((reason for reason in reasons if reason), None)
                if reason is not None:
                    wide[node] = reason
    return wide


def _weighs_others(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a softmax of which each reader, behind moves, is a product."""
    site = site_of(gm, node)
    if site is None or site.op is not SOFTMAX:
        return False
    ops = [op for _, op in _readers(gm, node)]
    return bool(ops) and all(op in _WEIGH for op in ops)


def is_attention(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a softmax that a matrix product reads: the attention that a token pays to
    all others, of which many make all shares small, in 8 bits.
    """
    site = site_of(gm, node)
    if site is None or site.op is not SOFTMAX:
        return False
    return any(op is MATMUL for _, op in _readers(gm, node))


def _takes(reader: fx.Node, op: OpSpec) -> bool:
    """Whether an operator computes with 16 bits as well as with 8."""
    if op in _NORMS:
        return _row(reader, op) <= longest_row(INT16.bits)
    return op is SOFTMAX or op in _HAND_ON


def _row(reader: fx.Node, op: OpSpec) -> int:
    """How many values a norm takes together, as far as that is known; 1 where it is not."""
    settings = map_nodes(dict(reader.kwargs), example_of)
    if op is NORMALIZE:
        dim, x = settings["dim"], example_of(reader.all_input_nodes[0])
        known = isinstance(x, Tensor) and x.dim() > 0  # a single number has dimension 0, too
        sizes = tuple(x.shape[d] for d in as_tuple(dim)) if known else ()
    else:
        sizes = settings["normalized_shape"] or ()  # the graph may ask a tensor for it
    return math.prod(size for size in sizes if isinstance(size, int))


def _why(op: OpSpec | None) -> str | None:
    if op is SOFTMAX:
        return "a softmax makes factors of its errors"
    return "rows of any size share its range, and are normalised" if op in _NORMS else None


def _readers(gm: fx.GraphModule, node: fx.Node) -> Iterator[tuple[fx.Node, OpSpec | None]]:
    """Who reads it, behind moves and whatever else keeps its range; an output is no operator."""
    for reader in node.users:
        site = site_of(gm, reader)
        if is_move(gm, reader) or (site is not None and _keeps_range(site)):
            yield from _readers(gm, reader)
        else:
            yield reader, None if site is None else site.op


def _keeps_range(module: CallSite | InputQuantizer) -> bool:
    return isinstance(module, CallSite) and module.op.output is not Output.OWN
