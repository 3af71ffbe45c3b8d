"""Padding with copies of what is there: reflected, repeated at the edge, or from the far side.

    real      y = x, and elements of x around it
    integer   q_y = q_x, and the same elements of q_x around it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.forms.movable import padded_with_copies, widths_in_order
from fxquant.forms.onnx import OnnxCall
from fxquant.forms.tflite import TfliteCall
from fxquant.ops.accumulator import adds_nothing
from fxquant.ops.selection import no_numbers, selection_kernel
from fxquant.ops.spec import Call, OpSpec, Output, signature_reader

_MODES = ("reflect", "replicate", "circular")


def pad_copies(input: Tensor, pad: Any, mode: str) -> Tensor:
    """As torch.nn.functional.pad: pairs of widths, the last dimension first."""
    return F.pad(input, pad, mode)


def _like_pad(input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> None: ...


_by_signature = signature_reader(_like_pad)


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    call = _by_signature(args, kwargs)
    if call is None or call.options["mode"] not in _MODES:
        return None
    return Call(call.inputs, {name: call.options[name] for name in ("pad", "mode")})


def _options(mode: str) -> Callable[[Any], dict[str, Any]]:
    return lambda module: {"pad": module.padding, "mode": mode}


def _form(call: OnnxCall | TfliteCall) -> Any:
    x: Any = call.codes[0]
    return padded_with_copies(x, widths_in_order(call.settings["pad"]), call.settings["mode"])


PAD_COPIES = OpSpec(
    name="pad_copies",
    function=pad_copies,
    functions=(F.pad,),
    methods=(),
    modules={
        nn.ReflectionPad1d: _options("reflect"),
        nn.ReflectionPad2d: _options("reflect"),
        nn.ReflectionPad3d: _options("reflect"),
        nn.ReplicationPad1d: _options("replicate"),
        nn.ReplicationPad2d: _options("replicate"),
        nn.ReplicationPad3d: _options("replicate"),
        nn.CircularPad1d: _options("circular"),
        nn.CircularPad2d: _options("circular"),
        nn.CircularPad3d: _options("circular"),
    },
    read=_read,
    output=Output.EXACT,
    range=None,
    homogeneous=False,
    weight_axis=None,
    numbers=no_numbers,
    kernel=selection_kernel(pad_copies),
    accumulator=adds_nothing,
    onnx=_form,
    tflite=_form,
)
