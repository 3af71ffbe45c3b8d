"""AIMET for PyTorch, on the output of its model preparer.

fold            fold_all_batch_norms
fold, quantize  the same and a QuantizationSimModel with every quantizer removed
equalize        equalize_model: folds, equalizes across layers, absorbs high biases
"""

from __future__ import annotations

import compare
from aimet_torch import QuantizationSimModel
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.cross_layer_equalization import equalize_model
from aimet_torch.model_preparer import prepare_model
from aimet_torch.utils import remove_all_quantizers
from torch import Tensor, nn


def fold(model: nn.Module, x: Tensor) -> nn.Module:
    """Folding alone."""
    prepared = prepare_model(model)
    fold_all_batch_norms(prepared, tuple(x.shape), dummy_input=x)
    return prepared


def fold_and_quantize(model: nn.Module, x: Tensor) -> nn.Module:
    """Folding, and the model that simulates quantization, without its quantizers."""
    quantized = QuantizationSimModel(fold(model, x), dummy_input=x).model.eval()
    remove_all_quantizers(quantized)
    return quantized


def equalize(model: nn.Module, x: Tensor) -> nn.Module:
    """The whole of cross-layer equalization."""
    prepared = prepare_model(model)
    equalize_model(prepared, tuple(x.shape), dummy_input=x)
    return prepared


WAYS = {"fold": fold, "fold, quantize": fold_and_quantize, "equalize": equalize}

if __name__ == "__main__":
    compare.main(WAYS, compare.installed("torch", "aimet-torch"))
