"""What the benchmarks of ONNX have in common: networks, their integers, and onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchvision.models as models
from torch import Tensor, fx, nn

import fxquant
from fxquant import QuantConfig
from fxquant.darts import DARTS_V2, NetworkCIFAR, SearchNetwork

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "DARTS_V2 C16 L8": (lambda: NetworkCIFAR(16, 10, 8, DARTS_V2), 32),
    "DARTS_V2 C36 L20": (lambda: NetworkCIFAR(36, 10, 20, DARTS_V2), 32),
    "DARTS search C8 L4": (lambda: SearchNetwork(8, 10, 4), 32),
    "resnet18": (lambda: models.resnet18(), 64),
    "mobilenet_v2": (lambda: models.mobilenet_v2(), 64),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(), 64),
    "shufflenet_v2_x1_0": (lambda: models.shufflenet_v2_x1_0(), 64),
    "efficientnet_b0": (lambda: models.efficientnet_b0(), 64),
    "densenet121": (lambda: models.densenet121(), 64),
    "vit_b_16": (lambda: models.vit_b_16(image_size=32), 32),
}
"""How each is made, and the height and width of its smallest sensible pictures."""


def integers(model: nn.Module, size: int, rounding: Any) -> fx.GraphModule:
    """The network in integers, its ranges from random pictures."""
    config = QuantConfig(rounding=rounding, batch_norm="fold")
    prepared = fxquant.prepare_qat(model, torch.randn(2, 3, size, size), config)
    with torch.no_grad():
        for _ in range(2):
            prepared(torch.randn(8, 3, size, size))
    return fxquant.convert(prepared)


def session(path: Path) -> Callable[[Tensor], Tensor]:
    """The file in onnxruntime on one core, as it comes: what it makes of its only input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    found = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = found.get_inputs()[0].name
    return lambda x: torch.from_numpy(found.run(None, {name: x.numpy()})[0])
