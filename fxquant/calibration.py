"""Give a prepared network its ranges after training: from data, without a step of training.

    batches ── the network in float ── what each observer sees ── its calibrator ── scales
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.batches import arguments, named, part_of
from fxquant.errors import UncalibratedError
from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import called_module
from fxquant.graph.modes import evaluating
from fxquant.graph.place import describe
from fxquant.observers import Observer
from fxquant.pipeline import need_prepared
from fxquant.sites.call_site import CallSite, InputQuantizer


def calibrate(
    prepared: fx.GraphModule,
    batches: Iterable[Any],
    share: float = 1.0,
    tell: Callable[[int], None] = lambda done: None,
) -> None:
    """Give every activation the range that its calibrator finds in `batches`.

    The network runs in float, as in eval(), while its observers watch; what they saw before is
    forgotten. Where training is distributed every rank gives equally many batches, and all get the
    ranges of them all.

    Args:
        prepared: what prepare_ptq or prepare_qat returned; changed in place, modes are kept.
        batches: inputs, such as a DataLoader gives: tensors, or tuples and lists that begin with
            the arguments of `prepared` (labels behind them are left out).
        share: of the batches so many, the first ones, at least one; needs data with a length.
        tell: called with the number of batches done, after each.

    Raises:
        StageError: `prepared` was not prepared.
        DataError: a batch is empty, holds NaN or infinity, or does not fit; or there is none.
        UncalibratedError: a value inside of the network was NaN or infinite in every batch.

    Whatever is raised, the ranges are as they were before, then.
    """
    need_prepared(prepared, "calibrate")
    count = part_of(batches, share)
    quantizers = quantizers_of(prepared)
    fresh = {node: Observer(q.observer.calibrator) for node, q in quantizers.items()}
    with forgotten(quantizers.values()), ExitStack() as hooks, torch.no_grad():
        for node, observer in fresh.items():
            observer.to(quantizers[node].zero_point.device)
            site = called_module(prepared, node)
            assert site is not None
            hooks.enter_context(site.register_forward_hook(_watch(observer)))
        hooks.enter_context(evaluating(prepared))
        for number, inputs in enumerate(arguments(prepared, batches, count)):
            with named(inputs, number):
                prepared(*inputs)
            tell(number + 1)
        _refuse_unseen(fresh)
        for node, quantizer in quantizers.items():
            quantizer.observer.load_state_dict(fresh[node].state_dict())
            quantizer.follow_observer()


def quantizers_of(prepared: fx.GraphModule) -> dict[fx.Node, ActivationFakeQuant]:
    """The quantizer of every value that has a range of its own, in order."""
    found = {}
    for node in prepared.graph.nodes:
        module = called_module(prepared, node)
        if isinstance(module, (CallSite, InputQuantizer)):
            quantizer = module.output
            if isinstance(quantizer, ActivationFakeQuant):
                found[node] = quantizer
    return found


def _watch(observer: Observer) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(site: nn.Module, inputs: Any, output: Tensor) -> None:
        observer.watch(output)

    return hook


@contextmanager
def forgotten(quantizers: Iterable[ActivationFakeQuant]) -> Iterator[None]:
    """Quantizers without a range, for which a network in eval() is the float network. Where what
    follows fails, all is as before.
    """
    before = [(q, {k: v.clone() for k, v in q.state_dict().items()}) for q in quantizers]
    for quantizer, _ in before:
        quantizer.observer.low.fill_(float("inf"))
        quantizer.observer.high.fill_(float("-inf"))
    try:
        yield
    except BaseException:
        for quantizer, state in before:
            quantizer.load_state_dict(state)
        raise


def _refuse_unseen(observers: dict[fx.Node, Observer]) -> None:
    unseen = [node for node, observer in observers.items() if not observer.seen]
    if unseen:
        raise UncalibratedError(
            f"{len(unseen)} of {len(observers)} values were NaN or infinite in every batch, the "
            f"first at {describe(unseen[0])}.\n"
            "What to do: look at the weights there, and at the scale of the data."
        )
