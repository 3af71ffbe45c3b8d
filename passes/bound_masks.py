"""Let what leaves columns of a softmax out be a finite number, which integers can hold.

    before   x.masked_fill(mask, -inf) ── softmax      x + mask ── softmax         mask: 0 and -inf
    after    x + where(mask, -128, 0) ── softmax       x + clamp(mask, -128) ── softmax

e^-128 is 0 in float32, as e^-inf is: shares stay what they were where no score that is left out
lies more than 24 above the highest that stays. One that lies d above has a share of at most
e^(d - 128): 1e-12 for d = 100, all of it beyond 128. Moves and sums may stand between the mask and
the softmax. Left alone, with the reason: a mask that the input decides, one of values that
something else than softmaxes reads, too, and one that leaves nothing of a row.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxquant.errors import UnsupportedOperatorError
from fxquant.graph.edit import erase, insert_site, map_nodes
from fxquant.graph.held import held, held_value
from fxquant.graph.place import copy_place, describe, example_of, rank_of
from fxquant.ops.add import ADD
from fxquant.ops.softmax import SOFTMAX
from fxquant.pipeline import Keeps, Log, Pass, Stage
from fxquant.sites.call_site import CallSite
from fxquant.sites.flow import inputs_of, site_of
from fxquant.sites.move import is_move

FLOOR = -128.0  # masks go no lower: -inf has no code, and -1e9 would leave no codes for the rest
_NO_SHARE = math.log(torch.finfo(torch.float32).tiny)  # -87: e to this is a float32's least
_NAMES = {
    "masked_fill": ("input", "mask", "value"),
    torch.masked_fill: ("input", "mask", "value"),
    torch.where: ("condition", "input", "other"),
    "where": ("self", "condition", "other"),
}


class Fill(NamedTuple):
    """`value` in place of those of `x` where `mask` is `holds`."""

    x: fx.Node
    mask: fx.Node
    value: float
    holds: bool


class BoundMasks(Pass):
    """Lets what leaves columns of a softmax out be a finite number."""

    name = "bound_masks"
    summary = "masks of softmaxes are sums with finite numbers"
    needs = gives = Stage.FLOAT
    keeps = Keeps.NOTHING  # but nearly: see above

    def edit(self, gm: fx.GraphModule, log: Log) -> None:
        """Visit every call that fills places and every sum, from the last to the first."""
        constants = held(gm)
        for node in reversed(list(gm.graph.nodes)):
            if node in constants:
                continue
            fill = _fill(gm, node, constants)
            if fill is not None:
                reason = _why_not(gm, node, fill, constants)
                if reason is None:
                    log.change(_add_mask(gm, node, fill), "adds a mask in place of filling")
                else:
                    log.leave(node, reason)
            for mask in _low_masks(gm, node, constants):
                if _leaves_nothing(gm, node, held_value(gm, mask) < _NO_SHARE):
                    raise UnsupportedOperatorError(
                        f"the mask '{mask.name}' of {describe(node)} leaves nothing of a row, for "
                        "which its softmax has no shares.\nWhat to do: let each row keep one place."
                    )
                _clamp(gm, node, mask)
                log.change(node, f"'{mask.name}' goes no lower than {FLOOR:g}")


def _fill(gm: fx.GraphModule, node: fx.Node, constants: set[fx.Node]) -> Fill | None:
    """What `masked_fill` or `where` fills, and with which number; None for anything else."""
    names = _NAMES.get(node.target)
    if names is None or node.op not in ("call_function", "call_method"):
        return None
    named = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    mask = named.get("mask", named.get("condition"))
    x = named.get("input", named.get("self"))
    other = named.get("value", named.get("other"))
    filled, left = _number(gm, other, constants), _number(gm, x, constants)
    if not isinstance(mask, fx.Node):
        return None
    if filled is not None and isinstance(x, fx.Node):
        return Fill(x, mask, filled, "value" in named)
    if left is not None and isinstance(other, fx.Node):
        return Fill(other, mask, left, True)
    return None


def _number(gm: fx.GraphModule, value: Any, constants: set[fx.Node]) -> float | None:
    """A plain number, or the one element of a tensor that the network holds."""
    if isinstance(value, fx.Node) and value in constants:
        value = held_value(gm, value)
    if (isinstance(value, Tensor) and value.numel() == 1) or isinstance(value, (int, float)):
        return float(value)
    return None


def _why_not(
    gm: fx.GraphModule, node: fx.Node, fill: Fill, constants: set[fx.Node]
) -> str | None:
    if fill.mask not in constants:
        return f"the input decides the mask '{fill.mask.name}'"
    if not fill.value <= _NO_SHARE:
        return f"columns with {fill.value:g} may have a share in a softmax"
    if not _only_softmax_reads(gm, node):
        return "something else than a softmax reads it"
    if _leaves_nothing(gm, node, held_value(gm, fill.mask).bool() == fill.holds):
        return f"the mask '{fill.mask.name}' leaves nothing of a row"
    return None


def _leaves_nothing(gm: fx.GraphModule, node: fx.Node, out: Tensor) -> bool:
    """Whether `out`, true where a mask leaves `node` out, is so for a whole row of a softmax."""
    rank = rank_of(node)
    for dim in _softmax_dims(gm, node):
        behind = dim if dim < 0 or rank is None else dim - rank  # masks broadcast from the last on
        rows = out.all(behind) if -out.dim() <= behind < 0 else out
        if bool(rows.any()):
            return True
    return False


def _softmax_dims(gm: fx.GraphModule, node: fx.Node) -> set[int]:
    """Over which dimensions softmaxes go that read `node`; the last, if moves stand between."""
    found: set[int] = set()
    for reader in node.users:
        site = site_of(gm, reader)
        if site is None:
            found.add(-1)
        elif site.op is SOFTMAX:
            dim = map_nodes(reader.kwargs["dim"], example_of)
            found.add(dim if isinstance(dim, int) else -1)
        else:
            found |= _softmax_dims(gm, reader)
    return found


def _only_softmax_reads(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is read by softmaxes alone, behind moves and sums."""
    return bool(node.users) and all(_leads_to_softmax(gm, reader) for reader in node.users)


