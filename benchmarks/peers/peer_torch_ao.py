"""torch.ao.quantization, FX graph mode, x86: fake-quants and observers off.

QAT   prepare_qat_fx, which fuses conv + batch norm + ReLU into modules that train with it
PTQ   prepare_fx, which folds the batch norm into the conv
"""

from __future__ import annotations

import compare
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    disable_fake_quant,
    disable_observer,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.quantize_fx import prepare_fx, prepare_qat_fx

ENGINE = "x86"


def qat(model: nn.Module, x: Tensor) -> nn.Module:
    """As the tutorial of quantization aware training has it."""
    mapping = get_default_qat_qconfig_mapping(ENGINE)
    prepared = prepare_qat_fx(model.train(), mapping, (x,))
    return prepared.apply(disable_fake_quant).apply(disable_observer).eval()


def ptq(model: nn.Module, x: Tensor) -> nn.Module:
    """As the tutorial of static quantization has it; observers hand on what they see."""
    return prepare_fx(model, get_default_qconfig_mapping(ENGINE), (x,))


if __name__ == "__main__":
    torch.backends.quantized.engine = ENGINE
    compare.main({"QAT": qat, "PTQ": ptq}, compare.installed("torch"))
