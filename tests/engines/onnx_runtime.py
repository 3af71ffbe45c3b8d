"""One ONNX operator as a model of its own, and what onnxruntime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="onnx is in the extra `engines`")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `engines`")

MICROSOFT = "com.microsoft"  # the domain of operators that ONNX itself does not have


def run(
    operator: str, *arguments: NDArray[Any] | NDArray[Any], domain: str = "", **attributes: Any
) -> NDArray[Any]:
    """What `operator` makes of its arguments. All but the first are constants of the model.

    Scales are float32 and zero points integer arrays, as ONNX has them among the arguments.
    """
    names = [f"x{i}" for i in range(len(arguments))]
    first = arguments[0]
    kind = onnx.helper.np_dtype_to_tensor_dtype(first.dtype)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, names, ["y"], domain=domain, **attributes)],
        "one operator",
        [onnx.helper.make_tensor_value_info("x0", kind, first.shape)],
        [onnx.helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(np.asarray(a), n)
         for a, n in zip(arguments[1:], names[1:], strict=True)],
    )
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid(MICROSOFT, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    found: NDArray[Any] = session.run(None, {"x0": first})[0]
    return found
