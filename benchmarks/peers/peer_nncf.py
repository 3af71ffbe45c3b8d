"""NNCF for PyTorch modules: nncf.quantize without bias correction, then every quantizer off.

NNCF hangs quantizers on the model's own layers and leaves those as they are, so that little could
change the function. Bias correction moves biases by what rounding did, so it is no rewrite
and stays out. Two ways are missing: channel alignment, NNCF's equalization, is made for OpenVINO
models alone, and the graphs that its backend for torch.export gives hold integer weights, whose
rounding cannot be switched off.
"""

from __future__ import annotations

from typing import Any

import compare
import nncf
from nncf.torch.quantization.layers import BaseQuantizer
from torch import Tensor, nn


class Around(nn.Module):
    """A module that holds another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


WITHOUT_CORRECTION = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)


def quantize(model: nn.Module, x: Tensor) -> nn.Module:
    """nncf.quantize on one batch; a bare nn.Sequential it cannot take, hence the module around."""
    quantized = nncf.quantize(
        Around(model), nncf.Dataset([x]), subset_size=1, advanced_parameters=WITHOUT_CORRECTION
    )
    for module in quantized.modules():
        if isinstance(module, BaseQuantizer):
            module.disable_quantization()
    return quantized


if __name__ == "__main__":
    compare.main(
        {"quantize": quantize},
        compare.installed("torch", "nncf"),
        refusals=(nncf.UnsupportedModelError,),
    )
