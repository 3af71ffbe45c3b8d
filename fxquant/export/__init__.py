"""The ways out: what other engines run, equal to the integer network."""

from fxquant.export.onnx import export_onnx
from fxquant.export.verify import Parting, Verification, verify

__all__ = ["Parting", "Verification", "export_onnx", "verify"]
