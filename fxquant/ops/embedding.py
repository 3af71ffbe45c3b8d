"""Embedding: rows of a table, picked by integers that come from outside.

    real      y = table[i]
    integer   q_y = q_table[i]

The table is the activation: it has one range, and after `convert` its codes are a constant. The
indices are integers before and after; nothing quantizes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.onnx import OnnxCall
from fxquant.forms.tflite import TfliteCall
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.selection import NoNumbers, no_numbers
from fxquant.ops.spec import Argument, Call, OpSpec, Output, Parameter, signature_reader


def embedding(
    input: Tensor, indices: Tensor, padding_idx: int | None, scale_grad_by_freq: bool
) -> Tensor:
    """A table [rows, columns] and indices of any shape to [*shape, columns]."""
    return F.embedding(indices, input, padding_idx, scale_grad_by_freq=scale_grad_by_freq)


def _like_embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> None: ...


_by_signature = signature_reader(_like_embedding, inputs=2)
_MAX_NORM = "max_norm overwrites the rows of the table that are read"


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | str | None:
    call = _by_signature(args, kwargs)
    if call is None:
        return None
    if call.options["max_norm"] is not None:
        return _MAX_NORM
    indices, table = call.inputs
    kept = {name: call.options[name] for name in ("padding_idx", "scale_grad_by_freq")}
    return Call((table,), {"indices": indices, **kept})


def _options(module: nn.Embedding) -> Call | str:
    if module.max_norm is not None:
        return _MAX_NORM
    return Call((Parameter("weight"),), {
        "indices": Argument(0),
        "padding_idx": module.padding_idx,
        "scale_grad_by_freq": module.scale_grad_by_freq,
    })


def _kernel(
    n: NoNumbers, dtype: torch.dtype, codes: Tensor, indices: Tensor, padding_idx: int | None,
    scale_grad_by_freq: bool,
) -> Tensor:
    return codes[indices]


def _form(call: OnnxCall | TfliteCall) -> Any:
    return call.codes[0].gather(call.settings["indices"])


EMBEDDING = OpSpec(
    name="embedding",
    function=embedding,
    functions=(F.embedding,),
    methods=(),
    modules={nn.Embedding: _options},
    read=_read,
    output=Output.EXACT,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=no_numbers,
    kernel=_kernel,
    accumulator=adds_nothing,
    onnx=_form,
    tflite=_form,
    indices=("indices",),
)
