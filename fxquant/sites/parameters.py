"""The weight and bias of a layer in a graph: where their channels lie, read, replaced, refused."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxquant.errors import NonFiniteError
from fxquant.graph.edit import free_path, map_nodes, set_parameter
from fxquant.graph.held import held_value
from fxquant.graph.place import copy_place, example_of
from fxquant.ops.spec import as_tuple
from fxquant.schemes import Channels
from fxquant.sites.flow import site_of


def parameters_of(gm: fx.GraphModule, layer: fx.Node) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer at `layer`."""
    weight, bias = layer.kwargs["weight"], layer.kwargs["bias"]
    assert isinstance(weight, fx.Node)
    return held_value(gm, weight), held_value(gm, bias) if isinstance(bias, fx.Node) else None


def layer_channels(gm: fx.GraphModule, node: fx.Node) -> Channels:
    """Where the output channels lie in the weight that the layer at `node` reads."""
    site = site_of(gm, node)
    axis = site.op.weight_axis if site is not None else None
    groups = map_nodes(node.kwargs.get("groups", 1), example_of)  # a linear layer has none
    assert axis is not None
    assert isinstance(groups, int)  # as ops/layer.py sees to
    return Channels(axis, groups)


def set_weight(gm: fx.GraphModule, layer: fx.Node, weight: Tensor) -> None:
    """Put a new weight in the place of the layer's own."""
    node = layer.kwargs["weight"]
    assert isinstance(node, fx.Node)
    set_parameter(gm, str(node.target), weight)


def set_bias(gm: fx.GraphModule, layer: fx.Node, bias: Tensor) -> None:
    """Put a new bias in the place of the layer's own, or give it one."""
    weight_node, bias_node = layer.kwargs["weight"], layer.kwargs["bias"]
    assert isinstance(weight_node, fx.Node)
    if isinstance(bias_node, fx.Node):
        set_parameter(gm, str(bias_node.target), bias)
        return
    owner, _, name = str(weight_node.target).rpartition(".")
    # a layer's own empty place for it, or a new name beside a weight that stands alone
    own = name == "weight" and getattr(gm.get_submodule(owner), "bias", 0) is None
    path = f"{owner}.bias" if own else free_path(gm, f"{weight_node.target}_bias")
    set_parameter(gm, path, bias)
    with gm.graph.inserting_before(layer):
        added = gm.graph.get_attr(path)
    copy_place(layer, added)
    layer.kwargs = {**layer.kwargs, "bias": added}


def why_not_shifted(gm: fx.GraphModule, layer: fx.Node) -> str | None:
    """Why an offset on the layer's input is not the same offset at every place of its output, as
    a sentence, or None where it is.
    """
    if layer_channels(gm, layer).axis != 0:
        return f"'{layer.name}' is transposed: how often it reads an offset depends on the place"
    padding = layer.kwargs.get("padding", 0)
    if any(width not in (0, "valid") for width in as_tuple(padding)):
        return f"'{layer.name}' pads with zeros, which an offset would have moved"
    return None


def refuse_nonfinite(name: str, value: object) -> None:
    """Refuse a tensor, several, or those of a module, of which one is not finite."""
    if isinstance(value, nn.Module):
        value = tuple(value.state_dict().values())
    for tensor in value if isinstance(value, tuple) else (value,):
        if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"{name} holds NaN or infinity.\n"
                "What to do: the training has diverged, or the model came so; go back to an "
                "earlier checkpoint."
            )
