"""What data settles once training is over: batch-norm statistics and biases."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from fxquant.batches import arguments, named
from fxquant.errors import UncalibratedError
from fxquant.graph.held import held_value
from fxquant.graph.sharing import parameter_reads, shared_parameter
from fxquant.pipeline import need_prepared
from fxquant.sites.call_site import CallSite
from fxquant.sites.flow import sites
from fxquant.sites.parameters import parameters_of, set_bias
from fxquant.sites.phase import Phase, PhasedSite


def reestimate_batch_norm(prepared: fx.GraphModule, batches: Iterable[Any]) -> None:
    """Measure the running statistics of live batch norms anew, with the weights as they are now.

    During training they trail weights that still move. Each becomes the plain average over
    `batches`; ranges, dropout and everything else stand still, as in eval().

    Args:
        prepared: what prepare_qat returned, trained; changed in place.
        batches: inputs, such as a DataLoader gives: tensors, or tuples and lists that begin with
            the arguments of `prepared` (labels behind them are left out).

    Raises:
        StageError: `prepared` did not come from prepare_qat.
        UncalibratedError: it has not seen data in train() yet.
        DataError: a batch is empty, holds NaN or infinity, or does not fit; or there is none. The
            statistics are as they were before, then.
    """
    _need_trained(prepared, "reestimate_batch_norm")
    nodes = [node.kwargs.get("batch_norm") for node, _ in sites(prepared)]
    found = [held_value(prepared, node) for node in nodes if isinstance(node, fx.Node)]
    norms = list(dict.fromkeys(found))  # one that is called twice once
    if prepared.training:
        norms = [norm for norm in norms if norm.training]  # the user froze the others
    before = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    with _modes_kept(prepared), torch.no_grad():
        prepared.eval()
        for _, site in sites(prepared):
            site.training, site.phase = True, Phase()  # only itself: its quantizers stand still
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
        try:
            _run(prepared, batches)
        except BaseException:
            for norm, _, state in before:
                norm.load_state_dict(state)
            raise
        finally:
            for norm, momentum, _ in before:
                norm.momentum = momentum


def correct_bias(prepared: fx.GraphModule, batches: Iterable[Any]) -> None:
    """Take from each bias what the rounding of its weight adds on the average of `batches`.

        b - E[fq(W)·x - W·x]        over batch and places, for each output channel

    For networks that are not trained further. Layers with a live batch norm, and layers with
    parameters that another call shares, stay as they are (for the former there is
    reestimate_batch_norm). A layer without a bias gets one.

    Args:
        prepared: what prepare_qat returned, its ranges settled; changed in place.
        batches: inputs, such as a DataLoader gives: tensors, or tuples and lists that begin with
            the arguments of `prepared` (labels behind them are left out).

    Raises:
        StageError: `prepared` did not come from prepare_qat.
        UncalibratedError: it has not seen data in train() yet.
        DataError: a batch is empty, holds NaN or infinity, or does not fit; or there is none.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", section 4.2.
    """
    _need_trained(prepared, "correct_bias")
    reads = parameter_reads(prepared)
    added = {
        site: _MeanError(node)
        for node, site in sites(prepared)
        if site.weight_quant is not None
        and "batch_norm" not in node.kwargs
        and shared_parameter(prepared, node, reads) is None
    }
    hooks = [site.register_forward_hook(mean, with_kwargs=True) for site, mean in added.items()]
    try:
        with _modes_kept(prepared), torch.no_grad():
            prepared.eval()
            _run(prepared, batches)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for mean in added.values():
            weight, bias = parameters_of(prepared, mean.node)
            error = (mean.total / mean.batches).to(weight.dtype)
            if bias is None:
                set_bias(prepared, mean.node, -error)
            else:
                bias -= error  # in place: an optimizer may hold it
    prepared.recompile()


class _MeanError:
    """As a forward hook of a layer: what the rounding of its weight adds, [C], on average."""

    def __init__(self, node: fx.Node) -> None:
        self.node, self.total, self.batches = node, torch.zeros(()), 0

    def __call__(self, site: CallSite, args: Any, options: dict[str, Any], output: Any) -> None:
        assert site.weight_quant is not None
        weight = options["weight"]
        error = site.weight_quant(weight) - weight
        added = site.op.function(*args, **options | {"weight": error, "bias": None})
        channels = added.double().movedim(1 - weight.dim(), 0)
        self.total = self.total + channels.flatten(1).mean(1)
        self.batches += 1


def _run(prepared: fx.GraphModule, batches: Iterable[Any]) -> None:
    for number, inputs in enumerate(arguments(prepared, batches)):
        with named(inputs, number):
            prepared(*inputs)


def _need_trained(prepared: fx.GraphModule, name: str) -> None:
    need_prepared(prepared, name)
    missing = [node.name for node, site in sites(prepared) if not site.ready]
    if missing:
        raise UncalibratedError(
            f"{name} needs ranges, but '{missing[0]}' has seen no finite data.\n"
            "What to do: run some batches through the prepared model in train() mode first."
        )


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    phases = {module: module.phase for module in modes if isinstance(module, PhasedSite)}
    try:
        yield
    finally:
        for site, phase in phases.items():
            site.phase = phase
        for module, training in modes.items():
            module.training = training
