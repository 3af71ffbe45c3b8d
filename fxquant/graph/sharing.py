"""How often each parameter is read: by whom else would a change of it be seen?"""

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
