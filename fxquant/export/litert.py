"""LiteRT, where it is installed: whether it takes a .tflite file, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import ExportError
from fxquant.export.flatbuffer import facts_of
from fxquant.extras import needs_extra
from fxquant.rounding import FP32_RNE, GEMMLOWP, RUY, Rounding, rounding_named

KERNELS = {
    GEMMLOWP: "BUILTIN_REF", RUY: "BUILTIN_WITHOUT_DEFAULT_DELEGATES", FP32_RNE: "AUTO",
}
"""LiteRT's kernels that round so, as its interpreter calls them: the last are those of XNNPACK."""


def check(model: bytes, rounding: Rounding) -> None:
    """Let LiteRT look whether it has every operator, and for these shapes and types."""
    try:
        interpreter_of(model, KERNELS[rounding])
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"LiteRT does not take the file: {error}\n"
            "What to do: keep the operator that it names out of the network."
        ) from error


def interpreter_of(model: bytes, kernels: str, shapes: Sequence[Sequence[int]] = ()) -> Any:
    """LiteRT's interpreter of a file on one thread, for inputs of those shapes, if they are not the
    file's own.
    """
    with needs_extra("litert"):
        from ai_edge_litert import interpreter as litert
    found = litert.Interpreter(
        model_content=model, num_threads=1,
        experimental_op_resolver_type=getattr(litert.OpResolverType, kernels),
    )
    for detail, shape in zip(found.get_input_details(), shapes, strict=False):
        found.resize_tensor_input(detail["index"], list(shape))
    found.allocate_tensors()
    return found


def run_tflite(model: bytes, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The outputs, by name, of the kernels that round as the network does: as the network has them.
    """
    facts = facts_of(model)
    kernels = KERNELS[rounding_named(facts["rounding"])]
    runner = interpreter_of(model, kernels, [x.shape for x in inputs])
    for detail, x in zip(runner.get_input_details(), inputs, strict=True):
        runner.set_tensor(detail["index"], x.contiguous().numpy())
    runner.invoke()
    found = {}
    for detail in runner.get_output_details():
        order, less = facts["tensors"][detail["name"]]
        lies = torch.as_tensor(runner.get_tensor(detail["index"]))  # a number where it is one
        value = lies.permute([order.index(d) for d in range(len(order))])
        found[detail["name"]] = value.to(torch.int16) + less if less else value
    return found
