"""What modules and calls do in eval() and in train(), asked without running them on data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxquant.graph.edit import Site
from fxquant.graph.own import is_torchs_module
from fxquant.graph.wrapped import wrapped_functions_opened

_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
DROPOUT_CALLS = (
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout),
    *(F.alpha_dropout, F.feature_alpha_dropout),
)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """eval(), and every module in its own mode again behind it."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


_KNOWN: ContextVar[dict[nn.Module, bool] | None] = ContextVar("known identities", default=None)


@contextmanager
def identities_asked_once() -> Iterator[None]:
    """Inside, no module changes what it does, and none is traced twice to find out whether it does
    anything.
    """
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def is_identity_in_eval(module: nn.Module) -> bool:
    """Whether `module` does nothing in eval(): dropout, drop path, stochastic depth, noise."""
    kind = type(module)
    if isinstance(module, Site):
        return False
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    if kind is nn.Identity or kind in _DROPOUTS:
        return True
    if is_torchs_module(module):
        return False  # of torch's own those above are all there are
    if next(module.children(), None) or next(module.parameters(), None) is not None:
        return False
    known = _KNOWN.get()
    if known is None:
        return _hands_its_input_on(module)
    if module not in known:
        known[module] = _hands_its_input_on(module)
    return known[module]


def _hands_its_input_on(module: nn.Module) -> bool:
    mode, module.training = module.training, False
    try:
        with wrapped_functions_opened():
            nodes = list(fx.Tracer().trace(module).nodes)
    except Exception:  # whatever the user's forward raises: it is not a plain identity
        return False
    finally:
        module.training = mode
    return len(nodes) == 2 and nodes[1].args == (nodes[0],)


def hands_its_input_on(node: fx.Node, root: nn.Module, training: bool) -> bool:
    """Whether `node` gives the very tensor that it reads, in a graph of that mode."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return type(module) is nn.Identity or (not training and is_identity_in_eval(module))
    return is_dropout_switched_off(node)


def is_dropout_switched_off(node: fx.Node) -> bool:
    """Whether `node` calls functional dropout with `training=False`."""
    if node.op != "call_function" or node.target not in DROPOUT_CALLS:
        return False
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    return training is False
