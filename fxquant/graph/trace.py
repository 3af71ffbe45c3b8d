"""Write down a model's forward as a torch.fx graph, as it behaves in each mode.

    model.eval()  ── trace ── network ──┐
                                        ├─ merge ── one graph for both modes
    model.train() ── trace ── training ─┘

The network is what the model does in eval(): that is what ships. What training adds to it
(an auxiliary head, drop path) hangs on it as float regions that run in train() only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxquant.graph.around import refuse_root
from fxquant.graph.edit import SITES
from fxquant.graph.forward import Forward
from fxquant.graph.live import make_plain
from fxquant.graph.merge import merge
from fxquant.graph.network import Network, network
from fxquant.graph.norms import do_no_more
from fxquant.graph.tensors import register_tensors
from fxquant.graph.training import network_in_training, trace_training


def trace(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    leaves: frozenset[str] = frozenset(),
) -> Network:
    """A GraphModule over `model`'s own submodules; `model` is edited, so hand in a copy.

    `leaves` are paths of submodules that stay one node each. Raises CaptureError, naming the
    line of the user's code, where the forward depends on data or on unknown shapes, or does
    what a graph cannot: draws random numbers outside it, writes to buffers, runs under no_grad.
    """
    refuse_root(model)
    register_tensors(model)
    modes = {module: module.training for module in model.modules()}
    forward = Forward(model, example_inputs, leaves)
    try:
        in_eval = forward.traced(training=False)
        in_training = trace_training(forward)
        forward.frozen = forward.reduced[False] - forward.reduced[True]
        if forward.frozen:  # training does not do what torch's own would
            in_eval = forward.traced(training=False)
    finally:
        for module, mode in modes.items():
            module.training = mode
    for module in forward.overwriting:
        module.inplace = False  # type: ignore[assignment]
    for module in forward.reduced[True]:
        do_no_more(module)
    make_plain(in_eval.graph)
    trained, gm = network_in_training(model, in_training), network(model, in_eval.graph)
    if hasattr(trained, SITES):
        gm.add_module(SITES, trained.get_submodule(SITES))
    merge(gm, trained.graph)
    gm.recompile()
    return gm
