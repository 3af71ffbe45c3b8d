"""Quantization of PyTorch networks by rewriting torch.fx graphs, down to exact integers."""

from fxquant.after_training import correct_bias, reestimate_batch_norm
from fxquant.api import convert, prepare_ptq, prepare_qat
from fxquant.audit import Audit, audit
from fxquant.calibration import calibrate
from fxquant.config import QuantConfig
from fxquant.draw import to_networkx, visualize
from fxquant.errors import FxQuantError
from fxquant.explain import explain
from fxquant.export import export_onnx, verify
from fxquant.overrides import Override
from fxquant.schemes import QuantScheme
from fxquant.see.as_float import as_float
from fxquant.see.compare import Comparison, compare

__version__ = "0.1.0.dev0"

__all__ = [
    "Audit",
    "Comparison",
    "FxQuantError",
    "Override",
    "QuantConfig",
    "QuantScheme",
    "as_float",
    "audit",
    "calibrate",
    "compare",
    "convert",
    "correct_bias",
    "explain",
    "export_onnx",
    "prepare_ptq",
    "prepare_qat",
    "reestimate_batch_norm",
    "to_networkx",
    "verify",
    "visualize",
]
