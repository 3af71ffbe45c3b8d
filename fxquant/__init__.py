"""Quantization of PyTorch networks by rewriting torch.fx graphs, down to exact integers."""

from fxquant.after_training import correct_bias, reestimate_batch_norm
from fxquant.api import convert, prepare_ptq, prepare_qat
from fxquant.audit import Audit, audit
from fxquant.calibration import calibrate
from fxquant.config import QuantConfig
from fxquant.config_file import load_config, save_config
from fxquant.errors import FxQuantError
from fxquant.explain import explain
from fxquant.export import export_onnx, verify
from fxquant.fake_quant import (
    LSQ,
    PACT,
    TQT,
    TWN,
    DoReFa,
    FakeQuant,
    LSQPlus,
    Stages,
    Stochastic,
    StraightThrough,
)
from fxquant.overrides import Override
from fxquant.presets import preset
from fxquant.saved import load, save
from fxquant.schemes import BINARY, TERNARY, QuantScheme
from fxquant.see.as_float import as_float
from fxquant.see.compare import Comparison, compare
from fxquant.see.facts import to_networkx
from fxquant.see.passes import watch_passes
from fxquant.see.report import report
from fxquant.see.training_log import TrainingLog
from fxquant.see.visualize import visualize
from fxquant.statistics_file import load_statistics, save_statistics

__version__ = "0.1.0.dev0"

__all__ = [
    "BINARY",
    "LSQ",
    "PACT",
    "TERNARY",
    "TQT",
    "TWN",
    "Audit",
    "Comparison",
    "DoReFa",
    "FakeQuant",
    "FxQuantError",
    "LSQPlus",
    "Override",
    "QuantConfig",
    "QuantScheme",
    "Stages",
    "Stochastic",
    "StraightThrough",
    "TrainingLog",
    "as_float",
    "audit",
    "calibrate",
    "compare",
    "convert",
    "correct_bias",
    "explain",
    "export_onnx",
    "load",
    "load_config",
    "load_statistics",
    "prepare_ptq",
    "prepare_qat",
    "preset",
    "reestimate_batch_norm",
    "report",
    "save",
    "save_config",
    "save_statistics",
    "to_networkx",
    "verify",
    "visualize",
    "watch_passes",
]
