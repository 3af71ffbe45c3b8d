"""What a module does in eval() and in train(), asked without running it on data."""

from __future__ import annotations

from torch import fx, nn


def is_identity_in_eval(module: nn.Module) -> bool:
    """Whether `module` does nothing in eval(): dropout, drop path, stochastic depth, noise."""
    if isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)):
        return True
    if type(module).__module__.startswith("torch.nn."):
        return False  # of torch's own those above are all there are
    if next(module.children(), None) or next(module.parameters(), None) is not None:
        return False
    mode, module.training = module.training, False
    try:
        nodes = list(fx.Tracer().trace(module).nodes)
    except Exception:  # whatever the user's forward raises: it is not a plain identity
        return False
    finally:
        module.training = mode
    return len(nodes) == 2 and nodes[1].args == (nodes[0],)


def is_identity(module: nn.Module, training: bool) -> bool:
    """Whether `module` hands on its very input in that mode."""
    return isinstance(module, nn.Identity) or (not training and is_identity_in_eval(module))
