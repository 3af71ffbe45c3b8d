"""What a node of a graph does, in a few words."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxquant.fake_quant import ActivationFakeQuant
from fxquant.graph.edit import get_attribute, module_at
from fxquant.graph.merge import Switch, TrainOnly
from fxquant.ops import spelled_as
from fxquant.sites.call_site import CallSite, InputQuantizer
from fxquant.sites.integer import Dequantize, IntegerOp, Quantize
from fxquant.sites.quantized_layer import IntegerLayer, QuantizedLayer
from fxquant.sites.reading import read_spelling

_OURS = {
    **{Quantize: "quantize", Dequantize: "dequantize", InputQuantizer: "fake_quant"},
    **{Switch: "switch", TrainOnly: "train_only"},
}


def kind_of(gm: fx.GraphModule, node: fx.Node) -> str:
    """What `node` does: 'conv2d → relu', 'max_pool2d', 'quantize', 'input'."""
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    if node.op in ("call_function", "call_method"):
        found = read_spelling(node, node.args, node.kwargs)
        return found[0].name if isinstance(found, tuple) else name_of(node.target)
    if node.op == "get_attr":
        value = get_attribute(gm, str(node.target))
        return "parameter" if isinstance(value, nn.Parameter) else type(value).__name__
    module = module_at(gm, node)
    assert module is not None  # the node calls it
    return _of_module(module, "batch_norm" in node.kwargs)


def _of_module(module: nn.Module, has_norm: bool) -> str:
    if isinstance(module, CallSite):
        norm = "batch_norm" if module.op.folds and has_norm else None
        return " → ".join(str(part) for part in (module.op.name, norm, module.activation) if part)
    if isinstance(module, (QuantizedLayer, IntegerLayer)):
        return module.op.name
    if isinstance(module, InputQuantizer) and not isinstance(module.output, ActivationFakeQuant):
        return "observer"
    if isinstance(module, IntegerOp):
        return module.text
    ops = spelled_as(type(module))
    return ops[0].name if ops else _OURS.get(type(module), type(module).__name__)


def name_of(target: Any) -> str:
    """What a node calls, for people."""
    return str(getattr(target, "__name__", target))
