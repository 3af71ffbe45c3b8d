"""By whom else would a change be seen? Of a value, and of a parameter."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, fx, nn

from fxquant.graph.edit import SITES, get_attribute
from fxquant.graph.merge import TrainOnly


def parameter_reads(gm: fx.GraphModule) -> Counter[int]:
    """For the id of each tensor and batch-norm module the number of calls that read it.

    Counted by identity, so that two names of one tensor are one; calls of float modules and
    regions that run only in training count as well.
    """
    reads: Counter[int] = Counter()
    for node in gm.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        value = get_attribute(gm, str(node.target))
        if node.op == "get_attr" and isinstance(value, (Tensor, nn.Module)):
            reads[id(value)] += len(node.users)
        elif isinstance(value, TrainOnly):
            reads.update(parameter_reads(value.body))
        elif node.op == "call_module" and not str(node.target).startswith(SITES + "."):
            reads.update({id(part): 1 for part in (*value.parameters(), *value.modules())})
    return reads


def read_elsewhere(value: fx.Node, *readers: fx.Node) -> str | None:
    """That `value` has another reader than `readers`, as a sentence, or None."""
    others = [user.name for user in value.users if user not in readers]
    return f"'{value.name}' is also read by '{others[0]}'" if others else None


def shared_parameter(gm: fx.GraphModule, layer: fx.Node, reads: Counter[int]) -> str | None:
    """That a parameter of `layer` is not its own to change, as a sentence, or None."""
    for parameter in (layer.kwargs["weight"], layer.kwargs["bias"]):
        if isinstance(parameter, fx.Node):
            if parameter.op != "get_attr":
                return f"'{parameter.name}' is computed from other parameters"
            value = get_attribute(gm, str(parameter.target))
            if reads[id(value)] > 1:
                return f"'{parameter.target}' is shared with another call"
    return None
