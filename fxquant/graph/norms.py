"""Batch norms that do more: classes, such as timm's, that add to what one of torch's does.

    class BatchNormAct(nn.BatchNorm2d):                    in the graph
        def forward(self, x):
            return self.act(F.batch_norm(x, …))            x ── bn ── bn.act

There the batch norm is torch's own, at its old path and with its old numbers, so that it can be
live, frozen or folded as any other; what its class does besides stands around it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fxquant.graph.own import is_torchs_module

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TENSORS = ("running_mean", "running_var", "weight", "bias")
_NAMES = ("input", *_TENSORS, "training", "momentum", "eps")
_DEFAULTS: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}


def does_more(module: nn.Module) -> bool:
    """Whether `module` is of a class that derives from a batch norm of torch's."""
    return isinstance(module, _NORMS) and not is_torchs_module(module)


def do_no_more(module: nn.Module) -> None:
    """Let `module` be the batch norm of torch's that its class derives from."""
    module.__class__ = next(base for base in type(module).__mro__ if base in _NORMS)


class NormCall:
    """The forward of a batch norm that does more, while it is traced.

    counting     nodes that count batches, as torch's own does
    normalised   whether a node of torch's own has been made of it
    """

    def __init__(self, norm: nn.Module) -> None:
        self.norm: Any = norm
        self.counting: list[fx.Node] = []
        self.normalised = False

    def normalises(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> fx.Proxy | None:
        """What is normalised, if a call is all that torch's own would do."""
        if target is not F.batch_norm:
            return None
        given = _DEFAULTS | dict(zip(_NAMES, args, strict=False)) | kwargs
        # what the tracer gives for an attribute is one object, however often it is read
        own = all(given.get(name) is getattr(self.norm, name) for name in _TENSORS)
        # as plain numbers: to compare live ones is a decision of the forward's
        same = float(given["eps"]) == float(self.norm.eps)
        x = given["input"]
        if own and same and given["training"] is self.norm.training and isinstance(x, fx.Proxy):
            return x
        return None

    def counts(self, target: Any, args: tuple[Any, ...]) -> bool:
        """Whether a call is `self.num_batches_tracked.add_(1)`."""
        return target == "add_" and args[0] is self.norm.num_batches_tracked
