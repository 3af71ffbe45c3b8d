"""What a model does around its forward: wrappers are taken off, all else is refused.

A graph of the forward would not do it: hooks, a forward on the instance, a `train()` of its own.
"""

from __future__ import annotations

import keyword

from torch import fx, nn

from fxquant.errors import CaptureError

_RESERVED = ("self", "graph", "meta", "code", "recompile", "_graph", "fxquant")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrap(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The model inside DataParallel, DistributedDataParallel or torch.compile, and in what it
    was, from the outside in.
    """
    wrappers: list[str] = []
    while True:
        if isinstance(model, _WRAPPERS):
            inner = model.module
        else:
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model, tuple(wrappers)
        wrappers.append(type(model).__name__)
        model = inner


def refuse_root(model: nn.Module) -> None:
    """What a model does around its forward is not in a graph of its forward."""
    name, reason = type(model).__name__, None
    if model._forward_hooks or model._forward_pre_hooks:
        reason = "has forward hooks: register them on what prepare_qat returns"
    elif "forward" in vars(model):
        reason = "has a forward of its own on the instance: define it in the class"
    elif type(model).train is not nn.Module.train and not isinstance(model, fx.GraphModule):
        reason = "overrides train(): do in the training loop what it does, or in a submodule"
    if reason is not None:
        raise CaptureError(f"{name} {reason}.")
    for path, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()):
        parts = path.split(".")
        odd = [part for part in parts if keyword.iskeyword(part) or set(part) & set("\"'\\\n")]
        odd += [part for part in parts[:1] if part in _RESERVED]
        if odd:
            raise CaptureError(
                f"torch.fx cannot write code for a member called {odd[0]!r}, in '{path}' of {name}."
                "\nWhat to do: rename it."
            )
