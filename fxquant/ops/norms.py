"""A layer and the batch norm that reads it: when the two can be taken for one."""

from __future__ import annotations

from torch import fx

from fxquant.graph.place import rank_of
from fxquant.ops.batch_norm import BATCH_NORM
from fxquant.ops.flow import inputs_of, site_of
from fxquant.ops.linear import LINEAR


def layer_and_norm(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The layer before the batch norm `node`, and `node`; None where it is not such a pair."""
    norm = site_of(gm, node)
    if norm is None or norm.op is not BATCH_NORM:
        return None
    layer = inputs_of(node)[0]
    site = site_of(gm, layer)
    if site is None or not site.op.folds or site.activation or "batch_norm" in layer.kwargs:
        return None
    return layer, node


def why_not_one(gm: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> str | None:
    """Why the pair cannot be computed as one, as a sentence, or None."""
    readers = [reader.name for reader in layer.users if reader is not norm]
    if readers:
        return f"'{layer.name}' is also read by '{readers[0]}'"
    site = site_of(gm, layer)
    if site is not None and site.op is LINEAR and rank_of(layer) != 2:
        return (
            f"'{layer.name}' may have more than two dimensions, and then a batch norm counts "
            "another axis as channels (pass example_inputs to make it known)"
        )
    return None
