"""A layer and the batch norm beside it: when the two can be taken for one."""

from __future__ import annotations

from torch import fx

from fxquant.graph.place import rank_of
from fxquant.graph.sharing import read_elsewhere
from fxquant.ops.batch_norm import BATCH_NORM
from fxquant.ops.linear import LINEAR
from fxquant.sites.flow import inputs_of, site_of


def can_take_norm(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is a layer that a batch norm over its channels can go into."""
    site = site_of(gm, node)
    if site is None or site.activation is not None:
        return False
    return site.op.folds and "batch_norm" not in node.kwargs


def layer_and_norm(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The layer before the batch norm `node`, and `node`; None where it is not such a pair."""
    norm = site_of(gm, node)
    if norm is None or norm.op is not BATCH_NORM:
        return None
    layer = inputs_of(node)[0]
    return (layer, node) if can_take_norm(gm, layer) else None


def why_not_one(gm: fx.GraphModule, first: fx.Node, second: fx.Node) -> str | None:
    """Why a layer and a batch norm, in either order, cannot be one, as a sentence, or None."""
    reason = read_elsewhere(first, second)
    if reason is not None:
        return reason
    for node in (first, second):
        site = site_of(gm, node)
        if site is not None and site.op is LINEAR and rank_of(node) != 2:
            return (
                f"'{node.name}' may have more than two dimensions, and then a batch norm counts "
                "another axis as channels (pass example_inputs to make it known)"
            )
    return None
