"""Brevitas, graph mode.

fold            preprocess_for_quantize as it comes: merges batch norms
fold, quantize  the same and quantize, with every quantizer off
equalize        preprocess_for_quantize with cross-layer equalization
flexml          preprocess_for_flexml_quantize with cross-layer equalization
"""

from __future__ import annotations

import compare
from brevitas.graph.calibrate import quantization_status_manager
from brevitas.graph.quantize import preprocess_for_quantize, quantize
from brevitas.graph.target.flexml import preprocess_for_flexml_quantize
from torch import Tensor, nn

ITERATIONS = 20  # as in Brevitas' own examples


def fold(model: nn.Module, x: Tensor) -> nn.Module:
    """Preprocessing alone."""
    return preprocess_for_quantize(model)


def fold_and_quantize(model: nn.Module, x: Tensor) -> nn.Module:
    """Preprocessing and the quantizers that the graph mode puts in, off."""
    quantized = quantize(preprocess_for_quantize(model)).eval()
    off = {f"disable_{what}_quant": True for what in ("act", "weight", "bias")}
    quantization_status_manager(quantized, is_training=False, **off).__enter__()
    return quantized


def equalize(model: nn.Module, x: Tensor) -> nn.Module:
    """Preprocessing with equalization."""
    return preprocess_for_quantize(model, equalize_iters=ITERATIONS)


def flexml(model: nn.Module, x: Tensor) -> nn.Module:
    """Preprocessing for the FlexML target, with equalization."""
    return preprocess_for_flexml_quantize(model, x, equalize_iters=ITERATIONS)


WAYS = {
    "fold": fold,
    "fold, quantize": fold_and_quantize,
    "equalize": equalize,
    "flexml": flexml,
}

if __name__ == "__main__":
    compare.main(WAYS, compare.installed("torch", "brevitas"))
