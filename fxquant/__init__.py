"""Quantization of PyTorch networks by rewriting torch.fx graphs, down to exact integers."""

from typing import TYPE_CHECKING, Any

from fxquant.after_training import correct_bias, reestimate_batch_norm
from fxquant.api import convert, prepare_ptq, prepare_qat, use_kernels
from fxquant.audit import Audit, audit
from fxquant.calibration import calibrate
from fxquant.config import QuantConfig
from fxquant.decay import parameter_groups
from fxquant.errors import FxQuantError
from fxquant.explain import explain
from fxquant.fake_quant import (
    INQ,
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
from fxquant.incremental import fix_weights
from fxquant.overrides import Override
from fxquant.phases import PhaseSchedule, set_phase
from fxquant.schemes import BINARY, TERNARY, QuantScheme
from fxquant.sites.phase import Phase

if TYPE_CHECKING:
    from fxquant.at_first_use import (
        Chosen,
        Comparison,
        Sensitivity,
        TrainingLog,
        as_float,
        choose_bits,
        compare,
        export_bundle,
        export_onnx,
        export_program,
        export_tflite,
        learn_rounding,
        load,
        load_config,
        load_statistics,
        preset,
        report,
        save,
        save_config,
        save_statistics,
        sensitivity,
        to_networkx,
        verify,
        visualize,
        watch_passes,
    )

__version__ = "0.1.0.dev0"

__all__ = [
    "BINARY",
    "INQ",
    "LSQ",
    "PACT",
    "TERNARY",
    "TQT",
    "TWN",
    "Audit",
    "Chosen",
    "Comparison",
    "DoReFa",
    "FakeQuant",
    "FxQuantError",
    "LSQPlus",
    "Override",
    "Phase",
    "PhaseSchedule",
    "QuantConfig",
    "QuantScheme",
    "Sensitivity",
    "Stages",
    "Stochastic",
    "StraightThrough",
    "TrainingLog",
    "as_float",
    "audit",
    "calibrate",
    "choose_bits",
    "compare",
    "convert",
    "correct_bias",
    "explain",
    "export_bundle",
    "export_onnx",
    "export_program",
    "export_tflite",
    "fix_weights",
    "learn_rounding",
    "load",
    "load_config",
    "load_statistics",
    "parameter_groups",
    "prepare_ptq",
    "prepare_qat",
    "preset",
    "reestimate_batch_norm",
    "report",
    "save",
    "save_config",
    "save_statistics",
    "sensitivity",
    "set_phase",
    "to_networkx",
    "use_kernels",
    "verify",
    "visualize",
    "watch_passes",
]


def __getattr__(name: str) -> Any:
    """What training does not need is imported where it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fxquant import at_first_use

    return getattr(at_first_use, name)
