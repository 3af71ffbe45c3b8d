"""Fix weights on their codes, a larger share each time: what `INQ()` trains with.

    share       0 ──── fix_weights ──── 0.5 ──── fix_weights ──── 0.75 ──── … ──── 1
    training           all in float            the smaller half              none

Source: see fake_quant/inq.py.
"""

from __future__ import annotations

from torch import Tensor, fx

from fxquant.errors import ConfigError, StageError
from fxquant.fake_quant import IncrementalWeight
from fxquant.fields import is_number
from fxquant.graph.edit import called_module
from fxquant.graph.place import describe
from fxquant.pipeline import PREPARED, say_stage, stage_of
from fxquant.sites.call_site import CallSite
from fxquant.sites.parameters import parameters_of, refuse_nonfinite
from fxquant.sites.quantized_layer import QuantizedLayer


def fix_weights(prepared: fx.GraphModule, share: float) -> None:
    """Let such a share of the weights of each layer with `INQ()` stand on codes, the largest first;
    those that stand already are among them. The rest trains on; state_dict() has it all.

        for share in (0.5, 0.75, 0.875, 1.0):
            fxquant.fix_weights(prepared, share)
            train(prepared)

    Args:
        prepared: what prepare_qat returned, of any mode; changed in place.
        share: from 0 to 1, and not below what is fixed.

    Raises:
        StageError: `prepared` did not come from prepare_qat.
        ConfigError: no weight has `INQ()`, or the share cannot be.
        NonFiniteError: a weight is NaN or infinite. Nothing is changed, whatever is raised.
    """
    if not isinstance(prepared, fx.GraphModule) or stage_of(prepared) not in PREPARED:
        raise StageError(
            f"fix_weights takes what prepare_qat returned, got {say_stage(prepared)}.\n"
            "What to do: prepare it with QuantConfig(weight_fake_quant=INQ()) first."
        )
    if not is_number(share) or not 0 <= share <= 1:
        raise ConfigError(f"share lies in [0, 1], got {share!r}")
    found = _incremental(prepared)
    if not found:
        raise ConfigError(
            "no weight is fixed step by step.\n"
            "What to do: prepare it with QuantConfig(weight_fake_quant=INQ())."
        )
    for node, quantizer, weight in found:
        _check(node, quantizer, weight, share)
    for _, quantizer, weight in found:
        quantizer.fix(weight, share)


def _incremental(gm: fx.GraphModule) -> list[tuple[fx.Node, IncrementalWeight, Tensor]]:
    found = []
    for node in gm.graph.nodes:
        module = called_module(gm, node)
        if isinstance(module, (CallSite, QuantizedLayer)):
            quantizer = module.weight_quant
            if isinstance(quantizer, IncrementalWeight):
                found.append((node, quantizer, parameters_of(gm, node)[0]))
    return found


def _check(node: fx.Node, quantizer: IncrementalWeight, weight: Tensor, share: float) -> None:
    fixed = int(quantizer.fixed.sum())
    if quantizer.count(share) < fixed:
        raise ConfigError(
            f"share={share}, but {fixed} of {weight.numel()} weights of {describe(node)} are fixed "
            "already, and stay.\nWhat to do: give a larger share."
        )
    refuse_nonfinite(f"the weight of {describe(node)}", weight)