def _leads_to_softmax(gm: fx.GraphModule, reader: fx.Node) -> bool:
    site = site_of(gm, reader)
    if site is None:
        return is_move(gm, reader) and _only_softmax_reads(gm, reader)
    if site.op is ADD and site.activation is None:
        return _only_softmax_reads(gm, reader)
    return site.op is SOFTMAX


def _lowest(gm: fx.GraphModule, constant: fx.Node) -> float:
    value = held_value(gm, constant).detach()
    return float(value.min()) if value.numel() else 0.0


def _add_mask(gm: fx.GraphModule, node: fx.Node, fill: Fill) -> fx.Node:
    low, high = (FLOOR, 0.0) if fill.holds else (0.0, FLOOR)
    with gm.graph.inserting_before(node):
        mask = gm.graph.call_function(torch.where, (fill.mask, low, high))
        total = insert_site(gm, node.name, CallSite(ADD), (fill.x, mask))
    copy_place(fill.mask, mask)
    copy_place(node, total)
    name = node.name
    erase(node, total)
    total.name = name  # free again: the node that had it is gone
    return total


def _low_masks(gm: fx.GraphModule, node: fx.Node, constants: set[fx.Node]) -> list[fx.Node]:
    """The operands of a sum for softmaxes that lie below the floor."""
    site = site_of(gm, node)
    if site is None or site.op is not ADD or not _only_softmax_reads(gm, node):
        return []
    return [x for x in inputs_of(node) if x in constants and _lowest(gm, x) < FLOOR]


def _clamp(gm: fx.GraphModule, node: fx.Node, mask: fx.Node) -> None:
    with gm.graph.inserting_before(node):
        bounded = gm.graph.call_function(torch.clamp, (mask, FLOOR))
    copy_place(mask, bounded)
    node.replace_input_with(mask, bounded)
