"""The public names that training does not need: pictures, reports, files and exports.

They are a sixth of what there is to import, and `import fxquant` leaves them out.
"""

from fxquant.config_file import load_config, save_config
from fxquant.export import export_bundle, export_onnx, export_program, export_tflite, verify
from fxquant.layer_costs import Sensitivity, sensitivity
from fxquant.mixed_precision import Chosen, choose_bits
from fxquant.presets import preset
from fxquant.reconstruction import learn_rounding
from fxquant.saved import load, save
from fxquant.see.as_float import as_float
from fxquant.see.compare import compare
from fxquant.see.comparison import Comparison
from fxquant.see.facts import to_networkx
from fxquant.see.passes import watch_passes
from fxquant.see.report import report
from fxquant.see.training_log import TrainingLog
from fxquant.see.visualize import visualize
from fxquant.statistics_file import load_statistics, save_statistics

__all__ = [
    "Chosen",
    "Comparison",
    "Sensitivity",
    "TrainingLog",
    "as_float",
    "choose_bits",
    "compare",
    "export_bundle",
    "export_onnx",
    "export_program",
    "export_tflite",
    "learn_rounding",
    "load",
    "load_config",
    "load_statistics",
    "preset",
    "report",
    "save",
    "save_config",
    "save_statistics",
    "sensitivity",
    "to_networkx",
    "verify",
    "visualize",
    "watch_passes",
]
