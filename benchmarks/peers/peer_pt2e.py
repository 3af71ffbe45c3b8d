"""torchao PT2E with the quantizer for x86: fake-quants and observers off.

QAT   prepare_qat_pt2e, which rewrites conv + batch norm into the formula that trains with it
PTQ   prepare_pt2e, which folds the batch norm into the conv

Both on what torch.export gives by default, and with strict=True, with which the quantizer takes
layers that are called more than once.
"""

from __future__ import annotations

import compare
import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torch import Tensor, nn
from torch.export import export
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.fake_quantize import disable_fake_quant, disable_observer
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e


def quantizer(is_qat: bool) -> x86.X86InductorQuantizer:
    """The default configuration everywhere."""
    config = x86.get_default_x86_inductor_quantization_config(is_qat=is_qat)
    return x86.X86InductorQuantizer().set_global(config)


def exported(model: nn.Module, x: Tensor, strict: bool) -> torch.fx.GraphModule:
    """The graph that all ways start from."""
    torch._dynamo.reset()
    return export(model, (x,), strict=strict).module()


def qat(strict: bool) -> compare.Way:
    """As the tutorial of quantization aware training has it."""

    def way(model: nn.Module, x: Tensor) -> nn.Module:
        prepared = prepare_qat_pt2e(exported(model.train(), x, strict), quantizer(is_qat=True))
        move_exported_model_to_eval(prepared)
        return prepared.apply(disable_fake_quant).apply(disable_observer)

    return way


def ptq(strict: bool) -> compare.Way:
    """As the tutorial of static quantization has it; observers hand on what they see."""

    def way(model: nn.Module, x: Tensor) -> nn.Module:
        return prepare_pt2e(exported(model, x, strict), quantizer(is_qat=False))

    return way


WAYS = {
    "QAT": qat(strict=False),
    "PTQ": ptq(strict=False),
    "QAT, strict": qat(strict=True),
    "PTQ, strict": ptq(strict=True),
}

if __name__ == "__main__":
    compare.main(WAYS, compare.installed("torch", "torchao"))
